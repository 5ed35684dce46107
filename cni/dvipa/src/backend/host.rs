//! What the backends ask the host's own network.

use std::net::IpAddr;

use zcri_sys::netlink::{
    self, Socket,
    route::{self, Link, Matched},
};

use crate::error::{Error, Result};

// Kernel error numbers. Source: `asm-generic/errno.h`.
pub(super) const ENOENT: i32 = 2;
pub(super) const ENODEV: i32 = 19;
pub(super) const EEXIST: i32 = 17;
pub(super) const EADDRNOTAVAIL: i32 = 99;
/// No route, or one that refuses packets: a whole range is often routed to nowhere. ENETUNREACH, EHOSTUNREACH, EINVAL
/// (blackhole) and EACCES (prohibit).
const NO_ROUTE: [i32; 4] = [101, 113, 22, 13];

/// The kernel's error number.
pub(super) fn errno(error: &zcri_sys::Error) -> Option<i32> {
    error.io().and_then(netlink::errno)
}

/// The length of a prefix that is one address.
pub(super) fn full_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The link of this name.
pub(super) fn find_link(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut link = None;
    let answer = socket.ask("look at an interface", route::get_link(name), |m| {
        link = Link::parse(m);
    });
    match answer {
        Ok(()) => Ok(link),
        Err(e) if errno(&e) == Some(ENODEV) => Ok(None),
        Err(e) => Err(Error::system(format!("cannot look at interface {name}"))(e)),
    }
}

/// The routing entry for an address, if there is one that leads anywhere.
pub(super) fn matched(socket: &mut Socket, ip: IpAddr) -> Result<Option<Matched>> {
    let mut matched = None;
    let answer = socket.ask("match a route", route::match_route(ip), |m| {
        matched = Matched::parse(m);
    });
    match answer {
        Ok(()) => Ok(matched),
        Err(e) if errno(&e).is_some_and(|e| NO_ROUTE.contains(&e)) => Ok(None),
        Err(e) => Err(Error::system(format!("cannot look for a route to {ip}"))(e)),
    }
}

/// Where an address is active, if it is: on the host, or behind a route to it alone.
pub(super) fn active(socket: &mut Socket, ip: IpAddr) -> Result<Option<String>> {
    Ok(match matched(socket, ip)? {
        Some(entry) if entry.local => Some("on this host".to_owned()),
        Some(entry) if entry.prefix == full_prefix(ip) => {
            Some("behind a route of this host".to_owned())
        }
        _ => None,
    })
}
