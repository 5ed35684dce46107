//! Images through CRI: pulling by tag and digest, platforms, credentials, mirrors, sharing, listing, removal.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use tonic::Code;
use zcri_integration::images::{self, noise, small, small_layer};
use zcri_integration::registry::{Compression, Fault, Image};
use zcri_integration::v1::{ImageFilter, ImageSpec, ListImagesRequest};
use zcri_integration::{Test, TestNode, client, wait};

#[tokio::test]
async fn an_image_by_tag_has_one_id_and_all_its_names() -> Test {
    let node = TestNode::start().await?;
    let image = Image::builder(&images::host_platform())
        .layer(small_layer("a", noise(1, 30_000), Compression::Gzip))
        .user("1234:5")
        .build();
    let digest = node.registry.push("team/app", "v1", image.clone());
    node.registry.push("team/app", "v2", image.clone());
    let (first, second) = (
        node.registry.reference("team/app", "v1"),
        node.registry.reference("team/app", "v2"),
    );
    let by_digest = format!("{}/team/app@{digest}", node.registry.addr());
    assert_eq!(node.cri().image_status(&first).await?, None);
    let reference = node.cri().pull(&first).await?;
    node.cri().pull(&second).await?;

    let status = node
        .cri()
        .image_status(&first)
        .await?
        .context("the image that was pulled")?;
    assert_eq!(
        status.id,
        image.config_digest(),
        "the id of an image is the digest of its configuration"
    );
    assert_eq!(status.repo_digests, std::slice::from_ref(&by_digest));
    let mut tags = status.repo_tags.clone();
    tags.sort();
    assert_eq!(tags, [first.clone(), second.clone()]);
    assert_eq!(status.uid.context("the user is a number")?.value, 1234);
    assert!(
        status.size >= image.layers()[0].blob.data.len() as u64,
        "{}",
        status.size
    );
    assert!(!status.pinned);
    for name in [
        &reference,
        &status.id,
        &by_digest,
        &second,
        &status.id["sha256:".len()..].to_owned(),
    ] {
        let found = node
            .cri()
            .image_status(name)
            .await?
            .with_context(|| format!("by {name}"))?;
        assert_eq!(found, status, "by {name}");
    }
    check_filters(&node, &first, &status).await?;
    node.cri().remove_image(&status.id).await?;
    assert_eq!(node.cri().list_images().await?, []);
    assert_eq!(node.cri().image_status(&first).await?, None);
    node.cri()
        .remove_image(&status.id)
        .await
        .context("RemoveImage of what is gone")?;
    node.finish().await
}

/// ListImages gives the image without a filter and by its name, and nothing by another name.
async fn check_filters(node: &TestNode, name: &str, image: &zcri_integration::v1::Image) -> Test {
    assert_eq!(node.cri().list_images().await?, std::slice::from_ref(image));
    let filter = |image: &str| ListImagesRequest {
        filter: Some(ImageFilter {
            image: Some(client::spec(image)),
        }),
    };
    let listed = node
        .cri()
        .images()
        .list_images(filter(name))
        .await?
        .into_inner()
        .images;
    assert_eq!(listed, std::slice::from_ref(image));
    let none = node
        .cri()
        .images()
        .list_images(filter("127.0.0.1:1/other:v1"))
        .await?
        .into_inner()
        .images;
    assert_eq!(none, []);
    Ok(())
}

#[tokio::test]
async fn an_image_by_digest_has_no_tag() -> Test {
    let node = TestNode::start().await?;
    let digest = node.registry.push("r", "v1", small("a"));
    let name = format!("{}/r@{digest}", node.registry.addr());
    node.cri().pull(&name).await?;
    let status = node.cri().image_status(&name).await?.context("the image")?;
    assert_eq!(
        (status.repo_tags, status.repo_digests),
        (vec![], vec![name])
    );
    assert_eq!(node.registry.requests("/manifests/v1"), 0);
    node.finish().await
}

