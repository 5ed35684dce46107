//! What network interfaces carried, by network namespace.
//!
//! One thread enters the namespaces one after the other and reads `/proc/thread-self/net/dev` in each: three system
//! calls to get there, no process, and nothing kept open that would keep a namespace alive.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result};

/// Counters of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it received.
    pub received: Traffic,
    /// What it sent.
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Reads the interfaces of each of these namespaces, which are files that pin one; `None` for one that cannot be
/// entered, because it is gone.
///
/// # Errors
/// No thread can be made.
pub fn read(namespaces: &[PathBuf]) -> Result<Vec<Option<Vec<Interface>>>> {
    if namespaces.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |source| Error::call("start a thread to read interfaces", source);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("net-usage".into())
            .spawn_scoped(scope, || {
                namespaces.iter().map(|path| read_one(path).ok()).collect()
            })
            .map_err(failed)?
            .join()
            .map_err(|_panic| failed(std::io::Error::other("the thread panicked")))
    })
}

/// Runs in a thread that is made for this: it stays in the namespace.
fn read_one(namespace: &Path) -> std::io::Result<Vec<Interface>> {
    let file = File::open(namespace)?;
    // With the kind given, a file that pins something else is refused.
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(parse(&std::fs::read_to_string(
        "/proc/thread-self/net/dev",
    )?))
}

/// proc(5): two lines of headings, then `name:` and sixteen numbers per interface.
fn parse(text: &str) -> Vec<Interface> {
    text.lines().filter_map(interface).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let traffic = |from: usize| {
        let direction = numbers.get(from..from + 4)?;
        Some(Traffic {
            bytes: *direction.first()?,
            packets: *direction.get(1)?,
            errors: *direction.get(2)?,
            dropped: *direction.get(3)?,
        })
    };
    Some(Interface {
        name: name.trim().to_owned(),
        received: traffic(0)?,
        sent: traffic(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_dev_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:      84       1    0    0    0     0          0         0       84       1    0    0    0     0       0          0\n  \
            eth0:16345678  12345    1    2    0     0          0         3  2345678    9876    4    5    0     0       0          0\n";
        let found = parse(text);
        assert_eq!(found.len(), 2, "{found:?}");
        let traffic = |bytes, packets, errors, dropped| Traffic {
            bytes,
            packets,
            errors,
            dropped,
        };
        assert_eq!(
            found[1],
            Interface {
                name: "eth0".into(),
                received: traffic(16_345_678, 12_345, 1, 2),
                sent: traffic(2_345_678, 9_876, 4, 5),
            }
        );
    }

    #[test]
    fn each_namespace_is_read_and_this_thread_stays_where_it_is() {
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fresh = dir.path().join("net");
        crate::namespace::create(&crate::namespace::PodNamespaces {
            net: Some(fresh.clone()),
            ..Default::default()
        })
        .unwrap();
        let not_one = dir.path().join("file");
        std::fs::write(&not_one, "").unwrap();
        let missing = dir.path().join("missing");
        let host = PathBuf::from("/proc/self/ns/net");
        let found = read(&[host, fresh.clone(), not_one, missing]).unwrap();
        crate::namespace::unpin(&fresh).unwrap();
        let names = |at: usize| -> Vec<String> {
            let mut names: Vec<_> = found[at].iter().flatten().map(|i| i.name.clone()).collect();
            names.sort();
            names
        };
        let host_names: Vec<String> = parse(&std::fs::read_to_string("/proc/net/dev").unwrap())
            .into_iter()
            .map(|interface| interface.name)
            .collect();
        assert_eq!(names(0).len(), host_names.len());
        assert!(names(1).contains(&"lo".to_owned()), "{:?}", found[1]);
        assert_eq!(found[2], None);
        assert_eq!(found[3], None);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    }
}
