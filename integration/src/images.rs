//! Images that the tests run.

use std::path::Path;

use anyhow::{Context as _, Result};
use zcri_test_registry::{Compression, Image, ImageBuilder, Index, Layer, LayerBuilder};

use crate::binaries;

/// Programs of busybox that the image has links for.
const APPLETS: [&str; 52] = [
    "awk", "cat", "chmod", "chown", "cut", "dd", "df", "dmesg", "echo", "env", "false", "find",
    "grep", "head", "hostname", "httpd", "id", "ip", "ipcmk", "ipcs", "kill", "ln", "ls", "mkdir",
    "mkfifo", "mknod", "mount", "nc", "printf", "ps", "pwd", "readlink", "rm", "sed", "seq", "sh",
    "sleep", "sort", "stat", "stty", "sync", "tail", "tee", "test", "touch", "tr", "true", "tty",
    "umount", "uname", "wc", "wget",
];

/// User and group database of the image: `worker` is in three groups.
pub const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home/worker:/bin/sh\n";
/// See [`PASSWD`].
pub const GROUP: &str =
    "root:x:0:\nworker:x:1000:\nwheel:x:2000:worker\naudio:x:3000:root,worker\n";

/// This machine's platform as image references know it.
pub fn host_platform() -> String {
    format!("linux/{}", host_architecture())
}

/// This machine's architecture in the words of the OCI image specification.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// A layer with Debian's static busybox, its applets, and users.
///
/// # Errors
/// busybox-static is not installed.
pub fn busybox_layer() -> Result<Layer> {
    let path = binaries::system("busybox", "busybox-static")?;
    let program = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut layer = LayerBuilder::new();
    for dir in ["bin", "etc", "home", "proc", "sys", "dev", "var"] {
        layer = layer.dir(dir, 0o755);
    }
    layer = layer
        .dir("root", 0o700)
        .dir("tmp", 0o1777)
        .owner(1000, 1000)
        .dir("home/worker", 0o755)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("bin/busybox", 0o755, program);
    for applet in APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer.build(Compression::Gzip))
}

/// An image for this machine on [`busybox_layer`], to be finished by the caller. Its command sleeps.
///
/// # Errors
/// busybox-static is not installed.
pub fn busybox() -> Result<ImageBuilder> {
    Ok(Image::builder(&host_platform())
        .layer(busybox_layer()?)
        .env(["PATH=/bin"])
        .cmd(["/bin/sleep", "1000000"]))
}

/// An index whose entry for `zos/s390x` is [`busybox`] too, beside one for Linux that must not be taken: nothing here
/// has code for z/OS, and an emulated LPAR runs what this machine does.
///
/// # Errors
/// busybox-static is not installed.
pub fn zos_busybox() -> Result<Index> {
    let layer = busybox_layer()?;
    let build = |platform: &str, env: &str| {
        Image::builder(platform)
            .layer(layer.clone())
            .env(["PATH=/bin", env])
            .cmd(["/bin/sleep", "1000000"])
            .build()
    };
    Ok(Index::docker([
        build(&host_platform(), "IMAGE=linux"),
        build("zos/s390x", "IMAGE=zos"),
    ]))
}

/// A small layer with one file, for tests that never run the image.
pub fn small_layer(name: &str, content: impl AsRef<[u8]>, compression: Compression) -> Layer {
    LayerBuilder::new()
        .file(name, 0o644, content)
        .build(compression)
}

/// An image of this machine with one small layer.
pub fn small(name: &str) -> Image {
    let layer = small_layer(name, noise(name.len() as u64, 20_000), Compression::Gzip);
    Image::builder(&host_platform()).layer(layer).build()
}

/// Bytes that no compressor makes smaller, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    // splitmix64
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// All files and directories below `dir`, relative, sorted: to compare before and after.
///
/// # Errors
/// A directory cannot be read.
pub fn tree(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        let entries = match std::fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {}", next.display())),
        };
        for entry in entries {
            let entry = entry?;
            found.push(entry.path().strip_prefix(dir)?.display().to_string());
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
