//! From a pod's configuration to what the plugins are told.

use std::net::IpAddr;
use std::path::PathBuf;

use zcri_cni::{Attachment, PortMapping, Protocol, RuntimeConfig, RuntimeDns, pod_args};

use super::{Place, bandwidth};
use crate::error::{Error, Result};
use crate::id::PodId;
use crate::pod::config::{self, PodConfig};

/// The interface of a pod: the name that the kubelet and everybody else expect.
const INTERFACE: &str = "eth0";

/// Annotation with the addresses that the pod wants, separated by commas: CNI's capability `ips`. Our own, as
/// Kubernetes has none.
const IPS: &str = "zcri.io/ips";

/// The attachment of a pod.
///
/// # Errors
/// An annotation about the network is malformed.
pub(super) fn attachment(
    id: &PodId,
    config: &PodConfig,
    place: Place<'_>,
    netns: PathBuf,
) -> Result<Attachment> {
    Ok(Attachment {
        container_id: id.to_string(),
        netns,
        ifname: INTERFACE.into(),
        args: pod_args(&config.namespace, &config.name, &config.uid, id.as_str()),
        runtime_config: runtime_config(config, place)?,
    })
}

fn runtime_config(config: &PodConfig, place: Place<'_>) -> Result<RuntimeConfig> {
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
    let cgroup_path = match place {
        Place::Stack(cgroup) => Some(cgroup.to_owned()),
        Place::Namespace(_) => Some(config.cgroup_parent.clone()).filter(|path| !path.is_empty()),
    };
    Ok(RuntimeConfig {
        port_mappings,
        dns,
        cgroup_path,
        bandwidth: bandwidth::of(&config.annotations)?,
        ips: ips(config)?,
        ..RuntimeConfig::default()
    })
}

fn ips(config: &PodConfig) -> Result<Vec<String>> {
    let Some(wanted) = config.annotations.get(IPS) else {
        return Ok(Vec::new());
    };
    let address = |text: &str| {
        text.trim()
            .parse::<IpAddr>()
            .map(|ip| ip.to_string())
            .map_err(|error| Error::Invalid {
                field: "annotations[\"zcri.io/ips\"]",
                value: wanted.clone(),
                reason: error.to_string(),
            })
    };
    wanted.split(',').map(address).collect()
}
