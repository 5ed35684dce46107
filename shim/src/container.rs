//! What the monitor knows of a container and of the processes that were asked for in it.
//!
//! ```text
//!            Start          runtime done        exit seen         output written, exit on disk
//!  Created ---------> Starting ------> Running ---------> Draining --------------------------> Stopped
//!                        |                                                                        ^
//!                        +--------------------- the runtime fails --------------------------------+
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::Status;

use zcri_codepage::{CodePage, Typed};
use zcri_sys::pod_init::PodInit;

use crate::audience::Audience;
use crate::cgroup::Cgroup;
use crate::cri_log::{LogFile, Splitter, Stream};
use crate::exit_record::Exit;
use crate::monitor::Source;
use crate::poll::{Poll, Watch};
use crate::rpc::{Call, Code, RpcError};
use crate::runtime::Runtime;

/// Number of a process within the monitor, never used twice.
pub(crate) type Key = u64;

/// Exit code of a container that its runtime could not start; the kubelet's own word for that is 128.
pub(crate) const START_FAILED: u32 = 128;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Starting,
    Running { pid: u32 },
    Draining { pid: u32, exit: Exit },
    Stopped { pid: u32, exit: Exit },
}

impl Phase {
    /// May `Start` begin?
    pub(crate) fn may_start(self) -> Result<(), RpcError> {
        match self {
            Phase::Created => Ok(()),
            Phase::Starting | Phase::Running { .. } => {
                Err(RpcError::precondition("the process was started already"))
            }
            Phase::Draining { .. } | Phase::Stopped { .. } => {
                Err(RpcError::precondition("the process has ended already"))
            }
        }
    }

    /// The process that a signal goes to.
    pub(crate) fn alive(self) -> Result<u32, RpcError> {
        match self {
            Phase::Running { pid } => Ok(pid),
            Phase::Created | Phase::Starting => {
                Err(RpcError::precondition("the process is not running yet"))
            }
            // NOT_FOUND is what containerd's shims say; callers take it for success of a kill.
            Phase::Draining { .. } | Phase::Stopped { .. } => Err(RpcError::new(
                Code::NOT_FOUND,
                "the process has ended already",
            )),
        }
    }

    /// The process number, 0 before there is one.
    pub(crate) fn pid(self) -> u32 {
        match self {
            Phase::Created | Phase::Starting => 0,
            Phase::Running { pid } | Phase::Draining { pid, .. } | Phase::Stopped { pid, .. } => {
                pid
            }
        }
    }

    /// How it ended, once all that belongs to the end is done.
    pub(crate) fn stopped(self) -> Option<Exit> {
        match self {
            Phase::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// The phase in the words of the Task API. A draining process is running to those outside: its exit is not yet
    /// on disk.
    pub(crate) fn status(self) -> Status {
        match self {
            Phase::Created | Phase::Starting => Status::CREATED,
            Phase::Running { .. } | Phase::Draining { .. } => Status::RUNNING,
            Phase::Stopped { .. } => Status::STOPPED,
        }
    }
}

/// What is to be asked for when a process starts.
#[derive(Debug)]
pub(crate) enum Program {
    /// The container's own process.
    Init,
    /// Another one: the process of the OCI spec, as JSON. Taken out when it is started.
    Exec { process: Vec<u8> },
}

/// A container's own process, or one that `Exec` asked for.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) container: String,
    /// Empty for the container's own process.
    pub(crate) exec_id: String,
    pub(crate) program: Program,
    pub(crate) phase: Phase,
    pub(crate) terminal: bool,
    /// `stdin`, `stdout`, `stderr` as the request gave them.
    pub(crate) stdio: [String; 3],
    /// Columns and rows, when they were asked for before the terminal was there.
    pub(crate) size: Option<(u16, u16)>,
    pub(crate) io: Io,
    /// The cgroup of an exec.
    pub(crate) cgroup: Option<Cgroup>,
    /// An exec that nobody owns any more: it is killed as soon as it can be, and forgotten.
    pub(crate) doomed: bool,
    pub(crate) starter: Option<Call>,
    pub(crate) waiters: Vec<Call>,
}

/// The ends of a process's streams that the monitor holds.
#[derive(Debug, Default)]
pub(crate) struct Io {
    /// FIFOs. Of a container they are kept open, so that neither side sees an end when the other restarts; of an
    /// exec they are given away at its start.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Output on its way to the log.
    pub(crate) pipes: Vec<LogPipe>,
    /// Where the runtime sends the terminal to, and a runtime that has connected there.
    pub(crate) console: Option<Watch>,
    pub(crate) console_peer: Option<Watch>,
    pub(crate) terminal: Option<Terminal>,
}

/// One output pipe.
#[derive(Debug)]
pub(crate) struct LogPipe {
    pub(crate) watch: Watch,
    pub(crate) stream: Stream,
    pub(crate) splitter: Splitter,
    /// When it was read last, since the epoch of Unix.
    pub(crate) last_read: Duration,
}

/// The controlling side of a pseudo-terminal and what is copied to and from it.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: Watch,
    pub(crate) input: Option<Watch>,
    /// Read from the input and not yet taken by the terminal.
    pub(crate) to_master: Vec<u8>,
    /// What the input is converted by, since it first was.
    pub(crate) encoder: Option<Typed>,
    pub(crate) output: TerminalOutput,
}

