//! Images on a z/OS node: who lets them in, and what must not get lost of them.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tonic::{Code, Status};
use zcri_integration::registry::{Compression, Image, LayerBuilder};
use zcri_integration::{Test, TestNode, images};

/// Pushes a small image and gives its name.
fn push(node: &TestNode, repository: &str) -> String {
    let layer = images::small_layer("f", repository, Compression::Gzip);
    let image = Image::builder("zos/s390x").layer(layer).build();
    node.registry.push(repository, "1", image);
    node.registry.reference(repository, "1")
}

async fn refused(node: &TestNode, name: &str) -> Result<Status> {
    let status = node.cri().pull(name).await.err();
    let status = status.with_context(|| format!("{name} was let in"))?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    Ok(status)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_every_image_is_rejected_until_a_scope_is_opened() -> Test {
    let node = TestNode::start_zos().await?;
    let policy = node.files().dir.join("etc/policy.json");
    std::fs::remove_file(&policy)?;
    let (open, closed) = (push(&node, "zoscp/zos"), push(&node, "other/zos"));
    let status = refused(&node, &open).await?;
    for word in ["policy.json", "rejects", &open] {
        ensure!(status.message().contains(word), "{word}: {status:?}");
    }
    ensure!(
        node.registry.request_log().is_empty(),
        "the registry was asked for an image that is not let in"
    );
    let scope = open.rsplit_once('/').context("a namespace")?.0;
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{scope}":[{{"type":"insecureAcceptAnything"}}]}}}}}}"#
    );
    std::fs::write(&policy, text)?;
    node.cri().pull(&open).await?;
    refused(&node, &closed).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_refuses_images_and_nothing_else() -> Test {
    let mut node = TestNode::start_zos().await?;
    let id = {
        let pod = node.run_pod(node.host_pod_config("before")?).await?;
        pod.sleeper("c").await?
    };
    let policy = node.files().dir.join("etc/policy.json");
    let good = std::fs::read(&policy)?;
    let name = push(&node, "late");
    std::fs::write(&policy, "{\"default\":")?;
    let status = refused(&node, &name).await?;
    ensure!(status.message().contains("is no policy"), "{status:?}");
    std::fs::remove_file(&policy)?;
    std::fs::create_dir(&policy)?;
    let status = refused(&node, &name).await?;
    ensure!(status.message().contains("read "), "{status:?}");
    ensure!(status.message().contains("policy.json"), "{status:?}");
    // What is here stays, and a restart does not need the file.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(node.exec(&id, "echo here").await?.success()? == "here");
    let pod = node.run_pod(node.host_pod_config("after")?).await?;
    pod.sleeper("c").await?;
    drop(pod);
    std::fs::remove_dir(&policy)?;
    std::fs::write(&policy, good)?;
    node.cri().pull(&name).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_nobody_checks_is_no_signature() -> Test {
    let node = TestNode::start_zos().await?;
    let name = push(&node, "signed");
    for kind in ["signedBy", "sigstoreSigned"] {
        let text = format!(r#"{{"default":[{{"type":"{kind}","keyPath":"/k"}}]}}"#);
        std::fs::write(node.files().dir.join("etc/policy.json"), text)?;
        let status = refused(&node, &name).await?;
        ensure!(status.message().contains(kind), "{status:?}");
    }
    node.finish().await
}

/// An attribute that this system cannot keep must not get lost in silence: on z/OS it is the code page of a file, or
/// its APF authorization.
#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_kept_or_refused() -> Test {
    let node = TestNode::start_zos().await?;
    let layer = LayerBuilder::new()
        .xattr("user.zos.note", *b"\x04\x17\x80\x00")
        .file("tagged", 0o644, "x");
    let image = Image::builder("zos/s390x").layer(layer.build(Compression::Gzip));
    node.registry.push("kept", "1", image.build());
    let name = node.registry.reference("kept", "1");
    node.cri().pull(&name).await?;
    let layers = node.image_root().join("layers");
    let mut kept = Vec::new();
    for layer in std::fs::read_dir(layers)? {
        let mut value = [0; 8];
        let path = layer?.path().join("diff/tagged");
        if let Ok(length) = rustix::fs::getxattr(path, "user.zos.note", &mut value) {
            kept.push(value[..length].to_vec());
        }
    }
    ensure!(kept == [b"\x04\x17\x80\x00"], "{kept:?}");

    node.allow_log("PullImage");
    let layer = LayerBuilder::new()
        .xattr("system.filetag", *b"\x04\x17\x80\x00")
        .file("bin/tagged", 0o755, "x");
    let image = Image::builder("zos/s390x").layer(layer.build(Compression::Gzip));
    node.registry.push("lost", "1", image.build());
    let name = node.registry.reference("lost", "1");
    let status = node.cri().pull(&name).await.err().context("it was lost")?;
    for word in ["system.filetag", "bin/tagged"] {
        ensure!(status.message().contains(word), "{word}: {status:?}");
    }
    ensure!(node.cri().image_status(&name).await?.is_none());
    node.finish().await
}
