//! Uses of what is going away, kept for the node's status so that somebody sees them before it is gone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A field or option that is going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deprecated {
    /// Its name.
    pub name: &'static str,
    /// What to use in its place.
    pub instead: &'static str,
}

/// What was used since the start. There are only as many entries as there are deprecated things.
#[derive(Debug, Default)]
pub struct Deprecations(Mutex<BTreeMap<&'static str, &'static str>>);

impl Deprecations {
    /// Takes note of a use; the first one is logged.
    pub fn note(&self, used: Deprecated) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(used.name, used.instead).is_none() {
            tracing::info!(
                field = used.name,
                instead = used.instead,
                "a deprecated field is used"
            );
        }
    }

    /// Names of what was used, with what to use instead.
    pub fn all(&self) -> BTreeMap<&'static str, &'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
