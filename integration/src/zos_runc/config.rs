//! What an emulated LPAR is like: the settings of `zos-runc`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// Names the file with the settings.
pub(crate) const VARIABLE: &str = "ZOS_RUNC_CONFIG";

/// Settings of one LPAR.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The real runtime.
    pub runtime: PathBuf,
    /// Parent of the control groups of this LPAR, absolute within each hierarchy.
    pub cgroup_parent: String,
    /// Annotation that has the service class.
    pub class_annotation: String,
    /// The service definition: CPU shares by service class. A class that is not in it is SYSOTHER.
    pub classes: BTreeMap<String, u64>,
    /// Calls that SAF refuses.
    pub deny: Vec<Deny>,
}

/// A privileged call that SAF can refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// Making namespaces.
    Clone,
    /// Joining namespaces.
    Setns,
}

/// CPU shares of work that is in no class: discretionary.
pub(super) const SYSOTHER: u64 = 2;

impl Settings {
    /// Reads the file that the environment names.
    ///
    /// # Errors
    /// It is not named, or cannot be used.
    pub fn load() -> Result<Self> {
        let path = std::env::var_os(VARIABLE).with_context(|| format!("{VARIABLE} is not set"))?;
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Fails as z/OS does where SAF refuses a call.
    ///
    /// # Errors
    /// The call is refused; the text is that of the run-time library.
    pub fn authorize(&self, call: Deny) -> Result<()> {
        if !self.deny.contains(&call) {
            return Ok(());
        }
        let name = match call {
            Deny::Clone => "clone",
            Deny::Setns => "setns",
        };
        bail!("{name}: EDC5139I Operation not permitted.")
    }

    /// CPU shares of a service class.
    pub fn shares(&self, class: &str) -> u64 {
        self.classes.get(class).copied().unwrap_or(SYSOTHER)
    }
}
