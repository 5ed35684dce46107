//! Several LPARs on one machine: each has a network namespace as its TCP/IP stack, and one more is the network between
//! them.
//!
//! ```text
//!   zt7 (sysplex)   bridge plex ---- zt8 (LPAR 1) eth0 10.90.0.1, lo 10.91.1.249...  <- VIPARANGE 10.91.1.248/29
//!                       |----------- zt9 (LPAR 2) eth0 10.90.0.2, lo 10.91.2.249...  <- VIPARANGE 10.91.2.248/29
//! ```
//!
//! Every LPAR routes the range of every other one to that one's home address, as OMPROUTE would have it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::node::Slot;

/// LPARs that a sysplex can have; each knows the way to all others from its start.
const MAX: u8 = 8;

/// The network between LPARs, and its name.
#[derive(Debug)]
pub struct Sysplex {
    slot: Slot,
    joined: std::sync::atomic::AtomicU8,
}

impl Sysplex {
    /// An empty sysplex.
    ///
    /// # Errors
    /// There is no slot, or a namespace cannot be made.
    pub fn new() -> Result<Self> {
        let slot = Slot::take()?;
        let name = slot.name();
        // One that a killed test left.
        remove(&name);
        ip(&format!("netns add {name}"))?;
        let plex = Self {
            slot,
            joined: 0.into(),
        };
        ip(&format!("-n {name} link add plex type bridge"))?;
        ip(&format!("-n {name} link set plex up"))?;
        Ok(plex)
    }

    /// The next LPAR.
    ///
    /// # Errors
    /// It is full.
    pub fn lpar(&self) -> Result<Lpar> {
        let before = self
            .joined
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ensure!(before < MAX, "a sysplex has at most {MAX} LPARs here");
        Ok(Lpar {
            plex: self.slot.name(),
            number: before + 1,
        })
    }
}

impl Drop for Sysplex {
    fn drop(&mut self) {
        remove(&self.slot.name());
    }
}

/// An LPAR's place in a sysplex.
#[derive(Debug, Clone)]
pub struct Lpar {
    plex: String,
    number: u8,
}

impl Lpar {
    /// Its VIPARANGE: six addresses can be used, the first and the last are the network's own.
    pub fn range(&self) -> String {
        range(self.number)
    }

    /// Its home address.
    pub fn home(&self) -> String {
        home(self.number)
    }

    /// Makes the TCP/IP stack, which has the name of the node's slot.
    pub(crate) fn start_stack(&self, slot: &Slot) -> Result<()> {
        let (name, plex) = (slot.name(), &self.plex);
        remove(&name);
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        // The adapter's address outlives an IPL, as neighbours remember it.
        let mac = format!("02:5a:43:52:00:{:02x}", self.number);
        ip(&format!(
            "-n {plex} link add {name} type veth peer name eth0 address {mac} netns {name}"
        ))?;
        ip(&format!("-n {plex} link set {name} master plex up"))?;
        let home = self.home();
        ip(&format!("-n {name} addr add {home}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        for other in (1..=MAX).filter(|other| *other != self.number) {
            let (to, via) = (range(other), self::home(other));
            ip(&format!("-n {name} route add {to} via {via}"))?;
        }
        Ok(())
    }

    /// Cuts the LPAR off from all others, or undoes that.
    ///
    /// # Errors
    /// Its stack is not there.
    pub(crate) fn cut_off(&self, slot: &Slot, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        ip(&format!(
            "-n {} link set {} {state}",
            self.plex,
            slot.name()
        ))
    }
}

fn range(number: u8) -> String {
    format!("10.91.{number}.248/29")
}

fn home(number: u8) -> String {
    format!("10.90.0.{number}")
}

/// Where the stack of a node is named, if it has one of its own.
pub(crate) fn stack(slot: &Slot) -> Option<PathBuf> {
    Some(Path::new("/run/netns").join(slot.name())).filter(|path| path.exists())
}

/// Removes a stack with everything in it.
pub(crate) fn remove(name: &str) {
    if Path::new("/run/netns").join(name).exists() {
        // The audit of the next test would tell.
        drop(Command::new("ip").args(["netns", "del", name]).output());
    }
}

/// The dynamic VIPAs that are active on the stack of a node.
pub fn vipas(slot: &Slot) -> Vec<String> {
    if stack(slot).is_none() {
        return Vec::new();
    }
    let name = slot.name();
    let output = Command::new("ip")
        .args(["-n", &name, "-o", "addr", "show", "dev", "lo"])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let words = |line: &str| {
        let address = line.split_whitespace().nth(3)?;
        (!address.starts_with("127.") && address != "::1/128").then(|| address.to_owned())
    };
    text.unwrap_or_default().lines().filter_map(words).collect()
}

/// Makes a server of this machine's loopback address reachable at the same address and port of a node's own stack.
pub(crate) async fn forward(slot: &Slot, server: SocketAddr) -> Result<JoinHandle<()>> {
    let path = stack(slot).context("the node has no stack of its own")?;
    let bind = move || -> Result<std::net::TcpListener> {
        let file = std::fs::File::open(&path)?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )?;
        let listener = std::net::TcpListener::bind(server)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    // A thread of its own: it cannot come back from there.
    let bound = std::thread::spawn(bind).join();
    let bound = bound.map_err(|_panic| anyhow::anyhow!("the thread panicked"))?;
    let listener = TcpListener::from_std(bound.context("listen on the node's own stack")?)?;
    Ok(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(server).await {
                    // Either side may end the connection as it likes.
                    tokio::io::copy_bidirectional(&mut client, &mut server)
                        .await
                        .ok();
                }
            });
        }
    }))
}

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {}", said.trim());
    Ok(())
}
