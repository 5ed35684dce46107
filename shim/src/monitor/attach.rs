//! Attaching clients to running containers, and ending execs that lost their owner.

use std::path::Path;

use containerd_shim_protos::api;
use rustix::fs::OFlags;

use super::{Monitor, Source};
use crate::audience::{MAX_CLIENTS, QUIET};
use crate::cgroup::SIGKILL;
use crate::container::{Key, Phase, Program};
use crate::cri_log::Stream;
use crate::poll::{EventFlags, Watch};
use crate::process_tree;
use crate::rpc::{self, Answer, Code, RpcError};
use crate::stdio::{self, Target};

impl Monitor {
    /// Shows a container's output from now on to whoever holds the given FIFOs open for reading. It is detached by
    /// closing them.
    pub(super) fn attach(&mut self, request: &api::ExecProcessRequest) -> Answer {
        let container = self.container(&request.id)?;
        let (init, present) = (container.init, container.audience.len());
        let process = self.process(init)?;
        if !matches!(process.phase, Phase::Running { .. }) {
            return Err(RpcError::precondition("the container is not running"));
        }
        if process.io.pipes.is_empty() && process.io.terminal.is_none() {
            return Err(RpcError::precondition(
                "the container's output is not in the monitor's hands",
            ));
        }
        if present >= MAX_CLIENTS {
            return Err(RpcError::new(
                Code::RESOURCE_EXHAUSTED,
                format!("{present} clients are attached to the container already"),
            ));
        }
        let terminal = process.terminal;
        let number = self.number();
        let stdout = self.client_fifo(init, number, Stream::Out, &request.stdout)?;
        let stderr = match self.client_fifo(init, number, Stream::Err, &request.stderr) {
            Ok(stderr) => stderr,
            Err(error) => {
                if let Some(watch) = stdout {
                    drop(self.poll.release(watch));
                }
                return Err(error);
            }
        };
        let fifos = [stdout, stderr];
        if fifos.iter().any(Option::is_some)
            && let Some(container) = self.containers.get_mut(&request.id)
        {
            container.audience.admit(number, fifos, terminal);
        }
        rpc::empty()
    }

    fn client_fifo(
        &mut self,
        init: Key,
        number: u64,
        stream: Stream,
        text: &str,
    ) -> Result<Option<Watch>, RpcError> {
        let path = match Target::parse(text).map_err(RpcError::invalid)? {
            Target::Null => return Ok(None),
            Target::Fifo(path) => path,
            Target::Log(_) => return Err(RpcError::invalid("a client has no log")),
        };
        let failed = |e: std::io::Error| {
            RpcError::precondition(format!("open the FIFO {}: {e}", Path::display(&path)))
        };
        let fifo = stdio::open_fifo(&path, OFlags::WRONLY).map_err(failed)?;
        let source = Source::Client(init, number, stream);
        Ok(Some(self.poll.watch(fifo, source, QUIET).map_err(failed)?))
    }

    pub(super) fn client_ready(
        &mut self,
        init: Key,
        number: u64,
        stream: Stream,
        flags: EventFlags,
    ) {
        let container = self
            .processes
            .get(&init)
            .and_then(|process| self.containers.get_mut(&process.container));
        if let Some(container) = container {
            container
                .audience
                .ready(&mut self.poll, number, stream, flags);
        }
    }

    /// Ends every exec of a container and forgets it: for a daemon that finds those of one that died. What an exec
    /// that ended by itself left behind lives on, as it always does.
    pub(super) fn end_execs(&mut self, request: &api::StateRequest) -> Answer {
        let execs = self.container(&request.id)?.execs.clone();
        for (exec_id, key) in execs {
            let Some(process) = self.processes.get_mut(&key) else {
                continue;
            };
            match process.phase {
                // Its runtime is at work, or its output is not yet taken: it goes when that is done.
                Phase::Starting | Phase::Draining { .. } => process.doomed = true,
                Phase::Running { .. } => {
                    process.doomed = true;
                    self.kill_exec(key);
                }
                Phase::Created | Phase::Stopped { .. } => self.forget_exec(&request.id, &exec_id),
            }
        }
        rpc::empty()
    }

    /// Kills an exec with all that descends from it.
    pub(super) fn kill_exec(&mut self, key: Key) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        match (&process.cgroup, process.phase) {
            (Some(cgroup), _) => cgroup.signal_all(SIGKILL),
            (None, Phase::Running { pid }) => process_tree::kill(pid),
            _ => {}
        }
    }

    /// Forgets an exec that has ended and that nobody asks for.
    pub(super) fn forget_if_doomed(&mut self, key: Key) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        if process.doomed && matches!(process.program, Program::Exec { .. }) {
            let (container, exec_id) = (process.container.clone(), process.exec_id.clone());
            self.forget_exec(&container, &exec_id);
        }
    }
}
