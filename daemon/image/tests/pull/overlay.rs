//! The layers as the kernel sees them: an overlay mount of what a lease gives.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zcri_test_registry::{Compression, Image, LayerBuilder};

use crate::fixture::{Node, names};

struct Overlay(PathBuf);

impl Overlay {
    fn mount(at: &Path, lower: &[PathBuf]) -> Self {
        let lower: Vec<&str> = lower.iter().map(|path| path.to_str().unwrap()).collect();
        let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
        fs::create_dir(at).unwrap();
        mount(
            "overlay",
            at,
            "overlay",
            MountFlags::RDONLY,
            options.as_c_str(),
        )
        .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn layers_stack_as_the_image_says() {
    let node = Node::new().await;
    let base = LayerBuilder::new()
        .dir("etc", 0o755)
        .file("etc/gone", 0o644, "1")
        .file("etc/kept", 0o644, "1")
        .file("etc/changed", 0o644, "1")
        .dir("cleared", 0o755)
        .file("cleared/old", 0o644, "1")
        .file("removed/deep/file", 0o644, "1")
        .file("bin/su", 0o4755, "1")
        .symlink("lib", "bin");
    let top = LayerBuilder::new()
        .dir("etc", 0o750)
        .whiteout("etc/gone")
        .file("etc/changed", 0o600, "2")
        .dir("cleared", 0o755)
        .opaque("cleared")
        .file("cleared/new", 0o644, "2")
        .whiteout("removed");
    let image = Image::builder("linux/amd64")
        .layer(base.build(Compression::Zstd))
        .layer(top.build(Compression::Gzip))
        .build();
    node.registry.push("x", "latest", image);
    let pulled = node.pull("x").await.unwrap();
    let lower = node.store.lease("test", pulled.id.as_str()).unwrap();
    let mounted = Overlay::mount(&node.path().join("mnt"), &lower);
    let at = |path: &str| mounted.0.join(path);
    let set = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&at("")), set(&["bin", "cleared", "etc", "lib"]));
    assert_eq!(names(&at("etc")), set(&["changed", "kept"]));
    assert_eq!(names(&at("cleared")), set(&["new"]));
    assert_eq!(fs::read_to_string(at("etc/changed")).unwrap(), "2");
    assert_eq!(fs::read_to_string(at("lib/su")).unwrap(), "1");
    assert_eq!(at("etc").metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(
        at("bin/su").metadata().unwrap().permissions().mode() & 0o7777,
        0o4755
    );
}
