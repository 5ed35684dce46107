//! Work in another network namespace.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result};

/// A network namespace held open: it lives as long as this.
#[derive(Debug)]
pub struct NetNs {
    file: OwnedFd,
}

/// File system of namespaces (`NSFS_MAGIC` of `linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

impl NetNs {
    /// The one that `path` names: a file of `/proc/PID/ns`, or one that it is pinned on.
    ///
    /// # Errors
    /// There is no such file, or it is none of a namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::path("open network namespace", path, e))?;
        let fs = rustix::fs::fstatfs(&file).map_err(|e| Error::path("look at", path, e))?;
        if u64::try_from(fs.f_type).is_ok_and(|magic| magic == NSFS_MAGIC) {
            Ok(Self { file: file.into() })
        } else {
            let invalid = rustix::io::Errno::INVAL;
            Err(Error::path("open as a network namespace", path, invalid))
        }
    }

    /// The calling thread's.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Runs `inside` with the calling thread in this namespace.
    ///
    /// # Errors
    /// This process may not enter it; or, after which the thread must do nothing more, it may not return.
    pub fn within<T>(&self, inside: impl FnOnce() -> T) -> Result<T> {
        let home = Self::current()?;
        enter(self)?;
        let result = inside();
        enter(&home)?;
        Ok(result)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter(netns: &NetNs) -> Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| Error::call("enter a network namespace", e))
}
