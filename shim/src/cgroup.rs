//! The cgroup of a container: who is in it, ending them all, and whether the kernel's OOM killer was there.
//!
//! Both cgroup versions. On version 1 (and hybrids) a container has one directory per controller; any of them lists
//! its processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Controllers of version 1 whose directory may list a container's processes, best first. The freezer comes late:
/// execs have directories of their own there.
const V1_LISTS: [&str; 6] = ["pids", "memory", "cpu", "devices", "freezer", "systemd"];

/// Controller of version 1 that holds the directory of an exec. cAdvisor does not watch it, so an exec costs the
/// kubelet nothing.
const V1_EXEC: &str = "freezer";

/// Passes over the list of processes before giving up on one that forks faster than it is killed.
const MAX_PASSES: usize = 100;

/// Levels of nested cgroups that are looked into.
const MAX_DEPTH: usize = 16;

/// The cgroup of a container or of an exec.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// Directory that lists the processes.
    list: PathBuf,
    /// File with a line `oom_kill N`.
    oom_counter: Option<PathBuf>,
    /// Directory below which an exec gets its own, and how `runc exec --cgroup` names that place.
    exec_parent: Option<(PathBuf, &'static str)>,
    /// File that freezes, and what to write to thaw.
    freezer: Option<(PathBuf, &'static str)>,
}

impl Cgroup {
    /// Finds the cgroup that the runtime made. `cgroups_path` as in the OCI spec; without a usable one, the
    /// cgroup of the process `pid` counts, unless that is shared with this process.
    pub(crate) fn locate(cgroups_path: Option<&str>, pid: u32) -> Option<Self> {
        Self::locate_in(
            Path::new(ROOT),
            cgroups_path,
            &format!("/proc/{pid}/cgroup"),
            "/proc/self/cgroup",
        )
    }

    fn locate_in(
        root: &Path,
        cgroups_path: Option<&str>,
        process: &str,
        own: &str,
    ) -> Option<Self> {
        let unified = root.join("cgroup.controllers").exists();
        let by_spec = cgroups_path
            .and_then(relative_path)
            .and_then(|path| Self::at(root, unified, &path));
        by_spec.or_else(|| {
            let (its, mine) = (
                fs::read_to_string(process).ok()?,
                fs::read_to_string(own).ok()?,
            );
            let controllers: &[&str] = if unified { &[""] } else { &V1_LISTS };
            let path = controllers.iter().find_map(|controller| {
                let path = path_of(&its, controller)?;
                // A dead process of version 1 claims to be in the root, and one that the runtime did not move is
                // where its parent is.
                (path != Path::new("") && Some(&path) != path_of(&mine, controller).as_ref())
                    .then_some(path)
            })?;
            Self::at(root, unified, &path)
        })
    }

    fn at(root: &Path, unified: bool, path: &Path) -> Option<Self> {
        // Never the root itself.
        path.components().next()?;
        if unified {
            let list = Some(root.join(path)).filter(|dir| dir.is_dir())?;
            return Some(Self {
                oom_counter: Some(list.join("memory.events")),
                exec_parent: Some((list.clone(), "")),
                freezer: Some((list.join("cgroup.freeze"), "0")),
                list,
            });
        }
        let of =
            |controller: &str| Some(root.join(controller).join(path)).filter(|dir| dir.is_dir());
        Some(Self {
            list: V1_LISTS.iter().find_map(|controller| of(controller))?,
            oom_counter: of("memory").map(|dir| dir.join("memory.oom_control")),
            exec_parent: of(V1_EXEC).map(|dir| (dir, "freezer:")),
            freezer: of("freezer").map(|dir| (dir.join("freezer.state"), "THAWED")),
        })
    }

    /// How often the kernel killed a process here for want of memory. 0 when that cannot be known.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some(text) = self
            .oom_counter
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok())
        else {
            return 0;
        };
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// File that tells of OOM kills by `EPOLLPRI`, on version 2.
    pub(crate) fn oom_events(&self) -> Option<&Path> {
        self.oom_counter
            .as_deref()
            .filter(|path| path.ends_with("memory.events"))
    }

    /// Every process here and below.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        collect(&self.list, MAX_DEPTH, &mut found);
        found
    }

    /// Sends a signal to every process here and below. With `SIGKILL` none is left alive afterwards, however they
    /// fork; they may still be on their way out.
    pub(crate) fn signal_all(&self, signal: i32) {
        if signal != SIGKILL {
            for pid in self.processes() {
                // One that ended meanwhile has what it needs.
                drop(zcri_sys::signal::send(pid, signal));
            }
            return;
        }
        if fs::write(self.list.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        self.thaw();
        let mut killed = BTreeSet::new();
        for _ in 0..MAX_PASSES {
            let fresh: Vec<u32> = self.processes().difference(&killed).copied().collect();
            if fresh.is_empty() {
                return;
            }
            for pid in fresh {
                drop(zcri_sys::signal::send(pid, SIGKILL));
                killed.insert(pid);
            }
        }
        eprintln!(
            "cgroup {}: processes appear faster than they can be killed",
            self.list.display()
        );
    }

    /// Undoes a pause, so that signals are seen.
    pub(crate) fn thaw(&self) {
        if let Some((file, thawed)) = &self.freezer {
            // Only a frozen cgroup needs it, and a runtime that never freezes may lack the file.
            drop(fs::write(file, thawed));
        }
    }

    /// Makes the directory of an exec. Returns it with the argument for `runc exec --cgroup`.
    pub(crate) fn create_for_exec(&self, name: &str) -> io::Result<(Self, String)> {
        let (parent, prefix) = self
            .exec_parent
            .as_ref()
            .ok_or(io::ErrorKind::Unsupported)?;
        let list = parent.join(name);
        fs::create_dir(&list)?;
        let own = Self {
            list,
            oom_counter: None,
            exec_parent: None,
            freezer: None,
        };
        Ok((own, format!("{prefix}/{name}")))
    }

    /// Removes the directory of an exec; whoever is left in it moves up to the container.
    pub(crate) fn remove_exec(&self) {
        if fs::remove_dir(&self.list).is_ok() {
            return;
        }
        if let Some(parent) = self.list.parent() {
            for pid in self.processes() {
                drop(fs::write(parent.join("cgroup.procs"), pid.to_string()));
            }
        }
        // What cannot be removed now goes with the container.
        drop(fs::remove_dir(&self.list));
    }
}

