//! A container, from an image that is built into the binary, by way of the shim and the OCI runtime.

pub(super) mod elf;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use zcri_config::{Config, PlatformKind};
use zcri_sys::mount::{self, Overlay, Writable};

use self::elf::{GREETING, Machine};
use super::advice_on;
use super::groups;
use super::report::Area;
use super::scratch::Scratch;
use crate::compose;
use crate::container::spec::CgroupsPath;
use crate::error::Chain;
use crate::runtime::{CreateRequest, Handler, Shim, ShimLauncher, ShimNamespaces};

/// Longer than any container needs to say hello.
const PATIENCE: Duration = Duration::from_secs(30);
/// The one program of the image.
const PROGRAM: &str = "hello";
/// SIGKILL.
const KILL: u32 = 9;

pub(super) async fn check(
    config: &Config,
    scratch: &Scratch,
    usable: &[Handler],
    area: &mut Area<'_>,
) {
    let Some(machine) =
        Machine::of(std::env::consts::ARCH).filter(|_| std::env::consts::OS == "linux")
    else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        area.skip(
            "container",
            format!("there is no built-in program for {os}/{arch}: run a pod of an image of yours"),
        );
        return;
    };
    let (Some(disk), Some(memory)) = (scratch.root(), scratch.state()) else {
        return area.skip("container", "there is no directory for it");
    };
    let mut tried = usable.iter().peekable();
    if tried.peek().is_none() {
        return area.skip(
            "container",
            "without an OCI runtime and a shim there is none",
        );
    }
    for handler in tried {
        let mut hello = Hello {
            name: format!("{}-{}", scratch.name(), handler.name),
            disk: disk.join("hello").join(&handler.name),
            bundle: memory.join("hello").join(&handler.name),
            handler: Handler {
                root: Some(memory.join("oci").join(&handler.name)),
                ..handler.clone()
            },
            spec: Value::Null,
        };
        hello.spec = spec(config, &groups::hello_path(config, scratch.name()));
        let said = hello.run(config, scratch, machine).await;
        let error = match said {
            Ok(text) => {
                area.pass(&handler.name, text);
                continue;
            }
            Err(error) => error,
        };
        let otherwise = "the words of the OCI runtime say what it lacks";
        let advice = advice_on(config.platform.kind, &error, otherwise);
        if handler.name == config.runtime.default_handler {
            area.fail(&handler.name, error, advice);
        } else {
            area.warn(&handler.name, error, advice);
        }
    }
}

struct Hello {
    name: String,
    disk: PathBuf,
    bundle: PathBuf,
    handler: Handler,
    spec: Value,
}

impl Hello {
    async fn run(
        &self,
        config: &Config,
        scratch: &Scratch,
        machine: Machine,
    ) -> Result<String, String> {
        self.lay_out(machine)?;
        let pod = scratch.pod_bundle().ok_or("no bundle")?;
        std::fs::create_dir_all(&pod).map_err(|e| format!("{}: {e}", pod.display()))?;
        let program = compose::shim_program(config).map_err(|e| format!("{e:#}"))?;
        let launcher = ShimLauncher {
            program,
            open_files: None,
        };
        let namespaces = ShimNamespaces {
            stack: config.network.stack_name.clone(),
            ..ShimNamespaces::default()
        };
        let shim = launcher.start(scratch.name(), &pod, &namespaces).await;
        let shim = shim.map_err(|e| Chain(&e).to_string())?;
        let ran = tokio::time::timeout(PATIENCE, self.start_and_wait(&shim)).await;
        if ran.is_err() {
            shim.kill(&self.name, "", KILL, true).await.ok();
        }
        let deleted = shim.delete(&self.name, "").await;
        shim.shutdown().await;
        Shim::gone(&pod).await;
        mount::unmount(&self.bundle.join("rootfs")).map_err(|e| Chain(&e).to_string())?;
        let code = ran.map_err(|_| format!("no hello within {} s", PATIENCE.as_secs()))??;
        deleted.map_err(|e| format!("delete: {}", Chain(&e)))?;
        self.greeting(code)
    }

