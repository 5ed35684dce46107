//! What is attached: one interface of one pod.

use std::{fmt, path::PathBuf};

use thiserror::Error;

use crate::capability::RuntimeConfig;

/// What [`crate::NetworkList::add`] needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// Id of the pod sandbox: at most 190 of letters, digits, `_`, `.` and `-`, the first a letter or digit.
    pub container_id: String,
    /// The pod's network namespace, or whatever stands for it on this system.
    pub netns: PathBuf,
    /// Name of the interface to make, such as `eth0`.
    pub ifname: String,
    /// `CNI_ARGS`, in order; see [`pod_args`]. `IgnoreUnknown=1` comes first unless it is given.
    pub args: Vec<(String, String)>,
    /// Capability arguments.
    pub runtime_config: RuntimeConfig,
}

/// Names an attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentKey {
    /// Id of the pod sandbox.
    pub container_id: String,
    /// Name of its interface.
    pub ifname: String,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.container_id, self.ifname)
    }
}

/// An attachment that no plugin could be told about.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field} {value:?}: {reason}")]
pub struct InvalidAttachment {
    /// The field of [`Attachment`].
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The arguments that plugins for Kubernetes expect.
#[must_use]
pub fn pod_args(namespace: &str, name: &str, uid: &str, sandbox_id: &str) -> Vec<(String, String)> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", namespace),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox_id),
        ("K8S_POD_UID", uid),
    ];
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
}

/// With the name of the interface and an extension it must fit a file's name of 255 bytes.
const MAX_ID: usize = 190;

/// `IFNAMSIZ` less the NUL at its end. Source: netdevice(7).
const MAX_IFNAME: usize = 15;

impl Attachment {
    /// The name of this attachment.
    #[must_use]
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidAttachment> {
        let invalid = |field, value: &str, reason| {
            Err(InvalidAttachment {
                field,
                value: value.to_owned(),
                reason,
            })
        };
        if !is_container_id(&self.container_id) {
            return invalid(
                "container_id",
                &self.container_id,
                "not an id as SPEC.md section 3 has them",
            );
        }
        if !is_ifname(&self.ifname) {
            return invalid("ifname", &self.ifname, "not a name for a network interface");
        }
        for (key, value) in &self.args {
            let sound =
                |text: &str| !text.contains(|c: char| c == ';' || c == '=' || c.is_control());
            if key.is_empty() || !sound(key) || !sound(value) {
                return invalid("args", &format!("{key}={value}"), "CNI_ARGS cannot hold it");
            }
        }
        // It travels in the environment and is kept in JSON.
        if self.netns.to_str().is_none_or(|path| path.contains('\0')) {
            return invalid(
                "netns",
                &self.netns.to_string_lossy(),
                "is not UTF-8, or contains a NUL",
            );
        }
        Ok(())
    }

    /// `CNI_ARGS`.
    pub(crate) fn cni_args(&self) -> String {
        let ignore = ("IgnoreUnknown".to_owned(), "1".to_owned());
        let first = if self.args.iter().any(|(key, _)| *key == ignore.0) {
            None
        } else {
            Some(&ignore)
        };
        let pairs = first
            .into_iter()
            .chain(&self.args)
            .map(|(key, value)| format!("{key}={value}"));
        pairs.collect::<Vec<_>>().join(";")
    }
}

/// Source: SPEC.md section 3, "Attachment Parameters".
pub(crate) fn is_container_id(id: &str) -> bool {
    id.len() <= MAX_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// What the kernel takes. Source: Linux, `dev_valid_name`.
pub(crate) fn is_ifname(name: &str) -> bool {
    (1..=MAX_IFNAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}
