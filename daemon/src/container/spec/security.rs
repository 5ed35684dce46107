//! Masked and read-only paths, AppArmor, SELinux.

use super::{NodeFacts, SpecError};
use crate::container::config::{AppArmorProfile, Security, SelinuxLabel};

/// What the kubelet sends for `procMount: Default` (pkg/securitycontext/util.go), for callers that send no security
/// context at all.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Masked paths and read-only paths. Lists that were sent are taken as they are, also when empty: that is how the
/// kubelet says `procMount: Unmasked`.
pub(super) fn paths(security: &Security) -> (Option<Vec<String>>, Option<Vec<String>>) {
    if security.privileged {
        return (None, None);
    }
    let list = |given: &Option<Vec<String>>, default: &[&str]| {
        Some(
            given
                .clone()
                .unwrap_or_else(|| default.iter().map(|path| (*path).to_owned()).collect()),
        )
    };
    (
        list(&security.masked_paths, MASKED),
        list(&security.readonly_paths, READONLY),
    )
}

/// Name of the AppArmor profile. The daemon loads no profile of its own, so that the runtime's default is none.
pub(super) fn apparmor(
    security: &Security,
    facts: &NodeFacts,
) -> Result<Option<String>, SpecError> {
    match &security.apparmor {
        // Said by name, so that the kernel does not keep a profile of the daemon on the container.
        _ if security.privileged => Ok(facts.apparmor.then(|| "unconfined".to_owned())),
        AppArmorProfile::Unconfined => Ok(facts.apparmor.then(|| "unconfined".to_owned())),
        AppArmorProfile::RuntimeDefault => Ok(None),
        AppArmorProfile::Localhost(name) if facts.apparmor => Ok(Some(name.clone())),
        AppArmorProfile::Localhost(name) => {
            Err(SpecError::AppArmorUnavailable { name: name.clone() })
        }
    }
}

/// The process label. On a node without SELinux it is left out, as everywhere in the field: manifests that name one
/// (`spc_t` for agents) are made to run on all kinds of nodes.
pub(super) fn selinux(security: &Security, facts: &NodeFacts) -> Option<String> {
    let label = security
        .selinux
        .as_ref()
        .filter(|_| facts.selinux && !security.privileged)?;
    let SelinuxLabel {
        user,
        role,
        kind,
        level,
    } = label;
    let or = |given: &str, default: &str| {
        if given.is_empty() {
            default.to_owned()
        } else {
            given.to_owned()
        }
    };
    let (user, role) = (or(user, "system_u"), or(role, "system_r"));
    Some(format!(
        "{user}:{role}:{}:{}",
        or(kind, "container_t"),
        or(level, "s0")
    ))
}
