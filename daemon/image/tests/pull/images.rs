//! What a good pull gives: names, platform, configuration, files.

use std::os::unix::fs::MetadataExt as _;

use zcri_image::ImageError;
use zcri_test_registry::{Compression, Content, Image, Index, LayerBuilder, ManifestKind};

use crate::fixture::{Node, layer};

#[tokio::test]
async fn by_tag_and_by_digest() {
    let node = Node::with(|config| config.pinned = vec!["*/app:v1".to_owned()]).await;
    let image = Image::builder("linux/amd64")
        .layer(layer("a", "1"))
        .layer(layer("b", "2"))
        .entrypoint(["/init"])
        .cmd(["-v"])
        .env(["A=b"])
        .user("10:20")
        .working_dir("/w")
        .stop_signal("SIGINT")
        .volume("/data")
        .label("k", "v")
        .build();
    let config_digest = image.config_digest().to_owned();
    let digest = node.registry.push("team/app", "v1", image);
    let host = node.registry.addr();
    let pulled = node.pull("team/app:v1").await.unwrap();
    assert_eq!(pulled.id.as_str(), config_digest);
    assert_eq!(pulled.manifest_digest.as_str(), digest);
    assert_eq!(pulled.repo_tags, [format!("{host}/team/app:v1")]);
    assert_eq!(pulled.repo_digests, [format!("{host}/team/app@{digest}")]);
    assert!(pulled.pinned);
    let config = &pulled.config;
    assert_eq!(config.entrypoint, ["/init"]);
    assert_eq!(config.cmd, ["-v"]);
    assert_eq!(config.env, ["A=b"]);
    assert_eq!(
        (config.user.as_str(), config.working_dir.as_str()),
        ("10:20", "/w")
    );
    assert_eq!(
        (config.stop_signal.as_str(), config.labels["k"].as_str()),
        ("SIGINT", "v")
    );
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(pulled.layers.len(), 2);
    assert_eq!(pulled.size, node.store.usage().bytes);
    let text = std::fs::read_to_string(node.diff(&pulled.layers[1].diff_id).join("b"));
    assert_eq!(text.unwrap(), "2");

    let again = node.pull(&format!("team/app@{digest}")).await.unwrap();
    assert_eq!(
        again, pulled,
        "a digest adds no tag and keeps those that are there"
    );
    let both = node
        .pull(&format!("team/app:other@{digest}"))
        .await
        .unwrap();
    assert_eq!(both, pulled, "a digest beside a tag wins");
    for name in [
        format!("{host}/team/app:v1"),
        format!("{host}/team/app@{digest}"),
        pulled.id.to_string(),
        pulled.id.hex()[..12].to_owned(),
    ] {
        assert_eq!(
            node.store.resolve(&name).unwrap().as_ref(),
            Some(&pulled),
            "{name}"
        );
    }
    assert_eq!(node.store.list(), [pulled]);
    node.assert_clean().await;
}

