//! Backend `netns`: a veth pair into the pod's network namespace.
//!
//! ```text
//!   host                                           pod
//!   192.0.2.249 dev dvipaXXXXXXXXXX (route)        default via 169.254.1.1 dev eth0 onlink
//!   dvipaXXXXXXXXXX ee:ee:ee:ee:ee:ee ===== veth ===== eth0 192.0.2.249/32, 0a:58:c0:00:02:f9
//!   neighbour 192.0.2.249 = 0a:58:... permanent    neighbour 169.254.1.1 = ee:ee:... permanent
//! ```
//!
//! The gateway addresses (169.254.1.1 and fe80::1) are nowhere: permanent neighbour entries on both sides say all that
//! ARP and neighbour discovery would find out, so that nothing is asked, nothing expires and no sysctl of an interface
//! is needed. The pair's name follows from the attachment: it is found with no lease, and with no namespace.

mod masquerade;
mod node;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::Path,
};

use zcri_sys::{
    netlink::{
        self, Socket,
        message::Message,
        removal,
        route::{self, Address, Link, Mac, Route, VethEnd},
    },
    netns::NetNs,
};

use super::{
    Attached, Attachment, Backend, Interface, OWNER, Remains,
    host::{self, EEXIST, ENODEV, errno, find_link, full_prefix},
};
use crate::{
    config::{BackendConfig, Config},
    error::{Error, Failures, Result},
    log::Log,
    store::Key,
};
use masquerade::Masquerade;
use node::enable_ipv6;

/// The host's end of every pair has this address: a pod sees one of them only.
const HOST_MAC: Mac = [0xee; 6];
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// Before the digits of an attachment; with ten of them a name has the 15 characters that the kernel takes.
const PREFIX: &str = "dvipa";
/// Bytes of a note on an interface. Source: Linux, `IFALIASZ` with the NUL.
const MAX_ALIAS: usize = 255;

pub(super) struct Netns {
    host: Socket,
    network: String,
    mtu: Option<u32>,
    uplink: Option<String>,
    forwarding: bool,
    mac: Option<Mac>,
    masquerade: Option<Masquerade>,
    v6: bool,
}

impl Netns {
    pub(super) fn open(config: &Config) -> Result<Self> {
        let BackendConfig::Netns {
            mtu,
            uplink,
            masquerade,
            forwarding,
            mac,
        } = config.backend.clone()
        else {
            return Err(Error::Config {
                key: "backend",
                reason: "is not netns".to_owned(),
            });
        };
        Ok(Self {
            host: Socket::route().map_err(Error::system("open the host's network"))?,
            network: config.network.clone(),
            mtu,
            uplink,
            forwarding,
            mac,
            masquerade: masquerade.then(|| Masquerade::new(&config.network, &config.ranges)),
            v6: config
                .ranges
                .families()
                .any(|family| family == crate::ranges::Family::V6),
        })
    }

    /// Makes the pair and all that hangs on it; gives the MTU.
    fn build(&mut self, attachment: &Attachment<'_>, netns: &NetNs, link: &str) -> Result<u32> {
        let pod = attachment.pod;
        let mac = self.pod_mac(attachment);
        let mtu = self.mtu()?;
        let (here, there) = (
            VethEnd {
                name: link,
                mac: HOST_MAC,
            },
            VethEnd {
                name: &pod.ifname,
                mac,
            },
        );
        let pair = route::new_veth(here, there, mtu, netns.as_fd());
        self.host
            .send_one("create a veth pair", pair)
            .map_err(|e| {
                let what = if errno(&e) == Some(EEXIST) {
                    format!("an interface {:?} is in the pod already", pod.ifname)
                } else {
                    format!(
                        "cannot make the pair {link} and {:?} in the pod",
                        pod.ifname
                    )
                };
                Error::system(what)(e)
            })?;
        let v6 = attachment.addresses.iter().any(IpAddr::is_ipv6);
        let inside = netns
            .within(|| configure_pod(&pod.ifname, attachment.addresses, v6))
            .map_err(Error::system("enter the pod's network namespace"))?;
        inside.map_err(Error::system(format!("set up {:?} in the pod", pod.ifname)))?;
        self.configure_host(attachment, link, mac, v6)?;
        Ok(mtu)
    }

