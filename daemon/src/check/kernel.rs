//! What the kernel has to have.

use std::path::Path;

use zcri_config::{Config, PlatformKind};
use zcri_sys::node;

use super::report::Area;
use crate::confinement;

/// The oldest kernel that has all that is called without a way around: pidfds (5.3), `clone3` (5.3) and `openat2`
/// (5.6).
const OLDEST: (u32, u32) = (5, 6);
/// The one with everything: layers of an overlay one by one (6.5).
const COMPLETE: (u32, u32) = (6, 5);

pub(super) fn check(config: &Config, area: &mut Area<'_>) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let what = format!("{} {release}", name.sysname().to_string_lossy());
    if config.platform.kind == PlatformKind::Zos && !is_linux() {
        area.pass("release", what);
        return;
    }
    match version(&release) {
        Some(version) if version >= COMPLETE => area.pass("release", what),
        Some(version) if version >= OLDEST => area.warn(
            "release",
            what,
            "from Linux 6.5 on, images may have any number of layers",
        ),
        _ => area.fail("release", what, "Linux 5.6 is the oldest that can be used"),
    }
    file_systems(area);
    if config.platform.kind == PlatformKind::Linux {
        forwarding(area);
        confinement(area);
    }
}

fn is_linux() -> bool {
    std::env::consts::OS == "linux"
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn file_systems(area: &mut Area<'_>) {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let missing = missing_types(&known);
    if missing.is_empty() {
        area.pass("file systems", "overlay, proc, tmpfs");
    } else {
        // A module that was never used is not listed; the first mount loads it. Storage tries that.
        area.warn(
            "file systems",
            format!("not loaded: {}", missing.join(", ")),
            "if the overlay below storage fails, `modprobe overlay`, or take a kernel that has them",
        );
    }
}

fn missing_types(known: &str) -> Vec<&'static str> {
    let has = |wanted: &&str| {
        let mut lines = known.lines();
        lines.any(|line| line.split_whitespace().next_back() == Some(*wanted))
    };
    let mut wanted = vec!["overlay", "proc", "tmpfs"];
    wanted.retain(|name| !has(name));
    wanted
}

/// Pods reach each other and the world through this host.
fn forwarding(area: &mut Area<'_>) {
    for (name, file) in [
        ("IPv4 forwarding", "/proc/sys/net/ipv4/ip_forward"),
        ("IPv6 forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
    ] {
        match std::fs::read_to_string(file) {
            Ok(text) if text.trim() != "0" => area.pass(name, "on"),
            Ok(_) if name.starts_with("IPv6") => {
                area.pass(name, "off: for pods with IPv4 alone");
            }
            Ok(_) => area.warn(
                name,
                "off",
                "pods reach no other node: `sysctl -w net.ipv4.ip_forward=1`, unless the network's plugin sets it",
            ),
            Err(error) => area.warn(name, format!("{file}: {error}"), "the kernel lacks the protocol"),
        }
    }
}

fn confinement(area: &mut Area<'_>) {
    if node::has_seccomp() {
        area.pass("seccomp", "filters can be installed");
    } else {
        area.warn(
            "seccomp",
            "the kernel has no filters",
            "pods that ask for a profile are refused: take a kernel with CONFIG_SECCOMP_FILTER",
        );
    }
    let (apparmor, selinux) = (node::has_apparmor(), confinement::selinux_is_on());
    if apparmor {
        match confinement::try_apparmor() {
            Ok(()) => area.pass("AppArmor", "the default profile can be loaded"),
            Err(why) => area.warn(
                "AppArmor",
                why,
                "containers run without a profile: install the package apparmor",
            ),
        }
    }
    if selinux {
        match confinement::try_selinux() {
            Ok(label) => area.pass("SELinux", format!("containers are {label}")),
            Err(why) => area.warn(
                "SELinux",
                why,
                "containers are not labelled: install a policy that knows them (container-selinux)",
            ),
        }
    }
    if !apparmor && !selinux {
        area.pass(
            "security modules",
            "neither AppArmor nor SELinux: pods that ask for a profile are refused",
        );
    }
    if !Path::new("/proc/self/ns/cgroup").exists() {
        area.warn(
            "cgroup namespaces",
            "none",
            "containers see the host's groups",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_file_systems() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.14.21+"), Some((5, 14)));
        assert_eq!(version("V2R5"), None);
        assert_eq!(
            missing_types("nodev\tproc\nnodev\ttmpfs\n\text4\n"),
            ["overlay"]
        );
    }
}
