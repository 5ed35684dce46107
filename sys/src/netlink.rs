//! Netlink: the kernel's links, addresses, routes and neighbours ([`route`]) and its packet filter ([`nft`]).
//!
//! A socket belongs to the network namespace in which it was made, wherever its owner goes later. Everything
//! blocks; the kernel answers within the call that sent the request, so that no one waits for anyone.

pub mod message;
pub mod nft;
pub mod removal;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::netlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{Error, Result};
use message::{Message, attributes, messages, text};

/// More than the kernel puts into one datagram. Source: Linux, `NLMSG_GOODSIZE` and `netlink_dump`.
const DATAGRAM: usize = 64 * 1024;
/// Attribute of an answer: what was wrong, in words. Source: `linux/netlink.h`, `enum nlmsgerr_attrs`.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// How often a listing is asked for that changed while the kernel gave it. Each takes less than a millisecond: a list
/// that changes in the midst of so many of them in a row changes without a pause.
const LISTINGS: usize = 100;

/// A socket to one of the kernel's netlink families.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

/// What the kernel said to one request of several.
pub type Answer = io::Result<()>;

impl Socket {
    /// For [`route`].
    ///
    /// # Errors
    /// The kernel has no such family, or this process may not open it.
    pub fn route() -> Result<Self> {
        Self::open(None)
    }

    /// For [`nft`].
    ///
    /// # Errors
    /// As [`Socket::route`].
    pub fn netfilter() -> Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// That hears of changes of links.
    pub(crate) fn route_events() -> Result<Self> {
        /// Bit of `RTNLGRP_LINK` of `linux/rtnetlink.h`.
        const LINKS: u32 = 1;
        let events = Self::open(None)?;
        rustix::net::bind(&events.socket, &netlink::SocketAddrNetlink::new(0, LINKS))
            .map_err(|e| Error::call("listen for changes of interfaces", e))?;
        Ok(events)
    }

