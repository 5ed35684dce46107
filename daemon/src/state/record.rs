//! The stored form of pods and containers. It is not the live form: it changes only together with its version.

use serde::{Deserialize, Serialize};

/// A pod sandbox on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: String,
    /// The boot that it was made in; under another one nothing of it is left.
    pub boot_id: String,
    /// The request's `PodSandboxConfig`, encoded as it travels (protobuf, `runtime.v1`): a format that its owner
    /// keeps readable for ever.
    #[serde(with = "base64_bytes")]
    pub config: Vec<u8>,
    /// Runtime handler by name, never empty.
    pub handler: String,
    /// When it was asked for, in ns since 1970.
    pub created_at_ns: i64,
    /// How far it came.
    pub phase: PodPhase,
    /// Its addresses, the primary one first; empty on the host's network.
    pub addresses: Vec<String>,
    /// Whether the pod's network attachment may exist, and so must be deleted.
    pub network_attached: bool,
    /// Process id of the init of the pod's shared PID namespace.
    pub init_pid: Option<u32>,
    /// Control group of a pod without a network namespace, which what confines it is attached to. Absent from older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_cgroup: Option<String>,
    /// SELinux label of its processes, whose level no other pod may have. Absent from older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
}

/// How far a pod came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// Being made: after a crash it is unmade.
    Creating,
    /// Made.
    Ready,
    /// Stopped, or being stopped.
    Stopped,
    /// Being removed: after a crash the removal goes on.
    Removing,
}

/// A container on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// Its pod's.
    pub pod_id: String,
    /// The boot that it was made in.
    pub boot_id: String,
    /// The request's `ContainerConfig`, encoded as it travels.
    #[serde(with = "base64_bytes")]
    pub config: Vec<u8>,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// The image by repository and digest, as statuses name it.
    pub image_ref: String,
    /// Diff ids of the image's layers, the bottom one first: what the container's root stands on.
    pub layers: Vec<String>,
    /// Signal that stops it, by name or number, as the image or the request says.
    pub stop_signal: String,
    /// Path of its control group.
    pub cgroup: String,
    /// User that its first process runs as: user id, group id, additional groups.
    pub user: (u32, u32, Vec<u32>),
    /// When it was asked for, in ns since 1970.
    pub created_at_ns: i64,
    /// How far it came.
    pub phase: ContainerPhase,
    /// Resources as last updated (`LinuxContainerResources`, encoded as it travels); empty when never updated.
    #[serde(with = "base64_bytes")]
    pub resources: Vec<u8>,
}

/// How far a container came. Times are in ns since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ContainerPhase {
    /// Being made: after a crash it is unmade.
    Creating,
    /// Made, not started.
    Created,
    /// Being started: after a crash the shim knows whether it runs.
    Starting,
    /// Running.
    Running {
        /// When.
        started_at_ns: i64,
        /// Its first process, as the host sees it.
        pid: u32,
    },
    /// Ended.
    Exited {
        /// When it was started; 0 if it never ran.
        started_at_ns: i64,
        /// When it ended.
        finished_at_ns: i64,
        /// Exit code; 128 + n for signal n.
        exit_code: i32,
        /// One word for the status ("Completed", "Error", "OOMKilled").
        reason: String,
        /// More for the reader; may be empty.
        message: String,
    },
    /// Being removed: after a crash the removal goes on.
    Removing,
}

mod base64_bytes {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD
            .decode(String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}
