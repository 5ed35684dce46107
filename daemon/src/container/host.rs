//! What a container's specification needs to know of the node: facts found once, and parts looked up for each
//! container. All of it reads the file system, so it belongs on a thread that may block.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use zcri_sys::{cgroup, node};

use super::config::{ContainerConfig, Device, Mount, MountSource, SeccompProfile};
use super::spec::{
    DeviceKind, DeviceNode, HostParts, LocalProfile, NodeFacts, PreparedMount, peers_of,
};
use crate::pod::config::PodConfig;

/// More than this is no seccomp profile: the largest of the field are below 20 KiB.
const PROFILE_LIMIT_BYTES: u64 = 1 << 20;

/// A part of a container's configuration that does not fit this node.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The source of a mount is not there and cannot be made.
    #[error("source {path:?} of a mount")]
    Mount {
        /// Path on the node.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A mount of an image.
    #[error("mount of image {image:?}: image volumes come with a later version")]
    ImageMount {
        /// As it was asked for.
        image: String,
    },
    /// CDI devices.
    #[error("CDI device {name:?}: CDI comes with a later version")]
    CdiDevice {
        /// As it was asked for.
        name: String,
    },
    /// A device cannot be looked at.
    #[error("device {path:?}")]
    Device {
        /// Path on the node.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What should be a device is none.
    #[error("{path:?} is not a device")]
    NotADevice {
        /// Path on the node.
        path: PathBuf,
    },
    /// A seccomp profile cannot be read.
    #[error("seccomp profile {path:?}")]
    Profile {
        /// Path on the node.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of the kernel cannot be read.
    #[error("read {path:?}")]
    Node {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl NodeFacts {
    /// Looks at the kernel and at this process.
    ///
    /// # Errors
    /// A file of the kernel that every node has cannot be read.
    pub fn detect(cgroups: &cgroup::Tree) -> zcri_sys::Result<Self> {
        Ok(Self {
            cgroup_version: cgroups.version(),
            bounding_capabilities: node::bounding_capabilities()?,
            lowest_oom_score_adj: node::lowest_oom_score_adj()?,
            seccomp: node::has_seccomp(),
            apparmor: node::security_module("apparmor"),
            selinux: node::security_module("selinux"),
            swap: has_swap(cgroups),
            hugetlb: has_hugetlb(cgroups),
        })
    }
}

/// v1 has the file when it was compiled in and not turned off at boot. v2 has it in every group but the root.
fn has_swap(cgroups: &cgroup::Tree) -> bool {
    let Some(root) = cgroups.dir("memory", "/") else {
        return false;
    };
    match cgroups.version() {
        cgroup::Version::V1 => root.join("memory.memsw.limit_in_bytes").exists(),
        cgroup::Version::V2 => {
            let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or("/")
                .to_owned();
            let children = std::fs::read_dir(&root)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let groups = cgroups.dir("memory", &own).into_iter().chain(children);
            groups
                .into_iter()
                .any(|group| group.join("memory.swap.max").exists())
        }
    }
}

fn has_hugetlb(cgroups: &cgroup::Tree) -> bool {
    let Some(root) = cgroups.dir("hugetlb", "/") else {
        return false;
    };
    match cgroups.version() {
        cgroup::Version::V1 => true,
        cgroup::Version::V2 => {
            std::fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|list| {
                list.split_whitespace()
                    .any(|controller| controller == "hugetlb")
            })
        }
    }
}

impl HostParts {
    /// Looks up what the configuration of a container refers to. A directory that is to be mounted and does not exist
    /// is made, as Kubernetes' volumes of type `hostPath` without a type expect from every runtime.
    ///
    /// # Errors
    /// Something that is referred to cannot be had.
    pub fn gather(pod: &PodConfig, config: &ContainerConfig) -> Result<Self, HostError> {
        if let Some(name) = config.cdi_devices.first() {
            return Err(HostError::CdiDevice { name: name.clone() });
        }
        Ok(Self {
            mounts: mounts(&config.mounts)?,
            devices: devices(&config.devices, config.security.privileged)?,
            seccomp: profile(config)?,
            host_name: host_name(pod)?,
        })
    }
}

fn read_kernel(path: &str) -> Result<String, HostError> {
    std::fs::read_to_string(path).map_err(|source| HostError::Node {
        path: path.into(),
        source,
    })
}

/// A pod without a name of its own has that of the node.
fn host_name(pod: &PodConfig) -> Result<String, HostError> {
    if !pod.hostname.is_empty() {
        return Ok(pod.hostname.clone());
    }
    Ok(read_kernel("/proc/sys/kernel/hostname")?.trim().to_owned())
}

fn mounts(wanted: &[Mount]) -> Result<Vec<PreparedMount>, HostError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mountinfo = read_kernel("/proc/self/mountinfo")?;
    let one = |mount: &Mount| {
        let path = match &mount.source {
            MountSource::Host(path) => path,
            MountSource::Image { image, .. } => {
                return Err(HostError::ImageMount {
                    image: image.image.clone(),
                });
            }
        };
        let source = real_source(path).map_err(|source| HostError::Mount {
            path: path.clone(),
            source,
        })?;
        let peers = peers_of(&mountinfo, &source);
        Ok(PreparedMount {
            mount: mount.clone(),
            source,
            peers,
        })
    };
    wanted.iter().map(one).collect()
}

fn real_source(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)?;
            std::fs::canonicalize(path)
        }
        found => found,
    }
}

