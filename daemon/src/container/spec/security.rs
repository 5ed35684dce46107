//! Masked and read-only paths.

use crate::container::config::Security;

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
