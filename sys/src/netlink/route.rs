//! Links, addresses, routes and neighbours: requests as [`Message`]s, and what the kernel answers.
//!
//! Source: rtnetlink(7); `linux/if_link.h`, `linux/if_addr.h`, `linux/rtnetlink.h`, `linux/neighbour.h`.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{Message, Received, attributes, text, u32_at};

/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// `IFA_PROTO` of `linux/if_addr.h`: who made an address (Linux 5.18).
const IFA_PROTO: u16 = 11;
/// `RTNH_F_ONLINK` of `linux/rtnetlink.h`.
const RTNH_F_ONLINK: u32 = 4;

/// A hardware address.
pub type Mac = [u8; 6];

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
}

/// Makes a veth pair: one end here, the other, under its final name, in the network namespace `netns`. Both are down:
/// neither can be up before the other is there.
pub fn new_veth(here: VethEnd<'_>, there: VethEnd<'_>, mtu: u32, netns: BorrowedFd<'_>) -> Message {
    let netns = netns.as_raw_fd().cast_unsigned();
    let end = |m: Message, end: VethEnd<'_>| {
        m.text(libc::IFLA_IFNAME, end.name)
            .attr(libc::IFLA_ADDRESS, &end.mac)
            .u32(libc::IFLA_MTU, mtu)
    };
    let message = Message::new(
        libc::RTM_NEWLINK,
        flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL),
        &ifinfomsg(0, 0, 0),
    );
    end(message, here).nest(libc::IFLA_LINKINFO, |m| {
        m.text(libc::IFLA_INFO_KIND, "veth")
            .nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    end(m.raw(&ifinfomsg(0, 0, 0)), there).u32(libc::IFLA_NET_NS_FD, netns)
                })
            })
    })
}

/// Sets the link `name` up.
pub fn set_up(name: &str) -> Message {
    let up = libc::IFF_UP.cast_unsigned();
    Message::new(libc::RTM_NEWLINK, 0, &ifinfomsg(0, up, up)).text(libc::IFLA_IFNAME, name)
}

/// Gives the link `name` a note for people, at most 255 bytes.
pub fn set_alias(name: &str, alias: &str) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &ifinfomsg(0, 0, 0))
        .text(libc::IFLA_IFNAME, name)
        .attr(libc::IFLA_IFALIAS, alias.as_bytes())
}

/// Removes the link `name`.
pub fn del_link(name: &str) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &ifinfomsg(0, 0, 0)).text(libc::IFLA_IFNAME, name)
}

/// Removes the link with this index.
pub fn del_link_by_index(index: u32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &ifinfomsg(index, 0, 0))
}

/// Asks for the link `name`; [`Link::parse`] reads the answer.
pub fn get_link(name: &str) -> Message {
    Message::new(libc::RTM_GETLINK, 0, &ifinfomsg(0, 0, 0)).text(libc::IFLA_IFNAME, name)
}

/// Asks for the link with this index.
pub fn get_link_by_index(index: u32) -> Message {
    Message::new(libc::RTM_GETLINK, 0, &ifinfomsg(index, 0, 0))
}

/// Asks for all links.
pub fn dump_links() -> Message {
    Message::new(
        libc::RTM_GETLINK,
        flags(libc::NLM_F_DUMP),
        &ifinfomsg(0, 0, 0),
    )
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether an administrator set it up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its hardware address, if that is of 6 bytes.
    pub mac: Option<Mac>,
    /// The note of [`set_alias`].
    pub alias: Option<String>,
}

impl Link {
    /// From an answer of the kernel.
    pub fn parse(received: Received<'_>) -> Option<Self> {
        let fixed = received.payload.get(..16)?;
        let mut link = Link {
            index: u32_at(fixed, 4)?,
            name: String::new(),
            up: u32_at(fixed, 8)? & libc::IFF_UP.cast_unsigned() != 0,
            mtu: 0,
            mac: None,
            alias: None,
        };
        for (kind, value) in attributes(received.payload.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
                libc::IFLA_IFALIAS => link.alias = Some(text(value)),
                _ => {}
            }
        }
        Some(link)
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Who made it (`IFA_PROTO`); 0 is no one that says so.
    pub protocol: u8,
    /// It may be used, but is not chosen as a source where there is another. IPv6 only.
    pub deprecated: bool,
}

