//! Whether a specification is one for z/OS, by the rules of the runtime specification (config.md, config-zos.md and
//! the schema's constraints for this platform).

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

/// Objects of other platforms.
const FOREIGN: [&str; 5] = ["linux", "windows", "solaris", "vm", "freebsd"];
/// Top-level properties of the schema, but for those of other platforms.
const KNOWN: [&str; 9] = [
    "ociVersion",
    "hooks",
    "annotations",
    "hostname",
    "domainname",
    "mounts",
    "root",
    "process",
    "zos",
];
/// Properties of `process` that the document gives to this platform ("z/OS Process"), or to all.
const PROCESS: [&str; 9] = [
    "args",
    "cwd",
    "env",
    "terminal",
    "consoleSize",
    "user",
    "rlimits",
    "noNewPrivileges",
    "commandLine",
];
/// Properties of `process.user` on POSIX platforms.
const USER: [&str; 4] = ["uid", "gid", "umask", "additionalGids"];
/// Kinds of namespaces that the `zos` object can have.
pub(super) const NAMESPACES: [&str; 4] = ["pid", "mount", "ipc", "uts"];

/// Whether a specification is one that a runtime on z/OS takes.
///
/// # Errors
/// The property that is wrong.
pub fn check(spec: &Value) -> Result<()> {
    let Some(top) = spec.as_object() else {
        bail!("config.json is no object")
    };
    for name in FOREIGN {
        ensure!(
            !top.contains_key(name),
            "{name}: a container on z/OS has no such object"
        );
    }
    only(top, "", &KNOWN)?;
    version(spec)?;
    process(&spec["process"])?;
    let root = spec["root"]["path"].as_str().unwrap_or_default();
    ensure!(!root.is_empty(), "root.path: REQUIRED");
    mounts(&spec["mounts"])?;
    annotations(&spec["annotations"])?;
    zos(&spec["zos"])
}

fn only(object: &Map<String, Value>, at: &str, known: &[&str]) -> Result<()> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => bail!("{at}{key}: no such property for z/OS"),
        None => Ok(()),
    }
}

/// `zos.namespaces` came with 1.2.1.
fn version(spec: &Value) -> Result<()> {
    let text = spec["ociVersion"].as_str().unwrap_or_default();
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Option<Vec<u64>> = core.split('.').map(|part| part.parse().ok()).collect();
    let Some([major, minor, patch]) = parts.as_deref() else {
        bail!("ociVersion: {text:?} is no version")
    };
    ensure!(
        *major == 1 && (*minor, *patch) >= (2, 1),
        "ociVersion: {text} has no namespaces for z/OS; 1.2.1 is needed"
    );
    Ok(())
}

fn process(process: &Value) -> Result<()> {
    let Some(object) = process.as_object() else {
        bail!("process: REQUIRED to start a container")
    };
    only(object, "process.", &PROCESS)?;
    let cwd = process["cwd"].as_str().unwrap_or_default();
    ensure!(
        cwd.starts_with('/'),
        "process.cwd: MUST be an absolute path"
    );
    let args = process["args"].as_array().map_or(0, Vec::len);
    ensure!(args > 0, "process.args: at least one entry is REQUIRED");
    if let Some(user) = process["user"].as_object() {
        only(user, "process.user.", &USER)?;
        for (name, value) in user.iter().filter(|(name, _)| *name != "additionalGids") {
            let fits = value.as_u64().is_some_and(|id| u32::try_from(id).is_ok());
            ensure!(fits, "process.user.{name}: {value} is no uint32");
        }
    }
    Ok(())
}

fn mounts(mounts: &Value) -> Result<()> {
    for mount in mounts.as_array().into_iter().flatten() {
        let destination = mount["destination"].as_str().unwrap_or_default();
        ensure!(
            destination.starts_with('/'),
            "mounts.destination: {destination:?} MUST be absolute"
        );
        if let Some(object) = mount.as_object() {
            only(
                object,
                "mounts.",
                &["source", "destination", "options", "type"],
            )?;
        }
    }
    Ok(())
}

