//! The two directories: their file systems, their room, and whether a container's root can be mounted there.

use std::path::{Path, PathBuf};

use rustix::fs::{statfs, statvfs};
use zcri_config::{Config, PlatformKind};
use zcri_sys::mount::{self, Overlay, Writable};

use super::Privilege;
use super::network;
use super::report::Area;
use super::scratch::{Scratch, stale};

/// Below this the kubelet's eviction (`imagefs.available` 15 %, `nodefs.inodesFree` 5 %) would soon begin on any disk.
const BYTES_WANTED: u64 = 10 << 30;
/// Below this not even a small image fits.
const BYTES_LEAST: u64 = 256 << 20;
/// An image of a distribution has tens of thousands of files.
const INODES_WANTED: u64 = 100_000;
/// Room for sockets, bundles and FIFOs of some hundred pods.
const STATE_BYTES: u64 = 16 << 20;

/// What a type of file system is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    Memory,
    /// It cannot hold the writable layer of an overlay (kernel, `Documentation/filesystems/overlayfs.rst`).
    NoUpper,
    Unknown,
}

/// `f_type` of statfs(2), with the names that mount(8) uses.
const TYPES: &[(u64, &str, Kind)] = &[
    (0xef53, "ext4", Kind::Disk),
    (0x5846_5342, "xfs", Kind::Disk),
    (0x9123_683e, "btrfs", Kind::Disk),
    (0x2fc1_2fc1, "zfs", Kind::Disk),
    (0xf2f5_2010, "f2fs", Kind::Disk),
    (0xca45_1a4e, "bcachefs", Kind::Disk),
    (0x0102_1994, "tmpfs", Kind::Memory),
    (0x8584_58f6, "ramfs", Kind::NoUpper),
    (0x794c_7630, "overlay", Kind::NoUpper),
    (0x6969, "nfs", Kind::NoUpper),
    (0xff53_4d42, "cifs", Kind::NoUpper),
    (0xfe53_4d42, "smb", Kind::NoUpper),
    (0x4d44, "vfat", Kind::NoUpper),
    (0x6573_5546, "fuse", Kind::NoUpper),
    (0x0102_1997, "9p", Kind::NoUpper),
];

pub(super) async fn check(config: &Config, scratch: &mut Scratch, area: &mut Area<'_>) {
    mounted(area);
    let root = &config.storage.root;
    let named = root.display().to_string();
    for dir in stale(root).unwrap_or_default() {
        network::recover(config, &dir).await;
    }
    match scratch.make_root(root).await {
        Ok(_) => area.pass(format!("{named} (permanent)"), "can be written"),
        Err(error) => area.fail(
            format!("{named} (permanent)"),
            error.to_string(),
            "make it writable for zcrid, or set [storage] root",
        ),
    }
    permanent(root, area);
    let state = &config.storage.state;
    let named = state.display().to_string();
    match scratch.make_state(state).await {
        Ok(_) => area.pass(format!("{named} (temporary)"), "can be written"),
        Err(error) => area.fail(
            format!("{named} (temporary)"),
            error.to_string(),
            "make it writable for zcrid, or set [storage] state",
        ),
    }
    temporary(state, area);
    let what = match config.platform.kind {
        PlatformKind::Linux => "overlay",
        PlatformKind::Zos => "union file system",
    };
    match (scratch.root(), scratch.state()) {
        (Some(disk), Some(memory)) => area.verdict(
            what,
            overlay(disk, memory).map(|()| "mounted, written through, removed".to_owned()),
            format!(
                "{}\nan overlay needs a writable layer on a local disk or tmpfs with extended attributes",
                Privilege::Mounts.advice(config.platform.kind)
            ),
        ),
        _ => area.skip(what, "there is no directory to try it in"),
    }
}

/// Where the system's own file systems have to be.
fn mounted(area: &mut Area<'_>) {
    for (path, magic, name) in [("/proc", 0x9fa0, "proc"), ("/sys", 0x6265_6572, "sysfs")] {
        match magic_of(Path::new(path)) {
            Ok(found) if found == magic => area.pass(path, name),
            Ok(found) => area.fail(
                path,
                format!("is {}, not {name}", describe(found).0),
                format!("mount -t {name} {name} {path}"),
            ),
            Err(_) if std::env::consts::OS != "linux" => {}
            Err(error) => area.fail(path, error, format!("mount -t {name} {name} {path}")),
        }
    }
}

fn permanent(root: &Path, area: &mut Area<'_>) {
    let Some((kind, name)) = file_system(root, area) else {
        return;
    };
    let what = format!("{} (file system)", root.display());
    match kind {
        Kind::Disk => area.pass(what, &name),
        Kind::Unknown => area.warn(what, name, "not one that zcri was tried on"),
        Kind::Memory => area.warn(
            what,
            name,
            "images and records are lost with a reboot, and take memory: use a disk",
        ),
        Kind::NoUpper => area.fail(
            what,
            format!("{name} cannot hold the writable layer of a container"),
            "set [storage] root to a directory on ext4, xfs or btrfs (on z/OS: a zFS)",
        ),
    }
    room(root, BYTES_LEAST, BYTES_WANTED, INODES_WANTED, area);
}

