//! The audit: what a node left on the machine, and its removal.
//!
//! Everything of a node has its slot's name in it: directories, cgroup parent, bridge, CNI network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::lpar::{self, sysplex};
use crate::node::{LPAR_CGROUP, Slot};

/// Everything that is left of a node whose pods are removed and whose daemon has ended. Each line tells one thing.
pub fn audit(slot: &Slot) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |kind: &str, items: Vec<String>| {
        found.extend(items.into_iter().map(|item| format!("{kind} {item}")))
    };
    note(
        "mount",
        mounts(slot)
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    );
    note(
        "process",
        processes(slot)
            .into_iter()
            .map(|(pid, what)| format!("{pid}: {what}"))
            .collect(),
    );
    note("cgroup", pod_cgroups(slot));
    note("address lease", leases(slot));
    note("interface", bridge_ports(slot));
    note("firewall rule", firewall(slot));
    note("dynamic VIPA", lpar::vipas(slot));
    note("address or route", addresses(slot));
    note("path", daemon_paths(slot));
    found
}

/// What the daemon still keeps for pods and containers: records, bundles, layers, trash, cached CNI results.
pub fn daemon_paths(slot: &Slot) -> Vec<String> {
    let root = slot.dir().join("root");
    let mut found = Vec::new();
    for (base, names) in [
        (root, &["pods", "containers", "overlay", "trash"][..]),
        (slot.state(), &["pods", "containers"][..]),
    ] {
        for name in names {
            let dir = base.join(name);
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        // Whatever else has an id for a name, wherever it is, but not in the image store: it has its own.
        found.extend(paths_with_ids(&base));
    }
    found.sort();
    found.dedup();
    found
}

/// Removes what a node left, so that the slot is clean for the next one. It goes on after every failure: the next
/// audit tells what is still there.
pub fn clear(slot: &Slot) {
    power_off(slot);
    let bridge = slot.name();
    if Path::new("/sys/class/net").join(&bridge).exists() {
        drop(Command::new("ip").args(["link", "del", &bridge]).output());
    }
    drop(std::fs::remove_dir_all(slot.dir()));
}

/// Ends everything of a node that runs or is in memory: what is left is what a failing machine has left on its disks.
pub fn power_off(slot: &Slot) {
    for _ in 0..100 {
        let left = processes(slot);
        if left.is_empty() {
            break;
        }
        for (pid, _) in left {
            kill_process(pid, Signal::KILL).ok();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for path in mounts(slot) {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).ok();
    }
    for dir in cgroup_dirs(slot) {
        drop(std::fs::remove_dir(dir));
    }
    sysplex::remove(&slot.name());
    // Addresses of the pods of a node that was killed.
    for (family, range) in [("-4", slot.subnet()), ("-6", slot.subnet_v6())] {
        let flush = [family, "addr", "flush", "dev", "lo", "to", &range];
        drop(Command::new("ip").args(flush).output());
    }
    drop(std::fs::remove_dir_all(slot.state()));
}

/// Addresses and routes of the slot's ranges, and where they are.
fn addresses(slot: &Slot) -> Vec<String> {
    let ranges = [slot.subnet(), slot.subnet_v6()];
    let prefixes = ranges.map(|range| {
        let (network, _) = range.split_once('/').unwrap_or_default();
        network.trim_end_matches('0').to_owned()
    });
    // The bridge, and the routes to it, are the harness's own: it is removed with the slot.
    let own = format!(" {} ", slot.name());
    let mut found = Vec::new();
    for arguments in [
        &["-o", "addr", "show"][..],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
    ] {
        let Ok(output) = Command::new("ip").args(arguments).output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().map(|line| format!("{line} "));
        found.extend(lines.filter(|line| {
            !line.contains(&own) && prefixes.iter().any(|p| line.contains(&format!(" {p}")))
        }));
    }
    found
}

/// Mount points below the slot's directories, the deepest first.
fn mounts(slot: &Slot) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(slot.dir()) || path.starts_with(slot.state()))
        .collect();
    found.reverse();
    found
}

