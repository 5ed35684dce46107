//! Connections of daemons: bytes to requests, answers to bytes.

use std::io;
use std::os::fd::AsFd;

use containerd_shim_protos::ttrpc::proto::Request;
use rustix::net::SocketFlags;

use super::{Monitor, Source};
use crate::poll::{EventFlags, Watch};
use crate::rpc::{self, Answer, Call, Code, RpcError};
use crate::ttrpc::{DATA, Decoded, Decoder, FLAG_REMOTE_OPEN, REQUEST};

/// Connections at once. A daemon needs one.
const MAX_CONNECTIONS: usize = 64;

/// Requests of one connection that wait for their answer: `Wait` for every process of a crowded pod, and room.
const MAX_PENDING: usize = 4096;

/// Bytes of answers that a peer left unread, from which on nothing more is read from it.
const OUTPUT_HIGH: usize = 1 << 20;

/// Bytes of unread answers at which a peer is given up.
const OUTPUT_MAX: usize = 16 << 20;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    watch: Watch,
    decoder: Decoder,
    output: Vec<u8>,
    sent: usize,
    pending: usize,
    /// The peer sends no more, or what it sent is no ttrpc; gone when the answers are out.
    ended: bool,
}

impl Connection {
    fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    fn send(&mut self) -> io::Result<()> {
        while self.unsent() > 0 {
            let rest = self.output.get(self.sent..).unwrap_or_default();
            match rustix::net::send(&self.watch, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        // An idle connection holds no memory.
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    fn interest(&self) -> EventFlags {
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, !self.ended && self.unsent() < OUTPUT_HIGH);
        interest.set(EventFlags::OUT, self.unsent() > 0);
        interest
    }
}

impl Monitor {
    pub(super) fn accept(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(e) => {
                    // Out of descriptors, most likely: those who wait are looked at again after a moment.
                    eprintln!("accept: {e}");
                    return self.listen(false);
                }
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                eprintln!("more than {MAX_CONNECTIONS} connections: refused");
                continue;
            }
            let number = self.number();
            match self
                .poll
                .watch(socket, Source::Connection(number), EventFlags::IN)
            {
                Ok(watch) => {
                    let connection = Connection {
                        watch,
                        decoder: Decoder::default(),
                        output: Vec::new(),
                        sent: 0,
                        pending: 0,
                        ended: false,
                    };
                    self.connections.insert(number, connection);
                }
                Err(e) => eprintln!("watch a connection: {e}"),
            }
        }
    }

    /// Watches for connections, or not.
    pub(super) fn listen(&mut self, wanted: bool) {
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, wanted);
        if let Err(e) = self.poll.set_interest(&mut self.listener, interest) {
            eprintln!("watch the socket: {e}");
        }
    }

    pub(super) fn serve(&mut self, number: u64, flags: EventFlags) {
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.receive(number);
        }
        self.push_out(number);
    }

    fn receive(&mut self, number: u64) {
        let Some(connection) = self
            .connections
            .get_mut(&number)
            .filter(|connection| !connection.ended)
        else {
            return;
        };
        let buffer = self.scratch.input.bytes();
        match rustix::net::recv(
            connection.watch.as_fd(),
            &mut *buffer,
            rustix::net::RecvFlags::empty(),
        ) {
            Ok((0, _)) => connection.ended = true,
            Ok((n, _)) => connection.decoder.feed(buffer.get(..n).unwrap_or_default()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_gone) => return self.close(number),
        }
        // Handling a request may close the connection, so it is looked up for every frame.
        while let Some(connection) = self.connections.get_mut(&number) {
            match connection.decoder.next_frame() {
                Ok(Some(decoded)) => self.decoded(number, decoded),
                Ok(None) => break,
                Err(e) => {
                    eprintln!("connection: {e}");
                    return self.close(number);
                }
            }
        }
    }

    fn decoded(&mut self, number: u64, decoded: Decoded) {
        let (stream, refusal) = match decoded {
            Decoded::Frame(frame) if frame.kind == REQUEST => {
                let call = Call {
                    connection: number,
                    stream: frame.stream,
                };
                match self.admit(number, frame.stream, frame.flags) {
                    Ok(()) => match rpc::parse::<Request>(&frame.data) {
                        Ok(request) => return self.route(call, &request),
                        Err(error) => return self.reply(call, Err(error)),
                    },
                    Err(refusal) => (frame.stream, refusal),
                }
            }
            Decoded::Oversized {
                stream,
                kind: REQUEST | DATA,
                len,
            } => {
                let text = format!(
                    "a message of {len} bytes is over the limit of {}",
                    crate::ttrpc::MAX_DATA_LEN
                );
                (stream, RpcError::new(Code::RESOURCE_EXHAUSTED, text))
            }
            // Types that a later protocol brings, and stream data that no method here takes.
            Decoded::Frame(_) | Decoded::Oversized { .. } => return,
        };
        if let Some(connection) = self.connections.get_mut(&number) {
            rpc::encode_answer(&mut connection.output, stream, Err(refusal));
        }
    }

    /// Counts a request in, or says why it is none.
    fn admit(&mut self, number: u64, stream: u32, flags: u8) -> Result<(), RpcError> {
        if stream.is_multiple_of(2) {
            return Err(RpcError::invalid(format!(
                "stream {stream}: a client's streams are odd"
            )));
        }
        if flags & FLAG_REMOTE_OPEN != 0 {
            return Err(RpcError::new(Code::UNIMPLEMENTED, "streaming requests"));
        }
        let connection = self.connections.get_mut(&number);
        match connection.filter(|connection| connection.pending < MAX_PENDING) {
            Some(connection) => {
                connection.pending += 1;
                Ok(())
            }
            None => Err(RpcError::new(
                Code::RESOURCE_EXHAUSTED,
                format!("over {MAX_PENDING} unanswered requests"),
            )),
        }
    }

    /// Answers a call. Nothing happens when its connection is gone.
    pub(super) fn reply(&mut self, call: Call, answer: Answer) {
        if let Some(connection) = self.connections.get_mut(&call.connection) {
            connection.pending = connection.pending.saturating_sub(1);
            rpc::encode_answer(&mut connection.output, call.stream, answer);
            self.push_out(call.connection);
        }
    }

    pub(super) fn reply_all(&mut self, calls: Vec<Call>, answer: &Answer) {
        for call in calls {
            self.reply(call, answer.clone());
        }
    }

    fn push_out(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.send().is_err() || (connection.ended && connection.unsent() == 0) {
            return self.close(number);
        }
        if connection.unsent() > OUTPUT_MAX {
            eprintln!("connection: a peer does not read its answers, closed");
            return self.close(number);
        }
        let interest = connection.interest();
        if let Err(e) = self.poll.set_interest(&mut connection.watch, interest) {
            eprintln!("watch a connection: {e}");
            self.close(number);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            drop(self.poll.release(connection.watch));
        }
    }

    pub(super) fn all_answers_sent(&self) -> bool {
        self.connections
            .values()
            .all(|connection| connection.unsent() == 0)
    }
}
