//! Files out of an archive, in the form of an overlayfs lower directory (kernel `filesystems/overlayfs.rst`,
//! "whiteouts and opaque directories"; OCI image specification `layer.md`, "Representing Changes").
//!
//! Each call is relative to the directory of its entry. The attributes of directories are set at the end: their
//! times change while they are filled, and a set-group-id bit would spread to what is made in them.

use std::io::{self, BufRead};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, fstat, fstatvfs, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat,
    openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind};
use super::dirs::{Dirs, Split, normal, split};
use super::measure::STAT_BLOCK;
use super::{DiskUse, measure, os};
use crate::limits::{Limits, MAX_DIRECTORY_BYTES};
use crate::tree;

/// Prefix of whiteouts in an archive.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS's own files, which mean nothing here.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// The attribute of a directory that hides what lower layers have in it.
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";
/// Attributes by which overlayfs steers itself: never taken from an image.
const OVERLAY_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// What a directory gets before its attributes are set.
const FRESH_DIRECTORY: Mode = Mode::from_raw_mode(0o755);
/// Set-id and sticky bits, which a change of the owner takes away.
const SPECIAL_BITS: u32 = 0o7000;

/// Why unpacking stopped.
#[derive(Debug)]
pub(super) enum UnpackError {
    Format {
        reason: String,
    },
    Unsafe {
        path: Vec<u8>,
        reason: String,
    },
    Limit {
        what: String,
        limit: String,
    },
    Attribute {
        path: Vec<u8>,
        name: Vec<u8>,
        source: io::Error,
    },
    Io {
        action: &'static str,
        path: Vec<u8>,
        source: io::Error,
    },
}

impl UnpackError {
    pub(super) fn io(action: &'static str, path: &[u8], error: Errno) -> Self {
        Self::Io {
            action,
            path: path.to_vec(),
            source: os(error),
        }
    }
}

/// Unpacks the archive `input` into the empty directory `root`, which must be open for reading.
pub(super) fn unpack(
    input: impl BufRead,
    root: OwnedFd,
    limits: &Limits,
) -> Result<DiskUse, UnpackError> {
    let mut archive = Archive::new(input, limits.entries);
    let mut unpacker = Unpacker::new(root)?;
    while let Some(entry) = archive.next()? {
        unpacker.entry(&entry, &mut archive)?;
    }
    unpacker.finish()
}

struct Unpacker {
    dirs: Dirs,
    /// In the order of their entries, so that the last entry of a directory counts.
    directories: Vec<Directory>,
    directory_bytes: usize,
    usage: DiskUse,
    /// Something was replaced: the figures have to be taken anew.
    recount: bool,
    umask: u32,
    block: u64,
}

struct Directory {
    path: Vec<u8>,
    /// Made for this mention of it, and so to be counted here.
    fresh: bool,
    /// None: implied by the path of an entry.
    attributes: Option<Attributes>,
}

struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Unpacker {
    fn new(root: OwnedFd) -> Result<Self, UnpackError> {
        let at_root = |error| UnpackError::io("prepare", b".", error);
        // Neither the umask nor a set-group-id bit further up is the image's.
        fchown(&root, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(at_root)?;
        fchmod(&root, FRESH_DIRECTORY).map_err(at_root)?;
        let block = fstatvfs(&root).map_err(at_root)?.f_frsize.max(STAT_BLOCK);
        Ok(Self {
            dirs: Dirs::new(root),
            directories: vec![Directory {
                path: Vec::new(),
                fresh: true,
                attributes: None,
            }],
            directory_bytes: 0,
            usage: DiskUse::default(),
            recount: false,
            umask: umask().map_err(|source| UnpackError::Io {
                action: "read",
                path: b"/proc/self/status".to_vec(),
                source,
            })?,
            block,
        })
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let path = normal(&entry.path)?;
        let Some(at) = split(&path) else {
            // Only a directory can be the root.
            return match entry.kind {
                Kind::Directory => self.remember(&path, false, Some(entry)),
                _ => Err(unsafe_path(&entry.path, "it is the layer's root")),
            };
        };
        if at.name.starts_with(WHITEOUT) {
            return self.whiteout(&path, &at);
        }
        if entry.kind == Kind::Directory {
            return self.directory(&path, &at, entry);
        }
        let parent = self.parent(at.parent)?;
        match entry.kind {
            Kind::File => self.file(&parent, &path, at.name, entry, archive),
            Kind::HardLink => self.hard_link(&parent, &path, at.name, entry),
            Kind::Symlink => self.symlink(&parent, &path, at.name, entry),
            _ => self.node(&parent, &path, at.name, entry),
        }
    }

    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut made = Vec::new();
        let dir = self
            .dirs
            .open(path, &mut |implied| made.push(implied.to_vec()))?;
        for implied in made {
            self.remember(&implied, true, None)?;
        }
        Ok(dir)
    }

    fn remember(
        &mut self,
        path: &[u8],
        fresh: bool,
        entry: Option<&Entry>,
    ) -> Result<(), UnpackError> {
        self.directory_bytes += path.len() + size_of::<Directory>();
        if self.directory_bytes > MAX_DIRECTORY_BYTES {
            return Err(UnpackError::Limit {
                what: "the memory for names of directories".to_owned(),
                limit: format!("{MAX_DIRECTORY_BYTES} bytes"),
            });
        }
        if let Some(entry) = entry {
            refuse_overlay_attributes(entry)?;
        }
        self.directories.push(Directory {
            path: path.to_vec(),
            fresh,
            attributes: entry.map(|entry| Attributes {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                xattrs: entry.xattrs.clone(),
            }),
        });
        Ok(())
    }

    fn directory(&mut self, path: &[u8], at: &Split<'_>, entry: &Entry) -> Result<(), UnpackError> {
        let parent = self.parent(at.parent)?;
        let mut fresh = true;
        match mkdirat(&*parent, at.name, FRESH_DIRECTORY) {
            Ok(()) => {}
            Err(Errno::EXIST) => match Existing::at(&*parent, at.name)? {
                Existing::Directory => fresh = false,
                existing => {
                    self.remove(&parent, path, at.name)?;
                    mkdirat(&*parent, at.name, FRESH_DIRECTORY)
                        .map_err(|error| UnpackError::io("make", path, error))?;
                    if existing == Existing::Whiteout {
                        // What was deleted stays deleted beneath the new directory.
                        self.make_opaque(path)?;
                    }
                }
            },
            Err(error) => return Err(UnpackError::io("make", path, error)),
        }
        self.remember(path, fresh, Some(entry))
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & !SPECIAL_BITS);
        let file = self.create(parent, path, name, || openat(parent, name, flags, mode))?;
        let failed = |action, error| UnpackError::io(action, path, error);
        archive.content(|mut piece| {
            while !piece.is_empty() {
                match rustix::io::write(&file, piece) {
                    Ok(written) => piece = &piece[written..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(failed("write", error)),
                }
            }
            Ok(())
        })?;
        if (entry.uid, entry.gid) != (0, 0) {
            fchown(
                &file,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            )
            .map_err(|error| failed("change the owner of", error))?;
        }
        if entry.mode & (SPECIAL_BITS | self.umask) != 0 {
            fchmod(&file, Mode::from_raw_mode(entry.mode))
                .map_err(|error| failed("change the mode of", error))?;
        }
        set_attributes(&file, path, entry)?;
        futimens(&file, &times(entry.mtime)).map_err(|error| failed("set the times of", error))?;
        self.usage.inodes += 1;
        self.usage.bytes += entry.size.next_multiple_of(self.block);
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let target = normal(&entry.link)?;
        let Some(at) = split(&target).filter(|_| target != path) else {
            return Err(unsafe_path(&entry.link, "nothing can be a hard link to it"));
        };
        let from = self.dirs.find(at.parent)?;
        let link = || linkat(&*from, at.name, parent, name, AtFlags::empty());
        match self.create(parent, path, name, link) {
            Err(UnpackError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) =>
            {
                Err(unsafe_path(
                    &entry.link,
                    "a hard link to it, which is not in the layer",
                ))
            }
            result => result,
        }
    }

    fn symlink(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(unsafe_path(path, "a symbolic link to no path"));
        }
        self.create(parent, path, name, || {
            symlinkat(entry.link.as_slice(), parent, name)
        })?;
        self.set_unopened(parent, path, name, entry)?;
        // Short targets are in the inode everywhere; whether longer ones are, the file system knows.
        let blocks = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| UnpackError::io("look at", path, error))?
            .st_blocks;
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(blocks).unwrap_or_default() * STAT_BLOCK;
        Ok(())
    }

    fn node(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let (kind, device) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, entry.device),
            Kind::BlockDevice => (FileType::BlockDevice, entry.device),
            _ => (FileType::Fifo, (0, 0)),
        };
        let mode = Mode::from_raw_mode(entry.mode & !SPECIAL_BITS);
        let device = makedev(device.0, device.1);
        self.create(parent, path, name, || {
            mknodat(parent, name, kind, mode, device)
        })?;
        self.set_unopened(parent, path, name, entry)?;
        if entry.mode & (SPECIAL_BITS | self.umask) != 0 {
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(|error| UnpackError::io("change the mode of", path, error))?;
        }
        self.usage.inodes += 1;
        Ok(())
    }

    /// Owner, attributes and times of what cannot be opened.
    fn set_unopened(
        &self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        if (entry.uid, entry.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(parent, name, Some(uid), Some(gid), no_follow)
                .map_err(|error| UnpackError::io("change the owner of", path, error))?;
        }
        refuse_overlay_attributes(entry)?;
        for (key, value) in &entry.xattrs {
            let mut by_fd = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            by_fd.extend_from_slice(name);
            lsetxattr(by_fd.as_slice(), key.as_slice(), value, XattrFlags::empty())
                .map_err(|error| attribute_error(path, key, error))?;
        }
        utimensat(parent, name, &times(entry.mtime), no_follow)
            .map_err(|error| UnpackError::io("set the times of", path, error))
    }

    fn whiteout(&mut self, path: &[u8], at: &Split<'_>) -> Result<(), UnpackError> {
        if at.name == WHITEOUT_OPAQUE {
            self.parent(at.parent)?;
            return self.make_opaque(at.parent);
        }
        if at.name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = &at.name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(unsafe_path(path, "a whiteout of no name"));
        }
        let parent = self.parent(at.parent)?;
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        match mknodat(&*parent, hidden, kind, mode, makedev(0, 0)) {
            Ok(()) => {
                self.usage.inodes += 1;
                Ok(())
            }
            // A whiteout concerns lower layers. A file of this one hides them anyway, a directory when opaque.
            Err(Errno::EXIST) => match Existing::at(&*parent, hidden)? {
                Existing::Directory => {
                    let directory = [
                        at.parent,
                        if at.parent.is_empty() { b"" } else { b"/" },
                        hidden,
                    ];
                    self.make_opaque(&directory.concat())
                }
                _ => Ok(()),
            },
            Err(error) => Err(UnpackError::io("make a whiteout for", path, error)),
        }
    }

    fn make_opaque(&self, path: &[u8]) -> Result<(), UnpackError> {
        let dir = self.dirs.open_itself(path).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => unsafe_path(path, "an opaque directory that is none"),
            error => UnpackError::io("open", path, error),
        })?;
        fsetxattr(&dir, OVERLAY_OPAQUE, b"y", XattrFlags::empty())
            .map_err(|error| attribute_error(path, OVERLAY_OPAQUE.as_bytes(), error))
    }

    /// Makes something with `make`; what an earlier entry put there gives way.
    fn create<T>(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, path, name)?;
                make()
            }
            result => result,
        }
        .map_err(|error| match error {
            Errno::NAMETOOLONG => unsafe_path(path, "a component is too long"),
            error => UnpackError::io("make", path, error),
        })
    }

    fn remove(&mut self, parent: &OwnedFd, path: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        self.recount = true;
        self.dirs.forget();
        tree::remove(parent.as_fd(), name, None)
            .map_err(|error| UnpackError::io("replace", path, error))
    }

    /// Sets the attributes of all directories, and takes the figures.
    fn finish(mut self) -> Result<DiskUse, UnpackError> {
        for directory in std::mem::take(&mut self.directories) {
            let path = directory.path.as_slice();
            let failed = |action, error| UnpackError::io(action, path, error);
            let dir = match self.dirs.open_itself(path) {
                Ok(dir) => dir,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(error) => return Err(failed("open", error)),
            };
            if let Some(set) = &directory.attributes {
                fchown(
                    &dir,
                    Some(Uid::from_raw(set.uid)),
                    Some(Gid::from_raw(set.gid)),
                )
                .map_err(|error| failed("change the owner of", error))?;
                fchmod(&dir, Mode::from_raw_mode(set.mode))
                    .map_err(|error| failed("change the mode of", error))?;
                for (key, value) in &set.xattrs {
                    fsetxattr(&dir, key.as_slice(), value, XattrFlags::empty())
                        .map_err(|error| attribute_error(path, key, error))?;
                }
                futimens(&dir, &times(set.mtime))
                    .map_err(|error| failed("set the times of", error))?;
            }
            if !directory.fresh {
                continue;
            }
            let blocks = fstat(&dir)
                .map_err(|error| failed("look at", error))?
                .st_blocks;
            self.usage.inodes += 1;
            self.usage.bytes += u64::try_from(blocks).unwrap_or_default() * STAT_BLOCK;
        }
        if !self.recount {
            return Ok(self.usage);
        }
        let root = format!("/proc/self/fd/{}/.", self.dirs.root().as_raw_fd());
        measure(root.as_ref()).map_err(|source| UnpackError::Io {
            action: "measure",
            path: b".".to_vec(),
            source,
        })
    }
}

