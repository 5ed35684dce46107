//! Plugins that outlived the runtime which started them.
//!
//! A plugin in flight goes on when its runtime is killed, and would make an interface after the next runtime has
//! cleaned up, or, in a GC, remove what that one makes. Nothing has to be recorded to find it: its environment says
//! whose it is.

use std::{ffi::OsStr, fs, io, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal},
};

/// In the environment of every plugin, beside the variables of the specification: the directory of records, of which
/// no two runtimes have the same. The id of a container would not do, because a GC is for none.
pub(crate) const OWNER: &str = "ZCRI_CNI";

/// How long a killed plugin may take to be gone; one that is stuck in the kernel is left to itself.
const END_MAX: Duration = Duration::from_secs(1);

/// Where the processes are listed.
pub(crate) const PROCESSES: &str = "/proc";

/// Kills the plugins of this owner, and waits until they are gone. Gives their process ids.
///
/// # Errors
/// The processes cannot be listed.
pub(crate) fn end(owner: &OsStr) -> io::Result<Vec<i32>> {
    let own = std::process::id();
    let mut ended = Vec::new();
    let processes = match fs::read_dir(PROCESSES) {
        // A system without cannot tell.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ended),
        listed => listed?,
    };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if u32::try_from(pid).ok() != Some(own)
            && works_for(&entry.path(), owner)
            && kill(pid, &entry.path(), owner)
        {
            ended.push(pid);
        }
    }
    Ok(ended)
}

/// Whether a process is a plugin of this owner, by the environment that it was started with.
fn works_for(process: &Path, owner: &OsStr) -> bool {
    // Unreadable: it has ended.
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    let value = |name: &[u8]| {
        environment
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
    };
    value(b"CNI_COMMAND").is_some() && value(OWNER.as_bytes()) == Some(owner.as_bytes())
}

fn kill(pid: i32, process: &Path, owner: &OsStr) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // The number may have been given away before the handle was there.
    if !works_for(process, owner) {
        return false;
    }
    // The runtime made each plugin the leader of a group; one that is not has left it, and is killed alone.
    if rustix::process::getpgid(Some(pid)) == Ok(pid) {
        kill_process_group(pid, Signal::KILL).ok();
    }
    pidfd_send_signal(&handle, Signal::KILL).ok();
    let wait = rustix::time::Timespec {
        tv_sec: i64::try_from(END_MAX.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    matches!(
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&wait)),
        Ok(1)
    )
}
