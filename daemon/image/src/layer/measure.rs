//! What a directory tree takes on disk, by walking it: only for layers whose figures were lost or that replaced
//! their own entries while they were unpacked.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::DiskUse;

/// The unit of `st_blocks`.
pub(super) const STAT_BLOCK: u64 = 512;

/// Blocks and inodes beneath `root`, itself included; a file with several names counts once.
///
/// # Errors
/// Whatever reading a directory can give.
pub(crate) fn measure(root: &Path) -> io::Result<DiskUse> {
    let mut usage = DiskUse::default();
    let mut linked = HashSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let metadata = std::fs::symlink_metadata(&directory)?;
        usage.bytes += metadata.blocks() * STAT_BLOCK;
        usage.inodes += 1;
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let metadata = entry.metadata()?;
            if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            usage.bytes += metadata.blocks() * STAT_BLOCK;
            usage.inodes += 1;
        }
    }
    Ok(usage)
}
