//! What ADD gave: results of specification 0.3.0 to 1.1.0 in one type.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::version::SpecVersion;

/// The result of an attachment. Source: SPEC.md section 5.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddResult {
    /// Every interface that was made, on the host too.
    pub interfaces: Vec<Interface>,
    /// Addresses, in the plugins' order.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// What the network says about DNS.
    pub dns: Dns,
}

impl AddResult {
    /// The addresses of the pod itself: those of interfaces in the pod, and those that name no interface. In the
    /// plugins' order, so that the first is the pod's primary one.
    pub fn pod_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().filter_map(|ip| {
            let inside = ip
                .interface
                .is_none_or(|i| self.interfaces.get(i).is_some_and(|i| i.sandbox.is_some()));
            inside.then_some(ip.address.ip)
        })
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<String>,
    /// Its MTU, when the plugin says.
    pub mtu: Option<u32>,
    /// The namespace that it is in; none is the host's.
    pub sandbox: Option<String>,
}

/// An address of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with the length of its network's prefix.
    pub address: Cidr,
    /// The gateway of that network.
    pub gateway: Option<IpAddr>,
    /// Index of the interface; always one of [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// A route of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub dst: Cidr,
    /// The next hop.
    pub gw: Option<IpAddr>,
    /// MTU along the path, in bytes.
    pub mtu: Option<u32>,
}

