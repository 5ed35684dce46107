//! Pulls at the same time, and what they share.

use std::sync::Arc;

use tokio::sync::watch;
use zcri_image::{Image as Pulled, ImageError, Progress};
use zcri_test_registry::{Fault, Image};

use crate::fixture::{Node, basic, layer, names, noise, wait_until};

type Waiting = tokio::task::JoinHandle<Result<Arc<Pulled>, ImageError>>;

fn start(node: &Node, name: &str) -> Waiting {
    let (store, request) = (node.store.clone(), node.request(name));
    tokio::spawn(async move { store.pull(request).await })
}

/// A pull that has begun to unpack, slowly.
async fn slow_node() -> Node {
    let node = Node::new().await;
    let image = Image::builder("linux/amd64")
        .layer(layer("a", "1"))
        .layer(noise("b", 4 << 20));
    node.registry.push("x", "latest", image.build());
    node.registry.set_fault(
        "x",
        Fault::SlowBlobs {
            bytes_per_second: 2 << 20,
        },
    );
    node
}

async fn until_unpacking(node: &Node) {
    wait_until("a layer to be unpacked", || {
        !names(&node.config.root.join("tmp")).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pull_for_all_who_want_the_same() {
    let node = slow_node().await;
    let waiting: Vec<Waiting> = (0..8).map(|_| start(&node, "x")).collect();
    let mut images = Vec::new();
    for one in waiting {
        images.push(one.await.unwrap().unwrap());
    }
    assert!(
        images
            .windows(2)
            .all(|pair| Arc::ptr_eq(&pair[0], &pair[1]))
    );
    assert_eq!(node.registry.requests("/manifests/"), 1);
    for layer in &images[0].layers {
        assert_eq!(node.registry.blob_downloads(layer.digest.as_str()), 1);
    }
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_gives_up_does_not_stop_the_others() {
    let node = slow_node().await;
    let first = start(&node, "x");
    let second = start(&node, "x");
    until_unpacking(&node).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    second.await.unwrap().unwrap();
    assert_eq!(node.registry.requests("/manifests/"), 1);
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_give_up_nothing_is_left() {
    let node = slow_node().await;
    let waiting = [start(&node, "x"), start(&node, "x")];
    until_unpacking(&node).await;
    for one in waiting {
        one.abort();
    }
    node.assert_clean().await;
    assert!(node.store.list().is_empty());
    node.registry.clear_faults("x");
    node.pull("x").await.unwrap();
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_may_begin_while_a_cancelled_one_ends() {
    let node = slow_node().await;
    for _ in 0..5 {
        let one = start(&node, "x");
        until_unpacking(&node).await;
        one.abort();
    }
    node.registry.clear_faults("x");
    node.pull("x").await.unwrap();
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_are_another_pull() {
    let node = slow_node().await;
    let anonymous = start(&node, "x");
    node.pull_as("x", basic("me", "x")).await.unwrap();
    anonymous.await.unwrap().unwrap();
    assert_eq!(node.registry.requests("/manifests/"), 2);
    let image = &node.store.list()[0];
    for layer in &image.layers {
        assert_eq!(
            node.registry.blob_downloads(layer.digest.as_str()),
            1,
            "layers are one all the same"
        );
    }
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_many_images_is_fetched_and_kept_once() {
    let node = Node::new().await;
    let base = noise("base", 3 << 20);
    let count = 6;
    for n in 0..count {
        let own = layer("own", &n.to_string());
        let image = Image::builder("linux/amd64")
            .layer(base.clone())
            .layer(own)
            .build();
        node.registry.push(&format!("x{n}"), "latest", image);
    }
    let waiting: Vec<Waiting> = (0..count).map(|n| start(&node, &format!("x{n}"))).collect();
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    assert_eq!(node.registry.blob_downloads(&base.blob.digest), 1);
    let images = node.store.list();
    let sum: u64 = images.iter().map(|image| image.size).sum();
    let shared = images[0].layers[0].bytes;
    assert_eq!(node.store.usage().bytes, sum - shared * (count - 1));
    node.assert_clean().await;
    // It goes with the last image that has it.
    for (left, image) in images.iter().enumerate().rev() {
        node.store.remove(image.id.as_str()).await.unwrap();
        node.assert_clean().await;
        assert_eq!(node.diff(&images[0].layers[0].diff_id).exists(), left > 0);
    }
    assert_eq!(node.store.usage().bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pull_does_not_take_a_shared_layer_along() {
    let node = slow_node().await;
    let base = noise("b", 4 << 20);
    let bad = layer("bad", "x").with_diff_id(format!("sha256:{}", "0".repeat(64)));
    let image = Image::builder("linux/amd64").layer(base).layer(bad).build();
    node.registry.push("y", "latest", image);
    node.registry.set_fault(
        "y",
        Fault::SlowBlobs {
            bytes_per_second: 2 << 20,
        },
    );
    let failing = start(&node, "y");
    until_unpacking(&node).await;
    let good = start(&node, "x");
    assert!(failing.await.unwrap().is_err());
    good.await.unwrap().unwrap();
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_to_all_who_wait() {
    let node = slow_node().await;
    let mut receivers = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let (sender, receiver) = watch::channel(Progress::default());
        let mut request = node.request("x");
        request.progress = Some(sender);
        let store = node.store.clone();
        waiting.push(tokio::spawn(async move { store.pull(request).await }));
        receivers.push(receiver);
    }
    for receiver in &mut receivers {
        let halfway = |p: &Progress| p.bytes_done > 0 && p.bytes_done < p.bytes_total;
        receiver.wait_for(halfway).await.unwrap();
    }
    let mut total = 0;
    for one in waiting {
        let image = one.await.unwrap().unwrap();
        total = image.layers.iter().map(|layer| layer.compressed_size).sum();
    }
    for receiver in &receivers {
        let last = *receiver.borrow();
        assert_eq!((last.bytes_done, last.bytes_total), (total, total));
        assert_eq!((last.layers_done, last.layers_total), (2, 2));
    }
}
