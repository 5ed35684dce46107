//! Output on its way from pipes to the log and to whoever is attached.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::Timespec;

use zcri_codepage::{CodePage, Rule};
use zcri_sys::file_tag::ccsid;

use super::{Monitor, Scratch, Source, now};
use crate::container::{Container, Key, Phase};
use crate::cri_log::{Batch, Head, LogFile, Splitter, Stream};
use crate::poll::{EventFlags, Poll};

/// Most bytes read from a stream whose process has ended. Everything it wrote is within: a pipe holds less. More is
/// written by processes elsewhere that got hold of the stream, and they may never stop.
pub(super) const DRAIN_MAX: usize = 1 << 20;

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
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    End,
}

pub(super) fn read(fd: impl AsFd, buffer: &mut [u8]) -> Read {
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

/// Reads half of what the buffer holds, since a character may take twice its room in UTF-8.
pub(super) fn read_converted(fd: impl AsFd, buffer: &mut [u8], page: CodePage) -> Read {
    let (room, _) = buffer.split_at_mut(buffer.len() / 2);
    match read(fd, room) {
        Read::Bytes(n) => Read::Bytes(page.convert_in_place(buffer, n)),
        other => other,
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
        rule: Option<Rule>,
    ) -> Read {
        let input = self.input.bytes();
        let result = match rule.and_then(|rule| rule.page_of(|| ccsid(&fd))) {
            None => read(fd, input),
            Some(page) => read_converted(fd, input, page),
        };
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
    pub(super) fn log_rest(
        &mut self,
        stream: Stream,
        splitter: &mut Splitter,
        log: Option<&mut LogFile>,
    ) {
        if let Some(log) = log {
            let mut batch = Batch::new(self.output.bytes(), log);
            splitter.finish(&Head::new(now(), stream), &mut batch);
            batch.flush();
        }
    }
}

/// Moves what one read brings into the log of a container and to those who are attached to it.
pub(super) fn move_output(
    scratch: &mut Scratch,
    poll: &mut Poll<Source>,
    container: &mut Container,
    stream: Stream,
    fd: impl AsFd,
    splitter: &mut Splitter,
) -> Read {
    let log = container.log.as_mut();
    let result = scratch.log_once(fd, stream, splitter, log, container.output_rule);
    match result {
        Read::Bytes(n) => {
            let bytes = scratch.input.bytes().get(..n).unwrap_or_default();
            container.audience.show(poll, stream, bytes);
        }
        Read::End => container.audience.end(poll, stream),
        Read::Nothing => {}
    }
    result
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
        let Some(container) = self.containers.get_mut(&process.container) else {
            return;
        };
        let pipe = &mut process.io.pipes[at];
        let since = std::mem::replace(&mut pipe.last_read, now());
        let since = pipe.last_read.saturating_sub(since);
        match move_output(
            &mut self.scratch,
            &mut self.poll,
            container,
            stream,
            &pipe.watch,
            &mut pipe.splitter,
        ) {
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
        let Some(container) = self.containers.get_mut(&process.container) else {
            return;
        };
        for mut pipe in std::mem::take(&mut process.io.pipes) {
            let mut taken = 0;
            let ended = loop {
                match move_output(
                    &mut self.scratch,
                    &mut self.poll,
                    container,
                    pipe.stream,
                    &pipe.watch,
                    &mut pipe.splitter,
                ) {
                    Read::Bytes(n) if taken + n < DRAIN_MAX => taken += n,
                    Read::End => break true,
                    Read::Bytes(_) | Read::Nothing => break false,
                }
            };
            if ended || give_up {
                self.scratch
                    .log_rest(pipe.stream, &mut pipe.splitter, container.log.as_mut());
                container.audience.end(&mut self.poll, pipe.stream);
                drop(self.poll.release(pipe.watch));
            } else {
                process.io.pipes.push(pipe);
            }
        }
        self.drain_terminal(key);
    }
}

pub(super) fn report(result: io::Result<()>) {
    if let Err(e) = result {
        eprintln!("watch a stream: {e}");
    }
}