    fn configure_host(
        &mut self,
        attachment: &Attachment<'_>,
        link: &str,
        mac: Mac,
        v6: bool,
    ) -> Result<()> {
        let index = find_link(&mut self.host, link)?
            .ok_or_else(|| Error::Changed {
                what: format!("interface {link} is gone"),
            })?
            .index;
        if v6 {
            enable_ipv6(link).map_err(Error::system(format!("enable IPv6 on {link}")))?;
        }
        let mut requests = vec![
            route::set_up(link),
            // A note for people, and for the sweep of what lost its lease.
            route::set_alias(link, &self.alias(attachment)),
        ];
        for ip in attachment.addresses {
            requests.push(route::permanent_neighbour(index, *ip, mac));
            requests.push(host_route(*ip, index).add());
        }
        let answers = self
            .host
            .send_all(requests)
            .map_err(Error::system("set up the host's side"))?;
        let failed = answers
            .into_iter()
            .enumerate()
            .find_map(|(i, answer)| answer.err().map(|source| (i, source)));
        let Some((i, source)) = failed else {
            return Ok(());
        };
        // Two requests for the interface, and two for each address: the neighbour and the route.
        let ip = i
            .checked_sub(2)
            .and_then(|i| attachment.addresses.get(i / 2));
        match ip {
            Some(ip) if i % 2 == 1 && netlink::errno(&source) == Some(EEXIST) => {
                let reason = "the host has another route to it".to_owned();
                Err(Error::Taken { ip: *ip, reason })
            }
            _ => {
                let what = match ip {
                    Some(ip) => format!("cannot route {ip} to {link}"),
                    None => format!("cannot set {link} up"),
                };
                let op = "set up the host's side";
                Err(Error::system(what)(zcri_sys::Error::Call { op, source }))
            }
        }
    }

    /// Network and pod in words. The first two tell what is this plugin's.
    fn alias(&self, attachment: &Attachment<'_>) -> String {
        let pod = attachment.pod;
        let mut alias = format!("{}{} {}", self.alias_start(), pod.container, pod.ifname);
        alias.truncate(alias.floor_char_boundary(MAX_ALIAS));
        alias
    }

    fn alias_start(&self) -> String {
        format!("dvipa {} ", self.network)
    }

    fn pod_mac(&self, attachment: &Attachment<'_>) -> Mac {
        if let Some(mac) = self.mac {
            return mac;
        }
        let v4 = attachment.addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        });
        let [a, b, c, d] = v4.unwrap_or_else(|| {
            let digits = attachment.key.digits();
            u32::from_str_radix(&digits[..8], 16)
                .unwrap_or_default()
                .to_be_bytes()
        });
        [0x0a, 0x58, a, b, c, d]
    }

    /// Source and prerequisites of the MTU: the configuration, or the interface that the node's default route has.
    fn mtu(&mut self) -> Result<u32> {
        if let Some(mtu) = self.mtu {
            return Ok(mtu);
        }
        let uplink = self.uplink()?;
        Ok(uplink.map_or(node::ETHERNET_MTU, |link| link.mtu.min(node::MAX_MTU)))
    }

    fn uplink(&mut self) -> Result<Option<Link>> {
        if let Some(name) = self.uplink.clone() {
            let link = find_link(&mut self.host, &name)?;
            return match link {
                Some(link) => Ok(Some(link)),
                None => Err(Error::Config {
                    key: "uplink",
                    reason: format!("there is no interface {name:?}"),
                }),
            };
        }
        for ip in node::SOMEWHERE {
            if let Some(index) =
                host::matched(&mut self.host, ip)?.and_then(|matched| matched.index)
            {
                let mut link = None;
                self.host
                    .ask("look at the uplink", route::get_link_by_index(index), |m| {
                        link = Link::parse(m);
                    })
                    .map_err(Error::system("look at the uplink"))?;
                return Ok(link);
            }
        }
        Ok(None)
    }

    fn remove_link(&mut self, link: &str, hold: Option<&Socket>) -> Result<bool> {
        match removal::remove_link(&mut self.host, link, hold) {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(ENODEV) => Ok(false),
            Err(e) => Err(Error::system(format!("cannot remove {link}"))(e)),
        }
    }
}

