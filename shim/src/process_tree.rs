//! Ending a process with its descendants where no cgroup of its own tells who they are.
//!
//! The root is stopped first, then every descendant, until a look at the whole process table shows no new one; a
//! stopped process cannot fork, so the set is complete. Then all are killed. What escapes is a descendant that left
//! both the tree and the session before: its parent ended and it called `setsid`.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Looks at the process table before giving up on a tree that grows faster than it can be stopped.
const MAX_PASSES: usize = 100;

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    parent: u32,
    session: u32,
    started: u64,
}

/// Kills `root` and its descendants.
pub(crate) fn kill(root: u32) {
    let mut stopped: BTreeMap<u32, Entry> = BTreeMap::new();
    for _ in 0..MAX_PASSES {
        let table = process_table();
        let fresh = members(&table, root, &stopped);
        if fresh.is_empty() {
            break;
        }
        for (pid, entry) in fresh {
            signal(pid, entry, Signal::STOP);
            stopped.insert(pid, entry);
        }
    }
    for (pid, entry) in stopped {
        signal(pid, entry, Signal::KILL);
    }
}

/// Sends a signal to `root` and the descendants it has now.
pub(crate) fn signal_all(root: u32, number: i32) {
    let table = process_table();
    let mut known = BTreeMap::new();
    loop {
        let fresh = members(&table, root, &known);
        if fresh.is_empty() {
            break;
        }
        known.extend(fresh);
    }
    for pid in known.into_keys() {
        // One that ended meanwhile needs no signal.
        drop(zcri_sys::signal::send(pid, number));
    }
}

/// Members of the tree that are not `known`: the root, children of members, and the root's session if it leads one.
fn members(
    table: &BTreeMap<u32, Entry>,
    root: u32,
    known: &BTreeMap<u32, Entry>,
) -> Vec<(u32, Entry)> {
    let leads = table
        .get(&root)
        .or_else(|| known.get(&root))
        .is_some_and(|entry| entry.session == root);
    let belongs = |pid: u32, entry: &Entry| {
        pid == root
            || known.contains_key(&entry.parent)
            || entry.parent == root
            || (leads && entry.session == root)
    };
    let fresh = table
        .iter()
        .filter(|(pid, entry)| !known.contains_key(pid) && belongs(**pid, entry));
    fresh.map(|(pid, entry)| (*pid, *entry)).collect()
}

fn process_table() -> BTreeMap<u32, Entry> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

fn read(pid: u32) -> Option<Entry> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse(&String::from_utf8_lossy(&stat))
}

/// Fields of proc(5): 4 parent, 6 session, 22 start time. The name before them may hold anything.
fn parse(stat: &str) -> Option<Entry> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Entry {
        parent,
        session,
        started,
    })
}

/// Signals exactly the process that was seen: the descriptor pins the number, the start time proves the identity.
fn signal(pid: u32, seen: Entry, signal: Signal) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(pinned) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    if read(pid).is_some_and(|now| now.started == seen.started) {
        // It may end between the look and the signal, which is what is wanted.
        rustix::process::pidfd_send_signal(&pinned, signal).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_behind_a_hostile_name() {
        let stat = "42 (a) b (c) R 1 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987 1 2";
        assert_eq!(
            parse(stat),
            Some(Entry {
                parent: 1,
                session: 40,
                started: 987
            })
        );
        assert_eq!(parse("42 (cut"), None);
    }

    #[test]
    fn tree_and_session_belong_and_others_do_not() {
        let entry = |parent, session| Entry {
            parent,
            session,
            started: 0,
        };
        let table = BTreeMap::from([
            (10, entry(1, 10)),
            (11, entry(10, 10)),
            (12, entry(1, 10)),
            (13, entry(11, 13)),
            (20, entry(1, 20)),
        ]);
        let first = members(&table, 10, &BTreeMap::new());
        assert_eq!(
            first.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(),
            [10, 11, 12]
        );
        let second = members(&table, 10, &first.into_iter().collect());
        assert_eq!(second.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [13]);
    }

    #[test]
    fn kills_a_real_tree() {
        use std::io::Read;
        // Every process holds the pipe; its end means that all are gone.
        let mut child = std::process::Command::new("setsid")
            .args([
                "sh",
                "-c",
                "(sleep 1000 & sleep 1001 &) ; sh -c 'sleep 1002; true' & echo ready; sleep 1003",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 6]).unwrap();
        kill(child.id());
        out.read_to_end(&mut Vec::new()).unwrap();
        child.wait().unwrap();
    }
}
