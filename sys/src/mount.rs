//! Mounts: the container's overlay, the pod's `/dev/shm`, and their removal.

mod tree;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};

use crate::{Error, Result};
pub use tree::{DetachedTree, maps_ids};
use tree::{MappedLayers, move_to};

/// The layers of a root file system.
#[derive(Debug, Clone)]
pub struct Overlay<'a> {
    /// Read-only layers, the top one first; at least one, and at least two where there is no writable one.
    pub lower: &'a [PathBuf],
    /// The writable layer.
    pub writable: Option<Writable<'a>>,
    /// Shows the files of the read-only layers with other owners.
    pub id_map: Option<IdMap<'a>>,
    /// SELinux label of all its files.
    pub label: Option<&'a str>,
}

/// The writable layer of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    /// Where changes go.
    pub upper: &'a Path,
    /// Empty directory on the file system of `upper`, for the kernel's use.
    pub work: &'a Path,
}

/// How the owners of read-only layers are shown.
#[derive(Debug, Clone, Copy)]
pub struct IdMap<'a> {
    /// The user namespace whose mapping is used.
    pub user_namespace: BorrowedFd<'a>,
    /// A path where nothing is, for mounts that are needed for the time of the call.
    pub scratch: &'a Path,
}

/// Mounts an overlay on `target`. Without a writable layer it is read-only.
///
/// A writable one is `volatile`, because a container never outlives its machine: without it every unmount would
/// write the whole upper layer back to disk.
///
/// # Errors
/// The mount was refused; EINVAL is explained in the kernel's log.
pub fn overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    let Some(map) = &overlay.id_map else {
        return mount_overlay(overlay, target);
    };
    let layers = MappedLayers::mount(overlay.lower, map.user_namespace, map.scratch)?;
    let mapped = Overlay {
        lower: &layers.paths,
        ..overlay.clone()
    };
    mount_overlay(&mapped, target)
}

fn mount_overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    let release = rustix::system::uname();
    let mounted = if adds_layers(&release.release().to_string_lossy()) {
        match overlay_by_descriptor(overlay, target) {
            // Another kernel than its name says.
            Err(Errno::INVAL | Errno::NOSYS) => overlay_by_options(overlay, target),
            other => other,
        }
    } else {
        overlay_by_options(overlay, target)
    };
    mounted.map_err(|e| Error::path("mount overlay on", target, e))
}

/// Whether overlayfs of a kernel takes layers one by one (`lowerdir+`, since Linux 6.5). An older one would write of
/// the attempt into its log for each container.
fn adds_layers(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 5),
        _ => true,
    }
}

/// What mount(2) takes of its options, the byte that ends them apart.
const OPTIONS_MAX: usize = 4095;

/// One call per layer, so that neither the number of layers nor the length of their paths is limited by a page.
fn overlay_by_descriptor(overlay: &Overlay<'_>, target: &Path) -> Result<(), Errno> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in overlay.lower {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    if let Some(writable) = overlay.writable {
        rustix::mount::fsconfig_set_string(&fs, "upperdir", writable.upper)?;
        rustix::mount::fsconfig_set_string(&fs, "workdir", writable.work)?;
        rustix::mount::fsconfig_set_flag(&fs, "volatile")?;
    }
    if let Some(label) = overlay.label {
        rustix::mount::fsconfig_set_string(&fs, "context", label)?;
    }
    rustix::mount::fsconfig_set_string(&fs, "index", "off")?;
    rustix::mount::fsconfig_create(&fs)?;
    let mount =
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_to(mount.as_fd(), target)
}

fn overlay_by_options(overlay: &Overlay<'_>, target: &Path) -> Result<(), Errno> {
    let options = overlay_options(overlay, overlay.lower)?;
    if options.len() <= OPTIONS_MAX {
        return mount_with(options, target);
    }
    // The names of descriptors are short.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |lower: &PathBuf| rustix::fs::open(lower, flags, Mode::empty());
    let opened = overlay
        .lower
        .iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
    let named = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let names: Vec<PathBuf> = opened.iter().map(named).collect();
    mount_with(overlay_options(overlay, &names)?, target)
}