    fn open(family: Option<Protocol>) -> Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            family,
        )
        .map_err(|e| Error::call("open a netlink socket", e))?;
        // Words with an error instead of a copy of the request: as good as possible, not needed.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            enable(&socket, option);
        }
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends requests in one datagram; the kernel obeys them in order, and goes on after one that fails.
    ///
    /// # Errors
    /// They could not be sent, or the answers not be read. What the kernel said to each is in the result.
    pub fn send_all(&mut self, requests: Vec<Message>) -> Result<Vec<Answer>> {
        let first = self.sequence + 1;
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
        let mut datagram = Vec::new();
        for mut request in requests {
            self.sequence += 1;
            request.set_flags(flag(libc::NLM_F_REQUEST | libc::NLM_F_ACK));
            datagram.extend(request.finish(self.sequence));
        }
        self.send(&datagram)?;
        while answers.iter().any(Option::is_none) {
            self.receive(|received| {
                let Some(index) = received.sequence.checked_sub(first) else {
                    return Ok(());
                };
                let place = usize::try_from(index).ok().and_then(|i| answers.get_mut(i));
                if let (Some(place), Some(answer)) = (place, answer(received)) {
                    *place = Some(answer);
                }
                Ok(())
            })?;
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// One request without a reply.
    ///
    /// # Errors
    /// It could not be sent, or the kernel refused it.
    pub fn send_one(&mut self, op: &'static str, request: Message) -> Result<()> {
        first_error(op, self.send_all(vec![request])?)
    }

    /// A batch of which the family makes all or nothing: `requests` between its first and last message.
    ///
    /// # Errors
    /// It could not be sent, or the first complaint of the kernel about one of them: nothing is made then.
    pub(crate) fn batch(
        &mut self,
        begin: Message,
        requests: Vec<Message>,
        end: Message,
    ) -> Result<()> {
        let first = self.sequence + 1;
        let mut datagram = Vec::new();
        let mut push = |mut message: Message, flags, sequence: &mut u32| {
            *sequence += 1;
            message.set_flags(flag(flags));
            datagram.extend(message.finish(*sequence));
        };
        push(begin, libc::NLM_F_REQUEST, &mut self.sequence);
        let mut waiting = Vec::new();
        for request in requests {
            push(
                request,
                libc::NLM_F_REQUEST | libc::NLM_F_ACK,
                &mut self.sequence,
            );
            waiting.push(self.sequence);
        }
        push(end, libc::NLM_F_REQUEST, &mut self.sequence);
        self.send(&datagram)?;
        let mut failed = None;
        while !waiting.is_empty() && failed.is_none() {
            self.receive(|received| {
                if received.sequence < first {
                    return Ok(());
                }
                match answer(received) {
                    Some(Err(error)) => failed = Some(error),
                    Some(Ok(())) => waiting.retain(|one| *one != received.sequence),
                    None => {}
                }
                Ok(())
            })?;
        }
        match failed {
            Some(source) => Err(Error::Call {
                op: "change the packet filter",
                source,
            }),
            None => Ok(()),
        }
    }

    /// One request, and everything that the kernel has to say to it, through `each`. A listing that the kernel says was
    /// interrupted, because the list changed meanwhile, may lack what was there all the time: it is asked for again.
    ///
    /// The kernel takes an address off its list before it counts the change, without a lock against listings (seen on
    /// Linux 6.18): now and then the last part of a long listing lacks one, and nothing says so. Whoever must not miss
    /// one looks in another way, too.
    ///
    /// # Errors
    /// It could not be sent, the kernel refused it, or a listing was interrupted each time. Nothing went to `each` then.
    pub fn ask(
        &mut self,
        op: &'static str,
        request: Message,
        each: impl FnMut(message::Received<'_>),
    ) -> Result<()> {
        self.ask_in_parts(op, request, each, || {})
    }

    /// As [`Socket::ask`], with something to be done after each part.
    fn ask_in_parts(
        &mut self,
        op: &'static str,
        mut request: Message,
        mut each: impl FnMut(message::Received<'_>),
        mut between: impl FnMut(),
    ) -> Result<()> {
        request.set_flags(flag(libc::NLM_F_REQUEST | libc::NLM_F_ACK));
        for _ in 0..LISTINGS {
            self.sequence += 1;
            let sequence = self.sequence;
            self.send(&request.clone().finish(sequence))?;
            let reply = self.reply(op, sequence, &mut between)?;
            if !reply.interrupted {
                let all = reply.datagrams.iter().flat_map(|bytes| messages(bytes));
                all.filter(|m| m.sequence == sequence && answer(*m).is_none())
                    .for_each(&mut each);
                return Ok(());
            }
        }
        let source = io::Error::new(
            io::ErrorKind::Interrupted,
            format!("it changed while it was listed, {LISTINGS} times"),
        );
        Err(Error::Call { op, source })
    }

    /// All of the reply to a request.
    fn reply(&self, op: &'static str, sequence: u32, between: &mut impl FnMut()) -> Result<Reply> {
        let mut reply = Reply::default();
        let mut done = None;
        while done.is_none() {
            let datagram = self.datagram()?;
            for received in messages(&datagram).filter(|m| m.sequence == sequence) {
                let flags = i32::from(received.flags);
                reply.interrupted |= flags & libc::NLM_F_DUMP_INTR != 0;
                done = done.or_else(|| answer(received));
            }
            reply.datagrams.push(datagram);
            between();
        }
        done.unwrap_or(Ok(()))
            .map(|()| reply)
            .map_err(|source| Error::Call { op, source })
    }

    fn send(&self, datagram: &[u8]) -> Result<()> {
        loop {
            match rustix::net::send(&self.socket, datagram, SendFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::call("send to netlink", e)),
                Ok(_) => return Ok(()),
            }
        }
    }

    fn receive(&self, mut each: impl FnMut(message::Received<'_>) -> Result<()>) -> Result<()> {
        messages(&self.datagram()?).try_for_each(&mut each)
    }

    fn datagram(&self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::call("receive from netlink", e)),
                Ok((_, length)) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
            }
        }
    }
}

/// What the kernel said to one request.
#[derive(Default)]
struct Reply {
    datagrams: Vec<Vec<u8>>,
    /// The list changed while the kernel gave it. Source: Linux, `nl_dump_check_consistent`.
    interrupted: bool,
}

