//! Capability arguments: what the runtime knows and a plugin may ask for.
//!
//! A plugin gets those that its configuration lists in `capabilities`, in `runtimeConfig`.
//! Source: CONVENTIONS.md, "Well-known Capabilities".

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};

/// What can be passed on to plugins. Everything is optional.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RuntimeConfig {
    /// `portMappings`: entries with host port 0 are not passed on, they map nothing.
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`
    pub bandwidth: Option<Bandwidth>,
    /// `dns`
    pub dns: Option<RuntimeDns>,
    /// `ips`: addresses wanted, each `IP[/PREFIX]`.
    pub ips: Vec<String>,
    /// `ipRanges`: for each address to allocate, the pool to take it from.
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `mac`: the hardware address wanted.
    pub mac: Option<String>,
    /// `aliases`: names for the pod on this network.
    pub aliases: Vec<String>,
    /// `cgroupPath`: the pod's control group.
    pub cgroup_path: Option<String>,
    /// Capabilities that are not of the conventions, such as `io.kubernetes.cri.pod-annotations`.
    pub other: BTreeMap<String, Value>,
}

/// One port of the host that leads to one of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Port of the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Protocol of both.
    pub protocol: Protocol,
    /// Address of the host to listen on; none is all.
    pub host_ip: Option<IpAddr>,
}

/// Protocols of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Limits of the pod's traffic; 0 is none. Rates in bits per second, bursts in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress_rate: u64,
    /// Into the pod.
    pub ingress_burst: u64,
    /// Out of the pod.
    pub egress_rate: u64,
    /// Out of the pod.
    pub egress_burst: u64,
}

impl Bandwidth {
    /// From rates alone, as Kubernetes' annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth` give
    /// them. The plugin wants a burst for every rate: it gets the largest that fits its arithmetic, as from the
    /// peers.
    #[must_use]
    pub fn from_rates(ingress: Option<u64>, egress: Option<u64>) -> Self {
        const BURST: u64 = i32::MAX as u64;
        Self {
            ingress_rate: ingress.unwrap_or(0),
            ingress_burst: ingress.map_or(0, |_| BURST),
            egress_rate: egress.unwrap_or(0),
            egress_burst: egress.map_or(0, |_| BURST),
        }
    }
}

/// The DNS configuration that the pod will have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeDns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains to search.
    pub searches: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// A range to allocate from, as `host-local` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpRange {
    /// The subnet in CIDR notation.
    pub subnet: String,
    /// The first address to give.
    pub range_start: Option<IpAddr>,
    /// The last address to give.
    pub range_end: Option<IpAddr>,
    /// The gateway.
    pub gateway: Option<IpAddr>,
}

impl RuntimeConfig {
    /// By capability, what there is to pass on.
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        let mut all: Map<String, Value> = self.other.clone().into_iter().collect();
        let mut put = |name: &str, given: bool, value: Value| {
            if given {
                all.insert(name.to_owned(), value);
            }
        };
        let mapped = self
            .port_mappings
            .iter()
            .filter(|m| m.host_port != 0)
            .map(port_mapping)
            .collect::<Vec<_>>();
        put("portMappings", !mapped.is_empty(), Value::Array(mapped));
        put(
            "bandwidth",
            self.bandwidth.is_some(),
            self.bandwidth.map_or(Value::Null, bandwidth),
        );
        put(
            "dns",
            self.dns.is_some(),
            self.dns.as_ref().map_or(Value::Null, dns),
        );
        put("ips", !self.ips.is_empty(), json!(self.ips));
        let ranges = self
            .ip_ranges
            .iter()
            .map(|pool| pool.iter().map(ip_range).collect())
            .collect::<Vec<Value>>();
        put("ipRanges", !ranges.is_empty(), Value::Array(ranges));
        put("mac", self.mac.is_some(), json!(self.mac));
        put("aliases", !self.aliases.is_empty(), json!(self.aliases));
        put(
            "cgroupPath",
            self.cgroup_path.is_some(),
            json!(self.cgroup_path),
        );
        all
    }
}

fn port_mapping(mapping: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.as_str(),
    });
    if let (Some(ip), Some(object)) = (mapping.host_ip, value.as_object_mut()) {
        // An IPv6 address that stands for an IPv4 one is that one to the plugin's rules.
        let ip = ip.to_canonical();
        object.insert("hostIP".to_owned(), json!(ip));
    }
    value
}

fn bandwidth(limits: Bandwidth) -> Value {
    json!({
        "ingressRate": limits.ingress_rate,
        "ingressBurst": limits.ingress_burst,
        "egressRate": limits.egress_rate,
        "egressBurst": limits.egress_burst,
    })
}

fn dns(dns: &RuntimeDns) -> Value {
    json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options })
}

fn ip_range(range: &IpRange) -> Value {
    let mut object = Map::from_iter([("subnet".to_owned(), json!(range.subnet))]);
    let ends = [
        ("rangeStart", range.range_start),
        ("rangeEnd", range.range_end),
        ("gateway", range.gateway),
    ];
    object.extend(
        ends.into_iter()
            .filter_map(|(name, ip)| Some((name.to_owned(), json!(ip?)))),
    );
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_form_of_the_conventions() {
        let mapping = |host_port, host_ip: Option<&str>| PortMapping {
            host_port,
            container_port: 80,
            protocol: Protocol::Sctp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let config = RuntimeConfig {
            port_mappings: vec![
                mapping(8080, None),
                mapping(0, None),
                mapping(81, Some("::ffff:192.0.2.1")),
            ],
            bandwidth: Some(Bandwidth::from_rates(Some(1_000_000), None)),
            dns: Some(RuntimeDns {
                servers: vec!["10.0.0.10".into()],
                ..RuntimeDns::default()
            }),
            ips: vec!["10.10.0.1/24".into()],
            ip_ranges: vec![vec![IpRange {
                subnet: "10.1.2.0/24".into(),
                range_start: Some("10.1.2.3".parse().unwrap()),
                range_end: None,
                gateway: None,
            }]],
            mac: Some("c2:11:22:33:44:55".into()),
            aliases: vec!["db".into()],
            cgroup_path: Some("/kubepods/pod1".into()),
            other: BTreeMap::from([(
                "io.kubernetes.cri.pod-annotations".into(),
                json!({"a": "b"}),
            )]),
        };
        let expected = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "sctp"},
                {"hostPort": 81, "containerPort": 80, "protocol": "sctp", "hostIP": "192.0.2.1"},
            ],
            "bandwidth": {
                "ingressRate": 1_000_000, "ingressBurst": 2_147_483_647, "egressRate": 0, "egressBurst": 0,
            },
            "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
            "ips": ["10.10.0.1/24"],
            "ipRanges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3"}]],
            "mac": "c2:11:22:33:44:55",
            "aliases": ["db"],
            "cgroupPath": "/kubepods/pod1",
            "io.kubernetes.cri.pod-annotations": {"a": "b"},
        });
        assert_eq!(Value::Object(config.capabilities()), expected);
    }

    #[test]
    fn nothing_known_is_nothing_passed_on() {
        assert!(RuntimeConfig::default().capabilities().is_empty());
        let unmapped = PortMapping {
            host_port: 0,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        };
        let config = RuntimeConfig {
            port_mappings: vec![unmapped],
            ..RuntimeConfig::default()
        };
        assert!(config.capabilities().is_empty());
    }
}
