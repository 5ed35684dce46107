//! The plugin's configuration: JSON to a typed, validated [`Config`]. An unknown key is an error.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    ranges::Ranges,
    request::{Input, Valid},
};

/// Where leases are if the configuration does not say: gone with a reboot, as the addresses are.
const DEFAULT_DATA_DIR: &str = "/run/zcri/dvipa";
/// What one TCP/IP stack of z/OS has at most, whoever made them. Source: zos-facts, section 1 "Limits".
const DEFAULT_MAX_VIPAS: usize = 1024;
/// Long enough for an answer from any system of a sysplex, and short beside the start of a pod.
const DEFAULT_PROBE: Duration = Duration::from_millis(100);
/// In milliseconds: a pod waits for it, perhaps for several addresses.
const MAX_PROBE: u64 = 5_000;

/// What the administrator wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of the network.
    pub network: String,
    /// What makes an address active.
    pub backend: BackendConfig,
    /// The addresses to give out.
    pub ranges: Ranges,
    /// How many VIPAs a stack may have.
    pub max_vipas: usize,
    /// Directory of the leases.
    pub data_dir: PathBuf,
    /// Name of this node in leases; none is the host name.
    pub node: Option<String>,
    /// Name of the TCP/IP stack.
    pub stack: String,
    /// How long an address is asked for in the network before it is taken; zero is not at all.
    pub probe: Duration,
    /// File for the log, beside standard error.
    pub log_file: Option<PathBuf>,
    /// What the result says about DNS.
    pub dns: Option<Value>,
    /// Addresses that the runtime asks for (capability `ips`).
    pub requested: Vec<IpAddr>,
    /// The pod's control group (capability `cgroupPath`).
    pub cgroup_path: Option<String>,
}

/// What makes an address active, with what only that needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendConfig {
    /// A veth pair into the pod's network namespace.
    Netns {
        /// MTU in bytes; none is the uplink's.
        mtu: Option<u32>,
        /// The interface to take the MTU of; none is that of the default route.
        uplink: Option<String>,
        /// Whether what pods send to other networks gets the node's address.
        masquerade: bool,
        /// Whether forwarding is switched on when it is off.
        forwarding: bool,
        /// Hardware address of the pod's interface (capability `mac`).
        mac: Option<[u8; 6]>,
    },
    /// An address of the host's own stack, and pods confined to theirs.
    Stack {
        /// The interface that has the addresses.
        interface: String,
        /// How pods are confined; none is not at all.
        confine: Option<Confine>,
    },
    /// A dynamic VIPA of a z/OS TCP/IP stack.
    Zos,
}

/// What a confined pod may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confine {
    /// Whether it may use 127.0.0.1 and ::1, which all pods and the host share.
    pub loopback: Loopback,
    /// What it gets that binds an IPv6 socket to `::`.
    pub wildcard_v6: WildcardV6,
}

/// The loopback addresses of a confined pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Loopback {
    /// They are the host's, and every pod may use them.
    #[default]
    Shared,
    /// They are refused.
    Refused,
}

/// An IPv6 socket that is bound to `::` would hear IPv4 too, and can have one address only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum WildcardV6 {
    /// The pod's primary address, of the family of the first range.
    #[default]
    Primary,
    /// The IPv4 VIPA, mapped.
    Ipv4,
    /// The IPv6 VIPA.
    Ipv6,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Netns,
    Stack,
    Zos,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
enum ConfineKind {
    #[default]
    Cgroup,
    Off,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "known keys that say nothing to this plugin are read so as not to be unknown"
)]
struct Raw {
    cni_version: Option<String>,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    capabilities: Option<BTreeMap<String, bool>>,
    runtime_config: Option<RuntimeConfig>,
    args: Option<Value>,
    prev_result: Option<Value>,
    dns: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Valid>>,
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Value>,

    backend: Kind,
    vipa_ranges: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    max_vipas: Option<usize>,
    data_dir: Option<PathBuf>,
    node: Option<String>,
    stack: Option<String>,
    probe_milliseconds: Option<u64>,
    log_file: Option<PathBuf>,

    mtu: Option<u32>,
    uplink: Option<String>,
    ip_masq: Option<bool>,
    forwarding: Option<bool>,

