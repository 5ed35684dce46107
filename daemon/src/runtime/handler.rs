//! Runtime handlers: the names that a RuntimeClass may give, and the OCI runtime behind each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// One configured OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Its name in requests.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Directory for the program's own state; `None` leaves it to the program.
    pub root: Option<PathBuf>,
    /// Whether it manages cgroups through systemd.
    pub systemd_cgroup: bool,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Handlers {
    by_name: BTreeMap<String, Handler>,
    default: String,
}

impl Handlers {
    /// Takes the configured handlers; `default` serves requests that name none.
    pub fn new(handlers: impl IntoIterator<Item = Handler>, default: impl Into<String>) -> Self {
        let by_name = handlers
            .into_iter()
            .map(|handler| (handler.name.clone(), handler))
            .collect();
        Self {
            by_name,
            default: default.into(),
        }
    }

    /// The handler of that name, or the default one for an empty name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names that exist.
    pub fn get(&self, name: &str) -> Result<&Handler> {
        let wanted = if name.is_empty() { &self.default } else { name };
        self.by_name.get(wanted).ok_or_else(|| Error::Invalid {
            field: "runtime_handler",
            value: wanted.into(),
            reason: format!("no such handler is configured; there are: {}", self.names()),
        })
    }

    /// All handlers by name.
    pub fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.by_name.values()
    }

    /// The one for requests that name none, if it is configured.
    pub fn default_handler(&self) -> Option<&Handler> {
        self.by_name.get(&self.default)
    }

    fn names(&self) -> String {
        self.by_name
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    }
}
