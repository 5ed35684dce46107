//! Images on a z/OS node: who lets them in, and what must not get lost of them.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
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

/// A store as containers/storage keeps it, with the driver's name of z/OS, holding what the node's own store has of an
/// image. Gives the id.
fn keep_for_all(node: &TestNode, store: &Path, name: &str) -> Result<String> {
    let record = std::fs::read_dir(node.image_root().join("records"))?
        .next()
        .context("no image")??;
    let record: Value = serde_json::from_slice(&std::fs::read(record.path())?)?;
    let content = &record["content"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (id, config) = (text(&content["id"]), text(&content["config"]));
    let hex = id.strip_prefix("sha256:").context("a digest")?.to_owned();
    let (mut layers, mut parent) = (Vec::new(), String::new());
    for (number, layer) in content["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let (diff_id, own) = (text(&layer["diff_id"]), format!("{number}{hex}"));
        let from = node.image_root().join("layers").join(&diff_id[7..]);
        let to = store.join("ufs").join(&own);
        std::fs::create_dir_all(&to)?;
        let copied = Command::new("cp")
            .arg("-a")
            .arg(from.join("diff"))
            .arg(&to)
            .status()?;
        ensure!(copied.success(), "cp");
        layers.push(
            json!({ "id": own, "parent": parent, "diff-digest": diff_id, "diff-size": 4096 }),
        );
        parent = own;
    }
    let dir = store.join("ufs-images").join(&hex);
    std::fs::create_dir_all(&dir)?;
    std::fs::create_dir_all(store.join("ufs-layers"))?;
    let key = base64::engine::general_purpose::STANDARD.encode(&id);
    std::fs::write(dir.join(format!("={key}")), config)?;
    std::fs::write(
        store.join("ufs-layers/layers.json"),
        json!(layers).to_string(),
    )?;
    let images = json!([
        { "id": hex, "digest": text(&content["manifest_digest"]), "names": [name], "layer": parent },
        { "id": "0".repeat(64), "layer": "gone" },
    ]);
    std::fs::write(store.join("ufs-images/images.json"), images.to_string())?;
    Ok(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_an_additional_store_are_used_where_they_are() -> Test {
    let mut node = TestNode::start_zos().await?;
    let pulled = node.busybox().await?;
    let store = node.scratch("share")?;
    let shared = "icr.io/zoscp/tools:latest";
    let id = keep_for_all(&node, &store, shared)?;
    node.cri().remove_image(&pulled).await?;
    ensure!(node.cri().image_status(shared).await?.is_none());
    let path = store.display().to_string();
    node.add_config(&format!("[image]\nadditional_stores = [{path:?}]"))?;
    node.stop_daemon().await?;
    // One of its entries leads nowhere.
    node.allow_log("an image of an additional store cannot be used");
    node.start_daemon().await?;
    let before = images::tree(&store)?;

    let image = node.cri().image_status(shared).await?.context("no image")?;
    ensure!(image.id == id && image.pinned, "{image:?}");
    ensure!(image.repo_tags == [shared], "{image:?}");
    let listed = node.cri().list_images().await?;
    ensure!(listed.len() == 1 && listed[0].id == id, "{listed:?}");
    let used = node.cri().image_fs().await?;
    let used = used
        .first()
        .and_then(|fs| fs.used_bytes)
        .unwrap_or_default();
    ensure!(used.value == 0, "another's files are counted: {used:?}");
    let container = {
        let pod = node.run_pod(node.host_pod_config("p")?).await?;
        pod.start(&zcri_integration::pod::container_config("c", shared))
            .await?
    };
    let output = node
        .exec(&container, "echo $IMAGE; echo changed > /etc/passwd")
        .await?;
    ensure!(output.success()? == "zos", "{output:?}");
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let output = node.exec(&container, "cat /etc/passwd").await?;
    ensure!(output.success()? == "changed", "{output:?}");
    let status = node
        .cri()
        .remove_image(shared)
        .await
        .err()
        .context("it was removed")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    node.remove_pods().await?;
    ensure!(images::tree(&store)? == before, "the store was changed");
    // What its owner removes is gone at once.
    std::fs::write(store.join("ufs-images/images.json"), "[]")?;
    ensure!(node.cri().list_images().await?.is_empty());
    node.finish().await
}
