//! Bytes on their way: pipes to the log, terminals to the log or to FIFOs, FIFOs to terminals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::time::Timespec;

use super::control::set_size;
use super::{Monitor, Scratch, Source, now};
use crate::container::{Key, Phase, Process, Terminal, TerminalOutput};
use crate::cri_log::{Batch, Head, LogFile, Splitter, Stream};
use crate::poll::{EventFlags, Poll, Watch};

/// Most bytes read from a stream whose process has ended. Everything it wrote is within: a pipe holds less. More is
/// written by processes elsewhere that got hold of the stream, and they may never stop.
const DRAIN_MAX: usize = 1 << 20;

/// Bytes moved at once between a terminal and a FIFO: what is held when the other side does not take it.
const RELAY_SIZE: usize = 4096;

/// A read that brings less than this, soon after the one before, is not worth its system calls: the pipe is left
/// alone for a moment to fill. A writer of single lines costs a fraction so, and never waits, as the pipe holds more.
const DRIP: usize = 16 * 1024;

/// How long a pipe is left alone.
const REST_TIME: Duration = Duration::from_millis(1);

/// The same as the loop waits.
pub(super) const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// What came of reading once.
enum Read {
    Bytes(usize),
    Nothing,
    End,
}

fn read(fd: impl AsFd, buffer: &mut [u8]) -> Read {
    loop {
        return match rustix::io::read(&fd, &mut *buffer) {
            Ok(0) => Read::End,
            Ok(n) => Read::Bytes(n),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Read::Nothing,
            // EIO of a terminal: the last process has closed it.
            Err(_) => Read::End,
        };
    }
}

impl Scratch {
    /// Moves what one read brings into the log.
    fn log_once(
        &mut self,
        fd: impl AsFd,
        stream: Stream,
        splitter: &mut Splitter,
        log: Option<&mut LogFile>,
    ) -> Read {
        let input = self.input.bytes();
        let result = read(fd, input);
        let Some(log) = log else { return result };
        let mut batch = Batch::new(self.output.bytes(), log);
        match result {
            Read::Bytes(n) => {
                splitter.feed(
                    input.get(..n).unwrap_or_default(),
                    &Head::new(now(), stream),
                    &mut batch,
                );
            }
            Read::End => splitter.finish(&Head::new(now(), stream), &mut batch),
            Read::Nothing => {}
        }
        batch.flush();
        result
    }

    /// The stream is given up without an end: what is held goes to the log.
    fn log_rest(&mut self, stream: Stream, splitter: &mut Splitter, log: Option<&mut LogFile>) {
        if let Some(log) = log {
            let mut batch = Batch::new(self.output.bytes(), log);
            splitter.finish(&Head::new(now(), stream), &mut batch);
            batch.flush();
        }
    }
}

impl Monitor {
    /// Output of a container is there.
    pub(super) fn pump_pipe(&mut self, key: Key, stream: Stream) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Some(at) = process
            .io
            .pipes
            .iter()
            .position(|pipe| pipe.stream == stream)
        else {
            return;
        };
        let log = self
            .containers
            .get_mut(&process.container)
            .and_then(|container| container.log.as_mut());
        let pipe = &mut process.io.pipes[at];
        let since = std::mem::replace(&mut pipe.last_read, now());
        let since = pipe.last_read.saturating_sub(since);
        match self
            .scratch
            .log_once(&pipe.watch, stream, &mut pipe.splitter, log)
        {
            Read::End => {
                let pipe = process.io.pipes.remove(at);
                drop(self.poll.release(pipe.watch));
                self.finish_if_drained(key);
            }
            Read::Bytes(n) if n < DRIP && since < REST_TIME => {
                report(self.poll.set_interest(&mut pipe.watch, EventFlags::empty()));
                if self.resting.is_empty() {
                    self.wake_at = Instant::now() + REST_TIME;
                }
                self.resting.push((key, stream));
            }
            Read::Bytes(_) | Read::Nothing => {}
        }
    }

    /// Looks at the pipes again that had their rest.
    pub(super) fn wake_resting(&mut self) {
        if Instant::now() < self.wake_at {
            return;
        }
        for (key, stream) in std::mem::take(&mut self.resting) {
            let process = self.processes.get_mut(&key);
            let pipes = process
                .into_iter()
                .flat_map(|process| &mut process.io.pipes);
            for pipe in pipes.filter(|pipe| pipe.stream == stream) {
                report(self.poll.set_interest(&mut pipe.watch, EventFlags::IN));
            }
        }
    }

    /// Reads what a process that has ended left in its streams. With `give_up` they are closed then; without, one
    /// that has not ended stays open for processes that are being killed.
    pub(super) fn drain(&mut self, key: Key, give_up: bool) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if !matches!(process.phase, Phase::Draining { .. }) {
            return;
        }
        let mut log = self
            .containers
            .get_mut(&process.container)
            .and_then(|container| container.log.as_mut());
        for mut pipe in std::mem::take(&mut process.io.pipes) {
            let mut taken = 0;
            let ended = loop {
                match self.scratch.log_once(
                    &pipe.watch,
                    pipe.stream,
                    &mut pipe.splitter,
                    log.as_deref_mut(),
                ) {
                    Read::Bytes(n) if taken + n < DRAIN_MAX => taken += n,
                    Read::End => break true,
                    Read::Bytes(_) | Read::Nothing => break false,
                }
            };
            if ended || give_up {
                self.scratch
                    .log_rest(pipe.stream, &mut pipe.splitter, log.as_deref_mut());
                drop(self.poll.release(pipe.watch));
            } else {
                process.io.pipes.push(pipe);
            }
        }
        self.drain_terminal(key);
    }

    fn drain_terminal(&mut self, key: Key) {
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
        let log = self
            .containers
            .get_mut(&process.container)
            .and_then(|container| container.log.as_mut());
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
                self.scratch.log_rest(Stream::Out, &mut splitter, log)
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
        let attached = receive_descriptor(&peer).and_then(|master| {
            let has_log = self
                .containers
                .get(&process.container)
                .is_some_and(|container| container.log.is_some());
            attach(&mut self.poll, process, key, master, has_log)
        });
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
        let log = self
            .containers
            .get_mut(&process.container)
            .and_then(|container| container.log.as_mut());
        match &mut terminal.output {
            TerminalOutput::Log(splitter) => {
                self.scratch
                    .log_once(&terminal.master, Stream::Out, splitter, log)
            }
            TerminalOutput::Null => read(&terminal.master, self.scratch.input.bytes()),
            TerminalOutput::Fifo(fifo, pending) => {
                let mut broken = write_pending(fifo.as_fd(), pending).is_err();
                let mut result = Read::Nothing;
                if pending.is_empty() && !broken {
                    let mut buffer = [0; RELAY_SIZE];
                    result = read(&terminal.master, &mut buffer);
                    if let Read::Bytes(n) = result {
                        pending.extend_from_slice(&buffer[..n]);
                        broken = write_pending(fifo.as_fd(), pending).is_err();
                    }
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
                    terminal.to_master.extend_from_slice(&buffer[..n]);
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

fn report(result: io::Result<()>) {
    if let Err(e) = result {
        eprintln!("watch a stream: {e}");
    }
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
fn attach(
    poll: &mut Poll<Source>,
    process: &mut Process,
    key: Key,
    master: OwnedFd,
    has_log: bool,
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
        None if has_log && process.exec_id.is_empty() => TerminalOutput::Log(Splitter::default()),
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
