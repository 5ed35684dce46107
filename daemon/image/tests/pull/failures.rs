//! Content that is not what it should be, and connections that break.

use zcri_image::{Digest, ImageError};
use zcri_test_registry::{Blob, Compression, Content, FOREVER, Fault, Image, LayerBuilder};

use crate::fixture::{Node, layer, noise};

/// A node whose registry has `x` with one small and one large layer.
async fn node() -> Node {
    let node = Node::new().await;
    let image = Image::builder("linux/amd64")
        .layer(layer("small", "1"))
        .layer(noise("large", 9 << 20))
        .build();
    node.registry.push("x", "latest", image);
    node
}

fn large() -> (String, usize) {
    let layer = noise("large", 9 << 20);
    (layer.blob.digest.clone(), layer.blob.data.len())
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let node = node().await;
    let (digest, size) = large();
    node.registry.set_fault(
        "x",
        Fault::TruncateBlob {
            after: 3 << 20,
            times: 2,
        },
    );
    let pulled = node.pull("x").await.unwrap();
    let ranges: Vec<_> = node
        .registry
        .request_log()
        .into_iter()
        .filter(|r| r.path.ends_with(&digest))
        .map(|r| r.range)
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
    assert!(
        node.registry.bytes_sent() < size as u64 + (1 << 20),
        "nothing was sent twice"
    );
    let file = node.diff(&pulled.layers[1].diff_id).join("large");
    assert_eq!(std::fs::metadata(file).unwrap().len(), 9 << 20);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_again() {
    let node = node().await;
    node.registry.set_fault(
        "x",
        Fault::TruncateBlob {
            after: 3 << 20,
            times: 1,
        },
    );
    node.registry.add_fault("x", Fault::NoRanges);
    node.pull("x").await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_download_that_always_breaks_is_given_up() {
    let node = node().await;
    node.registry.set_fault(
        "x",
        Fault::TruncateBlob {
            after: 100,
            times: FOREVER,
        },
    );
    let error = node.fails("x").await;
    assert!(
        matches!(
            error,
            ImageError::Unreachable { .. } | ImageError::WrongSize { .. }
        ),
        "{error}"
    );
}

/// This part of the image x has another digest than was promised.
async fn assert_changed(node: &Node, part: &str) {
    let error = node.fails("x").await;
    assert!(
        matches!(&error, ImageError::DigestMismatch { what, .. } if *what == part),
        "{error}"
    );
}

#[tokio::test]
async fn corrupted_content_is_found() {
    let node = node().await;
    let (digest, _) = large();
    // The byte is in the large layer only; wherever it is, it is the digest that is reported.
    for at in [1 << 20, 9 << 20] {
        node.registry
            .set_fault("x", Fault::CorruptBlob { at, times: FOREVER });
        let error = node.fails("x").await;
        assert!(
            matches!(&error, ImageError::DigestMismatch { what: "layer", expected, .. } if expected.as_str() == digest),
            "{error}"
        );
    }
    node.registry.set_fault(
        "x",
        Fault::CorruptBlob {
            at: 30,
            times: FOREVER,
        },
    );
    assert_changed(&node, "configuration").await;
    node.registry.set_fault("x", Fault::CorruptManifest);
    assert_changed(&node, "manifest").await;
    node.registry.set_fault("x", Fault::WrongDigestHeader);
    assert_changed(&node, "manifest").await;
    node.registry.clear_faults("x");
    node.pull("x").await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_wrong_diff_id_is_found() {
    let node = Node::new().await;
    let lie = Digest::sha256(b"lie");
    let image = Image::builder("linux/amd64")
        .layer(layer("a", "1").with_diff_id(lie.as_str()))
        .build();
    node.registry.push("x", "latest", image);
    let error = node.fails("x").await;
    assert!(
        matches!(&error, ImageError::DigestMismatch { expected, .. } if *expected == lie),
        "{error}"
    );
    let image = Image::builder("linux/amd64")
        .layer(layer("a", "1").with_diff_id("sha256:../.."))
        .build();
    node.registry.push("y", "latest", image);
    let error = node.fails("y").await;
    assert!(
        matches!(error, ImageError::InvalidManifest { .. }),
        "{error}"
    );
}

/// A manifest that lies about the size of its layer.
fn resized(change: i64) -> Content {
    let layer = layer("a", "1");
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        layer.diff_id
    );
    let config = Blob::new(config);
    let size = i64::try_from(layer.blob.data.len()).unwrap() + change;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{size}}}]}}"#,
        config.digest,
        config.data.len(),
        layer.blob.digest
    );
    let kind = "application/vnd.oci.image.manifest.v1+json";
    Content::raw(kind, manifest, [config, layer.blob])
}

#[tokio::test]
async fn sizes_are_checked() {
    let node = Node::new().await;
    node.registry.push("right", "latest", resized(0));
    node.registry.push("short", "latest", resized(-1));
    node.registry.push("long", "latest", resized(1));
    node.pull("right").await.unwrap();
    let id = node.store.list()[0].id.clone();
    node.store.remove(id.as_str()).await.unwrap();
    let error = node.fails("short").await;
    assert!(matches!(error, ImageError::WrongSize { .. }), "{error}");
    let error = node.fails("long").await;
    // The end is asked for by range, which the registry has nothing for.
    let expected = matches!(
        error,
        ImageError::WrongSize { .. } | ImageError::RegistryFailed { .. }
    );
    assert!(expected, "{error}");
}

#[tokio::test]
async fn hostile_layers_leave_nothing() {
    let node = Node::with(|config| {
        config.limits.ratio_floor = 1 << 20;
        config.limits.ratio = 10;
        config.limits.layers = 3;
        config.limits.manifest_bytes = 4 << 10;
    })
    .await;
    let good = || Image::builder("linux/amd64").layer(noise("other", 1 << 20));
    let push = |name: &str, layer: LayerBuilder| {
        let image = good().layer(layer.build(Compression::Gzip)).build();
        node.registry.push(name, "latest", image);
    };
    let outside = node.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let new = LayerBuilder::new;
    push("dotdot", new().file("../../../../outside/evil", 0o644, "x"));
    push(
        "absolute",
        new().file(&format!("{target}/evil"), 0o644, "x"),
    );
    push(
        "symlink",
        new().symlink("out", target).file("out/evil", 0o644, "x"),
    );
    push("hardlink", new().hardlink("passwd", "/etc/passwd"));
    for name in ["dotdot", "absolute", "symlink", "hardlink"] {
        let error = node.fails(name).await;
        assert!(
            matches!(error, ImageError::UnsafePath { .. }),
            "{name}: {error}"
        );
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
    push("bomb", new().file("zeros", 0o644, vec![0; 64 << 20]));
    let many = (0..4).fold(good(), |image, n| image.layer(layer("n", &n.to_string())));
    node.registry.push("layers", "latest", many.build());
    let big = vec![b' '; 8 << 10];
    let manifest = Content::raw("application/vnd.oci.image.manifest.v1+json", big, []);
    node.registry.push("manifest", "latest", manifest);
    for name in ["bomb", "layers", "manifest"] {
        let error = node.fails(name).await;
        assert!(
            matches!(error, ImageError::LimitExceeded { .. }),
            "{name}: {error}"
        );
    }
    push(
        "attribute",
        new().xattr("system.unknown", "v").file("f", 0o644, ""),
    );
    let error = node.fails("attribute").await;
    assert!(matches!(error, ImageError::Attribute { .. }), "{error}");
    assert!(error.to_string().contains("system.unknown"), "{error}");
}
