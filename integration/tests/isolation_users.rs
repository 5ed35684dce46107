//! User namespaces of pods: ids inside and on the node, volumes, images, namespaces, refusals.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::{pod_security, security};
use zcri_integration::v1::{
    IdMapping, ImageSpec, Int64Value, Mount, NamespaceMode, PodSandboxConfig, UserNamespace,
};
use zcri_integration::{Test, TestNode, binaries, images};
use zcri_test_registry::{Compression, Image, LayerBuilder};

const FIRST: u32 = 400_000;
const LENGTH: u32 = 65_536;

fn map(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping {
        container_id: 0,
        host_id,
        length: LENGTH,
    }]
}

fn users() -> Option<UserNamespace> {
    Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: map(FIRST),
        gids: map(FIRST),
    })
}

/// A pod with a user namespace; `pid` is the mode of its PID namespace.
fn pod_config(node: &TestNode, name: &str, pid: NamespaceMode) -> Result<PodSandboxConfig> {
    let mut config = node.pod_config(name)?;
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.userns_options = users();
    options.pid = pid.into();
    Ok(config)
}

fn mapped(host: &std::path::Path, inside: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        uid_mappings: map(FIRST),
        gid_mappings: map(FIRST),
        ..Default::default()
    }
}

/// A node whose default runtime, and another that is newer where there is one, are to be tried.
async fn node() -> Result<(TestNode, Vec<&'static str>)> {
    let mut builder = TestNode::builder();
    let mut handlers = vec!["runc"];
    if let Some(path) = binaries::newer_runc() {
        builder = builder.config(&format!(
            "[runtime.handlers.newer]\npath = {:?}",
            path.display().to_string()
        ));
        handlers.push("newer");
    }
    Ok((builder.start().await?, handlers))
}

#[tokio::test]
async fn root_in_the_container_is_nobody_special_on_the_node() -> Test {
    let (node, handlers) = node().await?;
    for handler in handlers {
        let config = pod_config(&node, &format!("p-{handler}"), NamespaceMode::Container)?;
        let pod = node.run_pod_with(config, handler).await?;
        let sleeper = pod.sleeper("c").await?;
        let script = "id -u; tr -s ' ' < /proc/self/uid_map; stat -c '%u:%g' /etc/passwd /home/worker / /etc/resolv.conf \
                      /etc/hostname /dev/shm; touch /new && echo x > /etc/passwd && hostname; mount -t tmpfs none /tmp 2>&1; \
                      test -w /dev/shm && echo shm; echo to-stderr > /dev/stderr";
        let output = node.exec(&sleeper, script).await?;
        let text = output.success()?.to_owned();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0..2], ["0", "0 400000 65536"], "{text}");
        assert_eq!(
            lines[2..8],
            ["0:0", "1000:1000", "0:0", "0:0", "0:0", "0:0"],
            "{text}"
        );
        assert!(
            text.contains(&format!("p-{handler}")) && text.ends_with("shm"),
            "{text}"
        );
        let pid = pid_of(&node, &sleeper).await?;
        assert_eq!(std::fs::metadata(format!("/proc/{pid}"))?.uid(), FIRST);
        // What it writes belongs to it on the node too, and its network is the pod's user namespace's.
        let upper = node
            .files()
            .root
            .join("overlay")
            .join(&sleeper)
            .join("upper");
        assert_eq!(std::fs::metadata(upper.join("new"))?.uid(), FIRST);
        let log = pod
            .sh("echo out > /dev/stdout; echo err > /dev/stderr; id -u")
            .await?;
        assert_eq!(log.success()?, "out\n0");
        let net = pod
            .sh_with(
                "ip link set lo down && ip link set lo up && echo mine",
                |c| {
                    security(c).capabilities = Some(zcri_integration::v1::Capability {
                        add_capabilities: vec!["NET_ADMIN".into()],
                        ..Default::default()
                    });
                },
            )
            .await?;
        assert_eq!(net.success()?, "mine");
        let told = node.cri().pod_status(&pod.id).await?;
        let options = told
            .linux
            .and_then(|l| l.namespaces)
            .and_then(|n| n.options);
        assert_eq!(options.and_then(|options| options.userns_options), users());
    }
    node.finish().await
}

async fn pid_of(node: &TestNode, id: &str) -> Result<u64> {
    let request = zcri_integration::v1::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let answer = node.cri().runtime().container_status(request).await?;
    let info = answer.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    info["pid"].as_u64().context("no pid")
}

