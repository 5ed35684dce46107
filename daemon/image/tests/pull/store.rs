//! The store over time: tags that move, removal, leases, restarts, damage, a full disk.

use std::fs;
use std::sync::Arc;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zcri_image::{Image as Pulled, ImageError};
use zcri_test_registry::Image;

use crate::fixture::{Node, layer, names, noise};

fn image(content: &str) -> Image {
    Image::builder("linux/amd64")
        .layer(layer("base", "same for all"))
        .layer(layer("own", content))
        .build()
}

/// A node with `x` pulled.
async fn pulled() -> (Node, Arc<Pulled>) {
    let node = Node::new().await;
    node.registry.push("x", "latest", image("one"));
    let image = node.pull("x").await.unwrap();
    (node, image)
}

#[tokio::test]
async fn a_tag_moves_and_its_old_image_stays() {
    let (mut node, old) = pulled().await;
    node.registry.push("x", "latest", image("two"));
    let new = node.pull("x").await.unwrap();
    assert_ne!(new.id, old.id);
    for _ in 0..2 {
        let old_now = node.store.resolve(old.id.as_str()).unwrap().unwrap();
        assert!(old_now.repo_tags.is_empty());
        assert_eq!(old_now.repo_digests, old.repo_digests);
        let by_tag = node.store.resolve(&new.repo_tags[0]).unwrap().unwrap();
        assert_eq!(by_tag.id, new.id);
        node.assert_clean().await;
        node.reopen().await;
    }
    // And back again, with the layers that are still there.
    node.registry.reset_counters();
    node.registry.push("x", "latest", image("one"));
    let back = node.pull("x").await.unwrap();
    assert_eq!(back, old);
    assert_eq!(
        node.registry.blob_downloads(old.layers[1].digest.as_str()),
        0
    );
    node.reopen().await;
    assert_eq!(node.store.resolve(&new.repo_tags[0]).unwrap().unwrap(), old);
}

#[tokio::test]
async fn a_crash_between_two_records_leaves_a_tag_to_one_image() {
    let (mut node, old) = pulled().await;
    let old_record = fs::read(node.record(&old)).unwrap();
    node.registry.push("x", "latest", image("two"));
    let new = node.pull("x").await.unwrap();
    // As if the daemon had died before it wrote that the old image has lost its tag.
    fs::write(node.record(&old), old_record).unwrap();
    node.reopen().await;
    assert!(node.store.broken_at_open().is_empty());
    let by_tag = node.store.resolve(&new.repo_tags[0]).unwrap().unwrap();
    assert_eq!(by_tag.id, new.id);
    assert!(
        node.store
            .resolve(old.id.as_str())
            .unwrap()
            .unwrap()
            .repo_tags
            .is_empty()
    );
}