impl Backend for Netns {
    fn active(&mut self, ip: IpAddr) -> Result<Option<String>> {
        host::active(&mut self.host, ip)
    }

    fn attach(&mut self, attachment: &Attachment<'_>, log: &Log) -> Result<Attached> {
        let pod = attachment.pod;
        let path = pod.netns.as_deref().ok_or_else(|| Error::Environment {
            name: "CNI_NETNS",
            reason: "is missing".to_owned(),
        })?;
        let netns = NetNs::open(path).map_err(Error::system("no network namespace of the pod"))?;
        if self.forwarding {
            node::forward(attachment.addresses, log)?;
        }
        let link = link_name(attachment.key);
        let mtu = if find_link(&mut self.host, &link)?.is_some() {
            // An earlier ADD of this attachment was here.
            match self.check(attachment) {
                Ok(()) => self.mtu()?,
                Err(e) => {
                    log.line(format_args!("{link} is made anew: {}", e.chain()));
                    self.remove_link(&link, None)?;
                    self.build(attachment, &netns, &link)?
                }
            }
        } else {
            self.build(attachment, &netns, &link)?
        };
        if let Some(masquerade) = &self.masquerade {
            masquerade.add(attachment.addresses)?;
        }
        log.line(format_args!(
            "attached by {link} (mtu {mtu}) to {}",
            path.display()
        ));
        let mac = self.pod_mac(attachment);
        let interface = |name: &str, mac, sandbox: Option<&Path>| Interface {
            name: name.to_owned(),
            mac: mac_text(mac),
            mtu: Some(mtu),
            sandbox: sandbox.map(|path| path.display().to_string()),
        };
        Ok(Attached {
            interfaces: vec![
                interface(&link, HOST_MAC, None),
                interface(&pod.ifname, mac, Some(path)),
            ],
            addresses_on: Some(1),
            gateways: vec![GATEWAY_V4, GATEWAY_V6],
        })
    }

    fn detach(&mut self, remains: &Remains<'_>, log: &Log) -> Result<()> {
        let mut failures = Failures::default();
        let socket = match &self.masquerade {
            Some(masquerade) => masquerade.remove(remains.addresses, &mut failures),
            None => None,
        };
        let link = link_name(remains.key);
        if failures.note(self.remove_link(&link, socket.as_ref())) == Some(true) {
            log.line(format_args!("removed {link}"));
        }
        failures.end()
    }

    fn check(&mut self, attachment: &Attachment<'_>) -> Result<()> {
        let changed = |what: String| Err(Error::Changed { what });
        let name = link_name(attachment.key);
        let Some(link) = find_link(&mut self.host, &name)? else {
            return changed(format!("interface {name} of the host is missing"));
        };
        if !link.up {
            return changed(format!("interface {name} of the host is down"));
        }
        for ip in attachment.addresses {
            let matched = host::matched(&mut self.host, *ip)?;
            if !matched.is_some_and(|m| m.index == Some(link.index) && !m.local) {
                return changed(format!("the host has no route to {ip} by {name}"));
            }
        }
        let path = attachment.pod.netns.as_deref().unwrap_or(Path::new(""));
        let netns = NetNs::open(path).map_err(Error::system("no network namespace of the pod"))?;
        let ifname = &attachment.pod.ifname;
        netns
            .within(|| check_pod(ifname, attachment.addresses))
            .map_err(Error::system("enter the pod's network namespace"))??;
        match &self.masquerade {
            Some(masquerade) => masquerade.check(attachment.addresses),
            None => Ok(()),
        }
    }

    fn ready(&mut self) -> Result<()> {
        self.uplink().map_err(|e| Error::NotReady {
            reason: e.chain(),
            limited: false,
        })?;
        if !self.forwarding {
            node::forwards(self.v6)?;
        }
        Ok(())
    }

