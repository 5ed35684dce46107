//! SELinux labels of files.
//!
//! A volume that is relabelled may be in use by a container, which may put a symbolic link in the place of a directory
//! at any moment, or fill it without end. So the walk goes by descriptors, follows no link, and ends when it is told to.
//! What is mounted below a volume belongs to it, as everywhere in the field, unless it is the system.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

/// Where SELinux keeps the label of a file (selinux(8)).
const ATTRIBUTE: &str = "security.selinux";
/// More than a label of containers has: four words, of which the last names a few categories.
const LABEL_MAX: usize = 1024;
/// Directories in directories; each is an open descriptor of the daemon while what is in it is labelled.
const DEPTH_MAX: usize = 256;
/// What makes up a system: a label of containers there would lock everybody else out. What is in these may be labelled,
/// they themselves, and so all that is in them, may not. Other names for them, such as `/lib` on most systems, lead to
/// the same directories.
const OF_THE_SYSTEM: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/group",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/log",
    "/var/tmp",
];

/// A tree that could not be labelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelabelError {
    /// It is not for containers.
    #[error("{path} belongs to the system and is not relabelled")]
    OfTheSystem { path: PathBuf },
    /// Whoever wanted it does not want it any more.
    #[error("{path}: its pod is being stopped")]
    Cancelled { path: PathBuf },
    /// The kernel refused.
    #[error("label {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Labels a file or a directory, without what is in it. A file system that has no labels keeps what it has.
///
/// # Errors
/// The kernel refused.
pub(crate) fn file(path: &Path, label: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(set(file.as_fd(), label)?)
}

/// Labels a file, or a directory with all that is in it; what has the label already is not written to. The top comes
/// last, so that its label says that all below it was done. File systems without labels and read-only ones keep what they
/// have, as does what is too deep, and what of the system is mounted below; what vanishes meanwhile is left out.
///
/// # Errors
/// `top`, which must be free of links, belongs to the system or is one of `others`, `cancelled` says so, or the
/// kernel refused.
pub(crate) fn tree(
    top: &Path,
    label: &str,
    others: &[PathBuf],
    cancelled: &dyn Fn() -> bool,
) -> Result<(), RelabelError> {
    let of_the_system = OF_THE_SYSTEM.iter().map(Path::new);
    let forbidden = of_the_system.chain(others.iter().map(PathBuf::as_path));
    let mut walk = Walk {
        label,
        cancelled,
        // By what they are: a path may have other names.
        forbidden: forbidden
            .filter_map(|path| rustix::fs::stat(path).ok())
            .map(|found| (found.st_dev, found.st_ino))
            .collect(),
        path: top.into(),
        depth: 0,
        too_deep: false,
    };
    // Whatever replaced a directory by a link since its links were resolved does not get the daemon anywhere.
    let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = open(CWD, top, OFlags::PATH, links).map_err(|e| walk.failed(e))?;
    if walk.forbids(file.as_fd()).map_err(|e| walk.failed(e))? {
        return Err(RelabelError::OfTheSystem { path: top.into() });
    }
    match open(file.as_fd(), c".", OFlags::DIRECTORY, BELOW) {
        Ok(directory) => walk.below(directory)?,
        Err(Errno::NOTDIR) => {}
        Err(error) => return Err(walk.failed(error)),
    }
    if walk.too_deep {
        tracing::warn!(path = %top.display(), levels = DEPTH_MAX, "SELinux: what is deeper in this volume is not relabelled");
    }
    set(file.as_fd(), label).map_err(|e| walk.failed(e))
}

/// The same once: a tree whose top has the label is left alone.
///
/// # Errors
/// As [`tree`].
pub(crate) fn tree_once(top: &Path, label: &str) -> Result<(), RelabelError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(top, flags, Mode::empty()) {
        Ok(file) if has(&name_of(file.as_fd()), label) => Ok(()),
        _ => tree(top, label, &[], &|| false),
    }
}

struct Walk<'a> {
    label: &'a str,
    cancelled: &'a dyn Fn() -> bool,
    /// Devices and inodes of what is not relabelled.
    forbidden: Vec<(u64, u64)>,
    /// Where it is, for the error.
    path: PathBuf,
    depth: usize,
    too_deep: bool,
}