/// What a network says about DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// An address and the length of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// At most 32 or 128.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = MalformedResult;

    fn from_str(text: &str) -> Result<Self, MalformedResult> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            let (ip, prefix) = (ip.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
            (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Self { ip, prefix })
        };
        parse().ok_or_else(|| MalformedResult {
            reason: format!("{text:?} is not an address with a prefix length"),
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// What a plugin wrote is not a result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct MalformedResult {
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawResult {
    cni_version: Option<String>,
    interfaces: Option<Vec<RawInterface>>,
    ips: Option<Vec<RawIp>>,
    routes: Option<Vec<RawRoute>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct RawInterface {
    name: String,
    mac: Option<String>,
    mtu: Option<u32>,
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    gateway: Option<String>,
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
    gw: Option<String>,
    mtu: Option<u32>,
}

impl AddResult {
    /// From the JSON of a result. Keys that are not known are passed over: they are for other plugins.
    ///
    /// # Errors
    /// When it is of a version before 0.3.0, or an address or index is none.
    pub fn from_json(value: &Value) -> Result<Self, MalformedResult> {
        let raw = RawResult::deserialize(value).map_err(|e| MalformedResult {
            reason: e.to_string(),
        })?;
        if let Some(version) = raw
            .cni_version
            .filter(|version| SpecVersion::parse(version).is_none())
        {
            return Err(MalformedResult {
                reason: format!("a result of version {version:?}"),
            });
        }
        let interfaces = raw
            .interfaces
            .unwrap_or_default()
            .into_iter()
            .map(interface)
            .collect::<Vec<_>>();
        let ip = |raw| ip(raw, interfaces.len());
        let ips = raw
            .ips
            .unwrap_or_default()
            .into_iter()
            .map(ip)
            .collect::<Result<_, _>>()?;
        let routes = raw
            .routes
            .unwrap_or_default()
            .into_iter()
            .map(route)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            interfaces,
            ips,
            routes,
            dns: raw.dns.unwrap_or_default(),
        })
    }
}

fn interface(raw: RawInterface) -> Interface {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    Interface {
        name: raw.name,
        mac: given(raw.mac),
        mtu: raw.mtu,
        sandbox: given(raw.sandbox),
    }
}

fn ip(raw: RawIp, interfaces: usize) -> Result<IpConfig, MalformedResult> {
    let index = |i: i64| {
        usize::try_from(i)
            .ok()
            .filter(|i| *i < interfaces)
            .ok_or_else(|| MalformedResult {
                reason: format!(
                    "address {} names interface {i} of {interfaces}",
                    raw.address
                ),
            })
    };
    let interface = raw.interface.map(index).transpose()?;
    Ok(IpConfig {
        address: raw.address.parse()?,
        gateway: address(raw.gateway)?,
        interface,
    })
}

fn route(raw: RawRoute) -> Result<Route, MalformedResult> {
    Ok(Route {
        dst: raw.dst.parse()?,
        gw: address(raw.gw)?,
        mtu: raw.mtu,
    })
}

/// An address; missing, or empty as some plugins write it, is none.
fn address(text: Option<String>) -> Result<Option<IpAddr>, MalformedResult> {
    let parse = |text: String| {
        text.parse().map_err(|_| MalformedResult {
            reason: format!("{text:?} is not an address"),
        })
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The example of SPEC.md's appendix, with what each version adds or has apart.
    fn of_version(version: &str) -> Value {
        let mut value = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth3243", "mac": "55:44:33:22:11:11", "sandbox": ""},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"},
            ],
            "ips": [
                {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
                {"address": "fd00::5/64", "gateway": "", "interface": 2},
                {"address": "10.1.0.1/16", "interface": 0},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["a.example"]},
        });
        if version < "1.0.0" {
            value["ips"][0]["version"] = json!("4");
        } else if version == "1.1.0" {
            value["interfaces"][2]["mtu"] = json!(1400);
            value["interfaces"][2]["pciID"] = json!("0000:00:01.0");
            value["routes"][0]["mtu"] = json!(1300);
        }
        value
    }

    #[test]
    fn every_version_gives_the_same() {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let result = AddResult::from_json(&of_version(version)).unwrap();
            let pod = result
                .pod_ips()
                .map(|ip| ip.to_string())
                .collect::<Vec<_>>();
            assert_eq!(pod, ["10.1.0.5", "fd00::5"], "{version}");
            assert_eq!(result.ips[0].address.to_string(), "10.1.0.5/16");
            assert_eq!(result.ips[0].gateway, Some("10.1.0.1".parse().unwrap()));
            assert_eq!(result.ips[1].gateway, None, "an empty gateway is none");
            assert_eq!(
                result.interfaces[1].sandbox, None,
                "an empty sandbox is the host"
            );
            assert_eq!(result.routes[1].gw, Some("fd00::1".parse().unwrap()));
            assert_eq!(result.dns.search, ["a.example"]);
            let mtu = (version == "1.1.0").then_some(1400);
            assert_eq!(result.interfaces[2].mtu, mtu, "{version}");
        }
    }

    #[test]
    fn an_address_without_interface_is_the_pods() {
        let value = json!({"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.1/32"}]});
        let result = AddResult::from_json(&value).unwrap();
        assert_eq!(result.pod_ips().count(), 1);
        assert!(result.dns.nameservers.is_empty());
    }

    #[test]
    fn what_is_no_result_is_refused_with_its_value() {
        for (value, names) in [
            (
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}}),
                "0.2.0",
            ),
            (json!({"ips": [{"address": "10.1.0.5"}]}), "10.1.0.5"),
            (json!({"ips": [{"address": "10.1.0.5/33"}]}), "10.1.0.5/33"),
            (json!({"ips": [{"address": "fd00::1/129"}]}), "fd00::1/129"),
            (
                json!({"ips": [{"address": "10.1.0.5/16", "gateway": "nowhere"}]}),
                "nowhere",
            ),
            (
                json!({"ips": [{"address": "10.1.0.5/16", "interface": 0}]}),
                "interface 0 of 0",
            ),
            (
                json!({"ips": [{"address": "10.1.0.5/16", "interface": -1}]}),
                "interface -1 of 0",
            ),
            (
                json!({"interfaces": [{"mac": "00:11:22:33:44:55"}]}),
                "name",
            ),
            (json!([]), ""),
            (json!(null), ""),
        ] {
            let error = AddResult::from_json(&value).unwrap_err().to_string();
            assert!(error.contains(names), "{value}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_cidr_survives_printing(bits in any::<u128>(), prefix in 0_u8..=128, v4 in any::<bool>()) {
            let ip: IpAddr = if v4 {
                std::net::Ipv4Addr::from(u32::try_from(bits >> 96).unwrap()).into()
            } else {
                std::net::Ipv6Addr::from(bits).into()
            };
            let cidr = Cidr { ip, prefix: if v4 { prefix.min(32) } else { prefix } };
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let value = json!({"ips": [{"address": text}], "routes": [{"dst": text, "gw": text}]});
            prop_assert!(AddResult::from_json(&value).is_err() || text.parse::<Cidr>().is_ok());
        }
    }
}
