//! What a container is asked to be: the domain form of CRI's `ContainerConfig`, already checked.

mod resources;
mod security;
pub mod signal;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use resources::{HugepageLimit, Resources};
pub use security::{
    AppArmorProfile, Capabilities, PidMode, SeccompProfile, Security, SelinuxLabel,
    SupplementalGroupsPolicy,
};

use crate::pod::config::IdMapping;

/// Configuration of one container.
///
/// CRI's `linux` section may be absent (as on z/OS): `resources` is then empty and `security` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    /// `metadata.name`, never empty.
    pub name: String,
    /// `metadata.attempt`: counts the containers that the kubelet made under this name.
    pub attempt: u32,
    /// The image to run.
    pub image: ImageRef,
    /// Replaces the image's entrypoint; empty for the image's own.
    pub command: Vec<String>,
    /// Replaces the image's default arguments; empty for the image's own.
    pub args: Vec<String>,
    /// Absolute working directory; empty for the image's.
    pub working_dir: String,
    /// Environment in the order given: names and values. A value may be any bytes.
    pub env: Vec<(String, Vec<u8>)>,
    /// Mounts in the order given.
    pub mounts: Vec<Mount>,
    /// Devices of the node.
    pub devices: Vec<Device>,
    /// Fully qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// Labels, kept as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations, kept as given.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the pod's log directory, without `..`; `None` for no log.
    pub log_path: Option<PathBuf>,
    /// Whether a client may write to the standard input.
    pub stdin: bool,
    /// Whether the standard input ends with the first attached client.
    pub stdin_once: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Limits and shares.
    pub resources: Resources,
    /// Security settings.
    pub security: Security,
    /// Signal that stops the container, in the form `SIGTERM` or `SIGRTMIN+3`; `None` for the image's.
    pub stop_signal: Option<String>,
}

/// How a request names its image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageRef {
    /// What the runtime is to run: usually the image id that PullImage answered.
    pub image: String,
    /// What the user wrote in the pod's specification.
    pub user_specified: String,
    /// The runtime's own reference, where the caller knows it.
    pub image_ref: String,
    /// Handler whose image this is; empty for the default.
    pub runtime_handler: String,
    /// Annotations, kept as given.
    pub annotations: BTreeMap<String, String>,
}

/// Where the contents of a mount come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the node.
    Host(PathBuf),
    /// The file system of an image, read-only.
    Image {
        /// Image id or reference.
        image: ImageRef,
        /// Path below the image's root, relative and without `..`; empty for the root.
        sub_path: PathBuf,
    },
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// What is mounted.
    pub source: MountSource,
    /// Whether writes are refused.
    pub access: MountAccess,
    /// How later mounts travel between node and container.
    pub propagation: Propagation,
    /// Whether the contents get the container's SELinux label.
    pub selinux_relabel: bool,
    /// Id-mapped mount: user ids. Empty for none.
    pub uid_mappings: Vec<IdMapping>,
    /// Id-mapped mount: group ids. Empty for none.
    pub gid_mappings: Vec<IdMapping>,
    /// Further options in the words of mount(8).
    pub options: Vec<String>,
}

/// Who may write through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountAccess {
    /// Writes are allowed.
    #[default]
    ReadWrite,
    /// The mount is read-only, mounts below it are not.
    ReadOnly,
    /// The mount and all below it are read-only.
    RecursiveReadOnly,
}

/// Mount propagation as CRI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// `rprivate`
    #[default]
    Private,
    /// `rslave`
    HostToContainer,
    /// `rshared`
    Bidirectional,
}

/// One device of the node, or a directory of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// Absolute path on the node.
    pub host_path: PathBuf,
    /// Some of `r`, `w`, `m`; never empty.
    pub permissions: String,
}
