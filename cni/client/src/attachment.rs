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

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "0123456789abcdef".to_owned(),
            netns: PathBuf::from("/run/netns/x"),
            ifname: "eth0".to_owned(),
            args: pod_args("kube-system", "coredns-1", "uid-1", "0123456789abcdef"),
            runtime_config: RuntimeConfig::default(),
        }
    }

    #[test]
    fn arguments_are_as_plugins_expect_them() {
        let expected = "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-1;\
                        K8S_POD_INFRA_CONTAINER_ID=0123456789abcdef;K8S_POD_UID=uid-1";
        assert_eq!(attachment().cni_args(), expected);
        let own = Attachment {
            args: vec![("A".into(), "b".into())],
            ..attachment()
        };
        assert_eq!(own.cni_args(), "IgnoreUnknown=1;A=b");
        assert_eq!(
            Attachment {
                args: Vec::new(),
                ..attachment()
            }
            .cni_args(),
            "IgnoreUnknown=1"
        );
    }

    #[test]
    fn what_no_plugin_could_take_is_refused() {
        assert_eq!(attachment().validate(), Ok(()));
        let long = "a".repeat(MAX_ID + 1);
        for id in ["", "-a", "a/b", "a:b", "a b", "..", "\u{e9}", long.as_str()] {
            let wrong = Attachment {
                container_id: id.to_owned(),
                ..attachment()
            };
            assert_eq!(
                wrong.validate().unwrap_err().field,
                "container_id",
                "{id:?}"
            );
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\n",
            "sixteen-letters-",
        ] {
            let wrong = Attachment {
                ifname: name.to_owned(),
                ..attachment()
            };
            assert_eq!(wrong.validate().unwrap_err().field, "ifname", "{name:?}");
        }
        for (key, value) in [
            ("", "v"),
            ("a;b", "v"),
            ("a", "v;K8S_POD_NAME=other"),
            ("a", "b=c"),
            ("a", "\0"),
        ] {
            let wrong = Attachment {
                args: vec![(key.to_owned(), value.to_owned())],
                ..attachment()
            };
            assert_eq!(
                wrong.validate().unwrap_err().field,
                "args",
                "{key:?} {value:?}"
            );
        }
        let wrong = Attachment {
            netns: PathBuf::from("/run/\0"),
            ..attachment()
        };
        assert_eq!(wrong.validate().unwrap_err().field, "netns");
    }
}