#[tokio::test]
async fn the_configured_platform() {
    for (kind, wanted) in [
        ("oci", "zos/s390x"),
        ("docker", "zos/s390x"),
        ("oci", "linux/arm64/v8"),
    ] {
        let node = Node::with(|config| config.platform = wanted.parse().unwrap()).await;
        let images =
            ["linux/amd64", "linux/arm64/v8", "linux/s390x", "zos/s390x"].map(|platform| {
                Image::builder(platform)
                    .layer(layer("platform", platform))
                    .build()
            });
        let index = match kind {
            "oci" => Index::oci(images),
            _ => Index::docker(images),
        };
        let digest = node.registry.push("multi", "latest", index);
        let pulled = node.pull("multi").await.unwrap();
        let text = std::fs::read_to_string(node.diff(&pulled.layers[0].diff_id).join("platform"));
        assert_eq!(text.unwrap(), wanted);
        let by_index = format!("{}/multi@{digest}", node.registry.addr());
        assert_eq!(
            pulled.repo_digests,
            [by_index],
            "the digest that the tag led to"
        );
        assert_ne!(pulled.manifest_digest.as_str(), digest);
        assert_eq!(
            node.registry
                .request_log()
                .iter()
                .filter(|r| r.path.contains("/blobs/"))
                .count(),
            2
        );
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn another_platform_is_refused_with_both_named() {
    let node = Node::with(|config| config.platform = "zos/s390x".parse().unwrap()).await;
    let linux = || Image::builder("linux/amd64").layer(layer("a", "1")).build();
    node.registry.push("single", "latest", linux());
    node.registry.push("index", "latest", Index::oci([linux()]));
    for name in ["single", "index"] {
        let error = node.fails(name).await;
        let text = error.to_string();
        assert!(matches!(error, ImageError::WrongPlatform { .. }), "{text}");
        assert!(
            text.contains("zos/s390x") && text.contains("linux/amd64"),
            "{text}"
        );
    }
    assert_eq!(
        node.registry
            .blob_downloads(&linux().layers()[0].blob.digest),
        0
    );
}

#[tokio::test]
async fn docker_manifests_and_all_compressions() {
    let node = Node::new().await;
    let mut builder = Image::builder("linux/amd64").kind(ManifestKind::Docker);
    for (name, compression) in [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("none", Compression::None),
    ] {
        builder = builder.layer(
            LayerBuilder::new()
                .owner(5, 6)
                .mtime(1234)
                .file(name, 0o640, name)
                .build(compression),
        );
    }
    node.registry.push("docker", "latest", builder.build());
    let pulled = node.pull("docker").await.unwrap();
    for (layer, name) in pulled.layers.iter().zip(["gzip", "zstd", "none"]) {
        let found = node.diff(&layer.diff_id).join(name).metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.mtime()), (5, 6, 1234));
        assert_eq!(found.mode() & 0o7777, 0o640);
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let node = Node::new().await;
    let artifact = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "artifactType":"application/x","config":{"mediaType":"application/vnd.oci.empty.v1+json",
        "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    let oci = "application/vnd.oci.image.manifest.v1+json";
    node.registry
        .push("artifact", "latest", Content::raw(oci, artifact, []));
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    node.registry.push(
        "schema1",
        "latest",
        Content::raw(old, r#"{"schemaVersion":1,"fsLayers":[]}"#, []),
    );
    let image = Image::builder("linux/amd64").layer(layer("a", "1"));
    node.registry.push(
        "wasm",
        "latest",
        image.layer_media_type("application/wasm").build(),
    );
    for name in ["artifact", "schema1", "wasm"] {
        let error = node.fails(name).await;
        assert!(
            matches!(error, ImageError::UnsupportedMediaType { .. }),
            "{name}: {error}"
        );
    }
    node.registry
        .push("nonsense", "latest", Content::raw(oci, "<html>", []));
    let error = node.fails("nonsense").await;
    assert!(
        matches!(error, ImageError::InvalidManifest { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_image_without_layers_and_one_with_a_layer_twice() {
    let node = Node::new().await;
    node.registry
        .push("empty", "latest", Image::builder("linux/amd64").build());
    let twice = Image::builder("linux/amd64")
        .layer(layer("a", "1"))
        .layer(layer("b", "2"))
        .layer(layer("a", "1"));
    node.registry.push("twice", "latest", twice.build());
    let empty = node.pull("empty").await.unwrap();
    assert_eq!((empty.size, empty.layers.len()), (0, 0));
    assert!(node.store.lease("x", empty.id.as_str()).unwrap().is_empty());
    let twice = node.pull("twice").await.unwrap();
    assert_eq!(twice.layers.len(), 3);
    assert_eq!(twice.size, node.store.usage().bytes);
    let lower = node.store.lease("x", twice.id.as_str()).unwrap();
    let expected = [&twice.layers[2], &twice.layers[1]].map(|layer| node.diff(&layer.diff_id));
    assert_eq!(
        lower, expected,
        "top first, and each once: overlayfs refuses a directory twice"
    );
    assert_eq!(
        node.registry
            .blob_downloads(twice.layers[0].digest.as_str()),
        1
    );
    node.assert_clean().await;
}
