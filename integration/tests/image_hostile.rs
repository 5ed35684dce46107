//! Layers made to do harm: they touch nothing outside of their root, and end at the limits.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use zcri_integration::images::{self, small_layer};
use zcri_integration::registry::{Compression, Image, Layer, LayerBuilder};
use zcri_integration::{Test, TestNode, wait};

fn one_layer(layer: Layer) -> Image {
    Image::builder(&images::host_platform())
        .layer(layer)
        .build()
}

/// Layers that try to leave their root, for the directory `out` with a file `canary` in it.
fn hostile_layers(out: &str) -> Vec<(&'static str, LayerBuilder)> {
    let up = "../".repeat(12) + out.trim_start_matches('/');
    let builder = LayerBuilder::new;
    vec![
        ("dotdot", builder().file(&format!("{up}/new"), 0o644, "x")),
        (
            "dotdot-inside",
            builder().dir("a", 0o755).file("a/../../../new", 0o644, "x"),
        ),
        (
            "absolute",
            builder().file(&format!("{out}/new"), 0o644, "x"),
        ),
        (
            "symlink",
            builder().symlink("way", out).file("way/new", 0o644, "x"),
        ),
        (
            "symlink-up",
            builder().symlink("way", &up).file("way/new", 0o644, "x"),
        ),
        (
            "symlink-over",
            builder()
                .symlink("way", &format!("{out}/canary"))
                .file("way", 0o644, "overwritten"),
        ),
        (
            "hardlink",
            builder()
                .hardlink("link", &format!("{out}/canary"))
                .file("link", 0o644, "overwritten"),
        ),
        (
            "hardlink-up",
            builder().hardlink("link", &format!("{up}/canary")),
        ),
        ("whiteout", builder().whiteout(&format!("{up}/canary"))),
        (
            "whiteout-dots",
            builder().dir("a", 0o755).file("a/.wh...", 0o644, ""),
        ),
        (
            "symlink-whiteout",
            builder()
                .symlink("way", out)
                .file("way/.wh.canary", 0o644, ""),
        ),
        (
            "symlink-opaque",
            builder()
                .symlink("way", out)
                .file("way/.wh..wh..opq", 0o644, ""),
        ),
    ]
}

#[tokio::test]
async fn hostile_layers_touch_nothing_outside() -> Test {
    let node = TestNode::builder().allow_log("PullImage").start().await?;
    let root = node.image_root();
    let outside = node.scratch("outside")?;
    std::fs::write(outside.join("canary"), "alive")?;
    let out = outside.display().to_string();
    let cases = hostile_layers(&out);
    // These cannot be unpacked in any safe way; the others may as well be kept inside the layer's root.
    let must_fail = [
        "dotdot",
        "dotdot-inside",
        "absolute",
        "hardlink",
        "hardlink-up",
        "whiteout",
        "whiteout-dots",
    ];
    for (repo, layer) in cases {
        node.registry
            .push(repo, "1", one_layer(layer.build(Compression::Gzip)));
        let name = node.registry.reference(repo, "1");
        match node.cri().pull(&name).await {
            Ok(_) => {
                ensure!(!must_fail.contains(&repo), "{repo} was pulled");
                let id = node
                    .cri()
                    .image_status(&name)
                    .await?
                    .context("the image")?
                    .id;
                node.cri().remove_image(&id).await?;
            }
            Err(status) => ensure!(status.message().contains(repo), "which image? {status:?}"),
        }
        wait::until_true("the layer to be gone", wait::PATIENCE, || files(&root) == 0)
            .await
            .with_context(|| repo.to_owned())?;
        assert_eq!(images::tree(&outside)?, ["canary"], "{repo}");
        assert_eq!(
            std::fs::read_to_string(outside.join("canary"))?,
            "alive",
            "{repo}"
        );
    }
    node.finish().await
}

#[tokio::test]
async fn bombs_end_at_the_limit() -> Test {
    let node = TestNode::builder()
        .config("[image]\nmax_layer_bytes = 8388608\nmax_layer_entries = 1000")
        .allow_log("PullImage")
        .start()
        .await?;
    let root = node.image_root();
    let bomb = small_layer("bomb", vec![0; 64 << 20], Compression::Gzip);
    assert!(bomb.blob.data.len() < 1 << 20, "it is small on the wire");
    let zstd = small_layer("bomb", vec![0; 64 << 20], Compression::Zstd);
    let many = (0..2_000).fold(LayerBuilder::new(), |layer, n| {
        layer.dir(&format!("d{n}"), 0o755)
    });
    for (repo, layer) in [
        ("gzip", bomb),
        ("zstd", zstd),
        ("entries", many.build(Compression::Gzip)),
    ] {
        node.registry.push(repo, "1", one_layer(layer));
        let name = node.registry.reference(repo, "1");
        let status = node
            .cri()
            .pull(&name)
            .await
            .err()
            .with_context(|| format!("{repo} was pulled"))?;
        assert!(
            ["8388608", "1000"]
                .iter()
                .any(|limit| status.message().contains(limit)),
            "{status:?}"
        );
        wait::until_true("the layer to be gone", wait::PATIENCE, || {
            size_of(&root) < 1 << 20
        })
        .await?;
        assert!(node.cri().list_images().await?.is_empty());
    }
    node.finish().await
}

fn size_of(dir: &std::path::Path) -> u64 {
    let paths = images::tree(dir).unwrap_or_default();
    paths
        .iter()
        .filter_map(|path| std::fs::symlink_metadata(dir.join(path)).ok())
        .map(|found| found.len())
        .sum()
}

/// Regular files of layers in the store: none of a pull that failed or whose image was removed.
fn files(root: &std::path::Path) -> usize {
    let paths = images::tree(root).unwrap_or_default();
    paths
        .iter()
        .filter(|path| {
            path.ends_with("/new") || path.ends_with("/way") || path.ends_with("/canary")
        })
        .count()
}