#[tokio::test]
async fn a_tag_that_moves_is_pulled_again() -> Test {
    let node = TestNode::start().await?;
    let name = node.registry.reference("r", "latest");
    node.registry.push("r", "latest", small("old"));
    node.cri().pull(&name).await?;
    let new = small("newer");
    node.registry.push("r", "latest", new.clone());
    node.cri().pull(&name).await?;
    let status = node.cri().image_status(&name).await?.context("the image")?;
    assert_eq!(status.id, new.config_digest());
    let with_tag = node
        .cri()
        .list_images()
        .await?
        .iter()
        .filter(|image| image.repo_tags.contains(&name))
        .count();
    assert_eq!(with_tag, 1, "a tag has one image");
    node.finish().await
}

#[tokio::test]
async fn concurrent_pulls_of_one_image_are_one_pull() -> Test {
    let node = TestNode::start().await?;
    let layers =
        [1, 2, 3].map(|n| small_layer(&format!("f{n}"), noise(n, 200_000), Compression::Zstd));
    let image = layers
        .iter()
        .fold(Image::builder(&images::host_platform()), |b, layer| {
            b.layer(layer.clone())
        })
        .build();
    node.registry.push("r", "1", image.clone());
    node.registry.set_fault(
        "r",
        Fault::SlowBlobs {
            bytes_per_second: 400_000,
        },
    );
    let name = node.registry.reference("r", "1");
    let answers = try_join_all((0..8).map(|_| node.cri().pull(&name))).await?;
    assert!(
        answers.windows(2).all(|pair| pair[0] == pair[1]),
        "{answers:?}"
    );
    for layer in &layers {
        assert_eq!(node.registry.blob_downloads(&layer.blob.digest), 1);
    }
    assert_eq!(node.registry.blob_downloads(image.config_digest()), 1);
    node.finish().await
}