#[tokio::test]
async fn removal_by_any_name_takes_all_tags() {
    let (node, first) = pulled().await;
    node.registry.push("y", "v2", image("one"));
    let host = node.registry.addr();
    for name in [
        format!("{host}/x:latest"),
        format!("{host}/y:v2"),
        first.id.to_string(),
        first.id.hex()[..10].to_owned(),
        first.repo_digests[0].clone(),
    ] {
        node.pull("x").await.unwrap();
        let image = node.pull("y:v2").await.unwrap();
        assert_eq!(image.repo_tags.len(), 2);
        assert_eq!(
            node.store.remove(&name).await.unwrap(),
            Some(image),
            "{name}"
        );
        assert_eq!(node.store.remove(&name).await.unwrap(), None, "again");
        assert!(node.store.list().is_empty());
        node.assert_clean().await;
    }
    let error = node.store.remove("NO NAME").await.unwrap_err();
    assert!(
        matches!(error, ImageError::InvalidReference { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn leases_keep_layers() {
    let (node, image) = pulled().await;
    let lower = node.store.lease("container-1", image.id.as_str()).unwrap();
    let expected: Vec<_> = image
        .layers
        .iter()
        .rev()
        .map(|l| node.diff(&l.diff_id))
        .collect();
    assert_eq!(lower, expected, "top layer first");
    node.store.lease("container-1", image.id.as_str()).unwrap();
    node.store.lease("container-2", image.id.as_str()).unwrap();
    node.store.remove(image.id.as_str()).await.unwrap();
    let error = node
        .store
        .lease("container-3", image.id.as_str())
        .unwrap_err();
    assert!(matches!(error, ImageError::UnknownImage { .. }), "{error}");
    node.store.release("container-1");
    node.store.release("unknown");
    assert_eq!(fs::read_to_string(lower[0].join("own")).unwrap(), "one");
    assert_ne!(node.store.usage().bytes, 0);
    // Pulled again, it is the same layers.
    node.registry.reset_counters();
    node.pull("x").await.unwrap();
    assert_eq!(
        node.registry
            .blob_downloads(image.layers[1].digest.as_str()),
        0
    );
    node.store.remove(image.id.as_str()).await.unwrap();
    node.store.release("container-2");
    node.assert_clean().await;
    assert_eq!(node.store.usage().bytes, 0);
}

#[tokio::test]
async fn leases_are_taken_again_after_a_restart() {
    let (mut node, image) = pulled().await;
    let diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
    let lower = node.store.lease("c", image.id.as_str()).unwrap();
    node.store.remove(image.id.as_str()).await.unwrap();
    let usage = node.store.usage();
    node.reopen().await;
    assert_eq!(
        node.store.usage(),
        usage,
        "figures survive without their image"
    );
    assert_eq!(node.store.lease_layers("c", &diff_ids).unwrap(), lower);
    assert_eq!(node.store.collect_garbage().await, 0);
    assert!(lower[0].join("own").exists());
    node.store.release("c");
    node.assert_clean().await;
    // Nobody takes these again.
    node.pull("x").await.unwrap();
    node.store.lease("c", image.id.as_str()).unwrap();
    node.store.remove(image.id.as_str()).await.unwrap();
    node.reopen().await;
    assert!(lower[0].exists(), "open does not collect");
    assert_eq!(node.store.collect_garbage().await, 2);
    node.assert_clean().await;
    let error = node.store.lease_layers("c", &diff_ids).unwrap_err();
    assert!(matches!(error, ImageError::UnknownLayer { .. }), "{error}");
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let (mut node, _) = pulled().await;
    node.registry.push("y", "v2", image("two"));
    node.pull("y:v2").await.unwrap();
    let (list, usage) = (node.store.list(), node.store.usage());
    node.reopen().await;
    assert_eq!(node.store.list(), list);
    assert_eq!(node.store.usage(), usage);
    assert_eq!(node.store.collect_garbage().await, 0);
    node.assert_clean().await;
}

#[tokio::test]
async fn damage_is_reported_dropped_and_repaired() {
    let (mut node, image) = pulled().await;
    let record = node.record(&image);
    let good = fs::read(&record).unwrap();
    let diff = node.diff(&image.layers[0].diff_id);
    let damages: [(&str, &dyn Fn()); 5] = [
        ("empty record", &|| fs::write(&record, "").unwrap()),
        ("cut record", &|| {
            fs::write(&record, &good[..good.len() / 2]).unwrap()
        }),
        ("flipped record", &|| {
            let mut bad = good.clone();
            bad[good.len() / 2] ^= 1;
            fs::write(&record, bad).unwrap();
        }),
        ("lost layer", &|| {
            fs::remove_dir_all(diff.parent().unwrap()).unwrap()
        }),
        ("foreign record", &|| {
            let other = record.with_file_name(format!("{}.json", "0".repeat(64)));
            fs::rename(&record, other).unwrap();
        }),
    ];
    for (name, damage) in damages {
        damage();
        node.reopen().await;
        let broken = node.store.broken_at_open();
        assert_eq!(broken.len(), 1, "{name}");
        assert!(node.store.list().is_empty(), "{name}");
        node.store.collect_garbage().await;
        node.assert_clean().await;
        assert_eq!(node.pull("x").await.unwrap(), image, "{name}");
        assert_eq!(
            fs::read_to_string(diff.join("base")).unwrap(),
            "same for all"
        );
        node.reopen().await;
        assert!(node.store.broken_at_open().is_empty());
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn leftovers_of_a_killed_process_go() {
    let (mut node, _) = pulled().await;
    let temporary = node.config.root.join("tmp/7-abc");
    fs::create_dir_all(temporary.join("diff/half")).unwrap();
    fs::create_dir_all(node.config.trash.join("image-1-2/diff")).unwrap();
    fs::create_dir_all(node.config.trash.join("container-not-ours")).unwrap();
    fs::write(node.config.root.join("records/.new-x.json"), "half").unwrap();
    fs::create_dir(node.layers_dir().join("no-digest")).unwrap();
    node.reopen().await;
    assert!(!temporary.exists());
    assert_eq!(names(&node.config.root.join("records")).len(), 1);
    crate::fixture::wait_until("the trash to be empty", || {
        names(&node.config.trash).len() == 1
    })
    .await;
    fs::remove_dir(node.config.trash.join("container-not-ours")).unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_layer_that_may_be_half_on_disk_is_not_used() {
    let (mut node, image) = pulled().await;
    // As after the power went between the rename of a layer and its sync: no record, no figures, files lost.
    fs::remove_file(node.record(&image)).unwrap();
    for layer in &image.layers {
        let diff = node.diff(&layer.diff_id);
        fs::remove_file(diff.with_file_name("layer.json")).unwrap();
        for file in names(&diff) {
            fs::write(diff.join(file), "").unwrap();
        }
    }
    node.reopen().await;
    let again = node.pull("x").await.unwrap();
    assert_eq!(again, image);
    let own = node.diff(&image.layers[1].diff_id).join("own");
    assert_eq!(fs::read_to_string(own).unwrap(), "one");
    node.assert_clean().await;
}

/// A small file system of its own for a store.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf, options: &std::ffi::CStr) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), options).unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The trash may still be worked on.
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_pull_and_can_be_freed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path().join("disk"), c"size=8m,nr_inodes=300");
    let node = Node::with(|config| {
        config.root = disk.0.join("images");
        config.trash = disk.0.join("trash");
    })
    .await;
    let push = |name: &str, layers: Vec<zcri_test_registry::Layer>| {
        let image = layers
            .into_iter()
            .fold(Image::builder("linux/amd64"), |image, l| image.layer(l));
        node.registry.push(name, "latest", image.build());
    };
    push("fits", vec![noise("f", 3 << 20)]);
    push(
        "bytes",
        vec![
            layer("a", "1"),
            noise("large", 10 << 20),
            noise("more", 1 << 20),
        ],
    );
    let many = (0..400).fold(zcri_test_registry::LayerBuilder::new(), |layer, n| {
        layer.file(&format!("f{n}"), 0o644, "")
    });
    push(
        "inodes",
        vec![many.build(zcri_test_registry::Compression::Gzip)],
    );
    let fits = node.pull("fits").await.unwrap();
    for name in ["bytes", "inodes"] {
        let error = node.fails(name).await;
        assert!(
            matches!(error, ImageError::DiskFull { .. }),
            "{name}: {error}"
        );
    }
    assert_eq!(node.store.list(), std::slice::from_ref(&fits));
    // Not one byte is free: removal works.
    let filler = disk.0.join("filler");
    let full = fs::write(&filler, vec![1; 16 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(rustix::fs::statvfs(&disk.0).unwrap().f_bavail, 0);
    node.store.remove(fits.id.as_str()).await.unwrap().unwrap();
    node.assert_clean().await;
    assert_ne!(rustix::fs::statvfs(&disk.0).unwrap().f_bavail, 0);
    fs::remove_file(filler).unwrap();
    node.pull("fits").await.unwrap();
    node.assert_clean().await;
}