fn devices(wanted: &[Device], privileged: bool) -> Result<Vec<DeviceNode>, HostError> {
    let mut nodes = Vec::new();
    for device in wanted {
        expand(
            &device.host_path,
            &device.container_path,
            &device.permissions,
            &mut nodes,
        )?;
    }
    if privileged {
        let asked: BTreeSet<PathBuf> = nodes.iter().map(|node| node.path.clone()).collect();
        let mut all = Vec::new();
        all_of_node(Path::new("/dev"), &mut all)?;
        nodes.extend(all.into_iter().filter(|node| !asked.contains(&node.path)));
    }
    Ok(nodes)
}

/// A device, or all devices in a directory.
fn expand(
    host: &Path,
    container: &Path,
    permissions: &str,
    nodes: &mut Vec<DeviceNode>,
) -> Result<(), HostError> {
    let failed = |source| HostError::Device {
        path: host.to_owned(),
        source,
    };
    // Follows links, as the names in /dev/disk are.
    let metadata = std::fs::metadata(host).map_err(failed)?;
    if metadata.is_dir() {
        let before = nodes.len();
        below(host, container, permissions, nodes)?;
        if nodes.len() == before {
            return Err(HostError::NotADevice {
                path: host.to_owned(),
            });
        }
        return Ok(());
    }
    let node = device_node(&metadata, container, permissions);
    nodes.push(node.ok_or_else(|| HostError::NotADevice {
        path: host.to_owned(),
    })?);
    Ok(())
}

fn below(
    host: &Path,
    container: &Path,
    permissions: &str,
    nodes: &mut Vec<DeviceNode>,
) -> Result<(), HostError> {
    for (path, metadata) in entries(host)? {
        let target = container.join(path.file_name().unwrap_or_default());
        if metadata.is_dir() {
            below(&path, &target, permissions, nodes)?;
        } else {
            nodes.extend(device_node(&metadata, &target, permissions));
        }
    }
    Ok(())
}

/// Every device of the node for a privileged container, but for those that each container has of its own.
fn all_of_node(dir: &Path, nodes: &mut Vec<DeviceNode>) -> Result<(), HostError> {
    const OWN: &[&str] = &[
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/dev/console",
        "/dev/ptmx",
    ];
    for (path, metadata) in entries(dir)? {
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        if metadata.is_dir() {
            all_of_node(&path, nodes)?;
        } else {
            nodes.extend(device_node(&metadata, &path, "rwm"));
        }
    }
    Ok(())
}

/// Entries of a directory without following links, so that no loop is walked. Devices come and go: one that is gone
/// by now is left out.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>, HostError> {
    let failed = |source| HostError::Device {
        path: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(metadata) => found.push((entry.path(), metadata)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

fn device_node(metadata: &std::fs::Metadata, path: &Path, permissions: &str) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Character,
        _ => return None,
    };
    Some(DeviceNode {
        path: path.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

/// The profile file, if the configuration names one that will be used.
fn profile(config: &ContainerConfig) -> Result<Option<LocalProfile>, HostError> {
    let path = match &config.security.seccomp {
        SeccompProfile::Localhost(path) if !config.security.privileged => path,
        _ => return Ok(None),
    };
    let failed = |source| HostError::Profile {
        path: path.clone(),
        source,
    };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is not a file",
        )));
    }
    let mut json = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PROFILE_LIMIT_BYTES)
        .read_to_string(&mut json)
        .map_err(failed)?;
    Ok(Some(LocalProfile {
        path: path.clone(),
        json,
        kernel: kernel_release(),
    }))
}

