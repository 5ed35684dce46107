//! From a specification for z/OS to one that runc takes: what the LPAR would have done, done by Linux.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::config::Settings;

/// Names the sandbox that a container belongs to.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// Capabilities of UID 0 in a container, as the field gives them: z/OS has none, superusers have authority by SAF.
const CAPABILITIES: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_MKNOD", 27),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_SETFCAP", 31),
];

/// What the machine that stands for the LPAR can give.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Bit n for capability n.
    pub bounding: u64,
    /// Its own value, which it may not lower.
    pub oom_score_adj: i64,
    /// The pod's group in the unified hierarchy, if its shim is in one: address spaces of a pod belong together.
    pub group: Option<String>,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// `/proc` does not say.
    pub fn here() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .context("/proc/self/status has no CapBnd")?;
        let oom = std::fs::read_to_string("/proc/self/oom_score_adj")?;
        Ok(Self {
            bounding: u64::from_str_radix(bounding.trim(), 16)?,
            oom_score_adj: oom.trim().parse()?,
            group: group_of_pod(&std::fs::read_to_string("/proc/self/cgroup")?),
        })
    }
}

/// zcrid puts the shim of a pod on the node's stack into `<the pod's group>/shim-<id>`, and this runs in the same place.
fn group_of_pod(cgroups: &str) -> Option<String> {
    let unified = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (group, shim) = unified.rsplit_once('/')?;
    shim.starts_with("shim-").then(|| group.to_owned())
}

/// # Errors
/// The specification has something that cannot be told to Linux.
pub(super) fn translate(
    spec: &Value,
    bundle: &Path,
    id: &str,
    settings: &Settings,
    machine: &Machine,
) -> Result<Value> {
    let mut process = spec["process"].clone();
    let root = process["user"]["uid"].as_u64().unwrap_or_default() == 0;
    process["capabilities"] = capabilities(root, machine.bounding);
    process["oomScoreAdj"] = json!(machine.oom_score_adj.max(0));
    let annotations = spec["annotations"].as_object().cloned().unwrap_or_default();
    let mut rootfs = spec["root"].clone();
    let path = rootfs["path"].as_str().unwrap_or_default();
    rootfs["path"] = json!(bundle.join(path));
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": rootfs,
        "mounts": mounts(&spec["mounts"]),
        "annotations": annotations,
        "linux": {
            "namespaces": spec["zos"]["namespaces"],
            "cgroupsPath": cgroups_path(&annotations, id, settings, machine),
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "cpu": { "shares": shares(&annotations, settings) },
            },
            // There is no such file on z/OS; here they are the machine's.
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

fn capabilities(root: bool, bounding: u64) -> Value {
    let held: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, bit)| bounding & (1 << bit) != 0)
        .map(|(name, _)| *name)
        .collect();
    let used = if root { held.clone() } else { Vec::new() };
    json!({ "bounding": held, "effective": used, "permitted": used })
}

/// Containers of a sandbox are in one group, which stands for what TCP/IP knows of a pod's address spaces: the plugin
/// confines it to the pod's DVIPA.
fn cgroups_path(
    annotations: &Map<String, Value>,
    id: &str,
    settings: &Settings,
    machine: &Machine,
) -> String {
    if let Some(group) = &machine.group {
        return format!("{group}/{id}");
    }
    let sandbox = annotations.get(SANDBOX).and_then(Value::as_str);
    let parent = settings.cgroup_parent.trim_end_matches('/');
    format!("{parent}/{}/{id}", sandbox.unwrap_or("no-sandbox"))
}

fn shares(annotations: &Map<String, Value>, settings: &Settings) -> u64 {
    let class = annotations.get(&settings.class_annotation);
    settings.shares(class.and_then(Value::as_str).unwrap_or_default())
}

/// A TFS is a tmpfs, and `/dev` has terminals on top of it.
fn mounts(given: &Value) -> Value {
    let mut mounts = Vec::new();
    for mount in given.as_array().into_iter().flatten() {
        let mut mount = mount.clone();
        if mount["type"] == "tfs" {
            mount["type"] = json!("tmpfs");
            mount["options"] = tfs_options(&mount["options"]);
        }
        let dev = mount["destination"] == "/dev";
        mounts.push(mount);
        if dev {
            mounts.push(json!({
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            }));
        }
    }
    Value::Array(mounts)
}

/// `-p` is the mode of the root, `-s` the size in MiB (z/OS UNIX System Services Planning, TFS parameters).
fn tfs_options(options: &Value) -> Value {
    let texts = options
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let translated = texts.map(|option| match option.split_once(' ') {
        Some(("-p", mode)) => format!("mode={mode}"),
        Some(("-s", size)) => format!("size={size}m"),
        _ => option.to_owned(),
    });
    translated.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            runtime: "/usr/sbin/runc".into(),
            cgroup_parent: "/lpar1".into(),
            class_annotation: "c".into(),
            classes: [("FAST".to_owned(), 1000)].into(),
            deny: Vec::new(),
        }
    }

    #[test]
    fn a_container_becomes_one_of_linux_with_the_namespaces_of_zos_alone() {
        let spec = json!({
            "ociVersion": "1.2.1",
            "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 5, "gid": 0 } },
            "root": { "path": "rootfs" },
            "annotations": { SANDBOX: "s1", "c": "FAST" },
            "mounts": [{ "destination": "/dev", "type": "tfs", "source": "tmpfs",
                         "options": ["nosuid", "-p 1755", "-s 64"] }],
            "zos": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        let machine = Machine {
            bounding: 1,
            oom_score_adj: -5,
            group: None,
        };
        let linux = translate(&spec, Path::new("/b"), "c1", &settings(), &machine).unwrap();
        assert!(linux.get("zos").is_none());
        assert_eq!(linux["linux"]["namespaces"], spec["zos"]["namespaces"]);
        assert_eq!(linux["linux"]["cgroupsPath"], "/lpar1/s1/c1");
        assert_eq!(linux["linux"]["resources"]["cpu"]["shares"], 1000);
        assert_eq!(linux["root"]["path"], "/b/rootfs");
        assert_eq!(linux["process"]["oomScoreAdj"], 0);
        let capabilities = &linux["process"]["capabilities"];
        assert_eq!(capabilities["bounding"], json!(["CAP_CHOWN"]));
        assert_eq!(capabilities["effective"], json!([]));
        let options = &linux["mounts"][0]["options"];
        assert_eq!(*options, json!(["nosuid", "mode=1755", "size=64m"]));
        assert_eq!(linux["mounts"][1]["destination"], "/dev/pts");
    }

    #[test]
    fn a_container_stays_with_the_shim_of_its_pod() {
        let group = group_of_pod("12:pids:/x\n0::/zt1/pod-a/zcri-1/shim-4f1\n");
        assert_eq!(group.as_deref(), Some("/zt1/pod-a/zcri-1"));
        assert_eq!(group_of_pod("0::/\n"), None);
        let machine = Machine {
            bounding: 0,
            oom_score_adj: 0,
            group,
        };
        let path = cgroups_path(&Map::new(), "c1", &settings(), &machine);
        assert_eq!(path, "/zt1/pod-a/zcri-1/c1");
    }

    #[test]
    fn work_without_a_class_is_discretionary() {
        assert_eq!(settings().shares("OTHER"), super::super::config::SYSOTHER);
        assert_eq!(settings().shares("FAST"), 1000);
    }
}
