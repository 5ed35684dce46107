//! Terminals: receiving them from the runtime, and copying between them and logs, clients and FIFOs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use zcri_codepage::CodePage;
use zcri_sys::file_tag::ccsid;

use super::control::set_size;
use super::streams::{DRAIN_MAX, Read, move_output, read, read_converted, report};
use super::{Monitor, Source};
use crate::container::{Container, Key, Phase, Process, Terminal, TerminalOutput};
use crate::cri_log::{Splitter, Stream};
use crate::poll::{EventFlags, Poll, Watch};

/// Bytes read at once from a terminal, which gives no more, or from a FIFO for one.
const RELAY_SIZE: usize = 4096;

/// Output of a terminal that is gathered for one write into a FIFO: what is held when the other side does not take it.
const GATHERED: usize = 64 * 1024;

impl Monitor {
    pub(super) fn drain_terminal(&mut self, key: Key) {
        let mut taken = 0;
        loop {
            match self.terminal_once(key) {
                Read::Bytes(n) if taken + n < DRAIN_MAX => taken += n,
                // A FIFO that is full: the rest comes when it is read.
                Read::Nothing if self.has_pending_output(key) => {
                    return self.set_terminal_interest(key);
                }
                _ => break,
            }
        }
        self.close_terminal(key);
    }

    fn has_pending_output(&self, key: Key) -> bool {
        let terminal = self
            .processes
            .get(&key)
            .and_then(|process| process.io.terminal.as_ref());
        terminal.is_some_and(
            |t| matches!(&t.output, TerminalOutput::Fifo(_, pending) if !pending.is_empty()),
        )
    }

    fn close_terminal(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(terminal) = process.io.terminal.take() else {
            return;
        };
        drop(self.poll.release(terminal.master));
        terminal
            .input
            .into_iter()
            .for_each(|input| drop(self.poll.release(input)));
        match terminal.output {
            TerminalOutput::Null => {}
            TerminalOutput::Log(mut splitter) => {
                if let Some(container) = self.containers.get_mut(&process.container) {
                    self.scratch
                        .log_rest(Stream::Out, &mut splitter, container.log.as_mut());
                    container.audience.end(&mut self.poll, Stream::Out);
                }
            }
            TerminalOutput::Fifo(watch, _) => drop(self.poll.release(watch)),
        }
    }

    /// A runtime has connected to hand over a terminal.
    pub(super) fn console_connected(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(listener) = &process.io.console else {
            return;
        };
        let accepted =
            rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                .map_err(io::Error::from)
                .and_then(|peer| {
                    self.poll
                        .watch(peer, Source::ConsolePeer(key), EventFlags::IN)
                });
        match accepted {
            Ok(peer) => process.io.console_peer = Some(peer),
            Err(e) => eprintln!("console of {}: {e}", process.container),
        }
    }

    /// The terminal arrives.
    pub(super) fn console_message(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(peer) = process.io.console_peer.take() else {
            return;
        };
        let peer = self.poll.release(peer);
        let attached = receive_descriptor(&peer)
            .and_then(|master| take_terminal(&mut self.poll, process, key, master));
        if let Err(e) = attached {
            eprintln!("terminal of {}: {e}", process.container);
        }
    }

    /// The runtime is done: what it sent is here, or never comes.
    pub(super) fn end_console(&mut self, key: Key) {
        let sending = |monitor: &Self| {
            monitor
                .processes
                .get(&key)
                .map(|p| (p.io.console.is_some(), p.terminal))
        };
        if sending(self) != Some((true, true)) {
            return;
        }
        let missing = |monitor: &Self| {
            monitor
                .processes
                .get(&key)
                .is_some_and(|p| p.io.terminal.is_none())
        };
        if missing(self)
            && self
                .processes
                .get(&key)
                .is_some_and(|p| p.io.console_peer.is_none())
        {
            self.console_connected(key);
        }
        if missing(self) {
            self.console_message(key);
        }
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let watches = [process.io.console.take(), process.io.console_peer.take()];
        watches
            .into_iter()
            .flatten()
            .for_each(|watch| drop(self.poll.release(watch)));
    }

