//! What a pod sandbox is asked to be: the domain form of CRI's `PodSandboxConfig`, already checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::container::config::{
    AppArmorProfile, Resources, SeccompProfile, SelinuxLabel, SupplementalGroupsPolicy,
};

/// Configuration of one pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodConfig {
    /// `metadata.name`, never empty.
    pub name: String,
    /// `metadata.uid`, never empty.
    pub uid: String,
    /// `metadata.namespace`, never empty.
    pub namespace: String,
    /// `metadata.attempt`: counts the sandboxes that the kubelet made for this pod.
    pub attempt: u32,
    /// Host name inside the pod. Empty is possible only with the node's network namespace.
    pub hostname: String,
    /// Absolute directory of the containers' log files; `None` means that nothing is logged to files.
    pub log_directory: Option<PathBuf>,
    /// Name resolution; `None` means the node's own `resolv.conf`.
    pub dns: Option<Dns>,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, kept as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations, kept as given.
    pub annotations: BTreeMap<String, String>,
    /// `linux.cgroup_parent` in cgroupfs syntax; empty when the caller gave none.
    pub cgroup_parent: String,
    /// Names in dotted form with their values, to be set in the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces the pod has of its own.
    pub namespaces: PodNamespaces,
    /// Security settings of the sandbox.
    pub security: PodSecurity,
    /// What the sandbox costs beyond its containers.
    pub overhead: Option<Resources>,
    /// Sum of the resources of the pod's containers.
    pub resources: Option<Resources>,
}

impl PodConfig {
    /// Whether the pod uses the network of the node.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces.network == PodScope::Node
    }
}

/// Contents of `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// One port mapping with both ports known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node; 0 means that the port is only declared, not mapped.
    pub host_port: u16,
    /// Address of the node to bind; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// Transport protocols that CRI can map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// Whose namespace a pod uses where CRI offers the pod's or the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodScope {
    /// One namespace for the pod.
    #[default]
    Pod,
    /// The namespace of the node.
    Node,
}

/// The PID namespace of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodPid {
    /// One for the pod: the sandbox has an init that reaps.
    #[default]
    Pod,
    /// Each container has its own.
    Container,
    /// That of the node.
    Node,
}

/// Namespaces of a pod. The default is CRI's: all shared within the pod, no user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodNamespaces {
    /// Network.
    pub network: PodScope,
    /// Processes.
    pub pid: PodPid,
    /// System V IPC, POSIX queues and `/dev/shm`.
    pub ipc: PodScope,
    /// The pod's user namespace; `None` for the node's.
    pub user: Option<UserNamespace>,
}

/// Id mappings of a pod's user namespace, in both lists at least one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

impl UserNamespace {
    /// The user and group ids on the node of the namespace's root.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        on_node(&self.uids, 0).zip(on_node(&self.gids, 0))
    }

    /// Whether a user id of the namespace is one on the node.
    #[must_use]
    pub fn maps_user(&self, uid: u32) -> bool {
        on_node(&self.uids, uid).is_some()
    }

    /// Whether a group id of the namespace is one on the node.
    #[must_use]
    pub fn maps_group(&self, gid: u32) -> bool {
        on_node(&self.gids, gid).is_some()
    }
}

fn on_node(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id)?;
        (offset < range.length).then(|| range.host_id + offset)
    })
}

/// One range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside the namespace.
    pub container_id: u32,
    /// First id on the node.
    pub host_id: u32,
    /// Number of ids, never 0.
    pub length: u32,
}

/// Security settings of the sandbox itself. Containers have their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSecurity {
    /// User of the sandbox's processes.
    pub run_as_user: Option<u32>,
    /// Group of the sandbox's processes.
    pub run_as_group: Option<u32>,
    /// Additional groups.
    pub supplemental_groups: Vec<u32>,
    /// How additional groups combine with those of the image.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Whether privileged containers may run in the pod.
    pub privileged: bool,
    /// Whether the sandbox's root is read-only.
    pub readonly_rootfs: bool,
    /// Seccomp profile of the sandbox.
    pub seccomp: SeccompProfile,
    /// AppArmor profile of the sandbox.
    pub apparmor: AppArmorProfile,
    /// SELinux label of the sandbox.
    pub selinux: Option<SelinuxLabel>,
}

/// Namespace that a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlNamespace {
    /// `net.*`
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// `kernel.domainname`: pods always have a UTS namespace, except with the node's network.
    Uts,
}

impl SysctlNamespace {
    /// Whose namespace of this kind the pod uses.
    #[must_use]
    pub fn of(self, namespaces: &PodNamespaces) -> PodScope {
        match self {
            Self::Ipc => namespaces.ipc,
            Self::Network | Self::Uts => namespaces.network,
        }
    }
}

impl std::fmt::Display for SysctlNamespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Ipc => "IPC",
            Self::Uts => "UTS",
        })
    }
}

/// The namespace of a sysctl; `None` if it is malformed or belongs to the whole node.
#[must_use]
pub fn sysctl_namespace(name: &str) -> Option<SysctlNamespace> {
    let path = sysctl_path(name)?;
    let path = path.to_str()?;
    if path.starts_with("net/") {
        return Some(SysctlNamespace::Network);
    }
    if path == "kernel/domainname" {
        return Some(SysctlNamespace::Uts);
    }
    let ipc = path == "kernel/sem"
        || path.starts_with("kernel/shm")
        || path.starts_with("kernel/msg")
        || path.starts_with("fs/mqueue/");
    ipc.then_some(SysctlNamespace::Ipc)
}

/// The file of a sysctl relative to `/proc/sys`.
///
/// As in sysctl(8), the first separator decides: `net.ipv4.conf.eth0/1.forwarding` and
/// `net/ipv4/conf/eth0.1/forwarding` name the same file. `None` for a name that leads elsewhere.
#[must_use]
pub fn sysctl_path(name: &str) -> Option<PathBuf> {
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes().get(at) == Some(&b'.'));
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path: String = if dotted {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let good_part = |part: &str| {
        !part.starts_with('.')
            && !part.is_empty()
            && part.chars().all(|c| c.is_ascii_graphic() && c != '\\')
    };
    (path.contains('/') && path.split('/').all(good_part)).then(|| PathBuf::from(path))
}
