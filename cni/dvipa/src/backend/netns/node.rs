//! What the node itself needs so that packets of pods are forwarded.

use std::{fs, io, net::IpAddr};

use crate::{
    error::{Error, Result},
    log::Log,
};

/// The MTU where nothing says another.
pub(super) const ETHERNET_MTU: u32 = 1500;

/// The greatest MTU that a veth pair takes. Source: Linux, `ETH_MAX_MTU`.
pub(super) const MAX_MTU: u32 = 65535;

/// Addresses that no node has (RFC 5737, RFC 3849), for which the default route is what matches.
pub(super) const SOMEWHERE: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(
        0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1,
    )),
];

const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const CONF_V6: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on for the families of these addresses, if it is off.
pub(super) fn forward(addresses: &[IpAddr], log: &Log) -> Result<()> {
    if addresses.iter().any(IpAddr::is_ipv4) && is_off(FORWARD_V4)? {
        set(FORWARD_V4, "1")?;
        log.line("switched IPv4 forwarding on");
    }
    if addresses.iter().any(IpAddr::is_ipv6) && is_off(FORWARD_V6)? {
        keep_router_advertisements()?;
        set(FORWARD_V6, "1")?;
        log.line("switched IPv6 forwarding on");
    }
    Ok(())
}

/// A node that forwards no longer takes its default route from its router, unless `accept_ra` is 2. Source: Linux,
/// Documentation/networking/ip-sysctl.rst, "accept_ra".
fn keep_router_advertisements() -> Result<()> {
    let entries = fs::read_dir(CONF_V6).map_err(|source| failed(CONF_V6, source))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let file = format!("{CONF_V6}/{}/accept_ra", name.to_string_lossy());
        let takes = fs::read_to_string(&file).is_ok_and(|text| text.trim() == "1");
        if takes && name != "all" && name != "default" && name != "lo" {
            set(&file, "2")?;
        }
    }
    Ok(())
}

/// Whether packets are forwarded.
///
/// # Errors
/// They are not.
pub(super) fn forwards(v6: bool) -> Result<()> {
    let files: &[&str] = if v6 {
        &[FORWARD_V4, FORWARD_V6]
    } else {
        &[FORWARD_V4]
    };
    for file in files {
        if is_off(file)? {
            let reason = format!("{file} is 0, and this plugin may not change it (forwarding)");
            return Err(Error::NotReady {
                reason,
                limited: true,
            });
        }
    }
    Ok(())
}

/// Allows IPv6 on an interface of the calling thread's namespace where the default forbids it.
pub(super) fn enable_ipv6(link: &str) -> zcri_sys::Result<()> {
    let file = format!("{CONF_V6}/{link}/disable_ipv6");
    match fs::read_to_string(&file) {
        Ok(text) if text.trim() != "0" => fs::write(&file, "0"),
        Ok(_) => Ok(()),
        Err(source) => Err(source),
    }
    .map_err(|source| zcri_sys::Error::Path {
        op: "enable IPv6 by",
        path: file.into(),
        source,
    })
}

fn is_off(file: &str) -> Result<bool> {
    let text = fs::read_to_string(file).map_err(|source| failed(file, source))?;
    Ok(text.trim() == "0")
}

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(file, value).map_err(|source| failed(file, source))
}

fn failed(file: &str, source: io::Error) -> Error {
    Error::system("set up forwarding")(zcri_sys::Error::Path {
        op: "read or set",
        path: file.into(),
        source,
    })
}
