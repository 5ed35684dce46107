//! Looks up on the node what a container's specification needs: sources of mounts, device nodes, a seccomp profile.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::config::{ContainerConfig, Device, Mount, MountAccess, MountSource, SeccompProfile};
use super::prepared::Workshop;
use super::spec::{
    DeviceKind, DeviceNode, HostParts, LocalProfile, Peers, PreparedMount, peers_of,
};
use crate::error::{Error, Result};
use crate::pod::config::PodConfig;
use crate::runtime::HandlerFeatures;

/// What a privileged container does not get of `/dev`: it has its own of these, or they are no devices.
const NOT_SHARED: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", ".udev", ".lxc"];

/// What it is gathered for, and with.
pub(super) struct Wanted<'a> {
    pub(super) pod: &'a PodConfig,
    pub(super) config: &'a ContainerConfig,
    /// Directories of the layers of mounted images, the top one first, by the number of the mount.
    pub(super) volumes: &'a BTreeMap<usize, Vec<PathBuf>>,
    pub(super) features: &'a HandlerFeatures,
    pub(super) workshop: &'a Workshop<'a>,
}

/// Gathers all of it.
///
/// # Errors
/// A source cannot be had; the error names the field of the request and the path.
pub(super) fn gather(wanted: &Wanted<'_>) -> Result<HostParts> {
    let (pod, config) = (wanted.pod, wanted.config);
    let mountinfo = match std::fs::read_to_string("/proc/self/mountinfo") {
        // A system without it has no propagation to tell of.
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|e| Error::node("read /proc/self/mountinfo", e))?,
    };
    let mounts = config
        .mounts
        .iter()
        .enumerate()
        .map(|(number, mount)| wanted.prepare_mount(number, mount, &mountinfo))
        .collect::<Result<Vec<_>>>()?;
    let mut devices = Vec::new();
    if config.security.privileged {
        let all = Device {
            host_path: "/dev".into(),
            container_path: "/dev".into(),
            permissions: "rwm".into(),
        };
        add_devices(&all, &mut devices)
            .map_err(|e| Error::node("list the devices of the node", e))?;
    }
    for device in &config.devices {
        let before = devices.len();
        let found = add_devices(device, &mut devices);
        let reason = match found {
            Ok(()) if devices.len() > before => continue,
            Ok(()) => "there is no device".to_owned(),
            Err(error) => error.to_string(),
        };
        let value = device.host_path.display().to_string();
        return Err(Error::Invalid {
            field: "config.devices.host_path",
            value,
            reason,
        });
    }
    // Of a device that is named twice, as of one that a privileged container has anyway, the last word counts.
    let mut seen = HashSet::new();
    devices.reverse();
    devices.retain(|device: &DeviceNode| seen.insert(device.path.clone()));
    devices.reverse();
    Ok(HostParts {
        mounts,
        devices,
        seccomp: seccomp(config)?,
        host_name: crate::pod::host_name(pod)
            .map_err(|e| Error::node("read the host's name", e))?,
    })
}

impl Wanted<'_> {
    fn prepare_mount(
        &self,
        number: usize,
        mount: &Mount,
        mountinfo: &str,
    ) -> Result<PreparedMount> {
        check_features(mount, self.features)?;
        let (source, peers, kept) = match &mount.source {
            MountSource::Host(path) => {
                let source = real_source(path)?;
                let peers = peers_of(mountinfo, &source);
                let kept = options_of(&source);
                (self.workshop.mapped(number, source, mount)?, peers, kept)
            }
            MountSource::Image { sub_path, .. } => {
                let layers = self.volumes.get(&number).map(Vec::as_slice);
                let layers = layers.unwrap_or_default();
                let source = self.workshop.image(number, layers, sub_path)?;
                // An image is data of somebody else.
                (source, Peers::Private, vec!["nosuid", "nodev"])
            }
        };
        Ok(PreparedMount {
            mount: mount.clone(),
            source,
            peers,
            kept,
        })
    }
}

/// What the mount that holds `path` takes from its files.
fn options_of(path: &Path) -> Vec<&'static str> {
    let flags = rustix::fs::statvfs(path).map(|found| found.f_flag);
    let flags = flags.unwrap_or(StatVfsMountFlags::empty());
    [
        (StatVfsMountFlags::NOSUID, "nosuid"),
        (StatVfsMountFlags::NODEV, "nodev"),
        (StatVfsMountFlags::NOEXEC, "noexec"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, option)| option)
    .collect()
}

