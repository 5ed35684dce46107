//! Finding the directory of an entry beneath the root of its layer, without walking paths again and again.
//!
//! The kernel resolves every parent with `openat2(RESOLVE_BENEATH)`: neither `..`, an absolute symbolic link nor one
//! that leads out gets past the root. A symbolic link that stays inside is followed, as it is when Docker or
//! containerd unpack (`lib -> usr/lib`, then `lib/x`). The last component is never followed.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::unpack::UnpackError;

/// Directories that are kept open: archives go through one tree in order, so the last few are enough.
const KEPT: usize = 16;
/// `openat2` may say EAGAIN when something was renamed meanwhile, which nobody but us does.
const MAX_TRIES: u32 = 16;
/// Implied directories are made with this mode, owned by root.
pub(super) const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// A path split at its last component; both parts are free of `.`, `..` and empty components.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split<'a> {
    /// Empty: the root itself.
    pub(super) parent: &'a [u8],
    pub(super) name: &'a [u8],
}

/// Brings a path of an archive into the form `a/b/c`; empty for the root (`.`, `./`, and `/` alone, which kaniko
/// writes).
///
/// # Errors
/// When it is absolute or has `..`.
pub(super) fn normal(path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let unsafe_path = |reason: &str| UnpackError::Unsafe {
        path: path.to_vec(),
        reason: reason.to_owned(),
    };
    if path.contains(&0) {
        return Err(unsafe_path("it has a NUL"));
    }
    if path.starts_with(b"/") && path.iter().any(|b| *b != b'/') {
        return Err(unsafe_path("it is absolute"));
    }
    if path.is_empty() {
        return Err(unsafe_path("it is empty"));
    }
    let mut normal = Vec::with_capacity(path.len());
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(unsafe_path("it has a component `..`")),
            _ => {}
        }
        if !normal.is_empty() {
            normal.push(b'/');
        }
        normal.extend_from_slice(component);
    }
    Ok(normal)
}

/// Splits a normal path; none for the root.
pub(super) fn split(path: &[u8]) -> Option<Split<'_>> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Split {
            parent: &path[..at],
            name: &path[at + 1..],
        },
        None => Split {
            parent: b"",
            name: path,
        },
    })
}

/// The directories of a layer.
pub(super) struct Dirs {
    root: Rc<OwnedFd>,
    /// Most recently used first.
    kept: Vec<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Dirs {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Rc::new(root),
            kept: Vec::with_capacity(KEPT),
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory at the normal path `path`. Missing ones are made and given to `made`.
    pub(super) fn open(
        &mut self,
        path: &[u8],
        made: &mut dyn FnMut(&[u8]),
    ) -> Result<Rc<OwnedFd>, UnpackError> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(at) = self.kept.iter().position(|(known, _)| known == path) {
            self.kept[..=at].rotate_right(1);
            return Ok(Rc::clone(&self.kept[0].1));
        }
        let dir = match self.resolve(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => self.make(path, made)?,
            Err(error) => return Err(resolve_error(path, error)),
        };
        let dir = Rc::new(dir);
        if self.kept.len() == KEPT {
            self.kept.pop();
        }
        self.kept.insert(0, (path.to_vec(), Rc::clone(&dir)));
        Ok(dir)
    }

    /// The directory at `path` if it is there; for link targets.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some((_, dir)) = self.kept.iter().find(|(known, _)| known == path) {
            return Ok(Rc::clone(dir));
        }
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        self.resolve(path)
            .map(Rc::new)
            .map_err(|error| resolve_error(path, error))
    }

    /// Opens the directory at `path` for its attributes (`open` and `find` give descriptors for paths only).
    ///
    /// # Errors
    /// ELOOP when it is a symbolic link, and what [`Dirs::open`] refuses.
    pub(super) fn open_itself(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        self.openat2(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        )
    }

    /// Forgets what was opened: a directory or link was replaced.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.openat2(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    fn openat2(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match openat2(&*self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// Makes the missing directories of `path`, from the longest part of it that is there.
    fn make(&self, path: &[u8], made: &mut dyn FnMut(&[u8])) -> Result<OwnedFd, UnpackError> {
        let mut known = path;
        let mut dir = loop {
            known = split(known).map_or(&b""[..], |split| split.parent);
            if known.is_empty() {
                break None;
            }
            match self.resolve(known) {
                Ok(dir) => break Some(dir),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(resolve_error(path, error)),
            }
        };
        let mut end = known.len();
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            let length = path[start..].iter().position(|b| *b == b'/');
            end = length.map_or(path.len(), |length| start + length);
            let at = dir.as_ref().map_or(self.root.as_fd(), |dir| dir.as_fd());
            let name = &path[start..end];
            // Something is in the way that is no directory: a file, or a link to nowhere.
            mkdirat(at, name, IMPLIED_MODE).map_err(|error| match error {
                Errno::EXIST => resolve_error(&path[..end], Errno::LOOP),
                error => UnpackError::io("make", &path[..end], error),
            })?;
            made(&path[..end]);
            let next = rustix::fs::openat(
                at,
                name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            );
            dir = Some(next.map_err(|error| UnpackError::io("open", &path[..end], error))?);
        }
        dir.ok_or_else(|| resolve_error(path, Errno::NOENT))
    }
}

fn resolve_error(path: &[u8], error: Errno) -> UnpackError {
    let unsafe_path = |reason: &str| UnpackError::Unsafe {
        path: path.to_vec(),
        reason: reason.to_owned(),
    };
    match error {
        Errno::XDEV => unsafe_path("a symbolic link on the way leads out of the layer"),
        Errno::LOOP => unsafe_path("a symbolic link on the way leads nowhere"),
        Errno::NOTDIR => unsafe_path("something on the way is not a directory"),
        Errno::NAMETOOLONG => unsafe_path("a component is too long"),
        Errno::NOENT => unsafe_path("it is not in the layer"),
        error => UnpackError::io("open", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_paths() {
        for (path, expected) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"./a//b/", b"a/b"),
            (b"./", b""),
            (b".", b""),
            (b"/", b""),
            (b"...", b"..."),
            (b"a/./b", b"a/b"),
        ] {
            assert_eq!(normal(path).unwrap(), expected);
        }
        for bad in [
            &b"/etc/x"[..],
            b"..",
            b"a/../b",
            b"../x",
            b"",
            b"a\0b",
            b"//x",
        ] {
            assert!(normal(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn splits() {
        let parts = |path: &'static [u8]| split(path).map(|s| (s.parent, s.name));
        assert_eq!(parts(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(parts(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(parts(b""), None);
    }
}
