//! The monitor: one thread, one loop over everything that can happen.

mod api;
mod attach;
mod connections;
mod control;
mod create;
mod exits;
mod start;
mod streams;
mod terminal;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rustix::time::Timespec;
use zcri_sys::process::Pages;

use crate::container::{Container, Key, Process};
use crate::cri_log::Stream;
use crate::exit_record::Exit;
use crate::poll::{EventFlags, Poll, Watch};
use connections::Connection;
use start::Job;

/// Most bytes taken from a stream at once.
const READ_SIZE: usize = 128 * 1024;

/// Room for encoded log entries, written at once.
const WRITE_SIZE: usize = 256 * 1024;

/// After this long without an event, memory that only work needs is given back. One timer per burst of work; nothing
/// runs while nothing happens.
const IDLE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// What a watched descriptor is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    Listener,
    Children,
    Connection(u64),
    Pipe(Key, Stream),
    Console(Key),
    ConsolePeer(Key),
    Terminal(Key),
    TerminalInput(Key),
    TerminalOutput(Key),
    InitReport(Key),
    OomEvents(Key),
    /// A FIFO of an attached client of that process, by the client's number.
    Client(Key, u64, Stream),
}

/// The buffers of the data path, shared by all streams.
#[derive(Debug)]
struct Scratch {
    input: Pages,
    output: Pages,
}

/// The monitor of one pod.
pub(crate) struct Monitor {
    poll: Poll<Source>,
    listener: Watch,
    children: Watch,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<String, Container>,
    processes: BTreeMap<Key, Process>,
    /// Calls of the runtime in flight, by process number.
    jobs: BTreeMap<u32, Job>,
    /// Ends of processes that a runtime in flight may yet tell about.
    unclaimed: BTreeMap<u32, Exit>,
    /// Pipes that are left alone until `wake_at`, because their writer brings little at a time.
    resting: Vec<(Key, Stream)>,
    wake_at: Instant,
    next_number: u64,
    scratch: Scratch,
    socket: PathBuf,
    shutdown: bool,
}

impl Monitor {
    /// `socket` is the path that `listener` is bound to.
    pub(crate) fn new(listener: OwnedFd, socket: PathBuf) -> io::Result<Self> {
        let mut poll = Poll::new()?;
        let listener = poll.watch(listener, Source::Listener, EventFlags::IN)?;
        let children = poll.watch(
            zcri_sys::signal::child_events()?,
            Source::Children,
            EventFlags::IN,
        )?;
        Ok(Self {
            poll,
            listener,
            children,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            resting: Vec::new(),
            wake_at: Instant::now(),
            next_number: 1,
            scratch: Scratch {
                input: Pages::new(READ_SIZE)?,
                output: Pages::new(WRITE_SIZE)?,
            },
            socket,
            shutdown: false,
        })
    }

    /// Serves until `Shutdown`.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut busy = true;
        while !(self.shutdown && self.all_answers_sent()) {
            let limit = if self.resting.is_empty() {
                busy.then_some(IDLE)
            } else {
                Some(streams::REST)
            };
            let expired = self.poll.wait(&mut events, limit)?;
            busy = !expired || !self.resting.is_empty();
            if !self.resting.is_empty() {
                self.wake_resting();
            } else if expired {
                self.rest();
            }
            for (token, flags) in events.drain(..) {
                if let Some(source) = self.poll.source(token) {
                    self.handle(source, flags);
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Children => self.reap(),
            Source::Connection(number) => self.serve(number, flags),
            Source::Pipe(key, stream) => self.pump_pipe(key, stream),
            Source::Console(key) => self.console_connected(key),
            Source::ConsolePeer(key) => self.console_message(key),
            Source::Terminal(key) => self.terminal_ready(key, flags),
            Source::TerminalInput(key) => self.terminal_input(key),
            Source::TerminalOutput(key) => self.terminal_output_ready(key),
            Source::InitReport(key) => self.init_reported(key),
            Source::OomEvents(key) => self.oom_event(key),
            Source::Client(key, number, stream) => self.client_ready(key, number, stream, flags),
        }
    }

    /// Gives back what only work needs.
    fn rest(&mut self) {
        self.listen(true);
        self.scratch.input.release();
        self.scratch.output.release();
        for process in self.processes.values_mut() {
            process.io.shrink();
        }
        zcri_sys::process::release_free_memory();
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

/// The time since the epoch of Unix.
fn now() -> Duration {
    // A clock before 1970 gives the epoch.
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
