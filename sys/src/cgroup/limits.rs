//! The limits of a group as they stand in its files: read before a change, written back when it fails half way.

use std::io;
use std::path::{Path, PathBuf};

use super::{Tree, Version};
use crate::{Error, Result};

/// Files with limits by controller, version 1. The names of those for huge pages depend on the machine.
const V1: [(&str, &[&str]); 4] = [
    (
        "cpu",
        &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"],
    ),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    (
        "memory",
        &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
    ),
    ("pids", &["pids.max"]),
];

/// Files with limits, version 2.
const V2: [&str; 11] = [
    "cpu.weight",
    "cpu.max",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "pids.max",
];

/// Files may depend on each other (memory, and memory with swap), so that what is refused is tried again after the
/// others. Two tries are enough for a pair.
const PASSES: usize = 3;

/// SavedLimits of a group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedLimits {
    files: Vec<(PathBuf, String)>,
}

impl Tree {
    /// Reads the limits of group `path`. `more` names files of version 2 that are limits too.
    #[must_use]
    pub fn limits<'a>(&self, path: &str, more: impl IntoIterator<Item = &'a str>) -> SavedLimits {
        let mut paths = Vec::new();
        match self.version() {
            Version::V1 => {
                for (controller, names) in V1 {
                    let dir = self.dir(controller, path);
                    paths.extend(
                        names
                            .iter()
                            .filter_map(|name| Some(dir.as_ref()?.join(name))),
                    );
                }
            }
            Version::V2 => {
                let dir = self.dir("", path);
                let names = V2.iter().copied().chain(more);
                paths.extend(names.filter_map(|name| Some(dir.as_ref()?.join(name))));
            }
        }
        if let Some(dir) = self.dir("hugetlb", path) {
            paths.extend(huge_pages(&dir));
        }
        let read = |path: PathBuf| std::fs::read_to_string(&path).ok().map(|text| (path, text));
        SavedLimits {
            files: paths.into_iter().filter_map(read).collect(),
        }
    }
}

fn huge_pages(dir: &Path) -> Vec<PathBuf> {
    let is_limit = |name: &str| {
        name.starts_with("hugetlb.")
            && (name.ends_with(".max") || name.ends_with(".limit_in_bytes"))
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(is_limit)
        })
        .collect()
}

impl SavedLimits {
    /// Writes back what has another value now.
    ///
    /// # Errors
    /// The first file that could not be written, after all others were.
    pub fn restore(&self) -> Result<()> {
        let mut refused = Ok(());
        for _ in 0..PASSES {
            refused = Ok(());
            for (path, text) in &self.files {
                if let Err(error) = put_back(path, text) {
                    refused = refused.and(Err(Error::path("write", path, error)));
                }
            }
            if refused.is_ok() {
                break;
            }
        }
        refused
    }
}

fn put_back(path: &Path, text: &str) -> io::Result<()> {
    match std::fs::read_to_string(path) {
        Ok(now) if now == text => Ok(()),
        // The group is gone, and its limits with it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => std::fs::write(path, text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group that is plain files.
    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("g")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("g").join(name), text).unwrap();
        }
        let line = format!(
            "32 24 0:28 / {} rw - cgroup2 cgroup2 rw\n",
            dir.path().display()
        );
        let tree = Tree::from_mountinfo(&line);
        (dir, tree)
    }

    #[test]
    fn what_changed_is_written_back_and_nothing_else() {
        let (dir, tree) = group(&[
            ("cpu.max", "max 100000\n"),
            ("memory.max", "max\n"),
            ("io.latency", "a\n"),
            ("hugetlb.2MB.max", "0\n"),
            ("memory.current", "5\n"),
        ]);
        let limits = tree.limits("/g", ["io.latency"]);
        let file = |name: &str| dir.path().join("g").join(name);
        for name in ["cpu.max", "io.latency", "hugetlb.2MB.max", "memory.current"] {
            std::fs::write(file(name), "7\n").unwrap();
        }
        std::fs::remove_file(file("memory.max")).unwrap();
        limits.restore().unwrap();
        let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
        assert_eq!(read("cpu.max"), "max 100000");
        assert_eq!(
            (read("io.latency"), read("hugetlb.2MB.max")),
            ("a".into(), "0".into())
        );
        assert_eq!(read("memory.current"), "7\n", "no limit");
        assert!(!file("memory.max").exists());
        assert_eq!(tree.limits("/none", []), SavedLimits { files: Vec::new() });
    }

    #[test]
    fn what_cannot_be_written_back_is_named_and_the_rest_is_written() {
        let (dir, tree) = group(&[("cpu.max", "1\n"), ("memory.max", "2\n")]);
        let limits = tree.limits("/g", []);
        let file = |name: &str| dir.path().join("g").join(name);
        std::fs::remove_file(file("cpu.max")).unwrap();
        std::fs::create_dir(file("cpu.max")).unwrap();
        std::fs::write(file("memory.max"), "9").unwrap();
        let error = limits.restore().unwrap_err();
        assert!(error.to_string().contains("cpu.max"), "{error}");
        assert_eq!(std::fs::read_to_string(file("memory.max")).unwrap(), "2");
    }
}
