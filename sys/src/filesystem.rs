//! File systems: their size, and the name of what they are on.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::{Error, Result};

/// A file system as metrics name and measure it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its block device (`/dev/sda1`), or what the mount table calls its source (`tmpfs`).
    pub device: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that an unprivileged user may still have.
    pub inodes_free: u64,
}

/// The file system that a path is on.
///
/// # Errors
/// The path is not there.
pub fn of(path: &Path) -> Result<Filesystem> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::path("stat", path, e))?;
    let sizes = rustix::fs::statvfs(path).map_err(|e| Error::path("statvfs", path, e))?;
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let device = block_device(major, minor)
        .or_else(|| {
            let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
            mount_source(&table, major, minor)
        })
        .unwrap_or_else(|| format!("{major}:{minor}"));
    Ok(Filesystem {
        device,
        bytes: sizes.f_blocks.saturating_mul(sizes.f_frsize),
        inodes: sizes.f_files,
        inodes_free: sizes.f_favail,
    })
}

/// `/dev/NAME` of a block device, if the kernel knows one of that number.
pub fn block_device(major: u32, minor: u32) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let name = link.file_name()?.to_str()?;
    // In sysfs a slash in a name is an exclamation mark (cciss!c0d0).
    Some(format!("/dev/{}", name.replace('!', "/")))
}

/// The source of the first mount of that device in a mount table of proc(5).
fn mount_source(table: &str, major: u32, minor: u32) -> Option<String> {
    let device = format!("{major}:{minor}");
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (left.split(' ').nth(2)? == device).then(|| right.split(' ').nth(1).map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_mount_is_found_by_its_device() {
        let table = "22 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n30 22 0:26 / /dev/shm rw shared:4 - tmpfs shm rw,size=1k\n";
        assert_eq!(mount_source(table, 0, 26).as_deref(), Some("shm"));
        assert_eq!(
            mount_source(table, 259, 1).as_deref(),
            Some("/dev/nvme0n1p1")
        );
        assert_eq!(mount_source(table, 0, 2), None);
    }

    #[test]
    fn the_root_of_this_machine_has_a_size_and_a_name() {
        let root = of(Path::new("/")).unwrap();
        assert!(root.bytes > 0 && !root.device.is_empty(), "{root:?}");
        assert!(of(Path::new("/no/such/path")).is_err());
    }
}