impl Walk<'_> {
    fn below(&mut self, directory: OwnedFd) -> Result<(), RelabelError> {
        if self.depth == DEPTH_MAX {
            self.too_deep = true;
            return Ok(());
        }
        self.depth += 1;
        let mut entries = Dir::new(directory).map_err(|e| self.failed(e))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|e| self.failed(e))?;
            if [c".", c".."].contains(&entry.file_name()) {
                continue;
            }
            if (self.cancelled)() {
                return Err(RelabelError::Cancelled {
                    path: self.path.clone(),
                });
            }
            let parent = entries.fd().map_err(|e| self.failed(e))?;
            self.entry(parent, entry.file_name(), entry.file_type())?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> Result<(), RelabelError> {
        self.path.push(name.to_string_lossy().as_ref());
        match self.one(parent, name, kind) {
            Ok(()) => {}
            // It vanished, or became something else, which is for whoever does such things meanwhile.
            Err(One::Kernel(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {}
            Err(One::Kernel(error)) => return Err(self.failed(error)),
            Err(One::Below(error)) => return Err(error),
        }
        self.path.pop();
        Ok(())
    }

    fn one(&mut self, parent: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<(), One> {
        let file = match open(parent, name, OFlags::PATH, BELOW | ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => {
                let mounted = open(parent, name, OFlags::PATH, BELOW)?;
                if self.forbids(mounted.as_fd())? {
                    tracing::warn!(path = %self.path.display(), "SELinux: a part of the system is mounted in this volume, it is not relabelled");
                    return Ok(());
                }
                mounted
            }
            opened => opened?,
        };
        // Some file systems do not tell the kind.
        if matches!(kind, FileType::Directory | FileType::Unknown) {
            match open(file.as_fd(), c".", OFlags::DIRECTORY, BELOW) {
                Ok(directory) => self.below(directory).map_err(One::Below)?,
                Err(Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(set(file.as_fd(), self.label)?)
    }

    fn forbids(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let found = rustix::fs::fstat(file)?;
        Ok(self.forbidden.contains(&(found.st_dev, found.st_ino)))
    }

    fn failed(&self, error: Errno) -> RelabelError {
        RelabelError::File {
            path: self.path.clone(),
            source: error.into(),
        }
    }
}

/// What one entry can fail with.
enum One {
    Kernel(Errno),
    Below(RelabelError),
}

impl From<Errno> for One {
    fn from(error: Errno) -> Self {
        Self::Kernel(error)
    }
}

/// Below a directory, and no link.
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// With [`OFlags::PATH`] whatever it is, a link too, without any effect on it.
fn open(
    parent: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

/// Labels what a descriptor of [`open`] is of.
fn set(file: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    let name = name_of(file);
    if has(&name, label) {
        return Ok(());
    }
    match rustix::fs::setxattr(&name, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        // No labels here (also where a mount option gives all files one), or nothing to be changed.
        Err(Errno::OPNOTSUPP | Errno::ROFS) => Ok(()),
        other => other,
    }
}

/// Calls on descriptors refuse those of [`open`]; the name in /proc leads to the very file.
fn name_of(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn has(name: &str, label: &str) -> bool {
    let mut held = [0; LABEL_MAX];
    let Ok(length) = rustix::fs::getxattr(name, ATTRIBUTE, &mut held) else {
        return false;
    };
    let held = held.get(..length).unwrap_or_default();
    held.strip_suffix(b"\0").unwrap_or(held) == label.as_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    const GO_ON: &dyn Fn() -> bool = &|| false;

    fn label(top: &Path, label: &str) -> Result<(), RelabelError> {
        tree(top, label, &[], GO_ON)
    }

    fn label_of(path: &Path) -> Option<String> {
        let mut value = [0; LABEL_MAX];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value).ok()?;
        Some(String::from_utf8(value[..length].to_vec()).unwrap())
    }

    /// A kernel without SELinux keeps its labels too, for root.
    #[test]
    fn all_of_a_tree_is_labelled_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("volume/a/b")).unwrap();
        std::fs::create_dir(at("outside")).unwrap();
        for file in ["volume/top", "volume/a/b/deep", "outside/secret"] {
            std::fs::write(at(file), "x").unwrap();
        }
        symlink("/etc/shadow", at("volume/link-to-file")).unwrap();
        symlink(at("outside"), at("volume/a/link-to-directory")).unwrap();
        let fifo = at("volume/fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();

        label(&at("volume"), LABEL).unwrap();
        for path in [
            "volume",
            "volume/top",
            "volume/a",
            "volume/a/b",
            "volume/a/b/deep",
            "volume/fifo",
            "volume/link-to-file",
            "volume/a/link-to-directory",
        ] {
            assert_eq!(label_of(&at(path)).as_deref(), Some(LABEL), "{path}");
        }
        for path in ["outside", "outside/secret", ""] {
            assert_eq!(label_of(&at(path)), None, "{path}");
        }
        assert_eq!(label_of(Path::new("/etc/shadow")), None);

        let other = "system_u:object_r:container_file_t:s0:c3,c4";
        label(&at("volume/top"), other).unwrap();
        assert_eq!(label_of(&at("volume/top")).as_deref(), Some(other));
        file(&at("outside"), other).unwrap();
        assert_eq!(label_of(&at("outside")).as_deref(), Some(other));
        assert_eq!(label_of(&at("outside/secret")), None);
    }

    #[test]
    fn what_is_right_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        label(dir.path(), LABEL).unwrap();
        let changed = |path: &Path| {
            let found = rustix::fs::stat(path).unwrap();
            (found.st_ctime, found.st_ctime_nsec)
        };
        let before = (changed(&file), changed(dir.path()));
        label(dir.path(), LABEL).unwrap();
        assert_eq!((changed(&file), changed(dir.path())), before);
    }

    #[test]
    fn a_tree_is_labelled_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        tree_once(dir.path(), LABEL).unwrap();
        assert_eq!(label_of(&file).as_deref(), Some(LABEL));
        let later = dir.path().join("later");
        std::fs::write(&later, "x").unwrap();
        tree_once(dir.path(), LABEL).unwrap();
        assert_eq!(label_of(&later), None, "there the kernel does it");
        assert!(tree_once(Path::new("/etc"), LABEL).is_err());
    }

    #[test]
    fn the_system_is_left_alone() {
        for path in ["/", "/etc", "/usr", "/etc/passwd"] {
            let refused = label(Path::new(path), LABEL).unwrap_err();
            assert!(
                matches!(&refused, RelabelError::OfTheSystem { .. }),
                "{refused}"
            );
        }
        // It has no labels of files, and is no error.
        let here = std::fs::canonicalize("/proc/self").unwrap();
        label(&here.join("status"), LABEL).unwrap();
        let missing = label(Path::new("/no/such/path"), LABEL).unwrap_err();
        assert!(matches!(missing, RelabelError::File { .. }), "{missing}");
    }

    #[test]
    fn other_names_of_the_system_do_not_help() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path, others: &[PathBuf]| {
            let refused = tree(path, LABEL, others, GO_ON).unwrap_err();
            matches!(refused, RelabelError::OfTheSystem { .. })
        };
        for path in ["/lib", "/bin", "/sbin", "/usr/lib"] {
            let real = std::fs::canonicalize(path).unwrap();
            assert!(refused(&real, &[]), "{path}");
        }
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        assert!(refused(&own, &[dir.path().join("x/../own"), own.clone()]));
        // A directory in the middle became a link since links were resolved.
        symlink("/", dir.path().join("swapped")).unwrap();
        let through = tree(&dir.path().join("swapped/etc"), LABEL, &[], GO_ON).unwrap_err();
        assert!(matches!(through, RelabelError::File { .. }), "{through}");
    }

    #[test]
    fn what_is_mounted_below_belongs_to_the_volume_but_for_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let others = ["data", "system"].map(|name| dir.path().join(name));
        for other in &others {
            std::fs::create_dir_all(volume.join(other.file_name().unwrap())).unwrap();
            std::fs::create_dir(other).unwrap();
            std::fs::write(other.join("file"), "x").unwrap();
        }
        let [data, system] = others.clone();
        let places = others.map(|other| volume.join(other.file_name().unwrap()));
        for (place, other) in places.iter().zip([&data, &system]) {
            rustix::mount::mount_bind(other, place).unwrap();
        }
        let labelled = tree(&volume, LABEL, std::slice::from_ref(&system), GO_ON);
        for place in &places {
            zcri_sys::mount::unmount(place).unwrap();
        }
        labelled.unwrap();
        for (path, expected) in [
            (&data, Some(LABEL)),
            (&data.join("file"), Some(LABEL)),
            (&system, None),
            (&system.join("file"), None),
            (&volume, Some(LABEL)),
        ] {
            assert_eq!(label_of(path).as_deref(), expected, "{}", path.display());
        }
    }

    #[test]
    fn directories_without_end_are_left_where_they_get_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let (mut deep, mut levels) = (dir.path().to_owned(), Vec::new());
        for _ in 0..DEPTH_MAX + 2 {
            deep.push("d");
            levels.push(deep.clone());
        }
        std::fs::create_dir_all(&deep).unwrap();
        label(dir.path(), LABEL).unwrap();
        let labelled = levels.iter().filter(|path| label_of(path).is_some());
        assert_eq!(labelled.count(), DEPTH_MAX);
        assert_eq!(label_of(dir.path()).as_deref(), Some(LABEL));
    }

    #[test]
    fn a_walk_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let ended = tree(dir.path(), LABEL, &[], &|| true).unwrap_err();
        assert!(matches!(ended, RelabelError::Cancelled { .. }), "{ended}");
        assert_eq!(label_of(dir.path()), None);
    }
}
