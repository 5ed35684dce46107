//! What can go wrong in the domain. `cri::status` has the one table from these to gRPC codes.

use std::fmt;

/// Result of a domain operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A source that several waiters of one operation may share.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// A domain operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request named something that does not exist.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// "pod sandbox", "container" or "image".
        what: &'static str,
        /// The name as it was asked for.
        id: String,
    },
    /// A request holds a value that cannot be.
    #[error("{field}: {reason} (got {value:?})")]
    Invalid {
        /// Field of the request, in the names of api.proto.
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A request that cannot be understood; the text names the field and its value.
    #[error("{0}")]
    Request(String),
    /// The request is legal, but not in the state that its object is in.
    #[error("{what} {id} is {state}: cannot {action}")]
    State {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
        /// What was asked.
        action: &'static str,
    },
    /// This node, platform or version does not do what was asked.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// Field or feature.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The pod's network could not be made or unmade.
    #[error("pod network: {action}")]
    Network {
        /// What was tried.
        action: &'static str,
        /// The plugin's error.
        #[source]
        source: Source,
    },
    /// The OCI runtime or its shim failed.
    #[error("{action} of {id}")]
    Runtime {
        /// What was tried, e.g. "start".
        action: &'static str,
        /// Pod or container.
        id: String,
        /// What they said.
        #[source]
        source: Source,
    },
    /// A command names a program that its container does not have or may not execute: the client's matter, not the
    /// node's.
    #[error("container {id} cannot run {program:?}")]
    Program {
        /// The container.
        id: String,
        /// The program, as the client named it.
        program: String,
        /// The OCI runtime's words.
        #[source]
        source: Source,
    },
    /// A command in a container took longer than it was given.
    #[error("command {command:?} in container {id} timed out after {seconds} s")]
    ExecTimeout {
        /// The container.
        id: String,
        /// The program.
        command: String,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// Too many of something at the same time.
    #[error("{action}")]
    Exhausted {
        /// What was asked for.
        action: &'static str,
        /// What there is too much of.
        #[source]
        source: Source,
    },
    /// An operation on the node's files, mounts or namespaces failed.
    #[error("{action}")]
    Node {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        #[source]
        source: Source,
    },
    /// The system refused what the daemon or the OCI runtime has no authority for.
    #[error("not authorized; grant {grant}")]
    Authority {
        /// What to grant.
        grant: &'static str,
        /// What was refused.
        #[source]
        source: Box<Error>,
    },
    /// An image could not be had.
    #[error("image {reference:?}")]
    Image {
        /// As it was asked for.
        reference: String,
        /// What the image store said.
        #[source]
        source: Box<zcri_image::ImageError>,
    },
    /// The task that owns the pod ended, because the pod was removed or the daemon stops.
    #[error("pod sandbox {id} is going away")]
    Gone {
        /// The pod.
        id: String,
    },
    /// Another request for the same thing failed, and this one had joined it.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),
}

impl Error {
    /// A container that is not known.
    pub fn no_container(id: impl fmt::Display) -> Self {
        Error::NotFound {
            what: "container",
            id: id.to_string(),
        }
    }

    /// A pod that is not known.
    pub fn no_pod(id: impl fmt::Display) -> Self {
        Error::NotFound {
            what: "pod sandbox",
            id: id.to_string(),
        }
    }

    /// Whether a full disk is among the causes.
    pub fn is_out_of_space(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
            {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// A failed operation on the node.
    pub fn node(action: impl Into<String>, source: impl Into<Source>) -> Self {
        Error::Node {
            action: action.into(),
            source: source.into(),
        }
    }
}

impl From<crate::container::spec::SpecError> for Error {
    fn from(error: crate::container::spec::SpecError) -> Self {
        Error::Request(Chain(&error).to_string())
    }
}

/// An error with all its sources, as one line.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
