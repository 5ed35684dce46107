//! The little that the monitor reads of an OCI `config.json`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// `config.json`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    annotations: Annotations,
    #[serde(default)]
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(default, rename = "io.kubernetes.cri.container-type")]
    container_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    path: PathBuf,
}

impl Spec {
    /// Reads the configuration of a bundle.
    pub(crate) fn read(bundle: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(
            bundle.join("config.json"),
        )?)?)
    }

    /// Is this the sandbox itself, whose process is the pod's init? (containerd's annotation, `pkg/annotations`.)
    pub(crate) fn is_sandbox(&self) -> bool {
        self.annotations.container_type.as_deref() == Some("sandbox")
    }

    /// Where the runtime puts the container's cgroup.
    pub(crate) fn cgroups_path(&self) -> Option<&str> {
        self.linux
            .cgroups_path
            .as_deref()
            .filter(|path| !path.is_empty())
    }

    /// Does the container get a PID namespace of its own, so that the kernel ends everything in it with its init?
    pub(crate) fn has_own_pid_namespace(&self) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|ns| ns.r#type == "pid" && ns.path.as_os_str().is_empty())
    }

    /// The namespaces that a pod's init joins.
    ///
    /// # Errors
    /// The type of one that it cannot join.
    pub(crate) fn namespaces_to_join(&self) -> Result<Vec<PathBuf>, String> {
        let mut paths = Vec::new();
        for namespace in self
            .linux
            .namespaces
            .iter()
            .filter(|ns| !ns.path.as_os_str().is_empty())
        {
            match namespace.r#type.as_str() {
                "network" | "ipc" | "uts" | "user" => paths.push(namespace.path.clone()),
                other => return Err(other.to_owned()),
            }
        }
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_matters_and_ignores_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion":"1.1.0","process":{"args":["sh"]},
            "annotations":{"a":"b","io.kubernetes.cri.container-type":"sandbox"},
            "linux":{"cgroupsPath":"/pods/a","resources":{},"namespaces":[
                {"type":"pid"},{"type":"network","path":"/n"},{"type":"mount"},{"type":"uts","path":"/u"}]}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let spec = Spec::read(dir.path()).unwrap();
        assert!(spec.is_sandbox());
        assert!(spec.has_own_pid_namespace());
        assert_eq!(spec.cgroups_path(), Some("/pods/a"));
        assert_eq!(
            spec.namespaces_to_join().unwrap(),
            [PathBuf::from("/n"), PathBuf::from("/u")]
        );
    }

    #[test]
    fn a_spec_without_a_linux_section() {
        let spec: Spec = serde_json::from_str(r#"{"zos":{"namespaces":[]}}"#).unwrap();
        assert!(!spec.is_sandbox() && !spec.has_own_pid_namespace());
        assert_eq!(spec.cgroups_path(), None);
        let shared = r#"{"linux":{"namespaces":[{"type":"time","path":"/x"}]}}"#;
        assert_eq!(
            serde_json::from_str::<Spec>(shared)
                .unwrap()
                .namespaces_to_join()
                .unwrap_err(),
            "time"
        );
    }
}
