//! From configuration to an OCI runtime specification: pure functions.
//!
//! What has to be looked up on the node first (sources of mounts, numbers of devices, a seccomp profile's text)
//! comes in as [`HostParts`]; the module `host` beside this one gathers it.
//!
//! The result follows what the kubelet's users know from containerd and CRI-O. Where the two differ, the comment
//! beside the rule says which one is followed and why.

mod annotations;
mod capabilities;
mod cgroups;
mod devices;
mod error;
mod facts;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod security;
mod user;
pub mod zos;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, Root, Spec};

pub use annotations::Ids;
pub use capabilities::CapabilitySet;
pub use cgroups::CgroupsPath;
pub use devices::{DeviceKind, DeviceNode};
pub use error::SpecError;
pub use facts::NodeFacts;
pub use mounts::{Peers, PreparedMount, peers_of};
pub use namespaces::NamespacePaths;
pub use process::{ImageDefaults, exec_process, set_rlimits};
pub use resources::{
    changed_resources, effective_resources, linux_resources, merge_resources, oom_score_adj,
    set_resources,
};
pub use seccomp::LocalProfile;
pub use user::{ResolvedUser, resolve_user};

use crate::confinement::Confined;
use crate::container::config::ContainerConfig;
use crate::pod::config::{IdMapping, PodConfig};

/// The version of the runtime specification that is written. All that is used here is in 1.0.2, and runtimes older
/// than 1.1 refuse a newer number.
const OCI_VERSION: &str = "1.0.2";

/// All that decides about a container's specification.
#[derive(Debug)]
pub struct SpecInput<'a> {
    /// The pod.
    pub pod: &'a PodConfig,
    /// The container. Its mounts, devices and seccomp profile are taken from `host`, where they are prepared.
    pub container: &'a ContainerConfig,
    /// What the image says about its containers.
    pub image: &'a ImageDefaults,
    /// The user of the first process.
    pub user: &'a ResolvedUser,
    /// Namespaces to join.
    pub namespaces: NamespacePaths,
    /// The mounted root file system.
    pub rootfs: &'a Path,
    /// Control group of the container.
    pub cgroups: &'a CgroupsPath,
    /// Files of the pod.
    pub paths: HostPaths,
    /// What the node can do.
    pub facts: &'a NodeFacts,
    /// Limit of processes, for all containers alike; -1 is none.
    pub pids_limit: Option<i64>,
    /// Ids for the annotations.
    pub ids: Ids<'a>,
    /// What was looked up on the node for this container.
    pub host: &'a HostParts,
    /// What the kernel's security modules make of it.
    pub confined: &'a Confined,
}

/// Files of the pod that its containers see.
#[derive(Debug, Clone)]
pub struct HostPaths {
    /// Becomes `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Becomes `/etc/hostname`.
    pub hostname: PathBuf,
    /// Becomes `/dev/shm`, unless the pod uses the IPC namespace of the node.
    pub shm: PathBuf,
}

/// What was looked up on the node for one container.
#[derive(Debug, Clone, Default)]
pub struct HostParts {
    /// The mounts of the configuration with their sources, in the order given.
    pub mounts: Vec<PreparedMount>,
    /// The devices of the configuration; for a privileged container those of the node too.
    pub devices: Vec<DeviceNode>,
    /// The profile's text, when the configuration names a file.
    pub seccomp: Option<LocalProfile>,
    /// Host name as processes of the pod see it, for `HOSTNAME`.
    pub host_name: String,
}

/// Builds the specification of a container.
///
/// # Errors
/// What was asked for cannot be had on this node, or contradicts itself.
pub fn build(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let security = &input.container.security;
    if security.privileged && !input.pod.security.privileged {
        return Err(SpecError::PrivilegedInUnprivilegedPod);
    }
    let capabilities = capabilities::capabilities(security, input.facts)?;
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned())
        .set_readonly(Some(security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(process::process(input, &capabilities)?))
        .set_mounts(Some(mounts::mounts(input)?))
        .set_annotations(Some(annotations::annotations(input)))
        .set_linux(Some(linux(input, capabilities.bounding)?));
    Ok(spec)
}

fn linux(input: &SpecInput<'_>, held: CapabilitySet) -> Result<Linux, SpecError> {
    let security = &input.container.security;
    let mut resources = linux_resources(&input.container.resources, input.facts);
    resources.set_devices(Some(devices::rules(
        security.privileged,
        &input.host.devices,
    )));
    resources.set_pids(resources::pids(input.pids_limit));
    let (masked, readonly) = security::paths(security);

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::namespaces(input)?))
        .set_resources(Some(resources))
        .set_cgroups_path(Some(PathBuf::from(input.cgroups.for_runtime())))
        .set_devices(Some(devices::nodes(&input.host.devices)))
        .set_seccomp(seccomp::seccomp(
            security,
            input.host.seccomp.as_ref(),
            held,
            input.facts,
        )?)
        .set_rootfs_propagation(mounts::rootfs_propagation(&input.host.mounts))
        .set_mount_label(mounts::label(input).map(str::to_owned))
        .set_masked_paths(masked)
        .set_readonly_paths(readonly);
    if let Some(user) = &input.pod.namespaces.user {
        linux
            .set_uid_mappings(Some(id_mappings(&user.uids)))
            .set_gid_mappings(Some(id_mappings(&user.gids)));
    }
    Ok(linux)
}

fn id_mappings(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    // Every field is set; the type has a builder and no setters.
    let one = |mapping: &IdMapping| {
        let oci = LinuxIdMappingBuilder::default()
            .container_id(mapping.container_id)
            .host_id(mapping.host_id);
        oci.size(mapping.length).build().unwrap_or_default()
    };
    mappings.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