/// What the runtime of the pod's handler cannot do is refused, not left out.
fn check_features(mount: &Mount, features: &HandlerFeatures) -> Result<()> {
    if mount.access == MountAccess::RecursiveReadOnly && !features.recursive_read_only() {
        return Err(Error::Unsupported {
            what: "config.mounts.recursive_read_only",
            reason: "the runtime of this handler does not report the mount option rro".into(),
        });
    }
    match mount
        .options
        .iter()
        .find(|option| features.lacks_mount_option(option))
    {
        Some(option) => Err(Error::Unsupported {
            what: "config.mounts.mount_options",
            reason: format!("the runtime of this handler does not know the option {option:?}"),
        }),
        None => Ok(()),
    }
}

/// Follows links of the source. One that is missing is made as a directory, as everywhere in the field.
pub(super) fn real_source(path: &Path) -> Result<PathBuf> {
    let source = std::fs::canonicalize(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)?;
            std::fs::canonicalize(path)
        }
        _ => Err(error),
    });
    source.map_err(|error| Error::Invalid {
        field: "config.mounts.host_path",
        value: path.display().to_string(),
        reason: error.to_string(),
    })
}

/// Adds a device, or all devices below a directory.
fn add_devices(device: &Device, found: &mut Vec<DeviceNode>) -> io::Result<()> {
    let metadata = std::fs::metadata(&device.host_path)?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_dir() => return add_below(device, found),
        _ => return Ok(()),
    };
    let number = metadata.rdev();
    found.push(DeviceNode {
        path: device.container_path.clone(),
        kind,
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: device.permissions.clone(),
    });
    Ok(())
}

fn add_below(dir: &Device, found: &mut Vec<DeviceNode>) -> io::Result<()> {
    for entry in std::fs::read_dir(&dir.host_path)? {
        let entry = entry?;
        let name = entry.file_name();
        // A link to a device would make it twice; one to a directory might lead anywhere.
        if entry.file_type()?.is_symlink() || NOT_SHARED.iter().any(|not| name == *not) {
            continue;
        }
        let inside = Device {
            host_path: dir.host_path.join(&name),
            container_path: dir.container_path.join(&name),
            permissions: dir.permissions.clone(),
        };
        match add_devices(&inside, found) {
            // It was pulled out meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn seccomp(config: &ContainerConfig) -> Result<Option<LocalProfile>> {
    let SeccompProfile::Localhost(path) = &config.security.seccomp else {
        return Ok(None);
    };
    // It has no filter, whatever the profile says.
    if config.security.privileged {
        return Ok(None);
    }
    let json = std::fs::read_to_string(path).map_err(|error| Error::Invalid {
        field: "config.linux.security_context.seccomp.localhost_ref",
        value: path.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(Some(LocalProfile {
        path: path.clone(),
        json,
        kernel: kernel(),
    }))
}

/// Release of the running kernel, major and minor; 0.0 if it says something strange.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_one_by_one_and_below_a_directory() {
        let device = |path: &str| Device {
            host_path: path.into(),
            container_path: "/dev/x".into(),
            permissions: "r".into(),
        };
        let mut found = Vec::new();
        add_devices(&device("/dev/null"), &mut found).unwrap();
        assert_eq!(
            (found[0].major, found[0].minor, found[0].kind),
            (1, 3, DeviceKind::Character)
        );
        assert_eq!(
            (found[0].path.as_path(), found[0].permissions.as_str()),
            (Path::new("/dev/x"), "r")
        );
        found.clear();
        add_devices(&device("/dev"), &mut found).unwrap();
        assert!(
            found
                .iter()
                .any(|node| node.path == Path::new("/dev/x/null"))
        );
        assert!(!found.iter().any(|node| node.path.starts_with("/dev/x/pts")));
        add_devices(&device("/etc/hostname"), &mut Vec::new()).unwrap();
        assert!(add_devices(&device("/dev/no-such"), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_missing_source_of_a_mount_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("a/b");
        let source = real_source(&path).unwrap();
        assert!(path.is_dir() && source.ends_with("a/b"));
        assert!(kernel().0 >= 4);
    }
}
