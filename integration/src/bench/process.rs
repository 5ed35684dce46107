//! What processes cost, out of /proc: memory that they do not share, CPU time.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Programs that watch containers: ours, containerd's, CRI-O's.
const MONITORS: [&str; 3] = ["zcri-shim", "containerd-shim", "conmon"];

/// The process that serves a unix socket (SO_PEERCRED, unix(7)).
///
/// # Errors
/// Nobody listens there.
pub fn server_of(socket: &Path) -> Result<u32> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(peer.pid.as_raw_nonzero().get().cast_unsigned())
}

/// The processes that watch the pods or containers of these ids, by their command lines.
pub fn monitors_of(ids: &BTreeSet<String>) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = command
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let program = words.first()?.rsplit('/').next()?;
            let watches = MONITORS.iter().any(|name| program.starts_with(name));
            (watches && words.iter().any(|word| ids.contains(word))).then_some(pid)
        })
        .collect()
}

/// Memory of a process, each shared page divided by its sharers, in bytes (Pss of smaps_rollup, proc(5)).
///
/// # Errors
/// The process is gone.
pub fn pss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss line")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

/// CPU time of all threads of a process so far, in nanoseconds (schedstat).
///
/// # Errors
/// The process is gone.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let dir = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut sum = 0;
    for thread in threads.flatten() {
        // A thread may end between the two reads.
        let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        sum += text
            .split_whitespace()
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or_default();
    }
    Ok(sum)
}

/// CPU time of several processes together.
///
/// # Errors
/// One is gone.
pub fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut sum = 0;
    for pid in pids {
        sum += cpu_ns(*pid)?;
    }
    Ok(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let own = std::process::id();
        assert!(pss(own).unwrap() > 100 * 1024);
        let before = cpu_ns(own).unwrap();
        let mut sum = 0_u64;
        for n in 0..20_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(n));
        }
        assert!(cpu_ns(own).unwrap() > before, "{sum}");
        assert!(pss(u32::MAX).is_err());
    }

    #[test]
    fn a_socket_tells_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(server_of(&path).unwrap(), std::process::id());
    }

    #[test]
    fn only_monitors_of_the_given_ids_count() {
        // A process of any other name with the id in its command line is none.
        let id = "f00f".repeat(16);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x", &id])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(monitors_of(&BTreeSet::from([id])), Vec::<u32>::new());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
