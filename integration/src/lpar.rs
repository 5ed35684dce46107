//! Emulated LPARs: what is like z/OS about a node, and several of them side by side as a sysplex.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::TestNode;
use crate::pod::pod_security;
use crate::v1::{ContainerStatusRequest, NamespaceMode, NamespaceOption, PodSandboxConfig};
use crate::zos_runc::Deny;

/// What the system services of an emulated LPAR are like.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// The WLM service definition: CPU shares by service class.
    pub classes: BTreeMap<String, u64>,
    /// Calls that SAF refuses.
    pub deny: Vec<Deny>,
}

impl TestNode {
    /// A z/OS node with nothing special about it.
    ///
    /// # Errors
    /// As [`crate::Builder::start`].
    pub async fn start_zos() -> Result<Self> {
        Self::builder().zos(Service::default()).start().await
    }

    /// The configuration of a pod on the node's network, for what is not about networks.
    ///
    /// # Errors
    /// As [`TestNode::pod_config`].
    pub fn host_pod_config(&self, name: &str) -> Result<PodSandboxConfig> {
        let mut config = self.pod_config(name)?;
        namespaces(&mut config).network = NamespaceMode::Node.into();
        Ok(config)
    }

    /// What a verbose ContainerStatus shows beside the status.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn info(&self, id: &str) -> Result<Value> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.cri().runtime().container_status(request).await?;
        let info = answer.into_inner().info;
        let text = info.get("info").context("an answer without info")?;
        Ok(serde_json::from_str(text)?)
    }
}

/// The namespace options of a pod.
pub fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    pod_security(config)
        .namespace_options
        .get_or_insert_default()
}
