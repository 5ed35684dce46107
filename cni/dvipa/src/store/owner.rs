//! What a lease says about its owner: for people, and for the clean-up of a control group.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// More than any has.
pub(super) const MAX_BYTES: u64 = 64 * 1024;

/// The owner of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Name of the network.
    pub network: String,
    /// Id of the container, for Kubernetes of the pod sandbox.
    pub container: String,
    /// Name of the interface.
    pub ifname: String,
    /// Namespace and name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that it is on.
    #[serde(default)]
    pub node: String,
    /// The node's boot.
    #[serde(default)]
    pub boot: String,
    /// The TCP/IP stack.
    #[serde(default)]
    pub stack: String,
    /// When it was made, in seconds since 1970 by the node's clock. Nothing depends on it.
    #[serde(default)]
    pub time: u64,
    /// The control group that confines it, and which directory of its path was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<OwnedCgroup>,
}

/// A control group that was made, as far as it was not there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedCgroup {
    /// Its directory.
    pub dir: std::path::PathBuf,
    /// The part of it that was there.
    pub found: std::path::PathBuf,
}

impl Owner {
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// As it is written.
    pub(super) fn at(&self, node: &str, boot: &str, stack: &str) -> String {
        let whole = Self {
            node: node.to_owned(),
            boot: boot.to_owned(),
            stack: stack.to_owned(),
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ..self.clone()
        };
        let mut text = serde_json::to_string(&whole).unwrap_or_default();
        text.push('\n');
        text
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let pod = self
            .pod
            .as_deref()
            .map_or_else(String::new, |pod| format!("pod {pod}, "));
        format!(
            "{pod}container {} on node {} (network {:?})",
            self.container, self.node, self.network
        )
    }
}
