//! The configuration files of a node.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::slot::Slot;
use crate::binaries;
use crate::lpar::Service;
use crate::zos_runc::{Settings, VARIABLE};

/// `[wlm] class_annotation` at its default.
const CLASS_ANNOTATION: &str = "zcri.io/wlm-service-class";

/// Where the files of a node are.
#[derive(Debug, Clone)]
pub struct Files {
    /// The node's directory.
    pub dir: PathBuf,
    /// `[storage] root`.
    pub root: PathBuf,
    /// `[storage] state`.
    pub state: PathBuf,
    /// `[network] conf_dir`.
    pub cni: PathBuf,
    /// A directory of `[network] plugin_dirs`, before the system's.
    pub plugins: PathBuf,
    /// The file for `--config`.
    pub config: PathBuf,
    /// What the daemon writes on its standard output and error.
    pub log: PathBuf,
    /// Parent of the pods' log directories.
    pub pod_logs: PathBuf,
}

impl Files {
    pub(super) fn new(slot: &Slot) -> Self {
        let dir = slot.dir();
        Self {
            root: dir.join("root"),
            state: slot.state(),
            cni: dir.join("net.d"),
            plugins: dir.join("plugins"),
            config: dir.join("etc/zcri.toml"),
            log: dir.join("zcrid.log"),
            pod_logs: dir.join("logs"),
            dir,
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("zcri.sock")
    }

    /// Makes the directories and writes `zcri.toml`, `registries.conf` and `policy.json`.
    pub(super) fn write(&self, slot: &Slot, drop_in: &str, registries: &str) -> Result<()> {
        for dir in [
            &self.root,
            &self.cni,
            &self.plugins,
            &self.pod_logs,
            &self.dir.join("etc/zcri.toml.d"),
        ] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let etc = self.dir.join("etc");
        fs::write(etc.join("registries.conf"), registries)?;
        fs::write(
            etc.join("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )?;
        fs::write(etc.join("zcri.toml.d/50-test.toml"), drop_in)?;
        fs::write(&self.config, self.zcri_toml(slot)?)?;
        Ok(())
    }

    fn zcri_toml(&self, slot: &Slot) -> Result<String> {
        let quote = |path: &Path| format!("{:?}", path.display().to_string());
        let mut text = format!(
            "[api]\nlisten = {}\n[storage]\nroot = {}\nstate = {}\n\
             [runtime]\ndefault_handler = \"runc\"\ncgroup_parent = \"{}\"\n\
             [network]\nconf_dir = {}\nplugin_dirs = [{}, \"{}\"]\n\
             [image]\nregistries_conf = {}\npolicy = {}\nhosts_dir = {}\n\
             [log]\nlevel = \"{}\"\n",
            quote(&self.socket()),
            quote(&self.root),
            quote(&self.state),
            slot.cgroup(),
            quote(&self.cni),
            quote(&self.plugins),
            binaries::CNI_PLUGINS,
            quote(&self.dir.join("etc/registries.conf")),
            quote(&self.dir.join("etc/policy.json")),
            quote(&self.dir.join("etc/certs.d")),
            // The libraries' debug lines hide ours: only who looks for something wants them.
            std::env::var("ZCRI_TEST_LOG").unwrap_or_else(|_| "info".to_owned()),
        );
        for name in ["runc", "crun"] {
            if let Ok(path) = binaries::system(name, name) {
                let path = if name == "crun" {
                    self.crun(path)?
                } else {
                    path
                };
                writeln!(text, "[runtime.handlers.{name}]\npath = {}", quote(&path))?;
            }
        }
        Ok(text)
    }

    /// Makes the node a z/OS node; gives the variable that tells `zos-runc` what it is like.
    pub(super) fn write_zos(&self, slot: &Slot, service: &Service) -> Result<(String, String)> {
        let settings = Settings {
            runtime: binaries::system("runc", "runc")?,
            cgroup_parent: slot.lpar_cgroup(),
            class_annotation: CLASS_ANNOTATION.to_owned(),
            classes: service.classes.clone(),
            deny: service.deny.clone(),
        };
        let path = self.dir.join("etc/zos-runc.json");
        fs::write(&path, serde_json::to_vec(&settings)?)?;
        let program = binaries::ours("zos-runc")?;
        let text = format!(
            "[platform]\nkind = \"zos\"\n[runtime]\ndefault_handler = \"zos\"\n\
             [runtime.handlers.zos]\npath = {program:?}\n"
        );
        fs::write(self.dir.join("etc/zcri.toml.d/40-zos.toml"), text)?;
        Ok((VARIABLE.to_owned(), path.display().to_string()))
    }

    /// The program for crun. It refuses a machine on which both versions of cgroups have controllers; there, a wrapper
    /// calls it where the second version's mount is not seen.
    fn crun(&self, program: PathBuf) -> Result<PathBuf> {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let controllers =
            fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        if controllers.trim().is_empty() {
            return Ok(program);
        }
        let wrapper = self.dir.join("crun");
        let inner = format!("umount {} && exec \"$0\" \"$@\"", unified.display());
        let script = format!(
            "#!/bin/sh\nexec unshare --mount --propagation private sh -c '{inner}' {} \"$@\"\n",
            program.display()
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(wrapper)
    }

    /// Writes the conflist: Debian's bridge, host-local and portmap, each with the slot's own names.
    pub(super) fn write_conflist(&self, slot: &Slot) -> Result<()> {
        let text = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": slot.name(),
            "plugins": [
                {
                    "type": "bridge", "bridge": slot.name(), "isGateway": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.dir.join("ipam"),
                        "ranges": [[{ "subnet": slot.subnet() }]], "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(self.cni.join("10-test.conflist"), text.to_string())?;
        Ok(())
    }
}
