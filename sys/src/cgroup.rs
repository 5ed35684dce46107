//! Control groups: which kind the node has, where a process is, and what a group used.
//!
//! [`Usage`] is what every round of statistics reads, [`Detail`] what only metrics need beyond it.
//!
//! The kind is read at run time. A hybrid tree (v1 controllers and a v2 hierarchy without them beside) counts as
//! [`Version::V1`], because that is where the controllers are.

mod detail;
mod files;
mod limits;
#[cfg(test)]
mod reading_tests;
mod usage;

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

pub use limits::SavedLimits;

use crate::{Error, Result};

pub use detail::{Detail, DeviceIo, Hugepages, Limits};
pub use usage::{Pressure, Stall, Usage};

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
    /// v1 mount points without a controller (`name=systemd`): OCI runtimes make groups there too.
    named: Vec<PathBuf>,
    /// Mount point of the v2 hierarchy, if there is one.
    unified: Option<PathBuf>,
}

impl Tree {
    /// The tree of a node without control groups: no group is anywhere, and nothing is known of any.
    #[must_use]
    pub fn none() -> Self {
        Self {
            controllers: BTreeMap::new(),
            named: Vec::new(),
            unified: None,
        }
    }

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
        let mut tree = Self::none();
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
                        if option.starts_with("name=") {
                            tree.named.push(point.into());
                        }
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

    /// Mount point of the unified hierarchy, with controllers or (in a hybrid tree) without.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
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

    /// Directory of group `path` for huge pages: a hybrid tree may have that controller in either part.
    fn hugetlb_dir(&self, path: &str) -> Option<PathBuf> {
        let root = self.controllers.get("hugetlb").or(self.unified.as_ref())?;
        Some(root.join(path.trim_start_matches('/')))
    }

    /// Every directory that group `path` may have.
    fn dirs(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let relative = path.trim_start_matches('/').to_owned();
        let mut roots: Vec<&PathBuf> = self
            .controllers
            .values()
            .chain(&self.named)
            .chain(&self.unified)
            .collect();
        roots.sort();
        roots.dedup();
        roots.into_iter().map(move |root| root.join(&relative))
    }

    /// Makes a group of the unified hierarchy, and those above it.
    ///
    /// # Errors
    /// The unified hierarchy is not mounted, or it refused.
    pub fn make_unified(&self, path: &str) -> Result<PathBuf> {
        let dir = self.unified_dir(path)?;
        std::fs::create_dir_all(&dir).map_err(|e| Error::path("make cgroup", &dir, e))?;
        Ok(dir)
    }

    /// Moves a process with all its threads into a group of the unified hierarchy. What it starts later is there too.
    ///
    /// # Errors
    /// The group or the process is not there.
    pub fn join_unified(&self, path: &str, pid: u32) -> Result<()> {
        let file = self.unified_dir(path)?.join("cgroup.procs");
        std::fs::write(&file, pid.to_string()).map_err(|e| Error::path("write", file, e))
    }

    /// Kills all processes of a group of the unified hierarchy and of those below it, and waits until they are gone.
    /// False when one is not within `patience`. A group that is not there is empty.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn end_unified(&self, path: &str, patience: Duration) -> Result<bool> {
        let Ok(dir) = self.unified_dir(path) else {
            return Ok(true);
        };
        match std::fs::write(dir.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(Error::path("kill cgroup", dir, e)),
            Ok(()) => {}
        }
        let events = dir.join("cgroup.events");
        let mut file = std::fs::File::open(&events).map_err(|e| Error::path("open", &events, e))?;
        let until = Instant::now() + patience;
        loop {
            let mut text = String::new();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .map_err(|e| Error::path("read", &events, e))?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            let wait = Timespec::try_from(left).ok();
            // The kernel tells of a change as of urgent data (cgroups(7), "cgroup.events").
            let mut polled = [PollFd::new(&file, PollFlags::PRI)];
            match poll(&mut polled, wait.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::path("wait for", events, errno)),
            }
        }
    }

    fn unified_dir(&self, path: &str) -> Result<PathBuf> {
        let missing =
            || std::io::Error::new(std::io::ErrorKind::NotFound, "cgroup2 is not mounted");
        let root = self.unified.as_ref();
        let root = root.ok_or_else(|| Error::path("find cgroup", path, missing()))?;
        Ok(root.join(path.trim_start_matches('/')))
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

    /// Whether there is a group `path`.
    pub fn has_group(&self, path: &str) -> bool {
        self.of_processes(path).is_some_and(|dir| dir.is_dir())
    }

    /// The directory of group `path` by which its processes are found.
    fn of_processes(&self, path: &str) -> Option<PathBuf> {
        self.dir("pids", path).or_else(|| self.dir("memory", path))
    }

    /// Process ids in group `path` and the groups below it. Empty when the group is gone.
    ///
    /// # Errors
    /// `cgroup.procs` cannot be read.
    pub fn processes(&self, path: &str) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        let mut pending: Vec<PathBuf> = self.of_processes(path).into_iter().collect();
        while let Some(dir) = pending.pop() {
            let file = dir.join("cgroup.procs");
            match std::fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::path("read", file, e)),
            }
            pending.extend(below(&dir));
        }
        Ok(pids)
    }
}

/// The groups directly below one.
fn below(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
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
        assert_eq!(tree.dirs("/a").count(), 3);
    }

    #[test]
    fn a_node_without_control_groups_knows_nothing_and_removes_nothing() {
        let tree = Tree::none();
        assert_eq!(tree.usage("/a"), Usage::default());
        assert_eq!(tree.processes("/a").unwrap(), Vec::<u32>::new());
        tree.remove("/a").unwrap();
        assert!(!tree.has_controller("memory") && !tree.accounts_for_swap());
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
