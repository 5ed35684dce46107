//! SELinux labels of files.
//!
//! A volume that is relabelled may be in use by a container, which may put a symbolic link in the place of a directory
//! at any moment. So the walk goes by descriptors and follows no link: what is outside of the tree is never touched.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Where SELinux keeps the label of a file (selinux(8)).
const ATTRIBUTE: &str = "security.selinux";
/// More than a label has: four words, of which the last names at most 1024 categories.
const LABEL_MAX: usize = 8192;
/// Directories in directories; each is an open descriptor of the daemon while what is in it is labelled.
const DEPTH_MAX: usize = 512;
/// The directories that make up a system: a label of a container there would lock everybody else out. What is in them
/// may be labelled, they themselves and so all of it may not. Those of libselinux's users in the field.
const OF_THE_SYSTEM: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/pki", "/home", "/lib", "/lib64", "/media", "/mnt",
    "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib",
    "/var/log", "/var/tmp",
];
/// The same for files.
const FILES_OF_THE_SYSTEM: &[&str] = &["/etc/group", "/etc/passwd", "/etc/shadow"];

/// A tree that could not be labelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelabelError {
    /// It is not for containers.
    #[error("{path} belongs to the system and is not relabelled")]
    OfTheSystem { path: PathBuf },
    /// Directories are too deep in each other.
    #[error("{path}: directories are more than {DEPTH_MAX} deep")]
    Deep { path: PathBuf },
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
    let file = open(CWD, path)?;
    Ok(set(file.as_fd(), label)?)
}

/// Labels a file, or a directory with all that is in it; what has the label already is not written to. The top comes
/// last, so that its label says that all below it was done. File systems without labels and read-only ones keep
/// what they have, and what vanishes meanwhile is left out.
///
/// # Errors
/// `top`, which must be free of links, belongs to the system, or the kernel refused.
pub(crate) fn tree(top: &Path, label: &str) -> Result<(), RelabelError> {
    let of_the_system = OF_THE_SYSTEM.iter().chain(FILES_OF_THE_SYSTEM);
    if of_the_system.into_iter().any(|path| top == Path::new(path)) {
        return Err(RelabelError::OfTheSystem { path: top.into() });
    }
    let failed = |source: Errno| RelabelError::File {
        path: top.into(),
        source: source.into(),
    };
    let file = open(CWD, top).map_err(failed)?;
    let mut walk = Walk {
        label,
        path: top.into(),
        depth: 0,
    };
    match list(file.as_fd()) {
        Ok(directory) => walk.below(file.as_fd(), directory)?,
        Err(Errno::NOTDIR) => {}
        Err(error) => return Err(failed(error)),
    }
    set(file.as_fd(), label).map_err(failed)
}

/// The same once: a tree whose top has the label is left alone.
///
/// # Errors
/// As [`tree`].
pub(crate) fn tree_once(top: &Path, label: &str) -> Result<(), RelabelError> {
    match open(CWD, top) {
        Ok(file) if has(&name_of(file.as_fd()), label) => Ok(()),
        _ => tree(top, label),
    }
}

struct Walk<'a> {
    label: &'a str,
    /// Where it is, for the error.
    path: PathBuf,
    depth: usize,
}

impl Walk<'_> {
    fn below(&mut self, parent: BorrowedFd<'_>, directory: Dir) -> Result<(), RelabelError> {
        if self.depth == DEPTH_MAX {
            return Err(RelabelError::Deep {
                path: self.path.clone(),
            });
        }
        self.depth += 1;
        for entry in directory {
            let entry = entry.map_err(|e| self.failed(e))?;
            if ![c".", c".."].contains(&entry.file_name()) {
                self.entry(parent, entry.file_name(), entry.file_type())?;
            }
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
        let file = open(parent, name)?;
        // Some file systems do not tell the kind.
        if matches!(kind, FileType::Directory | FileType::Unknown) {
            match list(file.as_fd()) {
                Ok(directory) => self.below(file.as_fd(), directory).map_err(One::Below)?,
                Err(Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(set(file.as_fd(), self.label)?)
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

/// Opens whatever it is, a link too, without any effect on it.
fn open(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn list(directory: BorrowedFd<'_>) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::new(rustix::fs::openat(directory, c".", flags, Mode::empty())?)
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

        tree(&at("volume"), LABEL).unwrap();
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
        tree(&at("volume/top"), other).unwrap();
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
        tree(dir.path(), LABEL).unwrap();
        let changed = |path: &Path| {
            let found = rustix::fs::stat(path).unwrap();
            (found.st_ctime, found.st_ctime_nsec)
        };
        let before = (changed(&file), changed(dir.path()));
        tree(dir.path(), LABEL).unwrap();
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
            let refused = tree(Path::new(path), LABEL).unwrap_err();
            assert!(
                matches!(&refused, RelabelError::OfTheSystem { .. }),
                "{refused}"
            );
        }
        // It has no labels of files, and is no error.
        tree(Path::new("/proc/self/status"), LABEL).unwrap();
        let missing = tree(Path::new("/no/such/path"), LABEL).unwrap_err();
        assert!(matches!(missing, RelabelError::File { .. }), "{missing}");
    }

    #[test]
    fn directories_without_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..=DEPTH_MAX {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        let refused = tree(dir.path(), LABEL).unwrap_err();
        assert!(matches!(refused, RelabelError::Deep { .. }), "{refused}");
        assert_eq!(label_of(dir.path()), None, "the top comes last");
    }
}
