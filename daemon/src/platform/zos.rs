//! z/OS: PID, IPC, UTS and mount namespaces and nothing else; WLM in place of control groups; SAF in place of
//! capabilities.
//!
//! What has a meaning here is done; what has none but does no harm (limits, capabilities, masked paths) is accepted and
//! recorded, because kubelets send it with every container; what a user would believe to be protected by, and is not, is
//! refused with the field's name.

pub mod authority;

use zcri_config::{QosClass, Wlm, WlmSubject, WlmTarget};
use zcri_sys::cgroup;

use crate::container::config::{
    AppArmorProfile, ContainerConfig, MountAccess, PidMode, Propagation, SeccompProfile,
};
use crate::container::spec::NodeFacts;
use crate::error::{Error, Result};
use crate::pod::config::{PodConfig, PodScope};
use crate::runtime::HandlerFeatures;

/// What the configuration says of a z/OS node.
#[derive(Debug)]
pub struct Zos {
    /// Classification of containers.
    pub wlm: Wlm,
}

impl Zos {
    /// What a container is to WLM: the pod's labels and annotations decide, and what the kubelet told of its quality of
    /// service.
    #[must_use]
    pub fn classify(
        &self,
        pod: &PodConfig,
        container: &ContainerConfig,
        handler: &str,
    ) -> WlmTarget {
        let subject = WlmSubject {
            namespace: &pod.namespace,
            labels: &pod.labels,
            annotations: &pod.annotations,
            qos: qos(pod, container),
            handler,
        };
        self.wlm.classify(&subject).clone()
    }
}

/// CRI does not say the quality of service. A kubelet with control groups names it in their path; one without shows it
/// in `oom_score_adj` (pkg/kubelet/qos/policy.go): -997 is guaranteed, 1000 best effort, between them burstable, and 0
/// nothing at all.
fn qos(pod: &PodConfig, container: &ContainerConfig) -> Option<QosClass> {
    let parent = &pod.cgroup_parent;
    if parent.contains("besteffort") {
        return Some(QosClass::BestEffort);
    }
    if parent.contains("burstable") {
        return Some(QosClass::Burstable);
    }
    if parent.contains("kubepods") {
        return Some(QosClass::Guaranteed);
    }
    match container.resources.oom_score_adj {
        -997 => Some(QosClass::Guaranteed),
        1000 => Some(QosClass::BestEffort),
        2..=999 => Some(QosClass::Burstable),
        _ => None,
    }
}

/// Nothing that Linux alone has.
pub(crate) fn facts(cgroups: &cgroup::Tree) -> NodeFacts {
    NodeFacts {
        cgroup_version: cgroups.version(),
        bounding_capabilities: 0,
        lowest_oom_score_adj: 0,
        seccomp: false,
        user_namespaces: false,
        swap: false,
        hugetlb: false,
    }
}

fn refuse(what: &'static str, reason: &str) -> Result<()> {
    Err(Error::Unsupported {
        what,
        reason: format!("{reason} (this node is z/OS)"),
    })
}

const NO_USERNS: &str = "there are no user namespaces";
const NO_SECCOMP: &str = "there are no seccomp filters";
const NO_LSM: &str = "there is no such security module; access is SAF's business";

/// See [`super::Platform::check_pod`].
pub(super) fn check_pod(config: &PodConfig) -> Result<()> {
    const USERNS: &str = "config.linux.security_context.namespace_options.userns_options";
    if config.namespaces.user.is_some() {
        return refuse(USERNS, NO_USERNS);
    }
    if matches!(config.security.seccomp, SeccompProfile::Localhost(_)) {
        return refuse("config.linux.security_context.seccomp", NO_SECCOMP);
    }
    if matches!(config.security.apparmor, AppArmorProfile::Localhost(_)) {
        return refuse("config.linux.security_context.apparmor", NO_LSM);
    }
    if config.security.selinux.is_some() {
        return refuse("config.linux.security_context.selinux_options", NO_LSM);
    }
    if !config.sysctls.is_empty() {
        return refuse("config.linux.sysctls", "there are no sysctls");
    }
    Ok(())
}