    interface: Option<String>,
    confine: Option<ConfineKind>,
    loopback: Option<Loopback>,
    #[serde(rename = "wildcardV6")]
    wildcard_v6: Option<WildcardV6>,
}

/// The capabilities that this plugin has.
const CAPABILITIES: [&str; 4] = ["ips", "mac", "dns", "cgroupPath"];

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    ips: Vec<String>,
    mac: Option<String>,
    dns: Option<RuntimeDns>,
    cgroup_path: Option<String>,
}

/// Source: CONVENTIONS.md, "Well-known Capabilities".
#[derive(Deserialize)]
struct RuntimeDns {
    #[serde(default)]
    servers: Vec<String>,
    #[serde(default)]
    searches: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

fn wrong(key: &'static str, reason: impl Into<String>) -> Error {
    Error::Config {
        key,
        reason: reason.into(),
    }
}

impl Config {
    pub(crate) fn parse(value: Value, version: String) -> Result<Input> {
        let mut raw: Raw = serde_json::from_value(value).map_err(Error::Keys)?;
        if raw.name.is_empty() {
            return Err(wrong("name", "is empty"));
        }
        if let Some(other) = raw
            .capabilities
            .iter()
            .flatten()
            .find(|(name, on)| **on && !CAPABILITIES.contains(&name.as_str()))
        {
            let reason = format!("{:?} is none of {}", other.0, CAPABILITIES.join(", "));
            return Err(wrong("capabilities", reason));
        }
        let mut runtime = raw.runtime_config.take().unwrap_or_default();
        let dns = match runtime.dns.take() {
            Some(dns) => Some(serde_json::json!({
                "nameservers": dns.servers, "search": dns.searches, "options": dns.options,
            })),
            None => raw.dns.take(),
        };
        let valid = raw.valid_attachments.take().unwrap_or_default();
        let prev_result = raw.prev_result.take().filter(|result| !result.is_null());
        let config = Self {
            network: std::mem::take(&mut raw.name),
            ranges: Ranges::parse(&raw.vipa_ranges, &raw.exclude)?,
            max_vipas: match raw.max_vipas {
                Some(0) => return Err(wrong("maxVipas", "0 lets no pod have an address")),
                other => other.unwrap_or(DEFAULT_MAX_VIPAS),
            },
            data_dir: absolute("dataDir", raw.data_dir.take())?
                .unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            node: file_name("node", raw.node.take())?,
            stack: file_name("stack", raw.stack.take())?.unwrap_or_else(|| "default".to_owned()),
            probe: probe(raw.probe_milliseconds, raw.backend)?,
            log_file: absolute("logFile", raw.log_file.take())?,
            requested: requested(&runtime.ips)?,
            cgroup_path: runtime.cgroup_path.take().filter(|path| !path.is_empty()),
            dns,
            backend: backend(raw, runtime.mac)?,
        };
        Ok(Input {
            version,
            config,
            prev_result,
            valid,
        })
    }
}

fn backend(raw: Raw, mac: Option<String>) -> Result<BackendConfig> {
    let not_netns = [
        ("mtu", raw.mtu.is_some()),
        ("uplink", raw.uplink.is_some()),
        ("ipMasq", raw.ip_masq.is_some()),
        ("forwarding", raw.forwarding.is_some()),
    ];
    let not_stack = [
        ("interface", raw.interface.is_some()),
        ("confine", raw.confine.is_some()),
        ("loopback", raw.loopback.is_some()),
        ("wildcardV6", raw.wildcard_v6.is_some()),
    ];
    let foreign: Vec<_> = match raw.backend {
        Kind::Netns => not_stack.to_vec(),
        Kind::Stack => not_netns.to_vec(),
        Kind::Zos => [not_netns, not_stack].concat(),
    };
    if let Some((key, _)) = foreign.into_iter().find(|(_, given)| *given) {
        return Err(wrong(key, "is not a key of this backend"));
    }
    Ok(match raw.backend {
        Kind::Netns => BackendConfig::Netns {
            mtu: mtu(raw.mtu)?,
            uplink: interface("uplink", raw.uplink)?,
            masquerade: raw.ip_masq.unwrap_or(false),
            forwarding: raw.forwarding.unwrap_or(true),
            mac: mac.as_deref().map(parse_mac).transpose()?,
        },
        Kind::Stack => BackendConfig::Stack {
            interface: interface("interface", raw.interface)?.unwrap_or_else(|| "lo".to_owned()),
            confine: match raw.confine.unwrap_or_default() {
                ConfineKind::Off if raw.loopback.is_some() || raw.wildcard_v6.is_some() => {
                    return Err(wrong(
                        "confine",
                        "\"off\" leaves nothing to loopback and wildcardV6",
                    ));
                }
                ConfineKind::Off => None,
                ConfineKind::Cgroup => Some(Confine {
                    loopback: raw.loopback.unwrap_or_default(),
                    wildcard_v6: raw.wildcard_v6.unwrap_or_default(),
                }),
            },
        },
        Kind::Zos => BackendConfig::Zos,
    })
}

/// The other backends cannot take over an address that is active elsewhere.
fn probe(given: Option<u64>, backend: Kind) -> Result<Duration> {
    match given {
        Some(millis) if millis > MAX_PROBE => {
            let reason = format!("{millis} is more than {MAX_PROBE}");
            Err(wrong("probeMilliseconds", reason))
        }
        Some(millis) => Ok(Duration::from_millis(millis)),
        None if backend == Kind::Zos => Ok(DEFAULT_PROBE),
        None => Ok(Duration::ZERO),
    }
}

/// 68 is the least of IPv4 (RFC 791); 0 is, as for other plugins, none. A pod with IPv6 needs 1280 (RFC 8200), which
/// the kernel says when it is tried.
fn mtu(mtu: Option<u32>) -> Result<Option<u32>> {
    match mtu {
        Some(mtu @ (1..68 | 65536..)) => Err(wrong("mtu", format!("{mtu} is no MTU"))),
        other => Ok(other.filter(|mtu| *mtu != 0)),
    }
}

fn absolute(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>> {
    match path {
        Some(path) if !path.is_absolute() => {
            Err(wrong(key, format!("{:?} is not absolute", path.display())))
        }
        other => Ok(other),
    }
}

fn file_name(key: &'static str, name: Option<String>) -> Result<Option<String>> {
    let sound = |name: &str| {
        name.len() <= 200
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    match name {
        Some(name) if name.is_empty() => Ok(None),
        Some(name) if !sound(&name) => Err(wrong(key, format!("{name:?} is not a name"))),
        other => Ok(other),
    }
}

fn interface(key: &'static str, name: Option<String>) -> Result<Option<String>> {
    match name {
        Some(name) if name.is_empty() => Ok(None),
        Some(name)
            if name.len() > 15 || name.contains(['/', ' ', ':']) || name.starts_with('.') =>
        {
            Err(wrong(
                key,
                format!("{name:?} is not a name of an interface"),
            ))
        }
        other => Ok(other),
    }
}

/// At most one address of each family, each with or without a prefix length, which says nothing here.
fn requested(ips: &[String]) -> Result<Vec<IpAddr>> {
    let mut parsed: Vec<IpAddr> = Vec::new();
    for text in ips {
        let ip = text.split('/').next().unwrap_or_default();
        let ip: IpAddr = ip
            .parse()
            .map_err(|_| wrong("ips", format!("{text:?} is not an IP address")))?;
        if parsed.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(wrong("ips", "asks for two addresses of one family"));
        }
        parsed.push(ip);
    }
    Ok(parsed)
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split([':', '-'])
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    <[u8; 6]>::try_from(bytes)
        .ok()
        .filter(|mac| text.len() == 17 && mac[0] & 1 == 0 && *mac != [0; 6])
        .ok_or_else(|| {
            wrong(
                "mac",
                format!("{text:?} is not a hardware address for a host"),
            )
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(extra: Value) -> Result<Input> {
        let mut value = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "dvipa", "backend": "netns",
            "vipaRanges": ["192.0.2.248/29"],
        });
        let object = value.as_object_mut().unwrap();
        for (key, extra) in extra.as_object().unwrap() {
            if extra.is_null() {
                object.remove(key);
            } else {
                object.insert(key.clone(), extra.clone());
            }
        }
        Input::parse(value.to_string().as_bytes())
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = parse(json!({})).unwrap().config;
        assert_eq!(config.max_vipas, 1024);
        assert_eq!(config.data_dir, PathBuf::from("/run/zcri/dvipa"));
        assert_eq!(config.stack, "default");
        let netns = BackendConfig::Netns {
            mtu: None,
            uplink: None,
            masquerade: false,
            forwarding: true,
            mac: None,
        };
        assert_eq!(config.backend, netns);
        let stack = parse(json!({"backend": "stack"})).unwrap().config.backend;
        let expected = BackendConfig::Stack {
            interface: "lo".to_owned(),
            confine: Some(Confine {
                loopback: Loopback::Shared,
                wildcard_v6: WildcardV6::Primary,
            }),
        };
        assert_eq!(stack, expected);
    }

    #[test]
    fn what_the_runtime_knows_is_taken() {
        let input = parse(json!({
            "capabilities": {"ips": true, "mac": true, "dns": true, "cgroupPath": true},
            "runtimeConfig": {
                "ips": ["192.0.2.250/29", "2001:db8::1"], "mac": "0a:58:01:02:03:04",
                "dns": {"servers": ["10.0.0.10"], "searches": ["a.example"], "options": []},
                "cgroupPath": "/kubepods/pod1", "portMappings": [],
            },
            "args": {"cni": {}}, "prevResult": {"cniVersion": "1.1.0"},
        }))
        .unwrap();
        let config = input.config;
        assert_eq!(config.requested.len(), 2);
        assert_eq!(config.cgroup_path.as_deref(), Some("/kubepods/pod1"));
        assert_eq!(config.dns.unwrap()["search"], json!(["a.example"]));
        assert!(matches!(
            config.backend,
            BackendConfig::Netns {
                mac: Some([0x0a, 0x58, 1, 2, 3, 4]),
                ..
            }
        ));
        assert!(input.prev_result.is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (extra, code, names) in [
            (json!({"vipaRange": []}), 7, "vipaRange"),
            (json!({"backend": "bridge"}), 7, "bridge"),
            (json!({"backend": null}), 7, "backend"),
            (json!({"vipaRanges": null}), 7, "vipaRanges"),
            (json!({"vipaRanges": "192.0.2.0/24"}), 7, "sequence"),
            (json!({"name": ""}), 7, "name"),
            (json!({"maxVipas": 0}), 7, "maxVipas"),
            (json!({"maxVipas": -1}), 7, "-1"),
            (json!({"dataDir": "leases"}), 7, "dataDir"),
            (json!({"logFile": "x"}), 7, "logFile"),
            (json!({"node": "../x"}), 7, "node"),
            (json!({"stack": "a/b"}), 7, "stack"),
            (json!({"mtu": 7}), 7, "mtu"),
            (json!({"uplink": "sixteen-letters-"}), 7, "uplink"),
            (json!({"interface": "lo"}), 7, "interface"),
            (json!({"backend": "stack", "mtu": 1500}), 7, "mtu"),
            (json!({"backend": "zos", "interface": "lo"}), 7, "interface"),
            (json!({"backend": "stack", "confine": "maybe"}), 7, "maybe"),
            (
                json!({"backend": "stack", "confine": "off", "loopback": "shared"}),
                7,
                "confine",
            ),
            (json!({"backend": "stack", "loopback": "own"}), 7, "own"),
            (
                json!({"capabilities": {"portMappings": true}}),
                7,
                "portMappings",
            ),
            (json!({"runtimeConfig": {"ips": ["x"]}}), 7, "ips"),
            (
                json!({"runtimeConfig": {"ips": ["192.0.2.249", "192.0.2.250"]}}),
                7,
                "two addresses",
            ),
            (
                json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}),
                7,
                "mac",
            ),
            (json!({"runtimeConfig": {"mac": "0a58"}}), 7, "mac"),
            (json!({"cniVersion": "0.2.0"}), 1, "0.2.0"),
            (json!({"cniVersion": null}), 1, "0.1.0"),
            (json!({"cniVersion": "2.0.0"}), 1, "2.0.0"),
        ] {
            let error = parse(extra.clone()).unwrap_err();
            let text = error.chain();
            assert_eq!(error.code(), code, "{extra}: {text}");
            assert!(text.contains(names), "{extra}: {text}");
        }
        assert_eq!(Input::parse(b"{").unwrap_err().code(), 6);
        assert_eq!(Input::parse(b"").unwrap_err().code(), 6);
    }
}
