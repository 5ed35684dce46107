//! Runtime handlers: the names that a RuntimeClass may give, and the OCI runtime behind each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::HandlerFeatures;
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
    /// Asked for when they are first needed, and kept: a runtime that is replaced is told by a restart.
    features: BTreeMap<String, Arc<OnceCell<HandlerFeatures>>>,
}

impl Handlers {
    /// Takes the configured handlers; `default` serves requests that name none.
    pub fn new(handlers: impl IntoIterator<Item = Handler>, default: impl Into<String>) -> Self {
        let by_name: BTreeMap<_, _> = handlers
            .into_iter()
            .map(|handler| (handler.name.clone(), handler))
            .collect();
        Self {
            features: by_name
                .keys()
                .map(|name| (name.clone(), Arc::default()))
                .collect(),
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

    /// What the runtime of a handler says that it can do; it is asked once.
    ///
    /// # Cancel safety
    /// Safe: another caller asks again.
    pub async fn features(&self, handler: &Handler) -> HandlerFeatures {
        let ask = || HandlerFeatures::of(&handler.path);
        match self.features.get(&handler.name) {
            Some(known) => known.get_or_init(ask).await.clone(),
            None => ask().await,
        }
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
