//! Images as volumes: what is seen of them, what is refused, and how long they stay.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::v1::{ContainerConfig, ImageSpec, Mount};
use zcri_integration::{Test, TestNode, images};
use zcri_test_registry::{Compression, Image, LayerBuilder};

/// Pulls an image of two layers, the upper of which replaces, adds and deletes. Gives reference and id.
async fn model(node: &TestNode) -> Result<(String, String)> {
    let lower = LayerBuilder::new()
        .dir("models", 0o755)
        .file("models/a", 0o644, "old a")
        .file("models/gone", 0o644, "gone")
        .file("run.sh", 0o755, "#!/bin/sh\necho ran\n")
        .symlink("outside", "/etc")
        .symlink("models/latest", "a")
        .build(Compression::Gzip);
    let upper = LayerBuilder::new()
        .file("models/a", 0o644, "new a")
        .whiteout("models/gone")
        .build(Compression::Zstd);
    let image = Image::builder(&images::host_platform())
        .layer(lower)
        .layer(upper)
        .build();
    node.registry.push("library/model", "1", image);
    pull(node, "library/model").await
}

async fn pull(node: &TestNode, name: &str) -> Result<(String, String)> {
    let reference = node.registry.reference(name, "1");
    let id = node.cri().pull(&reference).await?;
    Ok((reference, id))
}

fn volume(image: &str, inside: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: inside.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_image_is_mounted_whole_or_in_part_and_read_only() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (reference, id) = model(&node).await?;
    let single = LayerBuilder::new()
        .file("only", 0o644, "one layer")
        .whiteout("nothing-below")
        .build(Compression::None);
    let image = Image::builder(&images::host_platform()).layer(single);
    node.registry.push("library/single", "1", image.build());
    let (single, _) = pull(&node, "library/single").await?;
    let script = "cat /m/models/a; echo; ls /m/models | tr '\\n' ' '; /m/run.sh; cat /d/latest; echo; cat /f; echo; cat /l; echo; cat /s/only; echo; ls -a /s | wc -l; for x in /m/x /d/x /s/x; do touch $x 2>/dev/null || echo refused; done; (echo x > /f) 2>/dev/null || echo refused;";
    let output = pod
        .sh_with(script, |c| {
            c.mounts = vec![
                volume(&reference, "/m", ""),
                volume(&id, "/d", "models"),
                volume(&id, "/f", "models/a"),
                volume(&id, "/l", "models/latest"),
                volume(&single, "/s", ""),
            ];
        })
        .await?;
    assert_eq!(
        output.success()?,
        "new a\na latest ran\nnew a\nnew a\nnew a\none layer\n3\nrefused\nrefused\nrefused\nrefused"
    );
    node.finish().await
}

#[tokio::test]
async fn the_status_has_the_image_and_its_id() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (reference, id) = model(&node).await?;
    let mut config = node.container_config("c").await?;
    config.mounts = vec![volume(&reference, "/m", "models")];
    let container = pod.start(&config).await?;
    let told = node.cri().status(&container).await?.mounts;
    let mount = told.first().context("no mount")?;
    let image = mount.image.as_ref().context("no image")?;
    assert_eq!((&image.image, &image.image_ref), (&reference, &id));
    assert_eq!(mount.image_sub_path, "models");
    assert!(mount.readonly && mount.host_path.is_empty());
    node.finish().await
}

/// Creates a container that must be refused; nothing of it may be left.
async fn refused(
    node: &TestNode,
    pod: &zcri_integration::Pod<'_>,
    mount: Mount,
) -> Result<tonic::Status> {
    let mut config: ContainerConfig = node.container_config("refused").await?;
    config.mounts = vec![mount];
    let answer = node.cri().create(&pod.id, &config, &pod.config).await;
    let status = answer.err().context("the mount was taken")?;
    let left = node.cri().list_containers(Default::default()).await?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(status)
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_by_field() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (reference, _) = model(&node).await?;
    for (path, why) in [
        ("not/there", "config.mounts.image_sub_path"),
        ("models/a/b", "config.mounts.image_sub_path"),
        ("outside/hostname", "config.mounts.image_sub_path"),
        ("models/gone", "config.mounts.image_sub_path"),
        ("../etc", "config.mounts[0].image_sub_path"),
        ("/models", "config.mounts[0].image_sub_path"),
    ] {
        let status = refused(&node, &pod, volume(&reference, "/m", path)).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status:?}");
        assert!(status.message().contains(why), "{path}: {status:?}");
        assert!(status.message().contains(path), "{path}: {status:?}");
    }
    let writable = Mount {
        readonly: false,
        ..volume(&reference, "/m", "")
    };
    let status = refused(&node, &pod, writable).await?;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("config.mounts[0].readonly"),
        "{status:?}"
    );
    let status = refused(&node, &pod, volume("no.such/image:1", "/m", "")).await?;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("no.such/image:1"), "{status:?}");
    node.finish().await
}

/// The layers of a mounted image stay as long as the container, also when the image is removed and the daemon is
/// started again; then they go.
#[tokio::test]
async fn a_mounted_image_that_is_removed_stays_readable() -> Test {
    let mut node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (reference, _) = model(&node).await?;
    let mut config = node.container_config("c").await?;
    config.mounts = vec![volume(&reference, "/m", "")];
    let container = pod.start(&config).await?;
    let pod_id = pod.id.clone();
    node.cri().remove_image(&reference).await?;
    let read = async |node: &TestNode| -> Result<String> {
        let read = node.exec(&container, "cat /m/models/a").await?;
        Ok(read.success()?.to_owned())
    };
    assert_eq!(read(&node).await?, "new a");
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(read(&node).await?, "new a");
    let layers = || images::tree(&node.image_root().join("layers"));
    let with = layers()?;
    assert!(
        with.iter().any(|path| path.ends_with("models/a")),
        "{with:?}"
    );
    node.cri().remove_pod(&pod_id).await?;
    zcri_integration::wait::until_true(
        "its layers to go",
        zcri_integration::wait::PATIENCE,
        || layers().is_ok_and(|left| !left.iter().any(|path| path.ends_with("models/a"))),
    )
    .await?;
    node.finish().await
}

/// A volume that is unmounted on the node must not be held by what was mounted for the start.
#[tokio::test]
async fn nothing_stays_mounted_on_the_node_after_the_start() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (reference, _) = model(&node).await?;
    let mut config = node.container_config("c").await?;
    config.mounts = vec![volume(&reference, "/m", "models")];
    let below = || -> Result<usize> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let state = node.files().state.join("containers");
        let of = format!("{}/", state.display());
        let lines = table.lines().filter(|line| line.contains(&of));
        Ok(lines.filter(|line| line.contains("/mounts/")).count())
    };
    let id = pod.create(&config).await?;
    assert_eq!(below()?, 2, "the image, and the part of it");
    node.cri().start(&id).await?;
    assert_eq!(below()?, 0);
    config.metadata.get_or_insert_default().name = "never-started".into();
    pod.create(&config).await?;
    assert_eq!(below()?, 2);
    node.cri().stop_pod(&pod.id).await?;
    assert_eq!(below()?, 0);
    node.finish().await
}
