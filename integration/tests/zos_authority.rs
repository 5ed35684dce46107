//! Missing authority: each privileged call that the system refuses names the SAF profile to grant. Linux refuses by
//! capabilities here what SAF would refuse on z/OS.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tonic::{Code, Status};
use zcri_integration::lpar::{Lpar, Service, Sysplex, namespaces};
use zcri_integration::pod::{security, words};
use zcri_integration::registry::{Compression, Image, LayerBuilder};
use zcri_integration::v1::{Int64Value, NamespaceMode, PodSandboxConfig};
use zcri_integration::zos_runc::Deny;
use zcri_integration::{Builder, Test, TestNode};

fn lacking(capability: &str) -> Builder {
    let builder = TestNode::builder().zos(Service::default());
    builder
        .without(capability)
        .allow_log("failed")
        .allow_log("could not be")
}

/// A pod that needs no namespace.
fn bare(node: &TestNode) -> Result<PodSandboxConfig> {
    let mut config = node.host_pod_config("bare")?;
    let options = namespaces(&mut config);
    options.ipc = NamespaceMode::Node.into();
    options.pid = NamespaceMode::Node.into();
    Ok(config)
}

fn names(status: Option<Status>, profile: &str) -> Result<()> {
    let status = status.context("nothing was refused")?;
    ensure!(status.code() == Code::Internal, "{status:?}");
    let text = status.message();
    ensure!(text.contains("not authorized; grant"), "{text}");
    ensure!(text.contains(profile), "{profile}: {text}");
    // The cause is told too.
    let cause = ["not permitted", "denied", "EDC5139I"];
    ensure!(cause.iter().any(|word| text.contains(word)), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn making_namespaces_and_mounting() -> Test {
    let node = lacking("sys_admin").start().await?;
    let config = node.host_pod_config("own")?;
    let refused = node.cri().run_pod(&config).await.err();
    names(refused, "READ to CONTAINERS in class UNIXPRIV")?;
    let config = bare(&node)?;
    let id = node.cri().run_pod(&config).await?;
    let container = node.container_config("c").await?;
    let refused = node.cri().create(&id, &container, &config).await.err();
    names(refused, "SUPERUSER.FILESYS.MOUNT")?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_namespaces() -> Test {
    let service = Service {
        deny: vec![Deny::Setns],
        ..Service::default()
    };
    let node = TestNode::builder().zos(service).start().await?;
    node.allow_log("ExecSync");
    let pod = node.run_pod(node.host_pod_config("p")?).await?;
    let id = pod.sleeper("c").await?;
    let refused = node.cri().exec(&id, ["true"], 10).await.err();
    names(refused, "READ to CONTAINERS in class UNIXPRIV")?;
    drop(pod);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_other_owners() -> Test {
    let node = lacking("chown").start().await?;
    let refused = pull(&node, |layer| layer.owner(1000, 1000)).await?;
    names(refused, "SUPERUSER.FILESYS.CHOWN")?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes() -> Test {
    let node = lacking("setfcap").start().await?;
    // VFS_CAP_REVISION_2 with one bit: what the kernel lets nobody else set.
    let mut value = [0; 20];
    value[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    let refused = pull(&node, |layer| layer.xattr("security.capability", value)).await?;
    names(refused, "BPX.FILEATTR.APF")?;
    node.finish().await
}

/// Pulls an image with one file that is changed in this way.
async fn pull(
    node: &TestNode,
    change: impl FnOnce(LayerBuilder) -> LayerBuilder,
) -> Result<Option<Status>> {
    let layer = change(LayerBuilder::new()).file("f", 0o644, "x");
    let image = Image::builder("zos/s390x").layer(layer.build(Compression::Gzip));
    node.registry.push("a", "1", image.build());
    let name = node.registry.reference("a", "1");
    Ok(node.cri().pull(&name).await.err())
}

#[tokio::test(flavor = "multi_thread")]
async fn becoming_another_user() -> Test {
    let node = lacking("setuid").start().await?;
    let pod = node.run_pod(node.host_pod_config("p")?).await?;
    let mut config = node.container_config("c").await?;
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    config.command = words(["/bin/sh", "-c", "id -u"]);
    let id = pod.create(&config).await?;
    names(node.cri().start(&id).await.err(), "BPX.DAEMON")?;
    drop(pod);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn defining_a_vipa() -> Test {
    let plex = Sysplex::new()?;
    let lpar: Lpar = plex.lpar()?;
    let range = lpar.range();
    let mut node = lacking("net_admin").lpar(lpar).prepare().await?;
    node.use_stack(json!({ "vipaRanges": [range] }))?;
    node.start_daemon().await?;
    let config = node.pod_config("p")?;
    names(node.cri().run_pod(&config).await.err(), "EZB.MODDVIPA")?;
    node.finish().await
}