#[tokio::test]
async fn volumes_and_images_show_the_owners_that_they_have() -> Test {
    let (node, handlers) = node().await?;
    let dir = node.scratch("volume")?;
    std::fs::write(dir.join("of-root"), "x")?;
    std::fs::write(dir.join("of-user"), "x")?;
    std::os::unix::fs::chown(dir.join("of-user"), Some(1000), Some(2000))?;
    let layer = LayerBuilder::new()
        .file("of-root", 0o600, "secret")
        .owner(7, 8)
        .file("of-7", 0o644, "x")
        .build(Compression::Gzip);
    let image = Image::builder(&images::host_platform())
        .layer(layer)
        .build();
    node.registry.push("library/files", "1", image);
    let reference = node.registry.reference("library/files", "1");
    node.cri().pull(&reference).await?;
    for handler in handlers {
        let config = pod_config(&node, &format!("v-{handler}"), NamespaceMode::Container)?;
        let pod = node.run_pod_with(config, handler).await?;
        let script = "stat -c '%u:%g' /v/of-root /v/of-user /f /i/of-root /i/of-7 /unmapped/of-root; cat /i/of-root; echo; \
                      touch /v/new && echo written";
        let output = pod
            .sh_with(script, |c| {
                c.mounts = vec![
                    mapped(&dir, "/v"),
                    mapped(&dir.join("of-user"), "/f"),
                    Mount {
                        container_path: "/i".into(),
                        readonly: true,
                        image: Some(ImageSpec {
                            image: reference.clone(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    },
                    Mount {
                        uid_mappings: Vec::new(),
                        gid_mappings: Vec::new(),
                        ..mapped(&dir, "/unmapped")
                    },
                ];
            })
            .await?;
        assert_eq!(
            output.success()?,
            "0:0\n1000:2000\n1000:2000\n0:0\n7:8\n65534:65534\nsecret\nwritten"
        );
        assert_eq!(std::fs::metadata(dir.join("new"))?.uid(), 0);
        std::fs::remove_file(dir.join("new"))?;
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(
        !table.contains("idmapped"),
        "nothing is left on the node: {table}"
    );
    node.finish().await
}

/// The PID namespace belongs to the pod's user namespace too: without that, no container could mount `/proc`.
#[tokio::test]
async fn a_shared_pid_namespace_belongs_to_the_pods_users() -> Test {
    let (node, handlers) = node().await?;
    for handler in handlers {
        let config = pod_config(&node, &format!("s-{handler}"), NamespaceMode::Pod)?;
        let pod = node.run_pod_with(config, handler).await?;
        let shared = |c: &mut zcri_integration::v1::ContainerConfig| {
            let options = security(c).namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Pod.into();
            options.userns_options = users();
        };
        let mut config = node.container_config("sleeper").await?;
        shared(&mut config);
        let sleeper = pod.start(&config).await?;
        let script =
            "stat -c %u /proc/1; ps | grep -c '[s]leep'; kill -9 1; readlink /proc/self/ns/user";
        let output = pod.sh_with(script, shared).await?;
        let text = output.success()?;
        assert!(text.starts_with("0\n1\nuser:"), "{text}");
        let pid = pid_of(&node, &sleeper).await?;
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user"));
        assert_eq!(
            of(&pid.to_string())?.display().to_string(),
            text.lines().last().unwrap_or_default()
        );
        assert_ne!(of(&pid.to_string())?, of("self")?);
    }
    node.finish().await
}

/// It is found again, and ends with its pod.
#[tokio::test]
async fn a_pod_with_users_survives_the_daemon() -> Test {
    let (mut node, _) = node().await?;
    let config = pod_config(&node, "p", NamespaceMode::Pod)?;
    let pod = node.run_pod(config).await?;
    let sleeper = pod.sleeper("c").await?;
    let (id, config) = (pod.id.clone(), pod.config.clone());
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(node.exec(&sleeper, "id -u").await?.success()?, "0");
    let again = node.container_config("again").await?;
    let again = node.cri().create(&id, &again, &config).await?;
    node.cri().start(&again).await?;
    assert_eq!(
        node.exec(&again, "stat -c %u /bin/busybox")
            .await?
            .success()?,
        "0"
    );
    node.finish().await
}

#[tokio::test]
async fn users_on_the_network_of_the_node() -> Test {
    let (node, handlers) = node().await?;
    for handler in handlers {
        let mut config = pod_config(&node, &format!("h-{handler}"), NamespaceMode::Container)?;
        config.hostname.clear();
        let options = pod_security(&mut config)
            .namespace_options
            .get_or_insert_default();
        options.network = NamespaceMode::Node.into();
        let pod = node.run_pod_with(config, handler).await?;
        let output = pod
            .sh_with(
                "readlink /proc/self/ns/net; id -u; ls /sys/class/net | grep -c lo",
                |c| {
                    let options = security(c).namespace_options.get_or_insert_default();
                    options.network = NamespaceMode::Node.into();
                },
            )
            .await?;
        let own = std::fs::read_link("/proc/self/ns/net")?;
        assert_eq!(output.success()?, format!("{}\n0\n1", own.display()));
    }
    node.finish().await
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_field() -> Test {
    // This runtime has no `features` command, and so says nothing of user namespaces.
    let node = TestNode::builder()
        .config("[runtime.handlers.silent]\npath = \"/bin/false\"")
        .allow_log("a runtime handler cannot be used")
        .start()
        .await?;
    let options = "config.linux.security_context.namespace_options";
    let refuse = async |config: &PodSandboxConfig, handler: &str, words: &[&str]| -> Result<()> {
        let answer = node.cri().run_pod_with(config, handler).await;
        let status = answer.err().context("the pod was made")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        for word in words {
            ensure!(status.message().contains(word), "{word} in {status:?}");
        }
        ensure!(node.cri().list_pods(Default::default()).await?.is_empty());
        Ok(())
    };
    let field = format!("{options}.userns_options");
    let config = pod_config(&node, "p", NamespaceMode::Container)?;
    refuse(&config, "silent", &[&field, "\"silent\""]).await?;
    let config = pod_config(&node, "p", NamespaceMode::Node)?;
    refuse(&config, "", &[&field, ".pid is NODE"]).await?;
    let mut config = pod_config(&node, "p", NamespaceMode::Container)?;
    let given = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    given.ipc = NamespaceMode::Node.into();
    refuse(&config, "", &[&field, ".ipc is NODE"]).await?;

    let pod = node
        .run_pod(pod_config(&node, "p", NamespaceMode::Container)?)
        .await?;
    let refuse = async |change: &dyn Fn(&mut zcri_integration::v1::ContainerConfig),
                        words: &str|
           -> Result<()> {
        let mut config = node.container_config("c").await?;
        change(&mut config);
        let answer = node.cri().create(&pod.id, &config, &pod.config).await;
        let status = answer.err().context("the container was made")?;
        ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        ensure!(status.message().contains(words), "{words} in {status:?}");
        ensure!(
            node.cri()
                .list_containers(Default::default())
                .await?
                .is_empty()
        );
        Ok(())
    };
    refuse(
        &|c| security(c).run_as_user = Some(Int64Value { value: 70_000 }),
        "config.linux.security_context.run_as_user",
    )
    .await?;
    refuse(
        &|c| security(c).supplemental_groups = vec![70_000],
        "supplemental_groups",
    )
    .await?;
    let other = |c: &mut zcri_integration::v1::ContainerConfig| {
        let given = security(c).namespace_options.get_or_insert_default();
        given.userns_options = Some(UserNamespace {
            uids: map(FIRST + LENGTH),
            ..users().unwrap_or_default()
        });
    };
    refuse(&other, &field).await?;
    // The owners of what is in /proc cannot be mapped.
    refuse(
        &|c| c.mounts = vec![mapped(std::path::Path::new("/proc/sys"), "/v")],
        "config.mounts.uidMappings",
    )
    .await?;
    node.finish().await
}

#[tokio::test]
async fn status_reports_what_the_runtime_says() -> Test {
    let node = TestNode::builder()
        .config("[runtime.handlers.silent]\npath = \"/bin/false\"")
        .allow_log("a runtime handler cannot be used")
        .start()
        .await?;
    let status = node.cri().node_status().await?;
    let of = |name: &str| {
        let handler = status.runtime_handlers.iter().find(|h| h.name == name);
        handler.and_then(|h| h.features)
    };
    for works in ["", "runc"] {
        let features = of(works).context("no features")?;
        assert!(
            features.user_namespaces && features.recursive_read_only_mounts,
            "{works}"
        );
    }
    let features = of("silent").context("no features")?;
    assert!(!features.user_namespaces && !features.recursive_read_only_mounts);
    node.finish().await
}