/// The first thing that was refused.
///
/// # Errors
/// When there is one.
pub fn first_error(op: &'static str, answers: Vec<Answer>) -> Result<()> {
    answers
        .into_iter()
        .collect::<io::Result<()>>()
        .map_err(|source| Error::Call { op, source })
}

/// The kernel's own words with its number.
#[derive(Debug, thiserror::Error)]
#[error("{source} ({words})")]
struct Refused {
    words: String,
    source: io::Error,
}

/// Whether this ends a request, and how.
fn answer(received: message::Received<'_>) -> Option<Answer> {
    let kind = i32::from(received.kind);
    if kind == libc::NLMSG_DONE {
        return Some(Ok(()));
    }
    if kind != libc::NLMSG_ERROR {
        return None;
    }
    let number = message::u32_at(received.payload, 0)?.cast_signed();
    if number == 0 {
        return Some(Ok(()));
    }
    let source = io::Error::from_raw_os_error(-number);
    let tlvs = i32::from(received.flags) & libc::NLM_F_ACK_TLVS != 0;
    // An error number and the header of the request; without NETLINK_CAP_ACK the rest of it, too.
    let words = received
        .payload
        .get(20..)
        .filter(|_| tlvs)
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, value)| text(value));
    Some(Err(match words {
        Some(words) => io::Error::new(source.kind(), Refused { words, source }),
        None => source,
    }))
}

/// The kernel's error number of an answer, which [`io::Error::raw_os_error`] cannot give when there are words with it.
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let inner = error.get_ref()?.downcast_ref::<Refused>()?;
        inner.source.raw_os_error()
    })
}

fn enable(socket: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: the option takes an int, which lives longer than the call, and its length is passed.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            length,
        );
    }
}

/// Flags of `nlmsghdr` are of 16 bits, and the headers have them as int.
fn flag(flags: libc::c_int) -> u16 {
    u16::try_from(flags).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::route::{Address, dump_addresses};
    use super::*;
    use crate::namespace::{self, PodNamespaces};
    use crate::netns::NetNs;

    /// The index of `lo`.
    const LO: u32 = 1;

    fn address(second: u8, number: u16) -> Address {
        let [third, fourth] = number.to_be_bytes();
        Address {
            index: LO,
            ip: IpAddr::from([10, second, third, fourth]),
            prefix: 32,
            protocol: 122,
            deprecated: false,
        }
    }

    /// When some are removed that were given already, those behind them move up, and the kernel goes on behind those
    /// that took the places of the next.
    #[test]
    fn a_listing_has_all_that_stays_while_others_go() {
        let path = std::env::temp_dir().join(format!("zcri-netlink-{}", std::process::id()));
        let wanted = PodNamespaces {
            net: Some(path.clone()),
            ..PodNamespaces::default()
        };
        namespace::create(&wanted).expect("this test needs root");
        let ns = NetNs::open(&path).unwrap();
        let (mut lister, mut changer) = ns
            .within(|| (Socket::route().unwrap(), Socket::route().unwrap()))
            .unwrap();
        // One part is given with the request, the next one as the first is read: there are more.
        let go: Vec<_> = (1..=50).map(|i| address(1, i)).collect();
        let stay: Vec<_> = (1..=2000).map(|i| address(2, i)).collect();
        for some in go.chunks(100).chain(stay.chunks(100)) {
            let add = some.iter().map(Address::add).collect();
            first_error("add", changer.send_all(add).unwrap()).unwrap();
        }
        let (mut seen, mut parts) = (BTreeSet::new(), 0);
        let asked = lister.ask_in_parts(
            "list",
            dump_addresses(),
            |m| seen.extend(Address::parse(m).map(|a| a.ip)),
            || {
                parts += 1;
                if parts == 1 {
                    for some in &go {
                        changer.send_one("remove", some.remove()).unwrap();
                    }
                }
            },
        );
        namespace::unpin(&path).unwrap();
        asked.unwrap();
        let gone = |a: &&Address| seen.contains(&a.ip);
        let lacks = |a: &&Address| !seen.contains(&a.ip);
        assert_eq!(stay.iter().find(lacks), None);
        assert_eq!(go.iter().find(gone), None);
        assert!(parts > 4, "{parts}");
    }
}