fn overlay_options(overlay: &Overlay<'_>, lower: &[PathBuf]) -> Result<Vec<u8>, Errno> {
    let mut options = Vec::from(*b"index=off,lowerdir=");
    for (i, lower) in lower.iter().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend_from_slice(lower.as_os_str().as_bytes());
    }
    if let Some(writable) = overlay.writable {
        options.extend_from_slice(b",volatile,upperdir=");
        options.extend_from_slice(writable.upper.as_os_str().as_bytes());
        options.extend_from_slice(b",workdir=");
        options.extend_from_slice(writable.work.as_os_str().as_bytes());
    }
    if let Some(label) = overlay.label {
        options.extend_from_slice(context(label)?.as_bytes());
    }
    Ok(options)
}

/// The option for mount(2); quoted, because categories are separated by commas.
pub(crate) fn context(label: &str) -> Result<String, Errno> {
    // Nothing that a label has, and that would end it here.
    if label
        .chars()
        .any(|c| matches!(c, '"' | '\\') || c.is_control())
    {
        return Err(Errno::INVAL);
    }
    Ok(format!(",context=\"{label}\""))
}

fn mount_with(options: Vec<u8>, target: &Path) -> Result<(), Errno> {
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
}

/// Mounts the pod's `/dev/shm`: a tmpfs of `bytes` that everyone may write to and nothing be executed from, owned by
/// a user and a group, all of whose files have an SELinux label.
///
/// # Errors
/// The mount was refused.
pub fn shm(target: &Path, bytes: u64, (uid, gid): (u32, u32), label: Option<&str>) -> Result<()> {
    let label = label.map(context).transpose();
    let label = label
        .map_err(|e| Error::path("mount shm on", target, e))?
        .unwrap_or_default();
    let options = CString::new(format!("mode=1777,size={bytes},uid={uid},gid={gid}{label}"))
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
            // Authority is asked for first. Where nothing is mounted nothing is missing, and what could not be mounted
            // for want of authority can be undone.
            Err(Errno::PERM) if !is_mount_point(path) => return Ok(()),
            Err(e) => return Err(Error::path("unmount", path, e)),
        }
    }
}

/// Whether something is mounted on `path`, as far as can be told: the answer is yes where it cannot.
fn is_mount_point(path: &Path) -> bool {
    let found = rustix::fs::statx(
        rustix::fs::CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::empty(),
    );
    match found {
        Ok(found) => {
            let root = StatxAttributes::MOUNT_ROOT;
            !found.stx_attributes_mask.contains(root) || found.stx_attributes.contains(root)
        }
        Err(Errno::NOENT) => false,
        Err(_) => true,
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
    fn a_label_adds_no_option() {
        assert_eq!(
            context("u:r:t:s0:c1,c2").unwrap(),
            ",context=\"u:r:t:s0:c1,c2\""
        );
        for wrong in ["u:r:t:s0\",upperdir=/etc", "a\\b", "a\nb", "a\0"] {
            assert_eq!(context(wrong), Err(Errno::INVAL), "{wrong:?}");
        }
    }

    #[test]
    fn kernels_that_take_layers_one_by_one() {
        for (release, expected) in [
            ("6.5.0", true),
            ("6.18.1-generic", true),
            ("7.0-rc1", true),
            ("6.1.0-56-cloud-amd64", false),
            ("5.14.0-503.el9.x86_64", false),
            ("unknown", true),
        ] {
            assert_eq!(adds_layers(release), expected, "{release}");
        }
    }

    #[test]
    fn an_overlay_of_many_layers_by_both_ways() {
        let dir = std::env::temp_dir().join(format!("zcri-ovl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // The layers are on a tmpfs: the root file system of a test container may itself be an overlay.
        rustix::mount::mount("t", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
        // More than the options of mount(2) hold.
        let lower: Vec<PathBuf> = (0..120)
            .map(|i| {
                let layer = dir.join(format!("layer-{i}-{}", "x".repeat(90)));
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
                    writable: Some(Writable {
                        upper: &upper,
                        work: &work,
                    }),
                    id_map: None,
                    label: None,
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
