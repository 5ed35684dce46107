//! What can go wrong, and the code that the runtime gets for it.

use std::{io, net::IpAddr, path::PathBuf};

use thiserror::Error;

/// Why an operation was not done.
#[derive(Debug, Error)]
pub enum Error {
    /// A variable of the environment is missing or cannot be.
    #[error("{name}: {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration is not JSON.
    #[error("the configuration is not JSON")]
    Decode(#[source] serde_json::Error),
    /// The configuration is of a version of the specification that is not spoken here.
    #[error("cniVersion {version:?} is not one of {}", crate::request::VERSIONS.join(", "))]
    Version {
        /// The version.
        version: String,
    },
    /// A key of the configuration cannot be.
    #[error("{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration has an unknown key, or a value of the wrong type.
    #[error("the configuration of dvipa cannot be read")]
    Keys(#[source] serde_json::Error),
    /// Every address of the ranges is leased or in use.
    #[error(
        "no {family} address is free in {ranges}: {leased} leased, {skipped} in use without a lease"
    )]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The ranges.
        ranges: String,
        /// How many addresses of the ranges have a lease.
        leased: usize,
        /// How many are active without one.
        skipped: usize,
    },
    /// The stack has as many dynamic VIPAs as it may have.
    #[error(
        "stack {stack:?} has {used} of at most {max} VIPAs (maxVipas), {wanted} more are wanted"
    )]
    Limit {
        /// The stack.
        stack: String,
        /// Leases of this node and stack.
        used: usize,
        /// `maxVipas`
        max: usize,
        /// How many more are wanted.
        wanted: usize,
    },
    /// An address that was asked for cannot be had.
    #[error("address {ip} was asked for: {reason}")]
    Requested {
        /// The address.
        ip: IpAddr,
        /// Why not.
        reason: String,
    },
    /// An address turned out to be in use by something else when it was to be activated.
    #[error("address {ip} is in use: {reason}")]
    Taken {
        /// The address.
        ip: IpAddr,
        /// By what.
        reason: String,
    },
    /// The system refused.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: zcri_sys::Error,
    },
    /// The pod cannot be confined to its address.
    #[error("the pod cannot be confined to its address (confine = \"cgroup\"): {reason}")]
    Unconfined {
        /// Why not.
        reason: String,
    },
    /// The store of leases cannot be used.
    #[error("lease store: {op} {}", path.display())]
    Store {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// CHECK found something else than ADD had made.
    #[error("{what}")]
    Changed {
        /// What is not as it was made.
        what: String,
    },
    /// There is no such attachment.
    #[error("container {container} has no lease in network {network:?}")]
    Unknown {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// STATUS: no pod could be attached.
    #[error("{reason}")]
    NotReady {
        /// Why not.
        reason: String,
        /// Whether pods that are attached suffer too.
        limited: bool,
    },
    /// DEL or GC could not free everything; the rest was freed.
    #[error("{}", failures.join("; "))]
    Several {
        /// At least one.
        failures: Vec<String>,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The code of SPEC.md, section 5, "Error"; those from 100 are this plugin's own.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Unknown { .. } => 3,
            Self::Environment { .. } => 4,
            Self::Store { .. } => 5,
            Self::Decode(_) => 6,
            Self::Config { .. } | Self::Keys(_) => 7,
            Self::NotReady { limited: false, .. } => 50,
            Self::NotReady { limited: true, .. } => 51,
            Self::Exhausted { .. } => 100,
            Self::Limit { .. } => 101,
            Self::Requested { .. } | Self::Taken { .. } => 102,
            Self::System { .. } => 103,
            Self::Unconfined { .. } => 104,
            Self::Changed { .. } => 105,
            Self::Several { .. } => 106,
        }
    }

    /// With all its causes.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    }

    /// Names what was tried when the system refused.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(zcri_sys::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Names the file of the store.
    pub(crate) fn store<E: Into<io::Error>>(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Store {
            op,
            path,
            source: source.into(),
        }
    }
}

/// What went wrong in a clean-up, which goes on after it.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Keeps the error, if it is one.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// # Errors
    /// When there were any: the only one as it is, or all of them.
    pub(crate) fn end(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => self.0.pop().map_or(Ok(()), Err),
            _ => Err(Error::Several {
                failures: self.0.iter().map(Error::chain).collect(),
            }),
        }
    }
}
