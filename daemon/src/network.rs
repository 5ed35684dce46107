//! The pod's network, by CNI.
//!
//! The configuration is read anew for each pod, so that an administrator's change holds at once; the attachment is
//! deleted with the very configuration that made it, which zcri-cni keeps.

use std::path::Path;

use zcri_cni::{
    Attachment, Cni, CniDirs, PortMapping, Protocol, RuntimeConfig, RuntimeDns, pod_args,
};

use crate::error::{Error, Result};
use crate::id::PodId;
use crate::pod::config::{self, PodConfig};

/// The interface of a pod: the name that the kubelet and everybody else expect.
const INTERFACE: &str = "eth0";

/// Attaches pods to the configured network.
pub struct Network {
    cni: Cni,
}

impl Network {
    /// With the configured directories; what is attached is kept under `root`.
    pub fn new(config: &zcri_config::Network, root: &Path) -> Self {
        let dirs = CniDirs {
            conf_dir: config.conf_dir.clone(),
            plugin_dirs: config.plugin_dirs.clone(),
            cache_dir: root.join("cni"),
        };
        Self {
            cni: Cni::new(dirs, config.plugin_timeout),
        }
    }

    /// Attaches a pod; gives its addresses, the primary one first.
    ///
    /// # Errors
    /// No network is configured, or a plugin failed: what the plugins before it did is undone.
    pub async fn attach(
        &self,
        id: &PodId,
        config: &PodConfig,
        netns: &Path,
    ) -> Result<Vec<String>> {
        let list = self.cni.load().map_err(|e| failed("configuration", e))?;
        let attachment = Attachment {
            container_id: id.to_string(),
            netns: netns.to_owned(),
            ifname: INTERFACE.into(),
            args: pod_args(&config.namespace, &config.name, &config.uid, id.as_str()),
            runtime_config: runtime_config(config),
        };
        let result = list
            .add(&attachment)
            .await
            .map_err(|e| failed("attach", e))?;
        Ok(result.pod_ips().map(|ip| ip.to_string()).collect())
    }

    /// Detaches a pod; one that is not attached is detached.
    ///
    /// # Errors
    /// A plugin failed; asking again tries again.
    pub async fn detach(&self, id: &str) -> Result<()> {
        self.cni.delete(id).await.map_err(|e| failed("detach", e))
    }

    /// Why no pod could get a network now, if so.
    pub async fn problem(&self) -> Option<String> {
        self.cni
            .load()
            .err()
            .map(|error| crate::error::Chain(&error).to_string())
    }
}

fn failed(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Network {
        action,
        source: Box::new(source),
    }
}

fn runtime_config(config: &PodConfig) -> RuntimeConfig {
    let port_mappings = config
        .port_mappings
        .iter()
        .map(|port| PortMapping {
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: match port.protocol {
                config::Protocol::Tcp => Protocol::Tcp,
                config::Protocol::Udp => Protocol::Udp,
                config::Protocol::Sctp => Protocol::Sctp,
            },
            host_ip: port.host_ip,
        })
        .collect();
    let dns = config.dns.as_ref().map(|dns| RuntimeDns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    });
    let cgroup_path = Some(config.cgroup_parent.clone()).filter(|path| !path.is_empty());
    RuntimeConfig {
        port_mappings,
        dns,
        cgroup_path,
        ..RuntimeConfig::default()
    }
}
