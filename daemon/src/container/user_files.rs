//! Reads `/etc/passwd` and `/etc/group` of a container's root without following a link out of it.

use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// More than this is no user database (it is an image's content: hostile until shown otherwise).
const LIMIT_BYTES: u64 = 16 << 20;

/// The text of `path` below `root`; empty when there is no such file.
pub(crate) fn read_beneath(root: &Path, path: &str) -> io::Result<String> {
    let dir = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat2(&dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(e.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} in the image is not a file"),
        ));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_the_host_stays_in_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/group")).unwrap();
        std::os::unix::fs::symlink(
            "../../../../../etc/hostname",
            root.path().join("etc/passwd"),
        )
        .unwrap();
        assert_eq!(read_beneath(root.path(), "etc/passwd").unwrap(), "");
        assert_eq!(read_beneath(root.path(), "etc/group").unwrap(), "");
        std::fs::create_dir(root.path().join("etc/loop")).unwrap();
        std::os::unix::fs::symlink("/etc/loop/a", root.path().join("etc/loop/a")).unwrap();
        assert!(read_beneath(root.path(), "etc/loop/a").is_err());
        std::fs::create_dir(root.path().join("dir")).unwrap();
        assert!(read_beneath(root.path(), "dir").is_err());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_bits_retain(0o600),
            0,
        )
        .unwrap();
        assert!(
            read_beneath(root.path(), "fifo").is_err(),
            "and it does not hang"
        );
    }
}