fn temporary(state: &Path, area: &mut Area<'_>) {
    let Some((kind, name)) = file_system(state, area) else {
        return;
    };
    let what = format!("{} (file system)", state.display());
    if kind == Kind::Memory {
        area.pass(what, &name);
    } else {
        area.warn(
            what,
            name,
            "state that survives a reboot is only waste: set [storage] state to a tmpfs (on z/OS: a TFS)",
        );
    }
    room(state, STATE_BYTES, STATE_BYTES, 1000, area);
}

fn file_system(dir: &Path, area: &mut Area<'_>) -> Option<(Kind, String)> {
    let found = existing(dir);
    match magic_of(&found) {
        Ok(magic) => {
            let (name, kind) = describe(magic);
            Some((kind, name))
        }
        Err(error) => {
            area.fail(dir.display().to_string(), error, "mount it");
            None
        }
    }
}

fn room(dir: &Path, least: u64, wanted: u64, inodes: u64, area: &mut Area<'_>) {
    let what = format!("{} (room)", dir.display());
    let Ok(free) = statvfs(existing(dir)) else {
        return;
    };
    let bytes = free.f_bavail.saturating_mul(free.f_frsize);
    // btrfs and others count no inodes: both numbers are 0.
    let few = free.f_files > 0 && free.f_favail < inodes;
    let found = if free.f_files > 0 {
        format!("{} and {} inodes free", size(bytes), free.f_favail)
    } else {
        format!("{} free", size(bytes))
    };
    if bytes < least {
        area.fail(what, found, format!("at least {} are needed", size(least)));
    } else if bytes < wanted || few {
        let advice = format!(
            "{} and {inodes} inodes are little to begin with",
            size(wanted)
        );
        area.warn(what, found, advice);
    } else {
        area.pass(what, found);
    }
}

/// The directory itself or the nearest one above it: before the first start it is not there.
fn existing(dir: &Path) -> PathBuf {
    let mut all = dir.ancestors();
    all.find(|path| path.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn magic_of(path: &Path) -> Result<u64, String> {
    let found = statfs(path).map_err(|e| format!("{}: {e}", path.display()))?;
    // The field's type differs between architectures, and some numbers have the sign bit of 32.
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "a bit pattern of 32 bits, whatever type carries it"
    )]
    Ok(u64::from(found.f_type as u32))
}

fn describe(magic: u64) -> (String, Kind) {
    let known = TYPES.iter().find(|(number, ..)| *number == magic);
    known.map_or(
        (format!("type {magic:#x}"), Kind::Unknown),
        |(_, name, kind)| ((*name).to_owned(), *kind),
    )
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Mounts one, reads and writes through it, looks where it went, and unmounts it.
fn overlay(disk: &Path, memory: &Path) -> Result<(), String> {
    let dir = disk.join("overlay");
    let (lower, upper, work) = (dir.join("lower"), dir.join("upper"), dir.join("work"));
    let target = memory.join("overlay");
    for dir in [&lower, &upper, &work, &target] {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let step = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    for name in ["kept", "removed"] {
        std::fs::write(lower.join(name), name).map_err(step("write a layer"))?;
    }
    mount::overlay(
        &Overlay {
            lower: std::slice::from_ref(&lower),
            writable: Some(Writable {
                upper: &upper,
                work: &work,
            }),
            id_map: None,
            label: None,
        },
        &target,
    )
    .map_err(|e| crate::error::Chain(&e).to_string())?;
    let read = std::fs::read_to_string(target.join("kept")).map_err(step("read through it"))?;
    if read != "kept" {
        return Err("a file reads otherwise through it".to_owned());
    }
    std::fs::write(target.join("new"), "new").map_err(step("write through it"))?;
    std::fs::remove_file(target.join("removed")).map_err(step("remove through it"))?;
    let whiteout = std::fs::symlink_metadata(upper.join("removed")).map_err(step("white out"))?;
    if !upper.join("new").exists() || !is_whiteout(&whiteout) {
        return Err("what was written is not in the writable layer".to_owned());
    }
    mount::unmount(&target).map_err(|e| crate::error::Chain(&e).to_string())
}

/// A character device 0:0 stands for what is removed.
fn is_whiteout(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_number() {
        assert_eq!(describe(0xef53), ("ext4".into(), Kind::Disk));
        assert_eq!(describe(0xff53_4d42), ("cifs".into(), Kind::NoUpper));
        assert_eq!(describe(7).1, Kind::Unknown);
        assert_eq!(magic_of(Path::new("/proc")).unwrap(), 0x9fa0);
        assert_eq!(
            existing(Path::new("/proc/self/no/such")),
            Path::new("/proc/self")
        );
        assert_eq!(
            (size(5 << 20), size(3 << 30)),
            ("5 MiB".into(), "3 GiB".into())
        );
    }
}
