//! A directory of its own for a test: configurations, plugins that are shell scripts, records.
//!
//! Each script writes down what it was given (`PLUGIN.COMMAND.in`, `PLUGIN.COMMAND.env`, a line in `calls`) and then
//! does what the test says.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use zcri_cni::{Attachment, AttachmentKey, Cni, CniDirs, NetworkList, RuntimeConfig, pod_args};

/// Long enough for any script on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What `RESULT` prints: a result with one address, in the version of the request.
pub(crate) const RESULT: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],
"ips":[{"address":"192.0.2.7/24","interface":0}]}'"#;

pub(crate) struct Node {
    dir: TempDir,
    pub(crate) cni: Cni,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_timeout(TIMEOUT)
    }

    pub(crate) fn with_timeout(timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["net.d", "bin", "empty", "log"] {
            fs::create_dir(at(name)).unwrap();
        }
        let dirs = CniDirs {
            conf_dir: at("net.d"),
            plugin_dirs: vec![at("empty"), at("bin")],
            cache_dir: at("records"),
        };
        let cni = Cni::new(dirs, timeout);
        Self { dir, cni }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that runs `body` with `$CNI_COMMAND` set and its input read.
    pub(crate) fn plugin(&self, name: &str, body: &str) {
        let log = self.path("log");
        let script = format!(
            "#!/bin/sh\nlog='{}/{name}'.$CNI_COMMAND\ncat > $log.in\nenv > $log.env\necho {name} $CNI_COMMAND >> '{}/calls'\n{body}\n",
            log.display(),
            log.display()
        );
        self.program(name, &script);
    }

    /// A plugin as it stands.
    pub(crate) fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn conflist(&self, value: &Value) {
        fs::write(self.path("net.d/10-test.conflist"), value.to_string()).unwrap();
    }

    /// A network of version 1.0.0 with these plugins.
    pub(crate) fn network(&self, plugins: &[&str]) -> Arc<NetworkList> {
        self.network_of("1.0.0", plugins)
    }

    pub(crate) fn network_of(&self, version: &str, plugins: &[&str]) -> Arc<NetworkList> {
        let plugins = plugins
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect::<Vec<_>>();
        self.conflist(&json!({"cniVersion": version, "name": "test-net", "plugins": plugins}));
        self.cni.load().unwrap()
    }

    /// What ran since the last call, in order, such as `a ADD`.
    pub(crate) fn calls(&self) -> Vec<String> {
        let path = self.path("log/calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, "").unwrap();
        calls.lines().map(str::to_owned).collect()
    }

    /// What a plugin was given on standard input.
    pub(crate) fn input(&self, call: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(&format!("log/{call}.in"))).unwrap())
            .unwrap()
    }

    /// What a plugin was given in its environment, without what the shell adds.
    pub(crate) fn env(&self, call: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.path(&format!("log/{call}.env"))).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let own = pairs.filter(|(key, _)| !["PWD", "OLDPWD", "SHLVL", "_"].contains(key));
        own.map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    pub(crate) fn records(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("records")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

pub(crate) fn attachment() -> Attachment {
    Attachment {
        container_id: "pod1".to_owned(),
        netns: PathBuf::from("/proc/self/ns/net"),
        ifname: "eth0".to_owned(),
        args: pod_args("default", "web", "uid-1", "pod1"),
        runtime_config: RuntimeConfig::default(),
    }
}

pub(crate) fn key() -> AttachmentKey {
    attachment().key()
}

/// Waits until `what` holds, and says what did not.
pub(crate) async fn eventually(name: &str, what: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !what() {
        assert!(Instant::now() < end, "never: {name}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process whose id is in `file` is gone, or a corpse that waits for its parent.
pub(crate) fn is_gone(file: &Path) -> bool {
    let Ok(pid) = fs::read_to_string(file) else {
        return false;
    };
    match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => !pid.trim().is_empty(),
    }
}