    /// The image's one layer, and the bundle.
    fn lay_out(&self, machine: Machine) -> Result<(), String> {
        let layer = self.disk.join("layer");
        let (upper, work) = (self.disk.join("upper"), self.disk.join("work"));
        let rootfs = self.bundle.join("rootfs");
        let made = || -> std::io::Result<()> {
            for dir in [
                &upper,
                &work,
                &rootfs,
                &layer.join("proc"),
                &layer.join("dev"),
            ] {
                std::fs::create_dir_all(dir)?;
            }
            let program = layer.join(PROGRAM);
            std::fs::write(&program, machine.program())?;
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o555))?;
            std::fs::write(self.bundle.join("config.json"), self.spec.to_string())
        };
        made().map_err(|e| format!("lay the image out: {e}"))?;
        let overlay = Overlay {
            lower: std::slice::from_ref(&layer),
            writable: Some(Writable {
                upper: &upper,
                work: &work,
            }),
            id_map: None,
            label: None,
        };
        mount::overlay(&overlay, &rootfs).map_err(|e| Chain(&e).to_string())
    }

    async fn start_and_wait(&self, shim: &Shim) -> Result<i32, String> {
        let log = self.log();
        let request = CreateRequest {
            id: &self.name,
            bundle: &self.bundle,
            handler: Some(&self.handler),
            terminal: false,
            stdin: None,
            log: Some(&log),
        };
        let fail = |step: &'static str| {
            move |e: crate::runtime::ShimError| format!("{step}: {}", Chain(&e))
        };
        shim.create(request).await.map_err(fail("create"))?;
        shim.start(&self.name, "").await.map_err(fail("start"))?;
        let (code, _) = shim.wait(&self.name, "").await.map_err(fail("wait"))?;
        Ok(code)
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("hello.log")
    }

    /// What it wrote has to be in its log, as the kubelet reads it.
    fn greeting(&self, code: i32) -> Result<String, String> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let said = log.ends_with(&format!(" stdout F {GREETING}"));
        match (code, said) {
            (0, true) => Ok(format!("says {:?}", GREETING.trim_end())),
            (0, false) => Err(format!("its log is not as it should be: {log:?}")),
            (code, _) => Err(format!("ended with {code}")),
        }
    }
}

/// The specification: nothing but what a program needs that writes one line.
fn spec(config: &Config, cgroup: &CgroupsPath) -> Value {
    let namespaces =
        |kinds: &[&str]| -> Value { kinds.iter().map(|kind| json!({ "type": kind })).collect() };
    // Every runtime inherits the monitor's own value otherwise.
    let score = zcri_sys::node::lowest_oom_score_adj().map_or(0, |lowest| lowest.max(0));
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [Path::new("/").join(PROGRAM)],
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": true,
            "oomScoreAdj": score,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "zcrid-check",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
        ],
    });
    match config.platform.kind {
        PlatformKind::Linux => {
            spec["linux"] = json!({
                "cgroupsPath": cgroup.for_runtime(),
                "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount"]),
            });
        }
        // runtime-spec config-zos.md, since 1.2.1; the mount of /dev is that of its example.
        PlatformKind::Zos => {
            spec["ociVersion"] = json!("1.2.1");
            spec["zos"] = json!({ "namespaces": namespaces(&["pid", "ipc", "uts", "mount"]) });
            spec["mounts"][1] = json!({
                "destination": "/dev", "type": "tfs", "source": "tmpfs",
                "options": ["nosuid", "-p 1755", "-s 64"],
            });
            if let Some(process) = spec["process"].as_object_mut() {
                process.remove("oomScoreAdj");
            }
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_is_the_platforms_own() {
        let mut config = Config::default();
        let group = groups::hello_path(&config, "check-1");
        let linux = spec(&config, &group);
        assert_eq!(linux["linux"]["cgroupsPath"], "/zcri/check-1");
        assert_eq!(linux.get("zos"), None);
        serde_json::from_value::<oci_spec::runtime::Spec>(linux).unwrap();
        config.platform.kind = PlatformKind::Zos;
        let zos = spec(&config, &group);
        assert_eq!(zos.get("linux"), None);
        assert_eq!(zos["zos"]["namespaces"].as_array().unwrap().len(), 4);
        assert_eq!(zos["process"].get("oomScoreAdj"), None);
        serde_json::from_value::<oci_spec::runtime::Spec>(zos).unwrap();
    }
}
