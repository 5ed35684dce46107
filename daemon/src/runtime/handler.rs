//! Runtime handlers: the names that a RuntimeClass may give, and the OCI runtime behind each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use zcri_codepage::Rule;

use super::HandlerFeatures;
use super::probe::Probe;
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
    /// What the output of its containers is converted from, where nothing else says so.
    pub output: Option<Rule>,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Handlers {
    by_name: BTreeMap<String, Handler>,
    default: String,
    probes: BTreeMap<String, Arc<Probe>>,
}

impl Handlers {
    /// Takes the configured handlers; `default` serves requests that name none.
    pub fn new(handlers: impl IntoIterator<Item = Handler>, default: impl Into<String>) -> Self {
        let by_name: BTreeMap<_, _> = handlers
            .into_iter()
            .map(|handler| (handler.name.clone(), handler))
            .collect();
        Self {
            probes: by_name
                .values()
                .map(|handler| (handler.name.clone(), Arc::new(Probe::new(&handler.path))))
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

    /// What the runtime of a handler says that it can do, nothing if it does not answer. It is asked when it is new.
    ///
    /// # Cancel safety
    /// Safe: another caller asks again.
    pub async fn features(&self, handler: &Handler) -> HandlerFeatures {
        self.answer(handler).await.unwrap_or_default()
    }

    /// As [`Handlers::features`], with the reason of a runtime that does not answer.
    ///
    /// # Cancel safety
    /// Safe: another caller asks again.
    ///
    /// # Errors
    /// It is missing or does not answer, in words for an administrator.
    pub async fn answer(&self, handler: &Handler) -> Result<HandlerFeatures, String> {
        match self.probes.get(&handler.name) {
            Some(probe) => probe.answer().await,
            None => Probe::new(&handler.path).answer().await,
        }
    }

    /// Asks all runtimes, and says which of them do not answer.
    pub async fn ask_all(&self) {
        for handler in self.iter() {
            if let Err(problem) = self.answer(handler).await {
                tracing::warn!(
                    handler = handler.name,
                    problem,
                    "a runtime handler cannot be used"
                );
            }
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
