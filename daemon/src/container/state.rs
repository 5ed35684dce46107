//! What others see of a container, and which request is legal in which state.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::{ContainerConfig, Resources};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::runtime::Exit;
use crate::stats::Readings;

/// Exit code of a container whose start failed, as the peers report it.
pub(crate) const START_FAILED: i32 = 128;
/// Exit code of a container whose end nobody saw.
pub(crate) const UNKNOWN_EXIT: i32 = 255;

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod's.
    pub pod_id: PodId,
    /// What was asked for.
    pub config: Arc<ContainerConfig>,
    /// Its limits now, after updates.
    pub resources: Resources,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// The image by repository and digest.
    pub image_ref: String,
    /// Signal that stops it, by name or number; empty for SIGTERM.
    pub stop_signal: String,
    /// Its control group.
    pub cgroup: String,
    /// User id, group id and additional groups of its first process.
    pub user: (u32, u32, Vec<u32>),
    /// Its log, if it has one.
    pub log: Option<PathBuf>,
    /// Its directory.
    pub bundle: PathBuf,
    /// Its writable layer.
    pub upper: PathBuf,
    /// When it was asked for, in ns since 1970.
    pub created_at_ns: i64,
    /// How far it came.
    pub state: ContainerState,
    /// What statistics remember of it.
    pub readings: Arc<Readings>,
}

/// How far a container came. Times are in ns since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_at_ns: i64,
        /// Its first process, as the host sees it.
        pid: u32,
    },
    /// Ended.
    Exited(Exited),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// When it was started; 0 if it never ran.
    pub started_at_ns: i64,
    /// When it ended.
    pub finished_at_ns: i64,
    /// Exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// One word for the status.
    pub reason: String,
    /// More for the reader; may be empty.
    pub message: String,
}

impl Exited {
    /// The end that a shim saw, with the words that the kubelet shows (kuberuntime_container.go: Completed, Error,
    /// OOMKilled).
    pub fn seen(started_at_ns: i64, exit: Exit) -> Self {
        let reason = match exit {
            Exit {
                oom_killed: true, ..
            } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        };
        Self {
            // The shim may see the end before the daemon has noted the start.
            started_at_ns: started_at_ns.min(exit.at_ns),
            finished_at_ns: exit.at_ns,
            exit_code: exit.code,
            reason: reason.into(),
            message: String::new(),
        }
    }

    /// A start that failed.
    pub fn start_failed(message: String) -> Self {
        let now = crate::time::now_ns();
        Self {
            started_at_ns: now,
            finished_at_ns: now,
            exit_code: START_FAILED,
            reason: "StartError".into(),
            message,
        }
    }

    /// An end that nobody saw.
    pub fn unseen(started_at_ns: i64, message: &str) -> Self {
        Self {
            started_at_ns,
            finished_at_ns: crate::time::now_ns(),
            exit_code: UNKNOWN_EXIT,
            reason: "Unknown".into(),
            message: message.into(),
        }
    }
}

impl ContainerState {
    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited(_) => "exited",
        }
    }

    /// Whether the OCI runtime was ever asked to run it.
    pub(crate) fn was_started(&self) -> bool {
        match self {
            ContainerState::Created => false,
            ContainerState::Running { .. } => true,
            ContainerState::Exited(exited) => exited.started_at_ns != 0,
        }
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        match self {
            ContainerState::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }
}

impl ContainerView {
    /// The process id, for requests that need a running container.
    ///
    /// # Errors
    /// [`Error::State`] in every other state.
    pub fn require_running(&self, action: &'static str) -> Result<u32> {
        self.state.pid().ok_or_else(|| self.refuse(action))
    }

    /// The error for a request that is not legal in this state.
    pub fn refuse(&self, action: &'static str) -> Error {
        Error::State {
            what: "container",
            id: self.id.to_string(),
            state: self.state.name(),
            action,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_those_of_the_field() {
        let exit = |code, oom_killed| {
            Exited::seen(
                1,
                Exit {
                    code,
                    at_ns: 2,
                    oom_killed,
                },
            )
            .reason
        };
        assert_eq!(exit(0, false), "Completed");
        assert_eq!(exit(3, false), "Error");
        assert_eq!(exit(137, false), "Error");
        assert_eq!(exit(137, true), "OOMKilled");
    }
}
