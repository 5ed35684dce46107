//! Security settings of a container.

use std::path::PathBuf;

use crate::pod::config::{PodScope, UserNamespace};

/// The domain form of CRI's `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// Changes of the capability set.
    pub capabilities: Capabilities,
    /// All capabilities and devices, nothing masked, no profiles.
    pub privileged: bool,
    /// Network namespace.
    pub network: PodScope,
    /// IPC namespace.
    pub ipc: PodScope,
    /// PID namespace.
    pub pid: PidMode,
    /// The pod's user namespace as repeated for the container.
    pub user_namespace: Option<UserNamespace>,
    /// SELinux label.
    pub selinux: Option<SelinuxLabel>,
    /// User by id. At most one of this and `run_as_username` is set.
    pub run_as_user: Option<u32>,
    /// User by name.
    pub run_as_username: Option<String>,
    /// Primary group.
    pub run_as_group: Option<u32>,
    /// Additional groups.
    pub supplemental_groups: Vec<u32>,
    /// How additional groups combine with those of the image.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Whether the process can gain no privileges by execve.
    pub no_new_privs: bool,
    /// Absolute paths that are hidden; `None` when the caller named no security context.
    pub masked_paths: Option<Vec<String>>,
    /// Absolute paths that are read-only; `None` when the caller named no security context.
    pub readonly_paths: Option<Vec<String>>,
    /// Seccomp profile.
    pub seccomp: SeccompProfile,
    /// AppArmor profile.
    pub apparmor: AppArmorProfile,
}

/// Changes of the capability set, names as given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// To add; `ALL` for every one that the node can give.
    pub add: Vec<String>,
    /// To drop; `ALL` for the whole default set.
    pub drop: Vec<String>,
    /// To raise in the ambient set too.
    pub add_ambient: Vec<String>,
}

/// The PID namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PidMode {
    /// That of the pod, whatever it is.
    #[default]
    Pod,
    /// One of its own.
    Container,
    /// That of the node.
    Node,
    /// That of another container, by its id.
    Target(String),
}

/// How additional groups combine with those of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SupplementalGroupsPolicy {
    /// The groups of the image's `/etc/group` are added.
    #[default]
    Merge,
    /// Only the groups of the request.
    Strict,
}

/// A seccomp profile by its kind. Nothing said means unconfined, as in CRI.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SeccompProfile {
    /// No filter.
    #[default]
    Unconfined,
    /// The runtime's own profile.
    RuntimeDefault,
    /// A JSON file of the node.
    Localhost(PathBuf),
}

/// An AppArmor profile by its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AppArmorProfile {
    /// Nothing is said: the runtime's own profile where the node can have it, as in CRI.
    #[default]
    Unspecified,
    /// The runtime's own profile.
    RuntimeDefault,
    /// No profile.
    Unconfined,
    /// A profile that is loaded on the node.
    Localhost(String),
}

/// Parts of an SELinux label; an empty part is the policy's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelinuxLabel {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level.
    pub level: String,
}
