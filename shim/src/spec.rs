//! The little that the monitor reads of an OCI `config.json`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zcri_codepage::{Rule, UnknownCodePage};

/// `config.json`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    annotations: Annotations,
    #[serde(default)]
    linux: Linux,
    #[serde(default)]
    zos: Zos,
    #[serde(default)]
    process: Process,
}

#[derive(Debug, Default, Deserialize)]
struct Zos {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    user: User,
    #[serde(default, rename = "selinuxLabel")]
    selinux_label: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct User {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(default, rename = "io.kubernetes.cri.container-type")]
    container_type: Option<String>,
    #[serde(default, rename = "zcri.io/output-code-page")]
    output_code_page: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default, rename = "mountLabel")]
    mount_label: Option<String>,
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default, rename = "uidMappings")]
    uid_mappings: Vec<Mapping>,
    #[serde(default, rename = "gidMappings")]
    gid_mappings: Vec<Mapping>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
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

    /// What its output is converted from, if it is converted (zcrid's annotation).
    pub(crate) fn output_rule(&self) -> Result<Option<Rule>, UnknownCodePage> {
        zcri_codepage::setting(
            self.annotations
                .output_code_page
                .as_deref()
                .unwrap_or_default(),
        )
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
            .chain(&self.zos.namespaces)
            .any(|ns| ns.r#type == "pid" && ns.path.as_os_str().is_empty())
    }

    /// Who owns the streams of a container in a user namespace: the ids of its user on the node. The runtime, which
    /// sees to it elsewhere, cannot change the owner of what is not the namespace's; and who does not own a stream
    /// cannot open it again by `/dev/stderr`.
    pub(crate) fn stream_owner(&self) -> Option<(u32, u32)> {
        let on_node = |mappings: &[Mapping], id: u32| {
            mappings.iter().find_map(|m| {
                let offset = id.checked_sub(m.container_id)?;
                (offset < m.size).then(|| m.host_id.saturating_add(offset))
            })
        };
        let user = &self.process.user;
        on_node(&self.linux.uid_mappings, user.uid).zip(on_node(&self.linux.gid_mappings, user.gid))
    }

    /// SELinux labels of the process and of its file systems, if it is to have both.
    pub(crate) fn labels(&self) -> Option<(String, String)> {
        let process = self.process.selinux_label.clone();
        process.zip(self.linux.mount_label.clone())
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
    fn streams_have_an_owner_in_a_user_namespace() {
        let spec = |user: &str| {
            let text = format!(
                r#"{{"process":{{"user":{user}}},"linux":{{
                    "uidMappings":[{{"containerID":0,"hostID":1000,"size":10}}],
                    "gidMappings":[{{"containerID":0,"hostID":5,"size":1}},{{"containerID":7,"hostID":50,"size":2}}]}}}}"#
            );
            serde_json::from_str::<Spec>(&text).unwrap().stream_owner()
        };
        assert_eq!(spec(r#"{"uid":0,"gid":0}"#), Some((1000, 5)));
        assert_eq!(spec(r#"{"uid":9,"gid":8}"#), Some((1009, 51)));
        assert_eq!(spec(r#"{"uid":10,"gid":0}"#), None);
        assert_eq!(spec(r#"{"uid":0,"gid":1}"#), None);
        assert_eq!(
            serde_json::from_str::<Spec>("{}").unwrap().stream_owner(),
            None
        );
    }

    #[test]
    fn a_spec_without_a_linux_section() {
        let spec: Spec = serde_json::from_str(r#"{"zos":{"namespaces":[]}}"#).unwrap();
        assert!(!spec.is_sandbox() && !spec.has_own_pid_namespace());
        assert_eq!(spec.cgroups_path(), None);
        let spec: Spec =
            serde_json::from_str(r#"{"zos":{"namespaces":[{"type":"pid"}]}}"#).unwrap();
        assert!(spec.has_own_pid_namespace());
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