/// Annotation of z/OS Container Platform by which a pod or container has the node's network: its only known value is
/// "host".
const OVERRIDE_NETWORKING: &str = "zoscp.ibm.com/override-networking";

/// See [`super::Platform::adopt_pod`].
pub(super) fn adopt_pod(config: &mut PodConfig) -> Result<()> {
    match config.annotations.get(OVERRIDE_NETWORKING) {
        None => Ok(()),
        Some(word) if word == "host" => {
            config.namespaces.network = PodScope::Node;
            Ok(())
        }
        Some(other) => Err(Error::Invalid {
            field: "config.annotations[\"zoscp.ibm.com/override-networking\"]",
            value: other.clone(),
            reason: "only \"host\" is known".to_owned(),
        }),
    }
}

/// See [`super::Platform::check_runtime`]. features.md has no place to announce `zos`, so that the newest version that a
/// runtime takes has to tell; one that says nothing may be tried.
pub(super) fn check_runtime(handler: &str, features: &HandlerFeatures) -> Result<()> {
    let newest = features.newest_specification.as_str();
    let parts = newest.split(['.', '-', '+']).map(str::parse);
    let numbers: Vec<u64> = parts.map_while(std::result::Result::ok).collect();
    if newest.is_empty() || numbers.as_slice() >= &[1, 2, 1][..] {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "runtime_handler",
        reason: format!(
            "the runtime of handler {handler:?} takes version {newest} of the runtime specification at most, and \
             containers of z/OS need {}",
            crate::container::spec::zos::OCI_VERSION
        ),
    })
}

/// See [`super::Platform::adopt`].
pub(super) fn adopt(pod: &PodConfig, mut config: ContainerConfig) -> Result<ContainerConfig> {
    check_container(&config)?;
    // A kubelet for neither Linux nor Windows sends no `linux` section with a container, but one with the pod
    // (kubelet, kuberuntime_container_unsupported.go and kuberuntime_sandbox_others.go).
    let silent = config.security.masked_paths.is_none();
    if silent {
        let (security, of_pod) = (&mut config.security, &pod.security);
        security.run_as_user = of_pod.run_as_user;
        security.run_as_group = of_pod.run_as_group;
        security.supplemental_groups = of_pod.supplemental_groups.clone();
        security.supplemental_groups_policy = of_pod.supplemental_groups_policy;
        security.readonly_rootfs = of_pod.readonly_rootfs;
        security.pid = PidMode::Pod;
    }
    if config.security.apparmor == AppArmorProfile::RuntimeDefault {
        // Here the default is none: manifests name it for nodes of all kinds.
        config.security.apparmor = AppArmorProfile::Unspecified;
    }
    config.security.network = pod.namespaces.network;
    config.security.ipc = pod.namespaces.ipc;
    Ok(config)
}

fn check_container(config: &ContainerConfig) -> Result<()> {
    const USERNS: &str = "config.linux.security_context.namespace_options.userns_options";
    let security = &config.security;
    if security.user_namespace.is_some() {
        return refuse(USERNS, NO_USERNS);
    }
    if matches!(security.seccomp, SeccompProfile::Localhost(_)) {
        return refuse("config.linux.security_context.seccomp", NO_SECCOMP);
    }
    if matches!(security.apparmor, AppArmorProfile::Localhost(_)) {
        return refuse("config.linux.security_context.apparmor", NO_LSM);
    }
    if security.selinux.is_some() {
        return refuse("config.linux.security_context.selinux_options", NO_LSM);
    }
    if !config.devices.is_empty() {
        return refuse(
            "config.devices",
            "the runtime specification has no devices for it",
        );
    }
    if !config.cdi_devices.is_empty() {
        return refuse(
            "config.CDI_devices",
            "the runtime specification has no devices for it",
        );
    }
    for mount in &config.mounts {
        if mount.propagation != Propagation::Private {
            return refuse("config.mounts.propagation", "mounts do not propagate");
        }
        if mount.access == MountAccess::RecursiveReadOnly {
            return refuse(
                "config.mounts.recursive_read_only",
                "a mount is read-only without those below it",
            );
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return refuse("config.mounts.uidMappings", NO_USERNS);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
