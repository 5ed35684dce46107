//! Mount trees that are attached nowhere yet: copies of what is mounted, changed before anyone can see them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{Error, Result};

/// A detached copy of a mount tree. Dropped without [`attach`](Self::attach) it vanishes.
#[derive(Debug)]
pub struct DetachedTree(OwnedFd);

impl DetachedTree {
    /// Copies what is seen at `path`, a directory or a file, with all mounts below it.
    ///
    /// # Errors
    /// There is no such path, or no mount of this namespace holds it.
    pub fn copy_of(path: &Path) -> Result<Self> {
        Self::copy(rustix::fs::CWD, path, OpenTreeFlags::AT_RECURSIVE)
            .map_err(|e| Error::path("copy the mount of", path, e))
    }

    /// Copies what is seen at `sub_path` in the directory `root`. No link in it leads out of `root`.
    ///
    /// # Errors
    /// ENOENT when there is no such path.
    pub fn copy_beneath(root: &Path, sub_path: &Path) -> Result<Self> {
        let copy = || {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
            let within = ResolveFlags::IN_ROOT;
            let found = rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), within)?;
            Self::copy(found.as_fd(), Path::new(""), OpenTreeFlags::AT_EMPTY_PATH)
        };
        copy().map_err(|e: Errno| Error::path("open in a mounted image", sub_path, e))
    }

    fn copy(at: BorrowedFd<'_>, path: &Path, flags: OpenTreeFlags) -> Result<Self, Errno> {
        let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(at, path, flags).map(Self)
    }

    /// Maps the owners of all files in the tree by a user namespace: an id of the file system is shown as the id
    /// that the namespace maps it to.
    ///
    /// # Errors
    /// EINVAL when a file system in the tree cannot do it, EPERM when it is mapped already.
    pub fn map_ids(&self, user_namespace: BorrowedFd<'_>) -> Result<()> {
        // SAFETY: mount_attr is plain data, for which all zeroes is a valid value that changes nothing.
        let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
        attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::from(user_namespace.as_raw_fd().unsigned_abs());
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the path is a terminated empty string, `attributes` outlives the call and its size is given; both
        // descriptors are open for the time of their borrows.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if answer < 0 {
            let source = std::io::Error::last_os_error();
            return Err(Error::call("map the ids of a mount", source));
        }
        Ok(())
    }

    /// Whether the top of the tree is a directory (and not a file).
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn is_dir(&self) -> Result<bool> {
        let found = rustix::fs::fstat(&self.0).map_err(|e| Error::call("stat a mount", e))?;
        Ok(rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory)
    }

    /// Mounts the tree on `target`, which is made: a directory or a file, as the tree is.
    ///
    /// # Errors
    /// `target` exists as something else, or the mount was refused.
    pub fn attach(self, target: &Path) -> Result<()> {
        if self.is_dir()? {
            std::fs::create_dir(target).map_err(|e| Error::path("make", target, e))?;
        } else {
            std::fs::File::create_new(target).map_err(|e| Error::path("make", target, e))?;
        }
        move_to(self.0.as_fd(), target).map_err(|e| Error::path("mount on", target, e))
    }
}

/// Attaches a detached mount.
pub(super) fn move_to(mount: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, target, flags)
}

/// The directories of `layers` with their owners mapped by a user namespace, mounted in `place` under numbers for
/// as long as this lives. overlayfs keeps copies of its own of the mounts that it is given.
#[derive(Debug)]
pub(super) struct MappedLayers {
    pub(super) paths: Vec<std::path::PathBuf>,
    place: std::path::PathBuf,
}

impl MappedLayers {
    pub(super) fn mount(
        layers: &[std::path::PathBuf],
        user_namespace: BorrowedFd<'_>,
        place: &Path,
    ) -> Result<Self> {
        std::fs::create_dir(place).map_err(|e| Error::path("make", place, e))?;
        let mut mapped = Self {
            paths: Vec::with_capacity(layers.len()),
            place: place.to_owned(),
        };
        // What comes and goes here is nobody else's business, and would cost every other namespace of the host.
        rustix::mount::mount_bind(place, place)
            .map_err(|e| Error::path("bind mount on", place, e))?;
        rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE)
            .map_err(|e| Error::path("make private", place, e))?;
        for (number, layer) in layers.iter().enumerate() {
            let target = place.join(number.to_string());
            let tree = DetachedTree::copy_of(layer)?;
            tree.map_ids(user_namespace)?;
            tree.attach(&target)?;
            mapped.paths.push(target);
        }
        Ok(mapped)
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        // One detach takes all mounts below with it. What cannot be removed now goes with the bundle.
        let detach = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if rustix::mount::unmount(&self.place, detach).is_ok() {
            drop(std::fs::remove_dir_all(&self.place));
        }
    }
}

/// Whether owners can be mapped on the file system that holds `path`, found out by trying.
#[must_use]
pub fn maps_ids(path: &Path, user_namespace: BorrowedFd<'_>) -> bool {
    DetachedTree::copy_of(path).is_ok_and(|tree| tree.map_ids(user_namespace).is_ok())
}