    /// The terminal has output, or takes input again.
    pub(super) fn terminal_ready(&mut self, key: Key, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.terminal_input(key);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            if let Read::End = self.terminal_once(key) {
                self.close_terminal(key);
                self.finish_if_drained(key);
            }
            self.set_terminal_interest(key);
        }
    }

    /// Moves output of a terminal once.
    fn terminal_once(&mut self, key: Key) -> Read {
        let Some(process) = self.processes.get_mut(&key) else {
            return Read::End;
        };
        let Some(terminal) = &mut process.io.terminal else {
            return Read::End;
        };
        match &mut terminal.output {
            TerminalOutput::Log(splitter) => {
                let Some(container) = self.containers.get_mut(&process.container) else {
                    return Read::End;
                };
                move_output(
                    &mut self.scratch,
                    &mut self.poll,
                    container,
                    Stream::Out,
                    &terminal.master,
                    splitter,
                )
            }
            TerminalOutput::Null => read(&terminal.master, self.scratch.input.bytes()),
            TerminalOutput::Fifo(fifo, pending) => {
                let mut broken = write_pending(fifo.as_fd(), pending).is_err();
                let mut result = Read::Nothing;
                if pending.is_empty() && !broken {
                    let container = self.containers.get(&process.container);
                    let page = page_of(container, &terminal.master);
                    result = gather(&terminal.master, pending, page);
                    broken = write_pending(fifo.as_fd(), pending).is_err();
                }
                if broken {
                    // Nobody reads any more; the process goes on without an audience.
                    let output = std::mem::replace(&mut terminal.output, TerminalOutput::Null);
                    if let TerminalOutput::Fifo(watch, _) = output {
                        drop(self.poll.release(watch));
                    }
                    return Read::Bytes(0);
                }
                result
            }
        }
    }

    /// The reader of a terminal's output has made room.
    pub(super) fn terminal_output_ready(&mut self, key: Key) {
        let draining = self
            .processes
            .get(&key)
            .is_some_and(|p| matches!(p.phase, Phase::Draining { .. }));
        if draining {
            self.drain_terminal(key);
            self.finish_if_drained(key);
        } else if let Read::End = self.terminal_once(key) {
            self.close_terminal(key);
        }
        self.set_terminal_interest(key);
    }

    /// Input for a terminal is there, or the terminal takes what is held.
    pub(super) fn terminal_input(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(terminal) = &mut process.io.terminal else {
            return;
        };
        let mut broken = write_pending(terminal.master.as_fd(), &mut terminal.to_master).is_err();
        if let (true, Some(input)) = (terminal.to_master.is_empty() && !broken, &terminal.input) {
            let mut buffer = [0; RELAY_SIZE];
            match read(input, &mut buffer) {
                Read::Bytes(n) => {
                    let container = self.containers.get(&process.container);
                    let page = page_of(container, &terminal.master);
                    terminal.typed(buffer.get(..n).unwrap_or_default(), page);
                    broken =
                        write_pending(terminal.master.as_fd(), &mut terminal.to_master).is_err();
                }
                Read::Nothing => {}
                Read::End => broken = true,
            }
        }
        if broken && let Some(input) = terminal.input.take() {
            drop(self.poll.release(input));
        }
        self.set_terminal_interest(key);
    }

    fn set_terminal_interest(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(terminal) = &mut process.io.terminal else {
            return;
        };
        let output_waits = match &mut terminal.output {
            TerminalOutput::Fifo(fifo, pending) => {
                let interest = if pending.is_empty() {
                    EventFlags::empty()
                } else {
                    EventFlags::OUT
                };
                report(self.poll.set_interest(fifo, interest));
                !pending.is_empty()
            }
            TerminalOutput::Null | TerminalOutput::Log(_) => false,
        };
        let input_waits = !terminal.to_master.is_empty();
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, !output_waits);
        interest.set(EventFlags::OUT, input_waits);
        report(self.poll.set_interest(&mut terminal.master, interest));
        if let Some(input) = &mut terminal.input {
            let interest = if input_waits {
                EventFlags::empty()
            } else {
                EventFlags::IN
            };
            report(self.poll.set_interest(input, interest));
        }
    }
}

/// What a terminal's bytes are in, both ways, if they are converted: what writes in a code page reads in it too.
fn page_of(container: Option<&Container>, master: impl AsFd) -> Option<CodePage> {
    container?.output_rule?.page_of(|| ccsid(master))
}

/// Reads what a terminal has, up to [`GATHERED`] bytes.
fn gather(master: impl AsFd, pending: &mut Vec<u8>, page: Option<CodePage>) -> Read {
    let mut buffer = [0; RELAY_SIZE];
    while pending.len() + RELAY_SIZE <= GATHERED {
        let result = match page {
            None => read(&master, &mut buffer),
            Some(page) => read_converted(&master, &mut buffer, page),
        };
        match result {
            Read::Bytes(n) => pending.extend_from_slice(&buffer[..n]),
            // An end is there at the next look too.
            end_or_nothing if pending.is_empty() => return end_or_nothing,
            Read::Nothing | Read::End => break,
        }
    }
    Read::Bytes(pending.len())
}

/// Writes what the other side takes.
fn write_pending(fd: impl AsFd, pending: &mut Vec<u8>) -> rustix::io::Result<()> {
    while !pending.is_empty() {
        match rustix::io::write(&fd, pending) {
            Ok(n) => drop(pending.drain(..n)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes the received descriptor the terminal of a process.
fn take_terminal(
    poll: &mut Poll<Source>,
    process: &mut Process,
    key: Key,
    master: OwnedFd,
) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    if let Some(size) = process.size {
        set_size(&master, size)?;
    }
    let output = match process.io.stdout.take() {
        Some(fifo) => {
            let watch: Watch =
                poll.watch(fifo, Source::TerminalOutput(key), EventFlags::empty())?;
            TerminalOutput::Fifo(watch, Vec::new())
        }
        None if process.exec_id.is_empty() => TerminalOutput::Log(Splitter::default()),
        None => TerminalOutput::Null,
    };
    let input = process
        .io
        .stdin
        .take()
        .map(|fifo| poll.watch(fifo, Source::TerminalInput(key), EventFlags::IN));
    let master = poll.watch(master, Source::Terminal(key), EventFlags::IN)?;
    process.io.terminal = Some(Terminal {
        master,
        input: input.transpose()?,
        to_master: Vec::new(),
        encoder: None,
        output,
    });
    Ok(())
}

/// A socket in the bundle on which the runtime hands over the terminal.
pub(super) fn listen_for_console(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    crate::bootstrap::bind(&socket, path)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Receives one descriptor (`SCM_RIGHTS`), as runc and crun send the terminal.
fn receive_descriptor(peer: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut parts = [rustix::io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(peer, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let first = control.drain().find_map(|message| match message {
        // Any others are closed as they are dropped.
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    first.ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}
