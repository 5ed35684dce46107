//! Ports of the node that lead to pods.
//!
//! Plugins such as portmap take any rule: of two pods with the same host port one silently gets nothing. So the ports
//! are kept here, from before the attachment until it surely is gone, and a conflict is an error of RunPodSandbox.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zcri_sys::listeners::{Transport, listeners};

use crate::error::{Error, Result};
use crate::pod::config::{PortMapping, Protocol};

/// The ports of all pods, by the pods' ids.
#[derive(Default)]
pub(super) struct HostPorts(Mutex<BTreeMap<String, Vec<Port>>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Port {
    protocol: Protocol,
    number: u16,
    /// None is every address of the node.
    address: Option<IpAddr>,
}

impl Port {
    /// The port of the node, if the mapping has one.
    fn of(mapping: &PortMapping) -> Option<Self> {
        (mapping.host_port != 0).then_some(Self {
            protocol: mapping.protocol,
            number: mapping.host_port,
            address: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
        })
    }

    fn collides(self, other: Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.protocol == other.protocol && self.number == other.number && same_address
    }

    fn conflict(self, with: &str) -> Error {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        let at = self.address.map_or(String::new(), |ip| format!(" of {ip}"));
        Error::Invalid {
            field: "port_mappings.host_port",
            value: self.number.to_string(),
            reason: format!("{protocol} port {}{at} is taken by {with}", self.number),
        }
    }

    /// Whether a process of the node listens there. A protocol that the kernel does not have is nobody's.
    ///
    /// A port that only is the near end of a connection to elsewhere is free: a rule for new connections does not
    /// touch it. What listens on one address only, 127.0.0.53 for instance, would be cut off by a rule for all.
    fn is_listened_on(self) -> bool {
        let ip = self.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let address = SocketAddr::new(ip, self.number);
        let (refused, transport) = match self.protocol {
            Protocol::Tcp => (TcpListener::bind(address).err(), Transport::Tcp),
            Protocol::Udp => (UdpSocket::bind(address).err(), Transport::Udp),
            Protocol::Sctp => return false,
        };
        if refused.is_none_or(|error| error.kind() != std::io::ErrorKind::AddrInUse) {
            return false;
        }
        let here = |ip: IpAddr| ip.is_unspecified() || self.address.is_none_or(|own| own == ip);
        let mut listeners = listeners(transport).into_iter();
        listeners.any(|other| other.port() == self.number && here(other.ip()))
    }
}

impl HostPorts {
    /// Takes the ports of a pod.
    ///
    /// # Errors
    /// One is another pod's, or a process of the node listens on it; then none is taken.
    pub(super) fn take(&self, id: &str, mappings: &[PortMapping]) -> Result<()> {
        let mut wanted: Vec<Port> = Vec::new();
        let mut all = self.lock();
        for port in mappings.iter().filter_map(Port::of) {
            if wanted.iter().any(|other| other.collides(port)) {
                return Err(port.conflict("another mapping of the same pod"));
            }
            let holder = all.iter().find(|(other, ports)| {
                other.as_str() != id && ports.iter().any(|taken| taken.collides(port))
            });
            if let Some((other, _)) = holder {
                return Err(port.conflict(&format!("pod sandbox {other}")));
            }
            if port.is_listened_on() {
                return Err(port.conflict("a process of the node"));
            }
            wanted.push(port);
        }
        if !wanted.is_empty() {
            all.insert(id.to_owned(), wanted);
        }
        Ok(())
    }

    /// The ports of a pod that was attached before the daemon started.
    pub(super) fn remember(&self, id: &str, mappings: &[PortMapping]) {
        let ports: Vec<Port> = mappings.iter().filter_map(Port::of).collect();
        if !ports.is_empty() {
            self.lock().insert(id.to_owned(), ports);
        }
    }

    /// Gives the ports of a pod back.
    pub(super) fn release(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Port>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(protocol: Protocol, host_port: u16, host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            protocol,
            container_port: 80,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    /// Ports that nobody listens on: SCTP has no listeners here.
    #[test]
    fn a_port_has_one_holder() {
        let ports = HostPorts::default();
        let (a, b) = (Some("192.0.2.1"), Some("192.0.2.2"));
        let take = |id: &str, port, ip| ports.take(id, &[mapping(Protocol::Sctp, port, ip)]);
        take("one", 80, a).unwrap();
        take("two", 80, b).unwrap();
        take("three", 81, a).unwrap();
        for (port, ip) in [(80, a), (80, None), (80, Some("0.0.0.0")), (81, None)] {
            let error = take("four", port, ip).unwrap_err().to_string();
            assert!(
                error.contains(&port.to_string()) && error.contains("pod sandbox"),
                "{error}"
            );
        }
        // The same pod asks again, after a daemon that died.
        take("one", 80, a).unwrap();
        ports.release("one");
        take("four", 80, a).unwrap();
        // Without a port of the node there is nothing to take.
        take("five", 0, None).unwrap();
        take("six", 0, None).unwrap();
    }

    #[test]
    fn one_pod_has_a_port_once() {
        let ports = HostPorts::default();
        let twice = [
            mapping(Protocol::Sctp, 80, None),
            mapping(Protocol::Sctp, 80, None),
        ];
        ports.take("one", &twice).unwrap_err();
        let different = [
            mapping(Protocol::Sctp, 80, None),
            mapping(Protocol::Udp, 0, None),
        ];
        ports.take("one", &different).unwrap();
    }

    #[test]
    fn what_the_node_listens_on_is_taken() {
        let ports = HostPorts::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let wanted = [mapping(Protocol::Tcp, number, Some("127.0.0.1"))];
        let error = ports.take("one", &wanted).unwrap_err().to_string();
        assert!(error.contains("a process of the node"), "{error}");
        // Also of all addresses: the rule of a mapping leads away what is sent to this one, too.
        let everywhere = [mapping(Protocol::Tcp, number, None)];
        ports.take("one", &everywhere).unwrap_err();
        drop(listener);
        ports.take("one", &wanted).unwrap();
    }

    #[test]
    fn a_connection_to_elsewhere_holds_no_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let number = client.local_addr().unwrap().port();
        let wanted = [mapping(Protocol::Tcp, number, None)];
        HostPorts::default().take("one", &wanted).unwrap();
    }
}
