//! Emulated LPARs: what is like z/OS about a node, and several of them side by side as a sysplex.

pub(crate) mod sysplex;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::TestNode;
use crate::plugin;
use crate::pod::{Pod, pod_security, words};
use crate::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};
use crate::zos_runc::Deny;

pub use sysplex::{Lpar, Sysplex, vipas};

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

    /// Starts an LPAR of a sysplex with its own VIPARANGE, for which dvipa has its backend for one shared stack.
    ///
    /// # Errors
    /// As [`crate::Builder::start`].
    pub async fn start_lpar(lpar: Lpar) -> Result<Self> {
        let range = lpar.range();
        let builder = Self::builder().zos(Service::default()).lpar(lpar);
        let mut node = builder.prepare().await?;
        node.use_stack(json!({ "vipaRanges": [range] }))?;
        node.start_daemon().await?;
        Ok(node)
    }

    /// The node's network is dvipa with its backend for one shared stack, with this configuration beside.
    ///
    /// # Errors
    /// As [`plugin::dvipa`].
    pub fn use_stack(&self, more: Value) -> Result<()> {
        let mut config = json!({ "backend": "stack", "interface": "lo", "stack": "TCPIP" });
        let own = config.as_object_mut().context("an object")?;
        own.extend(more.as_object().cloned().unwrap_or_default());
        plugin::dvipa(self, config, &[])
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

    /// Starts a web server in a pod, on port 80 of any address, that says its name and who asked.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn serve(&self, pod: &Pod<'_>, says: &str) -> Result<String> {
        let mut config = self.container_config("web").await?;
        let script = format!(
            "mkdir -p /www/cgi-bin && printf '#!/bin/sh\\necho\\necho {says} $REMOTE_ADDR\\n' > /www/cgi-bin/who && \
             chmod 755 /www/cgi-bin/who && exec httpd -f -p 0.0.0.0:80 -h /www"
        );
        config.command = words(["/bin/sh", "-c", &script]);
        pod.start(&config).await
    }

    /// What the server that [`TestNode::serve`] started at `address` tells a container of this node: its name, and the
    /// address that it was asked from. None if it cannot be reached.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn ask(&self, container: &str, address: &str) -> Result<Option<(String, String)>> {
        // Not wget, whose time-out crashes where it is linked statically.
        let script =
            format!("printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {address} 80");
        let output = self.exec(container, &script).await?;
        let text = output.stdout.strip_prefix("HTTP/").unwrap_or_default();
        let answer = text.lines().last().and_then(|line| line.rsplit_once(' '));
        Ok(answer
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, from)| (name.to_owned(), from.to_owned())))
    }
}

/// The namespace options of a pod.
pub fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    pod_security(config)
        .namespace_options
        .get_or_insert_default()
}