/// Number of the signal that cannot be caught, on every Unix.
pub(crate) const SIGKILL: i32 = 9;

fn collect(dir: &Path, depth: usize, found: &mut BTreeSet<u32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        // 0 stands for processes of a PID namespace that this one cannot see.
        found.extend(
            text.lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid: &u32| *pid != 0),
        );
    }
    let Some(below) = depth.checked_sub(1) else {
        return;
    };
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        collect(&entry.path(), below, found);
    }
}

/// The path below a hierarchy's mount point for a `cgroupsPath`: absolute, or systemd's `slice:prefix:name`
/// (runc, `docs/systemd.md`). Relative paths depend on the runtime and give nothing.
fn relative_path(cgroups_path: &str) -> Option<PathBuf> {
    if let Some(absolute) = cgroups_path.strip_prefix('/') {
        return normal(Path::new(absolute));
    }
    let mut parts = cgroups_path.split(':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let mut path = PathBuf::new();
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let stem = slice.strip_suffix(".slice")?;
    if stem != "-" {
        let mut so_far = String::new();
        for part in stem.split('-') {
            so_far.push_str(part);
            path.push(format!("{so_far}.slice"));
            so_far.push('-');
        }
    }
    if name.ends_with(".slice") {
        path.push(name);
    } else if prefix.is_empty() {
        path.push(format!("{name}.scope"));
    } else {
        path.push(format!("{prefix}-{name}.scope"));
    }
    normal(&path)
}

fn normal(path: &Path) -> Option<PathBuf> {
    let normal: PathBuf = path
        .components()
        .filter(|c| *c != Component::CurDir)
        .collect();
    let only_names = normal
        .components()
        .all(|c| matches!(c, Component::Normal(_)));
    (only_names && normal.components().next().is_some()).then_some(normal)
}

/// The path of a controller in the text of `/proc/PID/cgroup`, without its leading slash.
fn path_of(text: &str, controller: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let named = controllers
            .split(',')
            .any(|c| c.strip_prefix("name=").unwrap_or(c) == controller);
        named.then(|| PathBuf::from(path.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_drivers() {
        let path = |text| relative_path(text).map(|p| p.to_str().unwrap().to_owned());
        assert_eq!(path("/kubepods/pod1/c").as_deref(), Some("kubepods/pod1/c"));
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri:abc").as_deref(),
            Some(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-abc.scope"
            )
        );
        assert_eq!(path("-.slice::abc").as_deref(), Some("abc.scope"));
        assert_eq!(
            path(":cri:abc").as_deref(),
            Some("system.slice/cri-abc.scope")
        );
        for bad in [
            "/",
            "",
            "/a/../..",
            "relative/path",
            "a:b:c:d",
            "noslice:b:c",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn never_the_root_nor_the_monitors_own_cgroup() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("pids/mine")).unwrap();
        fs::create_dir_all(root.path().join("pids/c1/below")).unwrap();
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let own = file("own", "3:pids:/mine\n0::/\n");
        let locate = |text| Cgroup::locate_in(root.path(), None, &file("its", text), &own);
        assert!(locate("3:pids:/\n0::/\n").is_none());
        assert!(locate("3:pids:/mine\n").is_none());
        let found = locate("3:pids:/c1\n").unwrap();
        fs::write(root.path().join("pids/c1/cgroup.procs"), "5\n0\n").unwrap();
        fs::write(root.path().join("pids/c1/below/cgroup.procs"), "7\n").unwrap();
        assert_eq!(found.processes(), BTreeSet::from([5, 7]));
        assert!(Cgroup::locate_in(root.path(), Some("/gone"), "/nonexistent", &own).is_none());
    }

    #[test]
    fn oom_counters_of_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let v1 = root.path().join("v1");
        fs::create_dir_all(v1.join("memory/c")).unwrap();
        fs::write(
            v1.join("memory/c/memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        )
        .unwrap();
        let found = Cgroup::locate_in(&v1, Some("/c"), "", "").unwrap();
        assert_eq!((found.oom_kills(), found.oom_events()), (2, None));
        let v2 = root.path().join("v2");
        fs::create_dir_all(v2.join("c")).unwrap();
        fs::write(v2.join("cgroup.controllers"), "memory").unwrap();
        fs::write(
            v2.join("c/memory.events"),
            "low 0\noom 3\noom_kill 1\noom_group_kill 0\n",
        )
        .unwrap();
        let found = Cgroup::locate_in(&v2, Some("/c"), "", "").unwrap();
        assert_eq!(found.oom_kills(), 1);
        assert!(found.oom_events().is_some());
    }
}
