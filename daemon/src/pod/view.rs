//! What others see of a pod: an immutable picture, replaced as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::config::PodConfig;
use crate::confinement::PodLabel;
use crate::container::ContainerView;
use crate::id::{ContainerId, PodId};
use crate::stats::Readings;

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub config: Arc<PodConfig>,
    /// Name of its runtime handler.
    pub handler: String,
    /// When it was asked for, in ns since 1970.
    pub created_at_ns: i64,
    /// Whether containers may be made in it.
    pub state: PodState,
    /// Its addresses, the primary one first; empty on the host's network.
    pub addresses: Vec<String>,
    /// Process id of the init of its shared PID namespace.
    pub init_pid: Option<u32>,
    /// Its control group, if it has no network namespace of its own and no node's network either.
    pub stack_cgroup: Option<String>,
    /// SELinux label of its processes.
    pub label: Option<Arc<PodLabel>>,
    /// Becomes true when it shall be stopped, for what takes long within a request that came before.
    pub stopping: watch::Receiver<bool>,
    /// Its directory.
    pub bundle: PathBuf,
    /// Its containers.
    pub containers: BTreeMap<ContainerId, Arc<ContainerView>>,
    /// Counts the pictures of this pod that were published before this one.
    pub revision: u64,
    /// What statistics remember of it.
    pub readings: Arc<Readings>,
}

/// CRI knows two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Containers may be made in it.
    Ready,
    /// Stopped, or its shim is lost.
    NotReady,
}

/// What makes two RunPodSandbox requests the same request (kubelet: the sandbox's metadata).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodKey {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
}

impl PodKey {
    /// The key of a configuration.
    pub fn of(config: &PodConfig) -> Self {
        Self {
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
        }
    }
}
