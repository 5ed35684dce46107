//! Connections to ports inside a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use tokio::net::{TcpSocket, TcpStream};
use zcri_sys::namespace::{AddressFamily, tcp_socket};

use super::config::PodScope;
use super::files::PodFiles;
use super::view::{PodState, PodView};
use crate::error::{Error, Result};
use crate::node::blocking;

/// How a pod's ports are reached.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// By the loopback addresses of its network namespace.
    Namespace(PathBuf),
    /// By those of the host, whose network is the pod's.
    Host,
    /// By the pod's own addresses in the host's network stack.
    Addresses(Vec<IpAddr>),
}

fn way(pod: &PodView) -> Option<Way> {
    if pod.config.namespaces.network == PodScope::Node {
        return Some(Way::Host);
    }
    let namespace = PodFiles::new(pod.bundle.clone()).namespace("net");
    if namespace.exists() {
        return Some(Way::Namespace(namespace));
    }
    let addresses: Vec<IpAddr> = pod.addresses.iter().flat_map(|ip| ip.parse()).collect();
    (!addresses.is_empty()).then_some(Way::Addresses(addresses))
}

/// Connects to a port of a pod: by IPv4 loopback, and if nobody listens there by IPv6 loopback, as containerd does.
///
/// # Errors
/// The pod is not ready, or refuses the connection.
///
/// # Cancel safety
/// Safe: a connection that nobody gets is closed.
pub(crate) async fn connect(pod: &PodView, port: u16) -> Result<TcpStream> {
    let refuse = |state| Error::State {
        what: "pod sandbox",
        id: pod.id.to_string(),
        state,
        action: "forward a port",
    };
    if pod.state != PodState::Ready {
        return Err(refuse("not ready"));
    }
    let failed = |source| Error::node(format!("connect to port {port} of pod {}", pod.id), source);
    let (namespace, addresses) = match way(pod).ok_or_else(|| refuse("without a network"))? {
        Way::Namespace(path) => (Some(path), loopback()),
        Way::Host => (None, loopback()),
        Way::Addresses(addresses) => (None, addresses),
    };
    let mut why: Option<Error> = None;
    for address in addresses {
        let connecting = async {
            let socket = socket(namespace.clone(), address).await?;
            let connected = socket.connect(SocketAddr::new(address, port)).await;
            connected.map_err(failed)
        };
        match connecting.await {
            Ok(stream) => {
                // Bytes are forwarded as they come: holding small ones back would only delay them.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            // The first reason is the one to tell: a node without IPv6 has another for that, which explains nothing.
            Err(error) => why = why.or(Some(error)),
        }
    }
    Err(why.unwrap_or_else(|| refuse("without an address")))
}

fn loopback() -> Vec<IpAddr> {
    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

/// A socket that belongs to a network namespace whoever uses it.
async fn socket(namespace: Option<PathBuf>, address: IpAddr) -> Result<TcpSocket> {
    let Some(namespace) = namespace else {
        let made = match address {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        return made.map_err(|e| Error::node("make a socket", e));
    };
    let family = match address {
        IpAddr::V4(_) => AddressFamily::V4,
        IpAddr::V6(_) => AddressFamily::V6,
    };
    let socket = blocking(move || {
        tcp_socket(&namespace, family).map_err(|e| Error::node("make a socket in a pod", e))
    })
    .await?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
