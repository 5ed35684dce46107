//! Plugins that outlived the runtime which started them.
//!
//! A plugin in flight goes on when its runtime is killed, and would make an interface after the next runtime has
//! cleaned up. Nothing has to be recorded to find it: its environment names the attachment.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal},
};

/// How long a killed plugin may take to be gone; one that is stuck in the kernel is left to itself.
const END_MAX: Duration = Duration::from_secs(1);

/// Kills the plugins that work for one of these ids, and waits until they are gone. Gives their process ids.
pub(crate) fn end(ids: &BTreeSet<String>) -> Vec<i32> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut ended = Vec::new();
    for entry in processes {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if u32::try_from(pid).ok() != Some(own)
            && works_for(&entry.path(), ids)
            && kill(pid, &entry.path(), ids)
        {
            ended.push(pid);
        }
    }
    ended
}

/// Whether a process is a plugin, by the environment that it was started with, and for one of these ids.
fn works_for(process: &Path, ids: &BTreeSet<String>) -> bool {
    // Unreadable: it has ended.
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    let value = |name: &[u8]| {
        environment
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
    };
    value(b"CNI_COMMAND").is_some()
        && value(b"CNI_CONTAINERID").is_some_and(|id| ids.iter().any(|ours| ours.as_bytes() == id))
}

fn kill(pid: i32, process: &Path, ids: &BTreeSet<String>) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // The number may have been given away before the handle was there.
    if !works_for(process, ids) {
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