/// Processes that name a directory of the slot, or are in its cgroups.
fn processes(slot: &Slot) -> Vec<(Pid, String)> {
    let own = std::process::id().to_string();
    let name = slot.name();
    let dirs = [
        slot.dir().display().to_string(),
        slot.state().display().to_string(),
    ];
    let mentions = |text: &str| {
        dirs.iter().any(|dir| {
            text.match_indices(dir.as_str()).any(|(at, _)| {
                !text[at + dir.len()..].starts_with(|next: char| next.is_ascii_digit())
            })
        })
    };
    let in_cgroup = |text: &str| {
        text.lines()
            .any(|line| line.split('/').any(|part| part == name))
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let proc = entry.path();
            let id = entry
                .file_name()
                .into_string()
                .ok()
                .filter(|id| *id != own)?;
            let pid = Pid::from_raw(id.parse().ok()?)?;
            if is_inits_zombie(&proc) {
                return None;
            }
            let command = std::fs::read(proc.join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let link =
                |name| std::fs::read_link(proc.join(name)).map(|path| path.display().to_string());
            let cgroup = std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
            let ours = mentions(&command)
                || ["exe", "cwd"]
                    .into_iter()
                    .any(|name| link(name).is_ok_and(|path| mentions(&path)))
                || in_cgroup(&cgroup);
            ours.then_some((pid, command))
        })
        .collect()
}

/// Processes in the slot's containers whose command line holds `text`.
pub fn processes_with(slot: &Slot, text: &str) -> Vec<String> {
    let all = processes(slot).into_iter().map(|(_, command)| command);
    all.filter(|command| command.contains(text)).collect()
}

/// Whether a process has ended and is process 1's to wait for: in a container that may never happen.
fn is_inits_zombie(proc: &Path) -> bool {
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
    // proc_pid_stat(5): the name in parentheses, then state and parent.
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with("Z 1 "))
}

/// All cgroups of the slot in every hierarchy, the deepest first.
fn cgroup_dirs(slot: &Slot) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = hierarchies()
        .iter()
        .flat_map(|root| subdirectories(&root.join(slot.name())))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// Cgroups below those of the pods. The pods' own are the kubelet's to remove, which is this harness.
fn pod_cgroups(slot: &Slot) -> Vec<String> {
    let mut found = Vec::new();
    for root in hierarchies() {
        let parent = root.join(slot.name());
        for pod in subdirectories(&parent) {
            let depth = pod
                .strip_prefix(&parent)
                .map_or(0, |rest| rest.components().count());
            // The emulation's own, one per sandbox, are left to it: z/OS has none.
            let of_lpar = depth <= 2 && pod.starts_with(parent.join(LPAR_CGROUP));
            let of_pod = depth == 1
                && pod
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("pod-"));
            if depth > 0 && !of_pod && !of_lpar {
                found.push(pod.display().to_string());
            }
        }
    }
    found
}

/// Mount points of the cgroup file systems.
fn hierarchies() -> BTreeSet<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            back.starts_with("cgroup")
                .then(|| front.split(' ').nth(4).map(PathBuf::from))?
        })
        .collect()
}

/// `dir` and all directories below it; none if it is not there.
fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    if !dir.is_dir() {
        return Vec::new();
    }
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        found.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    found
}

/// Addresses that host-local holds for the network of the slot.
fn leases(slot: &Slot) -> Vec<String> {
    let host_local = slot.dir().join("ipam").join(slot.name());
    let dvipa = slot.dir().join("dvipa/leases");
    let entries = [host_local, dvipa].map(|dir| std::fs::read_dir(dir).into_iter().flatten());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect()
}

/// Interfaces that are still attached to the slot's bridge.
fn bridge_ports(slot: &Slot) -> Vec<String> {
    let dir = Path::new("/sys/class/net").join(slot.name()).join("brif");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Rules whose comment names the slot's CNI network.
fn firewall(slot: &Slot) -> Vec<String> {
    let Ok(output) = Command::new("iptables-save").args(["-t", "nat"]).output() else {
        return Vec::new();
    };
    let wanted = format!("\"{}\"", slot.name());
    let text = String::from_utf8_lossy(&output.stdout).replace('\\', "");
    text.lines()
        .filter(|line| line.contains(&wanted))
        .map(str::to_owned)
        .collect()
}

/// Paths below `base`, outside of the image store, whose name holds a pod's or container's id (64 hexadecimal digits).
fn paths_with_ids(base: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![base.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name
                .as_bytes()
                .chunk_by(|a, b| is_hex(*a) == is_hex(*b))
                .any(|run| run.len() == 64 && is_hex(run[0]))
            {
                found.push(path.display().to_string());
            } else if name != "images" && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            }
        }
    }
    found
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}
