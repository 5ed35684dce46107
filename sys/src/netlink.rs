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

    /// A batch of which the family makes all or nothing; `requests` are between its first and last message, and
    /// those that the kernel complains about have their answer in the result.
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

    /// One request, and everything that the kernel has to say to it, through `each`.
    ///
    /// # Errors
    /// It could not be sent, or the kernel refused it.
    pub fn ask(
        &mut self,
        op: &'static str,
        mut request: Message,
        mut each: impl FnMut(message::Received<'_>),
    ) -> Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        request.set_flags(flag(libc::NLM_F_REQUEST | libc::NLM_F_ACK));
        let datagram = request.finish(sequence);
        self.send(&datagram)?;
        let mut done = None;
        while done.is_none() {
            self.receive(|received| {
                if received.sequence == sequence {
                    match answer(received) {
                        Some(answer) => done = Some(answer),
                        None => each(received),
                    }
                }
                Ok(())
            })?;
        }
        done.unwrap_or(Ok(()))
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
        let mut buffer = vec![0; DATAGRAM];
        let length = loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::call("receive from netlink", e)),
                Ok((_, length)) => break length,
            }
        };
        messages(&buffer[..length.min(DATAGRAM)]).try_for_each(&mut each)
    }
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