impl Address {
    /// Adds it, if it is not there. It is usable at once: no duplicate address detection runs.
    pub fn add(&self) -> Message {
        let message = Message::new(
            libc::RTM_NEWADDR,
            flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            &self.ifaddrmsg(),
        );
        let message = self.attrs(message).attr(IFA_PROTO, &[self.protocol]);
        let message = if self.ip.is_ipv6() {
            message.u32(libc::IFA_FLAGS, libc::IFA_F_NODAD)
        } else {
            message
        };
        if self.deprecated {
            message.attr(libc::IFA_CACHEINFO, &lifetimes(0))
        } else {
            message
        }
    }

    /// Removes it.
    pub fn remove(&self) -> Message {
        self.attrs(Message::new(libc::RTM_DELADDR, 0, &self.ifaddrmsg()))
    }

    fn attrs(&self, message: Message) -> Message {
        let octets = octets(self.ip);
        message
            .attr(libc::IFA_LOCAL, &octets)
            .attr(libc::IFA_ADDRESS, &octets)
    }

    fn ifaddrmsg(&self) -> [u8; 8] {
        let [a, b, c, d] = self.index.to_ne_bytes();
        [family(self.ip), self.prefix, 0, 0, a, b, c, d]
    }

    /// From an answer of the kernel.
    pub fn parse(received: Received<'_>) -> Option<Self> {
        let fixed = received.payload.get(..8)?;
        let (mut local, mut address, mut protocol, mut flags) = (None, None, 0, 0);
        for (kind, value) in attributes(received.payload.get(8..)?) {
            match kind {
                libc::IFA_LOCAL => local = ip(value),
                libc::IFA_ADDRESS => address = ip(value),
                libc::IFA_FLAGS => flags = u32_at(value, 0)?,
                IFA_PROTO => protocol = *value.first()?,
                _ => {}
            }
        }
        Some(Self {
            index: u32_at(fixed, 4)?,
            ip: local.or(address)?,
            prefix: fixed[1],
            protocol,
            deprecated: flags & libc::IFA_F_DEPRECATED != 0,
        })
    }
}

/// `struct ifa_cacheinfo`: preferred for so many seconds, valid for ever.
fn lifetimes(preferred: u32) -> [u8; 16] {
    let mut info = [0; 16];
    info[0..4].copy_from_slice(&preferred.to_ne_bytes());
    info[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    info
}

/// Asks for all addresses.
pub fn dump_addresses() -> Message {
    Message::new(libc::RTM_GETADDR, flags(libc::NLM_F_DUMP), &[0; 8])
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpAddr,
    /// Length of the prefix.
    pub prefix: u8,
    /// The next hop, which counts as a neighbour whatever the other routes say.
    pub via: Option<IpAddr>,
    /// The interface.
    pub index: u32,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
}

impl Route {
    /// Adds it, if there is none like it.
    pub fn add(&self) -> Message {
        self.message(
            libc::RTM_NEWROUTE,
            flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL),
        )
    }

    /// Removes it.
    pub fn remove(&self) -> Message {
        self.message(libc::RTM_DELROUTE, 0)
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let scope = match self.via {
            None if self.to.is_ipv4() => libc::RT_SCOPE_LINK,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        let onlink = if self.via.is_some() { RTNH_F_ONLINK } else { 0 };
        let fixed = rtmsg(self.to, self.prefix, self.protocol, scope, onlink);
        let message = Message::new(kind, flags, &fixed);
        let message = if self.prefix > 0 {
            message.attr(libc::RTA_DST, &octets(self.to))
        } else {
            message
        };
        let message = match self.via {
            Some(via) => message.attr(libc::RTA_GATEWAY, &octets(via)),
            None => message,
        };
        message.u32(libc::RTA_OIF, self.index)
    }
}

/// What the kernel would use for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// Length of the prefix of the entry that matches best.
    pub prefix: u8,
    /// Whether the destination is an address of this host.
    pub local: bool,
    /// Who made the entry.
    pub protocol: u8,
    /// The interface.
    pub index: Option<u32>,
}

/// Asks for the entry of the routing tables that matches `to` best; [`Matched::parse`] reads the answer. No such
/// entry is the error ENETUNREACH.
pub fn match_route(to: IpAddr) -> Message {
    let length = if to.is_ipv4() { 32 } else { 128 };
    let fixed = rtmsg(to, length, 0, 0, libc::RTM_F_FIB_MATCH);
    Message::new(libc::RTM_GETROUTE, 0, &fixed).attr(libc::RTA_DST, &octets(to))
}

/// Asks for all routes of one family.
pub fn dump_routes(v4: bool) -> Message {
    let mut fixed = [0; 12];
    fixed[0] = if v4 { FAMILY_V4 } else { FAMILY_V6 };
    Message::new(libc::RTM_GETROUTE, flags(libc::NLM_F_DUMP), &fixed)
}

