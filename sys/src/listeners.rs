//! Who listens in the network namespace of this process.
//!
//! Source: proc_pid_net(5) and Linux, Documentation/networking/proc_net_tcp.rst.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A protocol whose sockets the kernel lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP: sockets that listen.
    Tcp,
    /// UDP: sockets that are not connected.
    Udp,
}

/// The addresses that are listened on; none where the system has no such list.
#[must_use]
pub fn listeners(transport: Transport) -> Vec<SocketAddr> {
    // TCP_LISTEN, and TCP_CLOSE, which is what a UDP socket without a peer is in (net/tcp_states.h).
    let (files, state) = match transport {
        Transport::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        Transport::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    };
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| parse(line, state)));
    }
    found
}

/// `  0: 0100007F:0035 00000000:0000 0A ...`: number, local address, peer, state.
fn parse(line: &str, wanted: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = words.next()?;
    let state = words.nth(1)?;
    if state != wanted {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, to) in octets.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(address.get(at * 8..at * 8 + 8)?)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Addresses are printed word by word, as this machine reads them from memory.
fn word(digits: &str) -> Option<[u8; 4]> {
    Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn listeners_are_found_and_nobody_else() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let local = listener.local_addr().unwrap();
            assert!(listeners(Transport::Tcp).contains(&local), "{local}");
            let udp = UdpSocket::bind(address).unwrap();
            let local = udp.local_addr().unwrap();
            assert!(listeners(Transport::Udp).contains(&local), "{local}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let all = listeners(Transport::Tcp);
        assert!(all.iter().all(|address| address.port() != port));
        assert_eq!(parse("", "0A"), None);
        assert_eq!(parse("0: 0100007F:zz 0:0 0A", "0A"), None);
    }
}