impl Terminal {
    /// Takes input in.
    pub(crate) fn typed(&mut self, bytes: &[u8], page: Option<CodePage>) {
        match page {
            None => self.to_master.extend_from_slice(bytes),
            Some(page) => self
                .encoder
                .get_or_insert_with(|| Typed::new(page))
                .convert(bytes, &mut self.to_master),
        }
    }
}

/// Where the output of a terminal goes.
#[derive(Debug)]
pub(crate) enum TerminalOutput {
    Null,
    /// The container's log, if it has one, and those who are attached.
    Log(Splitter),
    /// A FIFO, and what was read for it and not yet taken.
    Fifo(Watch, Vec<u8>),
}

impl Io {
    /// Lets everything go.
    pub(crate) fn release(&mut self, poll: &mut Poll<Source>) {
        let io = std::mem::take(self);
        let mut watches: Vec<Watch> = io.pipes.into_iter().map(|pipe| pipe.watch).collect();
        watches.extend(io.console);
        watches.extend(io.console_peer);
        if let Some(terminal) = io.terminal {
            watches.push(terminal.master);
            watches.extend(terminal.input);
            if let TerminalOutput::Fifo(watch, _) = terminal.output {
                watches.push(watch);
            }
        }
        for watch in watches {
            drop(poll.release(watch));
        }
    }

    /// Gives unused memory back.
    pub(crate) fn shrink(&mut self) {
        for pipe in &mut self.pipes {
            pipe.splitter.shrink();
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.to_master.shrink_to_fit();
            match &mut terminal.output {
                TerminalOutput::Null => {}
                TerminalOutput::Log(splitter) => splitter.shrink(),
                TerminalOutput::Fifo(_, pending) => pending.shrink_to_fit(),
            }
        }
    }
}

/// How a container comes to life.
#[derive(Debug)]
pub(crate) enum Kind {
    /// By an OCI runtime.
    Oci(Runtime),
    /// The pod's init, in a new PID namespace. `report` is there while it starts.
    PodInit {
        init: PodInit,
        report: Option<Watch>,
    },
}

/// What the runtime still holds of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleanup {
    /// Nothing: it was never started, or has been deleted.
    Clean,
    /// It runs, and the runtime has a record of it.
    Due,
    /// `RUNTIME delete` is running.
    InProgress,
    /// `RUNTIME delete` failed; the next `Delete` tries again.
    Failed,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) cgroups_path: Option<String>,
    pub(crate) own_pid_namespace: bool,
    pub(crate) init: Key,
    pub(crate) execs: BTreeMap<String, Key>,
    pub(crate) log: Option<LogFile>,
    /// What its output is converted from, before it goes to the log and to those who are attached.
    pub(crate) output_rule: Option<zcri_codepage::Rule>,
    pub(crate) audience: Audience,
    pub(crate) cgroup: Option<Cgroup>,
    /// Counter of OOM kills as last told by the kernel, and the descriptor by which it tells (cgroup version 2).
    pub(crate) oom_kills: u64,
    pub(crate) oom_events: Option<Watch>,
    pub(crate) oom_killed: bool,
    /// The owner of its streams and of those of its execs, when it has a user namespace.
    pub(crate) stream_owner: Option<(u32, u32)>,
    pub(crate) paused: bool,
    pub(crate) cleanup: Cleanup,
    pub(crate) deleters: Vec<Call>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_request_is_legal_when() {
        let exit = Exit {
            code: 0,
            at: Duration::ZERO,
        };
        let code = |result: Result<u32, RpcError>| result.map_err(|e| e.code);
        // (phase, may start, signal goes to, pid, stopped)
        let table = [
            (
                Phase::Created,
                true,
                Err(Code::FAILED_PRECONDITION),
                0,
                false,
            ),
            (
                Phase::Starting,
                false,
                Err(Code::FAILED_PRECONDITION),
                0,
                false,
            ),
            (Phase::Running { pid: 5 }, false, Ok(5), 5, false),
            (
                Phase::Draining { pid: 5, exit },
                false,
                Err(Code::NOT_FOUND),
                5,
                false,
            ),
            (
                Phase::Stopped { pid: 5, exit },
                false,
                Err(Code::NOT_FOUND),
                5,
                true,
            ),
        ];
        for (phase, may_start, alive, pid, stopped) in table {
            assert_eq!(phase.may_start().is_ok(), may_start, "{phase:?}");
            assert_eq!(code(phase.alive()), alive, "{phase:?}");
            assert_eq!(phase.pid(), pid, "{phase:?}");
            assert_eq!(phase.stopped().is_some(), stopped, "{phase:?}");
            assert_eq!(phase.status() == Status::STOPPED, stopped, "{phase:?}");
        }
    }
}
