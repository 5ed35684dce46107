//! What limits containers: control groups on Linux, WLM on z/OS.

use std::path::{Path, PathBuf};

use zcri_config::{CgroupManager, Config, PlatformKind};
use zcri_sys::cgroup::{Tree, Version};

use super::report::Area;
use crate::container::spec::CgroupsPath;

/// Controllers that the limits of a pod need, and those that only some pods ask for.
const NEEDED: &[&str] = &["cpu", "memory", "pids", "cpuset"];
const WANTED: &[&str] = &["hugetlb"];

/// Where systemd tells that it is the one who runs the machine (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// Where it takes requests.
const BUS: &str = "/run/dbus/system_bus_socket";

pub(super) fn check(config: &Config, name: &str, area: &mut Area<'_>) {
    if config.platform.kind == PlatformKind::Zos {
        return super::zos::workloads(config, area);
    }
    let tree = match Tree::detect() {
        Ok(tree) => tree,
        Err(error) => {
            area.fail(
                "cgroups",
                crate::error::Chain(&error).to_string(),
                "mount /proc",
            );
            return;
        }
    };
    area.pass("cgroups", layout(&tree));
    for name in NEEDED {
        if tree.has_controller(name) {
            area.pass(format!("{name} controller"), "there");
        } else {
            area.fail(
                format!("{name} controller"),
                "missing",
                "mount it (version 1), or enable it in cgroup.subtree_control above (version 2)",
            );
        }
    }
    for name in WANTED {
        if !tree.has_controller(name) {
            area.warn(
                format!("{name} controller"),
                "missing",
                "pods cannot limit their huge pages",
            );
        }
    }
    match config.runtime.cgroup_manager {
        CgroupManager::Cgroupfs => area.verdict(
            format!("groups in {}", config.runtime.cgroup_parent),
            try_group(&tree, &config.runtime.cgroup_parent, name)
                .map(|()| "made and removed".to_owned()),
            "run as root with the cgroup file systems writable",
        ),
        CgroupManager::Systemd => systemd(area),
    }
}

fn layout(tree: &Tree) -> &'static str {
    let second = Path::new("/sys/fs/cgroup/unified").is_dir();
    match tree.version() {
        Version::V2 => "version 2",
        Version::V1 if second => "hybrid: the controllers are in version 1",
        Version::V1 => "version 1",
    }
}

fn systemd(area: &mut Area<'_>) {
    for (what, path) in [("systemd", SYSTEMD), ("system bus", BUS)] {
        if Path::new(path).exists() {
            area.pass(what, "there");
        } else {
            area.fail(
                what,
                format!("{path} is missing"),
                "set [runtime] cgroup_manager = \"cgroupfs\", here and for the kubelet",
            );
        }
    }
}

/// Directories of a group, one per hierarchy.
fn dirs(tree: &Tree, group: &str) -> Vec<PathBuf> {
    let mut dirs: Vec<_> = NEEDED
        .iter()
        .filter_map(|controller| tree.dir(controller, group))
        .collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

fn try_group(tree: &Tree, parent: &str, name: &str) -> Result<(), String> {
    let group = group_of(parent, name);
    let fail = |dir: &Path, error: std::io::Error| format!("{}: {error}", dir.display());
    for dir in dirs(tree, &group) {
        std::fs::create_dir_all(&dir).map_err(|e| fail(&dir, e))?;
    }
    for dir in dirs(tree, &group) {
        std::fs::remove_dir(&dir).map_err(|e| fail(&dir, e))?;
    }
    Ok(())
}

fn group_of(parent: &str, name: &str) -> String {
    CgroupsPath::Cgroupfs {
        parent: parent.to_owned(),
        id: name.to_owned(),
    }
    .in_tree()
}

/// The group that the hello container gets.
pub(super) fn hello_path(config: &Config, name: &str) -> CgroupsPath {
    let (parent, id) = (config.runtime.cgroup_parent.clone(), name.to_owned());
    match config.runtime.cgroup_manager {
        CgroupManager::Cgroupfs => CgroupsPath::Cgroupfs { parent, id },
        CgroupManager::Systemd => CgroupsPath::Systemd { slice: parent, id },
    }
}

/// The groups that were not there before a check: those it has to remove.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// The deepest first.
    groups: Vec<String>,
}

impl Traces {
    /// To be asked before anything is made.
    pub(super) fn before(config: &Config, name: &str) -> Self {
        if config.runtime.cgroup_manager != CgroupManager::Cgroupfs {
            return Self::default();
        }
        let group = group_of(&config.runtime.cgroup_parent, name);
        let roots = hierarchies();
        let absent = |group: &&str| roots.iter().all(|root| !below(root, group).exists());
        let all = Path::new(&group).ancestors().filter_map(Path::to_str);
        Self {
            groups: all.take_while(absent).map(str::to_owned).collect(),
        }
    }

    /// Removes them, unless a pod has moved in. The OCI runtimes make groups in every hierarchy, not only in those that
    /// are needed, and remove the lowest alone.
    pub(super) fn remove(&self) {
        let roots = hierarchies();
        for group in &self.groups {
            for root in &roots {
                // What is in use stays.
                std::fs::remove_dir(below(root, group)).ok();
            }
        }
    }
}

fn below(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

/// Mount points of all hierarchies, those without controllers too.
fn hierarchies() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5): the mount point is the fifth field, the type follows the dash.
    let point = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let point = front.split(' ').nth(4)?;
        back.starts_with("cgroup").then(|| PathBuf::from(point))
    };
    let mut all: Vec<_> = table.lines().filter_map(point).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_made_and_its_parent_goes_with_it() {
        let tree = Tree::detect().unwrap();
        let parent = format!("/zcri-check-test-{}", std::process::id());
        let config = Config {
            runtime: zcri_config::Runtime {
                cgroup_parent: format!("{parent}/below"),
                ..Default::default()
            },
            ..Config::default()
        };
        let traces = Traces::before(&config, "check-1");
        try_group(&tree, &config.runtime.cgroup_parent, "check-1").unwrap();
        assert!(dirs(&tree, &parent).iter().all(|dir| dir.exists()));
        traces.remove();
        assert!(dirs(&tree, &parent).iter().all(|dir| !dir.exists()));
    }
}