fn annotations(annotations: &Value) -> Result<()> {
    for (key, value) in annotations.as_object().into_iter().flatten() {
        ensure!(!key.is_empty(), "annotations: keys MUST NOT be empty");
        ensure!(value.is_string(), "annotations: {key} MUST be a string");
    }
    Ok(())
}

fn zos(zos: &Value) -> Result<()> {
    let Some(object) = zos.as_object() else {
        bail!("zos: missing")
    };
    only(object, "zos.", &["namespaces"])?;
    let mut seen = Vec::new();
    for namespace in zos["namespaces"].as_array().into_iter().flatten() {
        if let Some(object) = namespace.as_object() {
            only(object, "zos.namespaces.", &["type", "path"])?;
        }
        let kind = namespace["type"].as_str().unwrap_or_default();
        ensure!(
            NAMESPACES.contains(&kind),
            "zos.namespaces.type: {kind:?} is none of {NAMESPACES:?}"
        );
        ensure!(
            !seen.contains(&kind),
            "zos.namespaces: {kind} is there twice"
        );
        seen.push(kind);
        if let Some(path) = namespace.get("path") {
            let path = path.as_str().unwrap_or_default();
            ensure!(
                path.starts_with('/'),
                "zos.namespaces.path: {path:?} MUST be absolute"
            );
            // golang.org/x/sys, unix/syscall_zos_test.go: "for some reason changing ipc on zos fails".
            ensure!(kind != "ipc", "setns: EDC5121I Invalid argument. (ipc)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "ociVersion": "1.2.1",
            "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0, "umask": 18 } },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/dev", "type": "tfs", "source": "tmpfs",
                         "options": ["nosuid", "-p 1755", "-s 64"] }],
            "zos": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                                    { "type": "uts", "path": "/proc/1/ns/uts" }] },
        })
    }

    #[test]
    fn what_the_specification_has_is_taken() {
        check(&good()).unwrap();
        let mut newer = good();
        newer["ociVersion"] = json!("1.3.0+dev");
        check(&newer).unwrap();
    }

    #[test]
    fn what_it_forbids_is_refused_by_name() {
        type Change = fn(&mut Value);
        let wrong: [(&str, Change); 16] = [
            ("linux", |s| s["linux"] = json!({})),
            ("windows", |s| s["windows"] = json!({})),
            ("ociVersion", |s| s["ociVersion"] = json!("1.2.0")),
            ("ociVersion", |s| s["ociVersion"] = json!("1.0.2-dev")),
            ("zos.devices", |s| s["zos"]["devices"] = json!([])),
            ("zos: missing", |s| {
                s.as_object_mut().unwrap().remove("zos");
            }),
            ("network", |s| {
                s["zos"]["namespaces"][0]["type"] = json!("network");
            }),
            ("twice", |s| {
                s["zos"]["namespaces"][0]["type"] = json!("mount")
            }),
            ("absolute", |s| {
                s["zos"]["namespaces"][0]["path"] = json!("x")
            }),
            ("ipc", |s| {
                s["zos"]["namespaces"][2]["path"] = json!("/proc/1/ns/ipc");
            }),
            ("process.capabilities", |s| {
                s["process"]["capabilities"] = json!({});
            }),
            ("process.oomScoreAdj", |s| {
                s["process"]["oomScoreAdj"] = json!(0);
            }),
            ("process.args", |s| s["process"]["args"] = json!([])),
            ("process.cwd", |s| s["process"]["cwd"] = json!("tmp")),
            ("root.path", |s| s["root"] = json!({})),
            ("mounts.destination", |s| {
                s["mounts"][0]["destination"] = json!("dev");
            }),
        ];
        for (named, change) in wrong {
            let mut spec = good();
            change(&mut spec);
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
