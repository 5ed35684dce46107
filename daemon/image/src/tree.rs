//! Removing directory trees that an image has shaped: nothing is followed, and no depth exhausts the stack or the
//! descriptors.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Directories within directories that are entered; each takes two descriptors and a stack frame.
const MAX_DEPTH: usize = 64;
/// Passes over one directory: file systems may skip entries while others are removed.
const MAX_PASSES: usize = 8;

/// Removes what is called `name` in `parent`. Directories deeper than [`MAX_DEPTH`] are moved to `spill`, under
/// names made of their inode numbers, for their own turn; without it they are an error (ELOOP).
///
/// # Errors
/// ENOENT when there is no such name, and everything that removing can give.
pub(crate) fn remove(
    parent: BorrowedFd<'_>,
    name: &[u8],
    spill: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    remove_at(parent, name, spill, 0)
}

fn remove_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    spill: Option<BorrowedFd<'_>>,
    depth: usize,
) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    if depth > MAX_DEPTH {
        let to = spill.ok_or(Errno::LOOP)?;
        let found = fstat(&dir)?;
        let new_name = format!("deep-{}-{}", found.st_dev, found.st_ino);
        return renameat(parent, name, to, new_name.as_str());
    }
    for _ in 0..MAX_PASSES {
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if child == b"." || child == b".." {
                continue;
            }
            match remove_at(dir.as_fd(), child, spill, depth + 1) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {}
            result => return result,
        }
    }
    Err(Errno::NOTEMPTY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;
    use std::os::fd::OwnedFd;

    fn open(path: &std::path::Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    fn deep_tree(top: &OwnedFd, levels: usize) {
        let mode = Mode::from_raw_mode(0o755);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut dir = openat(top, ".", flags, Mode::empty()).unwrap();
        for _ in 0..levels {
            mkdirat(&dir, "d", mode).unwrap();
            dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn links_are_removed_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        std::fs::create_dir_all(dir.path().join("tree/sub")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("tree/sub/link")).unwrap();
        remove(open(dir.path()).as_fd(), b"tree", None).unwrap();
        assert!(outside.join("kept").is_dir());
        assert!(!dir.path().join("tree").exists());
        assert_eq!(
            remove(open(dir.path()).as_fd(), b"tree", None),
            Err(Errno::NOENT)
        );
    }

    #[test]
    fn any_depth_is_removed_in_turns() {
        let dir = tempfile::tempdir().unwrap();
        let top = open(dir.path());
        deep_tree(&top, 2_000);
        assert_eq!(remove(top.as_fd(), b"d", None), Err(Errno::LOOP));
        remove(top.as_fd(), b"d", Some(top.as_fd())).unwrap();
        loop {
            let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
            if names.is_empty() {
                return;
            }
            for name in names {
                let name = name.unwrap().file_name();
                remove(top.as_fd(), name.as_encoded_bytes(), Some(top.as_fd())).unwrap();
            }
        }
    }
}