    fn sweep(
        &mut self,
        keep: &BTreeSet<Key>,
        leased: &dyn Fn(IpAddr) -> bool,
        log: &Log,
    ) -> Result<()> {
        let keep: BTreeSet<String> = keep.iter().map(link_name).collect();
        let start = self.alias_start();
        let mut lost = Vec::new();
        self.host
            .ask("list interfaces", route::dump_links(), |m| {
                let link = Link::parse(m).filter(|link| {
                    link.name.starts_with(PREFIX)
                        && !keep.contains(&link.name)
                        && link.alias.as_ref().is_some_and(|a| a.starts_with(&start))
                });
                lost.extend(link.map(|link| link.name));
            })
            .map_err(Error::system("list interfaces"))?;
        let mut failures = Failures::default();
        for link in lost {
            if failures.note(self.remove_link(&link, None)) == Some(true) {
                log.line(format_args!("removed {link}, which no lease was for"));
            }
        }
        if let Some(masquerade) = &self.masquerade {
            failures.note(masquerade.sweep(leased));
        }
        failures.end()
    }
}

fn link_name(key: &Key) -> String {
    format!("{PREFIX}{}", &key.digits()[..10])
}

fn host_route(ip: IpAddr, index: u32) -> Route {
    Route {
        to: ip,
        prefix: full_prefix(ip),
        via: None,
        index,
        protocol: OWNER,
    }
}

fn default_route(gateway: IpAddr, index: u32) -> Route {
    let to: IpAddr = if gateway.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    Route {
        to,
        prefix: 0,
        via: Some(gateway),
        index,
        protocol: OWNER,
    }
}

fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}

/// The pod's side, in its namespace.
fn configure_pod(ifname: &str, addresses: &[IpAddr], v6: bool) -> zcri_sys::Result<()> {
    let mut socket = Socket::route()?;
    if v6 {
        enable_ipv6(ifname)?;
    }
    let mut link = None;
    socket.ask(
        "look at the pod's interface",
        route::get_link(ifname),
        |m| {
            link = Link::parse(m);
        },
    )?;
    let index = link.map_or(0, |link| link.index);
    let requests = addresses.iter().flat_map(|ip| {
        let gateway = gateway(*ip);
        [
            pod_address(*ip, index).add(),
            route::permanent_neighbour(index, gateway, HOST_MAC),
            default_route(gateway, index).add(),
        ]
    });
    let requests: Vec<Message> = std::iter::once(route::set_up(ifname))
        .chain(requests)
        .collect();
    netlink::first_error("add addresses and routes", socket.send_all(requests)?)
}

fn pod_address(ip: IpAddr, index: u32) -> Address {
    Address {
        index,
        ip,
        prefix: full_prefix(ip),
        protocol: OWNER,
        deprecated: false,
    }
}

fn check_pod(ifname: &str, addresses: &[IpAddr]) -> Result<()> {
    let changed = |what: String| Err(Error::Changed { what });
    let system = || Error::system("look at the pod's network");
    let mut socket = Socket::route().map_err(system())?;
    let Some(link) = find_link(&mut socket, ifname)? else {
        return changed(format!("the pod has no interface {ifname:?}"));
    };
    if !link.up {
        return changed(format!("the pod's interface {ifname:?} is down"));
    }
    let mut present = Vec::new();
    socket
        .ask("list addresses", route::dump_addresses(), |m| {
            let address = Address::parse(m).filter(|address| address.index == link.index);
            present.extend(address.map(|address| address.ip));
        })
        .map_err(system())?;
    for ip in addresses {
        if !present.contains(ip) {
            return changed(format!("the pod's interface {ifname:?} has not {ip}"));
        }
        let wanted = default_route(gateway(*ip), link.index);
        let mut found = false;
        socket
            .ask("list routes", route::dump_routes(ip.is_ipv4()), |m| {
                let same = |route: Route| {
                    (route.prefix, route.index, route.via)
                        == (wanted.prefix, wanted.index, wanted.via)
                };
                found |= Route::parse(m).is_some_and(same);
            })
            .map_err(system())?;
        if !found {
            return changed(format!("the pod has no default route by {}", gateway(*ip)));
        }
    }
    Ok(())
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
