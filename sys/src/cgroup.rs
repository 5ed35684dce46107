//! Control groups: which kind the node has, where a process is, and what a group used.
//!
//! The kind is read at run time. A hybrid tree (v1 controllers and a v2 hierarchy without them beside) counts as
//! [`Version::V1`], because that is where the controllers are.

mod limits;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use limits::Limits;

use crate::{Error, Result};

/// Where the controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller (cgroups(7), version 1), also in a hybrid tree.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The hierarchies that are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// v1 mount points by controller name; empty on a pure v2 node.
    controllers: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 hierarchy, if there is one.
    unified: Option<PathBuf>,
}

impl Tree {
    /// Reads the mount table.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read.
    pub fn detect() -> Result<Self> {
        let file = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(file).map_err(|e| Error::path("read", file, e))?;
        Ok(Self::from_mountinfo(&text))
    }

    fn from_mountinfo(text: &str) -> Self {
        let mut tree = Tree {
            controllers: BTreeMap::new(),
            unified: None,
        };
        for line in text.lines() {
            // proc(5): ID parent major:minor root MOUNTPOINT options [optional...] - TYPE source SUPEROPTIONS
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => {
                    tree.unified.get_or_insert_with(|| point.into());
                }
                Some("cgroup") => {
                    for option in right.nth(1).unwrap_or_default().split(',') {
                        tree.controllers
                            .entry(option.to_owned())
                            .or_insert_with(|| point.into());
                    }
                }
                _ => {}
            }
        }
        for not_a_controller in ["rw", "ro", "xattr", "clone_children"] {
            tree.controllers.remove(not_a_controller);
        }
        tree.controllers
            .retain(|name, _| !name.starts_with("name=") && !name.starts_with("release_agent="));
        tree
    }

    /// Where the controllers are.
    pub fn version(&self) -> Version {
        if self.controllers.is_empty() {
            Version::V2
        } else {
            Version::V1
        }
    }

    /// Whether the tree that has the controllers has this one.
    pub fn has_controller(&self, name: &str) -> bool {
        match self.version() {
            Version::V1 => self.controllers.contains_key(name),
            Version::V2 => self.unified.as_ref().is_some_and(|root| {
                let list = std::fs::read_to_string(root.join("cgroup.controllers"));
                list.is_ok_and(|list| list.split_whitespace().any(|one| one == name))
            }),
        }
    }

    /// Whether the memory controller accounts for swap: on v1 that was a choice at boot (`swapaccount`).
    pub fn accounts_for_swap(&self) -> bool {
        match self.version() {
            Version::V1 => self
                .dir("memory", "/")
                .is_some_and(|dir| dir.join("memory.memsw.limit_in_bytes").exists()),
            // The root group has no limits; whether swap is there at all shows in the machine.
            Version::V2 => self.has_controller("memory") && Path::new("/proc/swaps").exists(),
        }
    }

    /// Directory of group `path` (absolute within its hierarchy) for a controller; on v2 the same for all.
    pub fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let root = match self.version() {
            Version::V1 => self.controllers.get(controller)?,
            Version::V2 => self.unified.as_ref()?,
        };
        Some(root.join(path.trim_start_matches('/')))
    }

    /// Every directory that group `path` may have.
    fn dirs(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let relative = path.trim_start_matches('/').to_owned();
        let mut roots: Vec<&PathBuf> = self.controllers.values().chain(&self.unified).collect();
        roots.sort();
        roots.dedup();
        roots.into_iter().map(move |root| root.join(&relative))
    }

    /// Removes an empty group in every hierarchy; one that is not there is no error.
    ///
    /// # Errors
    /// Processes or child groups are still in it.
    pub fn remove(&self, path: &str) -> Result<()> {
        for dir in self.dirs(path) {
            match std::fs::remove_dir(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::path("remove cgroup", dir, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Process ids in group `path`, without its child groups. Empty when the group is gone.
    ///
    /// # Errors
    /// `cgroup.procs` cannot be read.
    pub fn processes(&self, path: &str) -> Result<Vec<u32>> {
        let Some(dir) = self.dir("pids", path).or_else(|| self.dir("memory", path)) else {
            return Ok(Vec::new());
        };
        let file = dir.join("cgroup.procs");
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::path("read", file, e)),
        }
    }

    /// What the group used so far. What the kernel does not say stays `None`.
    pub fn usage(&self, path: &str) -> Usage {
        match self.version() {
            Version::V1 => self.usage_v1(path),
            Version::V2 => self.usage_v2(path),
        }
    }

    fn usage_v1(&self, path: &str) -> Usage {
        let number = |controller: &str, file: &str| {
            let text = std::fs::read_to_string(self.dir(controller, path)?.join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let stat = self
            .dir("memory", path)
            .and_then(|dir| std::fs::read_to_string(dir.join("memory.stat")).ok())
            .map(|text| flat_keyed(&text))
            .unwrap_or_default();
        let memory_usage = number("memory", "memory.usage_in_bytes");
        Usage {
            cpu_ns: number("cpuacct", "cpuacct.usage"),
            memory_usage,
            memory_limit: number("memory", "memory.limit_in_bytes")
                .filter(|limit| *limit < UNLIMITED),
            // cAdvisor's definition: usage without the page cache that could be dropped at once.
            working_set: memory_usage.map(|usage| {
                usage.saturating_sub(stat.get("total_inactive_file").copied().unwrap_or(0))
            }),
            rss: stat.get("total_rss").copied(),
            page_faults: stat.get("total_pgfault").copied(),
            major_page_faults: stat.get("total_pgmajfault").copied(),
            swap_usage: stat.get("total_swap").copied(),
            pids: number("pids", "pids.current"),
        }
    }

    fn usage_v2(&self, path: &str) -> Usage {
        let Some(dir) = self.dir("", path) else {
            return Usage::default();
        };
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let stat = read("memory.stat")
            .map(|text| flat_keyed(&text))
            .unwrap_or_default();
        let memory_usage = number("memory.current");
        Usage {
            cpu_ns: read("cpu.stat")
                .and_then(|text| flat_keyed(&text).get("usage_usec").copied())
                .map(|us| us.saturating_mul(1000)),
            memory_usage,
            memory_limit: number("memory.max"),
            working_set: memory_usage
                .map(|usage| usage.saturating_sub(stat.get("inactive_file").copied().unwrap_or(0))),
            rss: stat.get("anon").copied(),
            page_faults: stat.get("pgfault").copied(),
            major_page_faults: stat.get("pgmajfault").copied(),
            swap_usage: number("memory.swap.current"),
            pids: number("pids.current"),
        }
    }
}

/// A v1 limit at or above this is "none" (the kernel rounds LLONG_MAX down to a page).
const UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

/// What a group used. Times in ns, sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all processes since the group was made.
    pub cpu_ns: Option<u64>,
    /// Memory charged now, page cache included.
    pub memory_usage: Option<u64>,
    /// Memory limit; `None` when there is none.
    pub memory_limit: Option<u64>,
    /// Usage less the inactive page cache.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page faults since the group was made.
    pub page_faults: Option<u64>,
    /// Of these, the ones that read from disk.
    pub major_page_faults: Option<u64>,
    /// Swap in use.
    pub swap_usage: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The "flat keyed" format of cgroup files: a name, a space, a number, one per line.
fn flat_keyed(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_trees_count_as_v1() {
        let tree = Tree::from_mountinfo(
            "30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             32 24 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(tree.version(), Version::V1);
        assert_eq!(
            tree.dir("cpuacct", "/a/b"),
            Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into())
        );
        assert_eq!(tree.dir("memory", "/a"), None);
        assert_eq!(tree.dirs("/a").count(), 2);
    }

    #[test]
    fn a_pure_v2_tree() {
        let tree = Tree::from_mountinfo(
            "32 24 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(tree.version(), Version::V2);
        assert_eq!(tree.dir("memory", "x"), Some("/sys/fs/cgroup/x".into()));
    }

    #[test]
    fn the_root_group_of_this_machine_has_usage() {
        let tree = Tree::detect().unwrap();
        let pids = tree.processes("/").unwrap();
        assert!(!pids.is_empty());
        if tree.version() == Version::V1 {
            assert!(tree.usage("/").cpu_ns.is_some_and(|ns| ns > 0));
        }
        assert_eq!(tree.usage("/no/such/group"), Usage::default());
    }
}
