//! What a z/OS node refuses, and the words that it has for it.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tonic::{Code, Status};
use zcri_integration::lpar::Service;
use zcri_integration::pod::{pod_security, security};
use zcri_integration::registry::{Compression, Image, Index};
use zcri_integration::v1::security_profile::ProfileType;
use zcri_integration::v1::{
    ContainerConfig, Device, IdMapping, NamespaceMode, SeLinuxOption, SecurityProfile,
    UserNamespace,
};
use zcri_integration::zos_runc::Deny;
use zcri_integration::{Pod, Test, TestNode, images};

fn local(path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: path.to_owned(),
    })
}

fn user_namespace() -> Option<UserNamespace> {
    let all = IdMapping {
        container_id: 0,
        host_id: 100_000,
        length: 65_536,
    };
    Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![all],
        gids: vec![all],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_protect_a_container_is_refused_by_the_fields_name() -> Test {
    let node = TestNode::start_zos().await?;
    node.allow_log("CreateContainer");
    node.allow_log("RunPodSandbox");
    let pod = node.run_pod(node.host_pod_config("p")?).await?;
    type Change = fn(&mut ContainerConfig);
    let changes: [(&str, Change); 5] = [
        ("security_context.seccomp", |c| {
            security(c).seccomp = local("/etc/profile.json");
        }),
        ("security_context.apparmor", |c| {
            security(c).apparmor = local("docker-default");
        }),
        ("security_context.selinux_options", |c| {
            security(c).selinux_options = Some(SeLinuxOption {
                r#type: "container_t".into(),
                ..Default::default()
            });
        }),
        ("namespace_options.userns_options", |c| {
            let options = security(c).namespace_options.get_or_insert_default();
            options.userns_options = user_namespace();
        }),
        ("config.devices", |c| {
            c.devices.push(Device {
                container_path: "/dev/null".into(),
                host_path: "/dev/null".into(),
                permissions: "r".into(),
            });
        }),
    ];
    for (field, change) in changes {
        let status = refused(&node, &pod, change).await?;
        ensure!(status.message().contains(field), "{field}: {status:?}");
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    }
    let mut config = node.host_pod_config("user")?;
    let options = pod_security(&mut config).namespace_options.as_mut();
    options.context("options")?.userns_options = user_namespace();
    let status = node.cri().run_pod(&config).await.err().context("it ran")?;
    ensure!(status.message().contains("userns_options"), "{status:?}");
    node.finish().await
}

/// The answer to a container that is changed in this way.
async fn refused(
    node: &TestNode,
    pod: &Pod<'_>,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<Status> {
    let mut config = node.container_config("c").await?;
    change(&mut config);
    let answer = node.cri().create(&pod.id, &config, &pod.config).await;
    answer.err().context("it was created")
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_that_every_kubelet_names_are_taken() -> Test {
    let node = TestNode::start_zos().await?;
    let pod = node.run_pod(node.host_pod_config("p")?).await?;
    for kind in [ProfileType::RuntimeDefault, ProfileType::Unconfined] {
        let profile = SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: String::new(),
        };
        let output = pod
            .sh_with("echo runs", |config| {
                security(config).seccomp = Some(profile.clone());
                security(config).apparmor = Some(profile);
            })
            .await?;
        ensure!(output.success()? == "runs");
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_another_platform_is_refused_with_both_named() -> Test {
    let node = TestNode::start_zos().await?;
    node.allow_log("PullImage");
    let layer = images::small_layer("f", "x", Compression::Gzip);
    let image = |platform: &str| Image::builder(platform).layer(layer.clone()).build();
    let names = [
        node.registry.push("amd64", "1", image("linux/amd64")),
        node.registry.push(
            "index",
            "1",
            Index::oci([image("linux/amd64"), image("linux/s390x")]),
        ),
    ];
    ensure!(names.len() == 2);
    for repository in ["amd64", "index"] {
        let name = node.registry.reference(repository, "1");
        let status = node
            .cri()
            .pull(&name)
            .await
            .err()
            .context("it was pulled")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        for platform in ["linux/amd64", "zos/s390x"] {
            ensure!(status.message().contains(platform), "{status:?}");
        }
    }
    // An index may mix media types: a Docker list with OCI manifests is what the field has.
    node.registry.push(
        "mixed",
        "1",
        Index::docker([image("linux/amd64"), image("zos/s390x")]),
    );
    let name = node.registry.reference("mixed", "1");
    node.cri().pull(&name).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_authority_is_told_with_the_profile_to_grant() -> Test {
    let service = Service {
        deny: vec![Deny::Clone],
        ..Service::default()
    };
    let node = TestNode::builder().zos(service).start().await?;
    node.allow_log("StartContainer");
    let pod = node.run_pod(node.host_pod_config("p")?).await?;
    let config = node.container_config("c").await?;
    let id = pod.create(&config).await?;
    let status = node.cri().start(&id).await.err().context("it started")?;
    let text = status.message();
    ensure!(
        text.contains("READ to CONTAINERS in class UNIXPRIV"),
        "{text}"
    );
    ensure!(text.contains("EDC5139I"), "the cause is told too: {text}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_without_support_for_zos_is_refused() -> Test {
    let node = TestNode::start_zos().await?;
    node.allow_log("RunPodSandbox");
    let config = node.host_pod_config("p")?;
    let status = node.cri().run_pod_with(&config, "runc").await.err();
    let status = status.context("runc took it")?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    for word in ["runtime_handler", "\"runc\"", "1.2.1"] {
        ensure!(status.message().contains(word), "{word}: {status:?}");
    }
    node.finish().await
}
