//! A pod's program for the tests of the stack backend: does with sockets what standard input says, line by line, and
//! says on standard output what came of it.
//!
//! ```text
//! bind tcp|udp ADDRESS      a socket, bound; tcp listens     -> ok LOCAL
//! listen4                   listens without having bound     -> ok LOCAL
//! connect tcp|udp ADDRESS   a socket, connected              -> ok LOCAL PEER
//! accept                    of the last listener             -> ok PEER
//! send ADDRESS              a byte from an unbound UDP socket-> ok
//! reply                     receives at the last bound UDP socket, answers -> ok PEER
//! receive                   at the last UDP socket that sent or connected  -> ok PEER
//! again ADDRESS             connects the last UDP socket anew -> ok LOCAL PEER
//! v6only ADDRESS            a TCP listener with IPV6_V6ONLY  -> ok LOCAL
//! soon COMMAND              the same, with less patience: where nothing is expected
//! ```
//! What fails says `err ERRNO`; what waited in vain, `err 11`.

use std::{
    io::{self, BufRead as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType};

const PATIENCE: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Probe {
    patience: Duration,
    listener: Option<TcpListener>,
    streams: Vec<TcpStream>,
    bound: Option<UdpSocket>,
    sender: Option<UdpSocket>,
}

fn main() {
    let mut probe = Probe::default();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let (patience, words) = match words.as_slice() {
            ["soon", rest @ ..] => (SOON, rest),
            all => (PATIENCE, all),
        };
        probe.patience = patience;
        let said = match probe.obey(words) {
            Ok(said) => format!("ok {said}"),
            Err(e) => format!("err {}", e.raw_os_error().unwrap_or(-1)),
        };
        println!("{}", said.trim_end());
        drop(io::stdout().flush());
    }
}

impl Probe {
    fn obey(&mut self, words: &[&str]) -> io::Result<String> {
        match words {
            ["bind", "tcp", address] => {
                let listener = TcpListener::bind(parse(address)?)?;
                self.keep(listener)
            }
            ["bind", "udp", address] => {
                let socket = UdpSocket::bind(parse(address)?)?;
                let local = socket.local_addr()?;
                self.bound = Some(socket);
                Ok(local.to_string())
            }
            ["v6only", address] => {
                let socket = rustix::net::socket(AddressFamily::INET6, SocketType::STREAM, None)?;
                rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
                rustix::net::bind(&socket, &parse(address)?)?;
                rustix::net::listen(&socket, 5)?;
                self.keep(TcpListener::from(socket))
            }
            ["listen4"] => {
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
                rustix::net::listen(&socket, 5)?;
                self.keep(TcpListener::from(socket))
            }
            ["connect", "tcp", address] => {
                let stream = TcpStream::connect_timeout(&parse(address)?, self.patience)?;
                let said = format!("{} {}", stream.local_addr()?, stream.peer_addr()?);
                self.streams.push(stream);
                Ok(said)
            }
            ["connect", "udp", address] => {
                let socket = unbound(parse(address)?)?;
                self.sender = Some(socket);
                self.connect(parse(address)?)
            }
            ["again", address] => self.connect(parse(address)?),
            ["accept"] => self.accept(),
            ["send", address] => {
                let socket = unbound(parse(address)?)?;
                socket.send_to(&[1], parse(address)?)?;
                self.sender = Some(socket);
                Ok(String::new())
            }
            ["reply"] => {
                let socket = self.bound.as_ref().ok_or(io::ErrorKind::NotConnected)?;
                socket.set_read_timeout(Some(self.patience))?;
                let (_, peer) = socket.recv_from(&mut [0; 9])?;
                socket.send_to(&[2], peer)?;
                Ok(canonical(peer).to_string())
            }
            ["receive"] => {
                let socket = self.sender.as_ref().ok_or(io::ErrorKind::NotConnected)?;
                socket.set_read_timeout(Some(self.patience))?;
                let (_, peer) = socket.recv_from(&mut [0; 9])?;
                Ok(canonical(peer).to_string())
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn keep(&mut self, listener: TcpListener) -> io::Result<String> {
        let local = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        self.listener = Some(listener);
        Ok(local.to_string())
    }

    fn accept(&mut self) -> io::Result<String> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let end = Instant::now() + self.patience;
        loop {
            match listener.accept() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(e),
                Ok((stream, peer)) => {
                    self.streams.push(stream);
                    return Ok(canonical(peer).to_string());
                }
            }
        }
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<String> {
        let socket = self.sender.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        socket.connect(address)?;
        socket.send(&[1])?;
        Ok(format!("{} {}", socket.local_addr()?, socket.peer_addr()?))
    }
}

fn parse(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A UDP socket that nobody has bound.
fn unbound(to: SocketAddr) -> io::Result<UdpSocket> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket: OwnedFd = rustix::net::socket(family, SocketType::DGRAM, None)?;
    Ok(UdpSocket::from(socket))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V6(ip) => Ipv6Addr::to_ipv4_mapped(&ip).map_or(IpAddr::V6(ip), IpAddr::V4),
        v4 => v4,
    };
    SocketAddr::new(ip, address.port())
}