/// What an entry finds in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Directory,
    Whiteout,
    Other,
}

impl Existing {
    fn at(parent: impl AsFd, name: &[u8]) -> Result<Self, UnpackError> {
        let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| UnpackError::io("look at", name, error))?;
        Ok(match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::CharacterDevice if found.st_rdev == 0 => Self::Whiteout,
            _ => Self::Other,
        })
    }
}

fn set_attributes(file: &OwnedFd, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    refuse_overlay_attributes(entry)?;
    for (key, value) in &entry.xattrs {
        fsetxattr(file, key.as_slice(), value, XattrFlags::empty())
            .map_err(|error| attribute_error(path, key, error))?;
    }
    Ok(())
}

fn refuse_overlay_attributes(entry: &Entry) -> Result<(), UnpackError> {
    for (key, _) in &entry.xattrs {
        if OVERLAY_ATTRIBUTES
            .iter()
            .any(|prefix| key.starts_with(prefix))
        {
            let reason = format!("attribute {} is overlayfs's own", super::shown(key));
            return Err(unsafe_path(&entry.path, &reason));
        }
    }
    Ok(())
}

fn attribute_error(path: &[u8], name: &[u8], error: Errno) -> UnpackError {
    UnpackError::Attribute {
        path: path.to_vec(),
        name: name.to_vec(),
        source: os(error),
    }
}

fn unsafe_path(path: &[u8], reason: &str) -> UnpackError {
    UnpackError::Unsafe {
        path: path.to_vec(),
        reason: reason.to_owned(),
    }
}

const fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

/// The bits that this process takes away from the modes of new files; read without changing it, which would be
/// seen by other threads.
fn umask() -> io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    field
        .and_then(|text| u32::from_str_radix(text.trim(), 8).ok())
        .ok_or_else(|| io::Error::other("no Umask"))
}
