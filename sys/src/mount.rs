//! Mounts: the container's overlay, the pod's `/dev/shm`, and their removal.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use crate::{Error, Result};

/// The layers of a container's root file system.
#[derive(Debug, Clone)]
pub struct Overlay<'a> {
    /// Read-only layers, the top one first; at least one.
    pub lower: &'a [PathBuf],
    /// The writable layer.
    pub upper: &'a Path,
    /// Empty directory on the file system of `upper`, for the kernel's use.
    pub work: &'a Path,
}

/// Mounts an overlay on `target`.
///
/// `volatile`, because a container never outlives its machine: without it every unmount would write the whole
/// upper layer back to disk.
///
/// # Errors
/// The mount was refused; EINVAL is explained in the kernel's log.
pub fn overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    match overlay_by_descriptor(overlay, target) {
        // Before Linux 6.5 there is no `lowerdir+`.
        Err(Errno::INVAL | Errno::NOSYS) => overlay_by_options(overlay, target),
        other => other,
    }
    .map_err(|e| Error::path("mount overlay on", target, e))
}

/// One call per layer, so that neither the number of layers nor the length of their paths is limited by a page.
fn overlay_by_descriptor(overlay: &Overlay<'_>, target: &Path) -> Result<(), Errno> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in overlay.lower {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    rustix::mount::fsconfig_set_string(&fs, "upperdir", overlay.upper)?;
    rustix::mount::fsconfig_set_string(&fs, "workdir", overlay.work)?;
    rustix::mount::fsconfig_set_string(&fs, "index", "off")?;
    rustix::mount::fsconfig_set_flag(&fs, "volatile")?;
    rustix::mount::fsconfig_create(&fs)?;
    let mount =
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(
        &mount,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn overlay_by_options(overlay: &Overlay<'_>, target: &Path) -> Result<(), Errno> {
    let mut options = Vec::from(*b"index=off,volatile,lowerdir=");
    for (i, lower) in overlay.lower.iter().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend_from_slice(lower.as_os_str().as_bytes());
    }
    options.extend_from_slice(b",upperdir=");
    options.extend_from_slice(overlay.upper.as_os_str().as_bytes());
    options.extend_from_slice(b",workdir=");
    options.extend_from_slice(overlay.work.as_os_str().as_bytes());
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
}

/// Mounts the pod's `/dev/shm`: a tmpfs of `bytes` that everyone may write to and nothing be executed from.
///
/// # Errors
/// The mount was refused.
pub fn shm(target: &Path, bytes: u64) -> Result<()> {
    let options = CString::new(format!("mode=1777,size={bytes}"))
        .map_err(|e| Error::path("mount shm on", target, std::io::Error::from(e)))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("shm", target, "tmpfs", flags, options.as_c_str())
        .map_err(|e| Error::path("mount shm on", target, e))
}

/// Detaches what is mounted on `path`, however often; nothing mounted or no such path is no error.
///
/// The detach is lazy: it cannot fail as busy, and what still uses the mount keeps it until it is done.
///
/// # Errors
/// The kernel refused for another reason.
pub fn unmount(path: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::path("unmount", path, e)),
        }
    }
}

/// Mount points at or below `dir`, the deepest last, as this process's mount namespace has them.
///
/// # Errors
/// `/proc/self/mountinfo` could not be read.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let file = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(file).map_err(|e| Error::path("read", file, e))?;
    Ok(text
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(dir))
        .collect())
}

/// proc(5): space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                std::str::from_utf8(digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from(std::ffi::OsStr::from_bytes(
        &bytes,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/a\\09"), Path::new("/a\\09"));
    }

    #[test]
    fn an_overlay_of_many_layers_by_both_ways() {
        let dir = std::env::temp_dir().join(format!("zcri-ovl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // The layers are on a tmpfs: the root file system of a test container may itself be an overlay.
        rustix::mount::mount("t", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
        let lower: Vec<PathBuf> = (0..60)
            .map(|i| {
                let layer = dir.join(format!("layer-{i}"));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join("top"), i.to_string()).unwrap();
                layer
            })
            .collect();
        type Way = fn(&Overlay<'_>, &Path) -> Result<(), Errno>;
        for (name, way) in [
            ("fd", overlay_by_descriptor as Way),
            ("opt", overlay_by_options as Way),
        ] {
            let [upper, work, target] = ["u", "w", "t"].map(|d| dir.join(format!("{name}-{d}")));
            for d in [&upper, &work, &target] {
                std::fs::create_dir(d).unwrap();
            }
            way(
                &Overlay {
                    lower: &lower,
                    upper: &upper,
                    work: &work,
                },
                &target,
            )
            .unwrap();
            assert_eq!(
                std::fs::read_to_string(target.join("top")).unwrap(),
                "0",
                "the first is the top"
            );
            std::fs::write(target.join("new"), "x").unwrap();
            assert!(upper.join("new").exists());
            assert_eq!(below(&target).unwrap(), vec![target.clone()]);
            unmount(&target).unwrap();
            unmount(&target).unwrap();
        }
        unmount(&dir).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }
}