/// Major and minor of `uname -r`.
fn kernel_release() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::{MountAccess, Propagation, Security};

    fn with_mount(host: &Path) -> ContainerConfig {
        ContainerConfig {
            mounts: vec![Mount {
                container_path: "/data".into(),
                source: MountSource::Host(host.to_owned()),
                access: MountAccess::ReadWrite,
                propagation: Propagation::Private,
                selinux_relabel: false,
                uid_mappings: Vec::new(),
                gid_mappings: Vec::new(),
                options: Vec::new(),
            }],
            ..ContainerConfig::default()
        }
    }

    fn with_device(host: &str, container: &str) -> ContainerConfig {
        let device = Device {
            container_path: container.into(),
            host_path: host.into(),
            permissions: "rw".into(),
        };
        ContainerConfig {
            devices: vec![device],
            ..ContainerConfig::default()
        }
    }

    fn gather(config: &ContainerConfig) -> Result<HostParts, HostError> {
        HostParts::gather(
            &PodConfig {
                hostname: "pod".into(),
                ..PodConfig::default()
            },
            config,
        )
    }

    #[test]
    fn sources_of_mounts_are_made_and_links_followed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let missing = dir.join("a/b");
        assert_eq!(
            gather(&with_mount(&missing)).unwrap().mounts[0].source,
            missing
        );
        assert!(missing.is_dir());
        let link = dir.join("link");
        std::os::unix::fs::symlink(&missing, &link).unwrap();
        assert_eq!(
            gather(&with_mount(&link)).unwrap().mounts[0].source,
            missing
        );
        std::fs::write(dir.join("file"), "").unwrap();
        assert!(matches!(
            gather(&with_mount(&dir.join("file/x"))),
            Err(HostError::Mount { .. })
        ));
    }

    #[test]
    fn devices_are_found_by_their_numbers() {
        let parts = gather(&with_device("/dev/null", "/dev/hole")).unwrap();
        let [node] = parts.devices.as_slice() else {
            panic!("{:?}", parts.devices)
        };
        assert_eq!(
            (node.path.as_path(), node.kind, node.major, node.minor),
            (Path::new("/dev/hole"), DeviceKind::Character, 1, 3)
        );
        assert_eq!(node.permissions, "rw");
        assert!(matches!(
            gather(&with_device("/etc/passwd", "/x")),
            Err(HostError::NotADevice { .. })
        ));
        assert!(matches!(
            gather(&with_device("/dev/none", "/x")),
            Err(HostError::Device { .. })
        ));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            gather(&with_device(empty.path().to_str().unwrap(), "/x")),
            Err(HostError::NotADevice { .. })
        ));
    }

    #[test]
    fn a_privileged_container_has_the_nodes_devices_once() {
        let security = Security {
            privileged: true,
            ..Security::default()
        };
        let config = ContainerConfig {
            security,
            ..with_device("/dev/null", "/dev/null")
        };
        let parts = gather(&config).unwrap();
        let nulls: Vec<_> = parts
            .devices
            .iter()
            .filter(|node| node.path == Path::new("/dev/null"))
            .collect();
        assert_eq!(nulls.len(), 1);
        assert_eq!(nulls[0].permissions, "rw");
        assert!(
            parts
                .devices
                .iter()
                .any(|node| node.path == Path::new("/dev/zero"))
        );
        assert!(
            !parts.devices.iter().any(
                |node| node.path.starts_with("/dev/pts") || node.path == Path::new("/dev/ptmx")
            )
        );
    }

    #[test]
    fn profiles_are_read_only_when_they_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        let security = Security {
            seccomp: SeccompProfile::Localhost(path.clone()),
            ..Security::default()
        };
        let config = ContainerConfig {
            security: security.clone(),
            ..ContainerConfig::default()
        };
        assert!(matches!(gather(&config), Err(HostError::Profile { .. })));
        let privileged = Security {
            privileged: true,
            ..security
        };
        let unread = ContainerConfig {
            security: privileged,
            ..ContainerConfig::default()
        };
        assert_eq!(gather(&unread).unwrap().seccomp, None);
        std::fs::write(&path, "{}").unwrap();
        let read = gather(&config).unwrap().seccomp.unwrap();
        assert_eq!((read.path, read.json.as_str()), (path, "{}"));
        assert!(read.kernel > (4, 8), "{:?}", read.kernel);
    }

    #[test]
    fn the_host_name_is_the_pods_or_the_nodes() {
        assert_eq!(
            gather(&ContainerConfig::default()).unwrap().host_name,
            "pod"
        );
        let node = HostParts::gather(&PodConfig::default(), &ContainerConfig::default())
            .unwrap()
            .host_name;
        assert_eq!(
            node.as_bytes(),
            rustix::system::uname().nodename().to_bytes()
        );
    }

    #[test]
    fn facts_of_this_node() {
        let tree = cgroup::Tree::detect().unwrap();
        let facts = NodeFacts::detect(&tree).unwrap();
        assert_eq!(facts.cgroup_version, tree.version());
        assert_ne!(facts.bounding_capabilities, 0);
    }
}
