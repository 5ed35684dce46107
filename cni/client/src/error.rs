//! What can go wrong when plugins run.

use std::{fmt, io, path::PathBuf, process::ExitStatus, time::Duration};

use thiserror::Error;

use crate::{
    attachment::{AttachmentKey, InvalidAttachment},
    cache::CacheError,
};

/// An operation, as in `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is the attachment as it was made?
    Check,
    /// Could the plugin attach?
    Status,
    /// Remove what no attachment needs.
    Gc,
    /// Which versions does the plugin speak?
    Version,
}

impl Command {
    /// As in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A plugin failed.
#[derive(Debug, Error)]
#[error("CNI plugin {plugin} {command}: {failure}{}", Stderr(stderr))]
pub struct PluginError {
    /// Its `type`.
    pub plugin: String,
    /// What it was to do.
    pub command: Command,
    /// How it failed.
    pub failure: Failure,
    /// What it wrote to standard error, shortened.
    pub stderr: String,
}

impl PluginError {
    /// The code of the error that the plugin reported, if it reported one. Source: SPEC.md section 5, "Error".
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self.failure {
            Failure::Reported { code, .. } => Some(code),
            _ => None,
        }
    }
}

struct Stderr<'a>(&'a str);

impl fmt::Display for Stderr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " (stderr: {})", self.0)
        }
    }
}

/// How a plugin can fail.
#[derive(Debug)]
pub enum Failure {
    /// It said so, in the form of the specification.
    Reported {
        /// Code; 1 to 99 are the specification's.
        code: u32,
        /// Short message.
        msg: String,
        /// Long message, often empty.
        details: String,
    },
    /// It ended badly without saying why.
    Ended {
        /// How it ended.
        status: ExitStatus,
    },
    /// It was killed, with all that it started in its process group.
    TimedOut {
        /// Time that the operation had.
        after: Duration,
    },
    /// There is no such program.
    Missing {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It could not be started.
    NotStarted {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it wrote is not what the specification wants.
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported { code, msg, details } => {
                f.write_str(msg)?;
                if !details.is_empty() {
                    write!(f, ": {details}")?;
                }
                write!(f, " (code {code})")
            }
            Self::Ended { status } => write!(f, "ended with {status} and no error message"),
            Self::TimedOut { after } => write!(f, "killed after {after:?}"),
            Self::Missing { searched } => {
                let dirs = searched
                    .iter()
                    .map(|dir| dir.display().to_string())
                    .collect::<Vec<_>>();
                write!(f, "no such plugin in {}", dirs.join(", "))
            }
            Self::NotStarted { path, source } => {
                write!(f, "cannot run {}: {source}", path.display())
            }
            Self::Malformed { reason } => write!(f, "malformed output: {reason}"),
        }
    }
}

/// Why an attachment was not made. Nothing is left of it, unless `undo` is not empty.
#[derive(Debug, Error)]
pub enum AddError {
    /// It cannot be made by anyone.
    #[error(transparent)]
    Invalid(#[from] InvalidAttachment),
    /// It is there already, or was begun; [`crate::Cni::delete`] comes first.
    #[error("{key}: attached already")]
    Attached {
        /// The attachment.
        key: AttachmentKey,
    },
    /// Its record could not be written.
    #[error("cannot record the attachment{}", Undo(undo))]
    Record {
        /// Why.
        #[source]
        source: CacheError,
        /// What could not be undone; the record is kept for [`crate::Cni::delete`].
        undo: Vec<PluginError>,
    },
    /// A plugin failed.
    #[error("network {network:?}: {error}{}", Undo(undo))]
    Plugin {
        /// Name of the network.
        network: String,
        /// The failure.
        error: Box<PluginError>,
        /// What could not be undone; the record is kept for [`crate::Cni::delete`].
        undo: Vec<PluginError>,
    },
}

struct Undo<'a>(&'a [PluginError]);

impl fmt::Display for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|error| write!(f, "; and when it was undone: {error}"))
    }
}

/// Why a pod is not detached. Everything was tried; the records of what failed are kept for another try.
#[derive(Debug, Error)]
#[error("{container_id}: {}", each(errors))]
pub struct DelErrors {
    /// Id of the pod sandbox.
    pub container_id: String,
    /// At least one.
    pub errors: Vec<DelError>,
}

/// All of them with their causes: they are nobody's source, so that no one else would show them.
fn each<E: std::error::Error>(errors: &[E]) -> String {
    let chain = |error: &E| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}

/// One thing that went wrong in a detachment.
#[derive(Debug, Error)]
pub enum DelError {
    /// A plugin failed.
    #[error("network {network:?}, interface {ifname}: {error}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// The interface.
        ifname: String,
        /// The failure.
        error: Box<PluginError>,
    },
    /// The records could not be read, or one could not be removed.
    #[error("cannot read or remove the record of an attachment")]
    Record(#[source] CacheError),
    /// A record is damaged, and there is no configuration to detach with in its place.
    #[error(
        "interface {ifname}: its record is damaged ({damage}), and there is no network to use in its place"
    )]
    Damaged {
        /// The interface.
        ifname: String,
        /// What is wrong with the record.
        damage: CacheError,
        /// Why there is no network.
        #[source]
        source: crate::conf::LoadError,
    },
}

/// Why an attachment is not as it was made.
#[derive(Debug, Error)]
pub enum CheckError {
    /// It was never made, or is unmade.
    #[error("{key}: not attached")]
    NotAttached {
        /// The attachment.
        key: AttachmentKey,
    },
    /// Its record could not be read.
    #[error("cannot read the record of an attachment")]
    Record(#[source] CacheError),
    /// A plugin finds fault.
    #[error("network {network:?}: {error}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// The failure.
        error: Box<PluginError>,
    },
}

/// Plugins that failed in an operation on a whole network.
#[derive(Debug, Error)]
#[error("network {network:?}: {}", each(errors))]
pub struct NetworkError {
    /// Name of the network.
    pub network: String,
    /// At least one.
    pub errors: Vec<PluginError>,
}

/// Why not all that nobody needs was collected.
#[derive(Debug, Error)]
pub enum GcError {
    /// What is needed is not known, so that nothing was collected.
    #[error(transparent)]
    Record(#[from] CacheError),
    /// Plugins that failed.
    #[error(transparent)]
    Plugins(NetworkError),
}