/// A waiter that gives up does not take the pull from the others, and the first one's end does not either.
#[tokio::test]
async fn a_joined_pull_outlives_the_caller_that_began_it() -> Test {
    let node = TestNode::start().await?;
    let layer = small_layer("f", noise(5, 200_000), Compression::None);
    node.registry.push(
        "r",
        "1",
        Image::builder(&images::host_platform())
            .layer(layer.clone())
            .build(),
    );
    node.registry.set_fault(
        "r",
        Fault::SlowBlobs {
            bytes_per_second: 200_000,
        },
    );
    let name = node.registry.reference("r", "1");
    let first = tokio::spawn({
        let (cri, name) = (node.cri().clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    wait::until_true("the pull to begin", wait::PATIENCE, || {
        node.registry.requests("/blobs/") > 0
    })
    .await?;
    let second = tokio::spawn({
        let (cri, name) = (node.cri().clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    // The second one has to be in before the first one leaves.
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.abort();
    second.await??;
    assert_eq!(node.registry.blob_downloads(&layer.blob.digest), 1);
    node.finish().await
}

#[tokio::test]
async fn layers_of_several_images_are_stored_once() -> Test {
    let node = TestNode::start().await?;
    let shared = small_layer("shared", noise(7, 4 << 20), Compression::Gzip);
    let own = |n: u64| small_layer(&format!("own{n}"), noise(n, 100_000), Compression::Gzip);
    let image = |n| {
        Image::builder(&images::host_platform())
            .layer(shared.clone())
            .layer(own(n))
            .build()
    };
    let (first, second) = (image(1), image(2));
    node.registry.push("one", "1", first.clone());
    node.registry.push("two", "1", second.clone());
    let names = [
        node.registry.reference("one", "1"),
        node.registry.reference("two", "1"),
    ];
    try_join_all(names.iter().map(|name| node.cri().pull(name))).await?;
    assert_eq!(
        node.registry.blob_downloads(&shared.blob.digest),
        1,
        "a shared layer is fetched once"
    );
    let used = || async {
        let fs = node.cri().image_fs().await?;
        Ok::<u64, anyhow::Error>(
            fs.first()
                .context("no image file system")?
                .used_bytes
                .context("no figure")?
                .value,
        )
    };
    let with_both = used().await?;
    assert!(
        (4 << 20..6 << 20).contains(&with_both),
        "{with_both} bytes for one shared layer of 4 MiB"
    );
    node.cri().remove_image(first.config_digest()).await?;
    let with_one = used().await?;
    assert!(
        with_one > 4 << 20 && with_one < with_both,
        "{with_one} of {with_both}: the shared layer is still used"
    );
    node.cri().remove_image(second.config_digest()).await?;
    wait::until("the layers to be gone", wait::PATIENCE, async || {
        Ok((used().await? < 1 << 20).then_some(()))
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn image_fs_info_tells_what_is_on_disk() -> Test {
    let node = TestNode::start().await?;
    let mut layer = zcri_integration::registry::LayerBuilder::new().dir("d", 0o755);
    for n in 0..500 {
        layer = layer.file(&format!("d/{n}"), 0o644, noise(n, 3_000));
    }
    let image = Image::builder(&images::host_platform())
        .layer(layer.build(Compression::Gzip))
        .build();
    node.registry.push("r", "1", image);
    node.cri().pull(&node.registry.reference("r", "1")).await?;
    let fs = node.cri().image_fs().await?;
    let fs = fs.first().context("no image file system")?;
    let mountpoint = &fs.fs_id.as_ref().context("no fs id")?.mountpoint;
    ensure!(
        node.image_root().starts_with(mountpoint)
            || mountpoint.starts_with(&node.files().root.display().to_string()),
        "{mountpoint} is not the image store"
    );
    let (mut bytes, mut inodes) = (0, 0);
    for path in images::tree(&node.image_root())? {
        let metadata = std::fs::symlink_metadata(node.image_root().join(path))?;
        bytes += metadata.blocks() * 512;
        inodes += 1;
    }
    let close = |told: u64, found: u64| told.abs_diff(found) * 20 <= found;
    let told = (
        fs.used_bytes.context("bytes")?.value,
        fs.inodes_used.context("inodes")?.value,
    );
    assert!(close(told.0, bytes), "{} bytes told, {bytes} found", told.0);
    assert!(
        close(told.1, inodes),
        "{} inodes told, {inodes} found",
        told.1
    );
    assert!(fs.timestamp > 0);
    node.finish().await
}

#[tokio::test]
async fn an_image_that_a_container_uses_is_not_taken_from_it() -> Test {
    let node = TestNode::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    // The kubelet asks by id; peers let the image go and keep the layers that a container stands on.
    let image_id = node
        .cri()
        .image_status(&image)
        .await?
        .context("the image")?
        .id;
    let removed = node.cri().remove_image(&image_id).await;
    let output = node
        .exec(&id, "cat /etc/passwd && /bin/busybox true")
        .await?;
    assert_eq!(output.success()?, images::PASSWD.trim());
    if let Err(status) = removed {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(node.cri().image_status(&image).await?.is_some());
    }
    node.finish().await
}

#[tokio::test]
async fn images_survive_a_restart() -> Test {
    let mut node = TestNode::start().await?;
    let image = small("a");
    node.registry.push("r", "1", image.clone());
    let name = node.registry.reference("r", "1");
    node.cri().pull(&name).await?;
    let before = node.cri().list_images().await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(node.cri().list_images().await?, before);
    node.registry.reset_counters();
    node.cri().pull(&name).await?;
    assert_eq!(
        node.registry.blob_downloads(&image.layers()[0].blob.digest),
        0,
        "a layer that is there"
    );
    node.finish().await
}

#[tokio::test]
async fn a_pull_by_the_spec_of_a_status_finds_the_same_image() -> Test {
    let node = TestNode::start().await?;
    node.registry.push("r", "1", small("a"));
    let name = node.registry.reference("r", "1");
    let reference = node.cri().pull(&name).await?;
    let pod = node.pod("p").await?;
    let mut config = zcri_integration::pod::container_config("c", &reference);
    config.image = Some(ImageSpec {
        user_specified_image: name.clone(),
        ..config.image.unwrap_or_default()
    });
    config.command = vec!["/nothing".to_owned()];
    let id = pod.create(&config).await?;
    let status = node.cri().status(&id).await?;
    let image = node.cri().image_status(&name).await?.context("the image")?;
    assert_eq!(status.image_id, image.id);
    // Kubernetes node e2e: ImageRef is a digested name, as in ImageStatus.
    assert!(
        status.image_ref == image.repo_digests[0] || status.image_ref == image.id,
        "{}",
        status.image_ref
    );
    assert_eq!(status.image.context("an image")?.user_specified_image, name);
    node.finish().await
}