impl Matched {
    /// From an answer of the kernel.
    pub fn parse(received: Received<'_>) -> Option<Self> {
        let fixed = received.payload.get(..12)?;
        let oif = attributes(received.payload.get(12..)?)
            .find(|(kind, _)| *kind == libc::RTA_OIF)
            .and_then(|(_, value)| u32_at(value, 0));
        Some(Self {
            prefix: fixed[1],
            protocol: fixed[5],
            local: matches!(fixed[7], libc::RTN_LOCAL | libc::RTN_ANYCAST),
            index: oif,
        })
    }
}

impl Route {
    /// From an answer of the kernel; none for a route that is not of the main table.
    pub fn parse(received: Received<'_>) -> Option<Self> {
        let fixed = received.payload.get(..12)?;
        if fixed[4] != libc::RT_TABLE_MAIN || fixed[7] != libc::RTN_UNICAST {
            return None;
        }
        let (mut to, mut via, mut index) = (None, None, None);
        for (kind, value) in attributes(received.payload.get(12..)?) {
            match kind {
                libc::RTA_DST => to = ip(value),
                libc::RTA_GATEWAY => via = ip(value),
                libc::RTA_OIF => index = u32_at(value, 0),
                _ => {}
            }
        }
        let any = if fixed[0] == FAMILY_V4 {
            IpAddr::from([0; 4])
        } else {
            IpAddr::from([0; 16])
        };
        Some(Self {
            to: to.unwrap_or(any),
            prefix: fixed[1],
            via,
            index: index?,
            protocol: fixed[5],
        })
    }
}

/// A neighbour that is never asked for its hardware address.
pub fn permanent_neighbour(index: u32, ip: IpAddr, mac: Mac) -> Message {
    // struct ndmsg
    let mut fixed = [0; 12];
    fixed[0] = family(ip);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    Message::new(
        libc::RTM_NEWNEIGH,
        flags(libc::NLM_F_CREATE | libc::NLM_F_REPLACE),
        &fixed,
    )
    .attr(libc::NDA_DST, &octets(ip))
    .attr(libc::NDA_LLADDR, &mac)
}

const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

/// `struct ifinfomsg`
fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// `struct rtmsg`
fn rtmsg(to: IpAddr, prefix: u8, protocol: u8, scope: u8, flags: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = family(to);
    bytes[1] = prefix;
    bytes[4] = libc::RT_TABLE_MAIN;
    bytes[5] = protocol;
    bytes[6] = scope;
    bytes[7] = libc::RTN_UNICAST;
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn flags(flags: libc::c_int) -> u16 {
    u16::try_from(flags).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::messages;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for (ip, prefix) in [("192.0.2.1", 32), ("2001:db8::1", 128)] {
            let address = Address {
                index: 7,
                ip: ip.parse().unwrap(),
                prefix,
                protocol: 122,
                deprecated: false,
            };
            let bytes = address.add().finish(1);
            let read = messages(&bytes).next().and_then(Address::parse);
            assert_eq!(read, Some(address));
        }
    }

    #[test]
    fn a_route_is_read_as_it_is_written() {
        let route = Route {
            to: "0.0.0.0".parse().unwrap(),
            prefix: 0,
            via: Some("169.254.1.1".parse().unwrap()),
            index: 3,
            protocol: 122,
        };
        let bytes = route.add().finish(1);
        assert_eq!(messages(&bytes).next().and_then(Route::parse), Some(route));
    }

    #[test]
    fn lo_is_found_with_its_mtu_and_address() {
        let mut socket = crate::netlink::Socket::route().unwrap();
        let mut link = None;
        socket
            .ask("ask for lo", get_link("lo"), |m| link = Link::parse(m))
            .unwrap();
        let link = link.unwrap();
        assert_eq!((link.name.as_str(), link.index), ("lo", 1));
        let mut seen = Vec::new();
        socket
            .ask("list addresses", dump_addresses(), |m| {
                seen.extend(Address::parse(m));
            })
            .unwrap();
        assert!(seen.iter().any(|a| a.index == 1 && a.ip.is_loopback()));
        let mut matched = None;
        socket
            .ask("match", match_route("127.0.0.1".parse().unwrap()), |m| {
                matched = Matched::parse(m);
            })
            .unwrap();
        assert!(matched.unwrap().local);
        let gone = socket
            .ask("ask", get_link("no-such-link"), |_| {})
            .unwrap_err();
        let errno = gone.io().and_then(crate::netlink::errno);
        assert_eq!(errno, Some(libc::ENODEV));
    }
}
