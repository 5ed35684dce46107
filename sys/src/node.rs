//! Facts of the node and of this process that decide what a container may have.

use std::os::fd::AsFd;
use std::path::Path;

use crate::{Error, Result};

/// Number of CAP_SYS_RESOURCE (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

/// Identity of this boot: what was recorded under another one is dead.
///
/// # Errors
/// The kernel's file cannot be read.
pub fn boot_id() -> Result<String> {
    Ok(read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Bounding set of capabilities of this process, bit n for capability n. No container can have more.
///
/// # Errors
/// `/proc/self/status` cannot be read or has no such line.
pub fn bounding_capabilities() -> Result<u64> {
    let file = "/proc/self/status";
    let text = read(file)?;
    text.lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| Error::Unexpected {
            path: file.into(),
            content: "no CapBnd line".into(),
        })
}

/// The lowest `oom_score_adj` that a child of this process may get.
///
/// With CAP_SYS_RESOURCE it is -1000; without, nobody may go below the value of this process (proc(5)).
///
/// # Errors
/// The files of `/proc/self` cannot be read.
pub fn lowest_oom_score_adj() -> Result<i32> {
    if bounding_capabilities()? & (1 << CAP_SYS_RESOURCE) != 0 {
        return Ok(-1000);
    }
    let file = "/proc/self/oom_score_adj";
    let text = read(file)?;
    text.trim().parse().map_err(|_| Error::Unexpected {
        path: file.into(),
        content: text,
    })
}

/// Whether AppArmor is enabled in the kernel.
pub fn has_apparmor() -> bool {
    read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether seccomp filters can be installed.
pub fn has_seccomp() -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

/// Process at the other end of a unix socket.
///
/// # Errors
/// The descriptor is not a connected unix socket.
pub fn peer_pid(socket: impl AsFd) -> Result<u32> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)
        .map_err(|e| Error::call("read the peer of a socket", e))?;
    Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| Error::path("read", file, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_machine_agree_with_proc() {
        assert_eq!(boot_id().unwrap().len(), 36);
        let bounding = bounding_capabilities().unwrap();
        assert_ne!(bounding, 0);
        let lowest = lowest_oom_score_adj().unwrap();
        if bounding & (1 << CAP_SYS_RESOURCE) == 0 {
            assert!(lowest >= -999, "{lowest}");
        } else {
            assert_eq!(lowest, -1000);
        }
    }
}
