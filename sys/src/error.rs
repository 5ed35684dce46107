//! One error type: what was tried, on what, and what the kernel said.

use std::path::PathBuf;

/// Result of a system operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A system operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call on a path failed.
    #[error("{op} {path}", path = path.display())]
    Path {
        /// What was tried, as an operator would say it ("mount overlay", "unshare").
        op: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A call without a path failed.
    #[error("{op}")]
    Call {
        /// What was tried.
        op: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A sysctl could not be set.
    #[error("set sysctl {name} to {value:?}")]
    Sysctl {
        /// Dotted name, as the pod gives it.
        name: String,
        /// Value asked for.
        value: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file of the kernel holds something this code does not know.
    #[error("{path} holds {content:?}, which is not understood", path = path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The part that was not understood.
        content: String,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn io(&self) -> Option<&std::io::Error> {
        match self {
            Error::Path { source, .. }
            | Error::Call { source, .. }
            | Error::Sysctl { source, .. } => Some(source),
            Error::Unexpected { .. } => None,
        }
    }

    pub(crate) fn path(
        op: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Error::Path {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    pub(crate) fn call(op: &'static str, source: impl Into<std::io::Error>) -> Self {
        Error::Call {
            op,
            source: source.into(),
        }
    }
}
