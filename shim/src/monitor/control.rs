//! Requests about what exists: state, signals, waiting, deleting, and so on.

use containerd_shim_protos::api;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use rustix::process::Pid;
use rustix::termios::Winsize;

use super::Monitor;
use super::start::{Job, Purpose, spawn};
use crate::cgroup::SIGKILL;
use crate::container::{Cleanup, Container, Key, Kind, Phase, Process, Program};
use crate::exit_record::Exit;
use crate::process_tree;
use crate::rpc::{self, Answer, Call, Code, RpcError};
use crate::runtime::{self, CallFiles, Invocation};

/// The answer to `Wait`.
pub(super) fn wait_answer(exit: Exit) -> Answer {
    let mut response = api::WaitResponse::new();
    response.exit_status = exit.code;
    response.exited_at = timestamp(exit);
    rpc::answer(&response)
}

fn timestamp(exit: Exit) -> MessageField<Timestamp> {
    let mut time = Timestamp::new();
    time.seconds = i64::try_from(exit.at.as_secs()).unwrap_or(i64::MAX);
    time.nanos = i32::try_from(exit.at.subsec_nanos()).unwrap_or_default();
    MessageField::some(time)
}

fn delete_answer(phase: Phase) -> Answer {
    let mut response = api::DeleteResponse::new();
    response.pid = phase.pid();
    if let Some(exit) = phase.stopped() {
        response.exit_status = exit.code;
        response.exited_at = timestamp(exit);
    }
    rpc::answer(&response)
}

impl Monitor {
    pub(super) fn container(&self, id: &str) -> Result<&Container, RpcError> {
        self.containers
            .get(id)
            .ok_or_else(|| RpcError::not_found("container", id))
    }

    pub(super) fn process(&self, key: Key) -> Result<&Process, RpcError> {
        self.processes
            .get(&key)
            .ok_or_else(|| RpcError::internal("a process without a record"))
    }

    pub(super) fn process_mut(&mut self, key: Key) -> Result<&mut Process, RpcError> {
        self.processes
            .get_mut(&key)
            .ok_or_else(|| RpcError::internal("a process without a record"))
    }

    /// The process that a request names: an exec, or without an exec id the container's own.
    pub(super) fn find(&self, id: &str, exec_id: &str) -> Result<Key, RpcError> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Ok(container.init);
        }
        container
            .execs
            .get(exec_id)
            .copied()
            .ok_or_else(|| RpcError::not_found("exec", exec_id))
    }

    pub(super) fn state(&self, request: &api::StateRequest) -> Answer {
        let process = self.process(self.find(&request.id, &request.exec_id)?)?;
        let container = self.container(&request.id)?;
        let mut response = api::StateResponse::new();
        response.id.clone_from(&request.id);
        response.exec_id.clone_from(&request.exec_id);
        response.bundle = container.bundle.to_string_lossy().into_owned();
        response.pid = process.phase.pid();
        let running = matches!(process.phase, Phase::Running { .. });
        let status = if container.paused && running {
            api::Status::PAUSED
        } else {
            process.phase.status()
        };
        response.status = status.into();
        [response.stdin, response.stdout, response.stderr] = process.stdio.clone();
        response.terminal = process.terminal;
        if let Some(exit) = process.phase.stopped() {
            response.exit_status = exit.code;
            response.exited_at = timestamp(exit);
        }
        rpc::answer(&response)
    }

    pub(super) fn wait(
        &mut self,
        call: Call,
        request: &api::WaitRequest,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let key = self.find(&request.id, &request.exec_id)?;
        let process = self.process_mut(key)?;
        match process.phase.stopped() {
            Some(exit) => wait_answer(exit).map(Some),
            None => {
                process.waiters.push(call);
                Ok(None)
            }
        }
    }

    pub(super) fn kill(&mut self, request: &api::KillRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal));
        let signal = signal.ok_or_else(|| {
            RpcError::invalid(format!("signal {} does not exist", request.signal))
        })?;
        let process = self.process(key)?;
        let container = self.container(&request.id)?;
        let target = process.phase.alive();
        match &process.program {
            Program::Exec { .. } if request.all => match (&process.cgroup, target) {
                // Also after its end: what it left behind is in its cgroup.
                (
                    Some(cgroup),
                    Ok(_)
                    | Err(RpcError {
                        code: Code::NOT_FOUND,
                        ..
                    }),
                ) => cgroup.signal_all(signal),
                (_, Err(error)) => return Err(error),
                (None, Ok(pid)) if signal == SIGKILL => process_tree::kill(pid),
                (None, Ok(pid)) => process_tree::signal_all(pid, signal),
            },
            _ => {
                let pid = target?;
                if let (Some(cgroup), true) = (&container.cgroup, request.all) {
                    cgroup.signal_all(signal);
                }
                // A child that was not waited for yet: its number can be nobody else's. One that is dead already is
                // as killed as can be.
                match zcri_sys::signal::send(pid, signal) {
                    Err(e)
                        if e.kind() != std::io::ErrorKind::NotFound
                            && e.raw_os_error() != Some(ESRCH) =>
                    {
                        return Err(RpcError::internal(format!(
                            "send signal {signal} to {pid}: {e}"
                        )));
                    }
                    _ => {}
                }
            }
        }
        if signal == SIGKILL
            && container.paused
            && let Some(cgroup) = &container.cgroup
        {
            cgroup.thaw();
        }
        rpc::empty()
    }

    pub(super) fn pids(&self, request: &api::PidsRequest) -> Answer {
        let container = self.container(&request.id)?;
        let mut pids = container
            .cgroup
            .as_ref()
            .map(crate::cgroup::Cgroup::processes)
            .unwrap_or_default();
        pids.extend(self.process(container.init)?.phase.alive().ok());
        let mut response = api::PidsResponse::new();
        for pid in pids {
            let mut info = api::ProcessInfo::new();
            info.pid = pid;
            response.processes.push(info);
        }
        rpc::answer(&response)
    }

    pub(super) fn resize_pty(&mut self, request: &api::ResizePtyRequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let process = self.process_mut(key)?;
        if !process.terminal {
            return Err(RpcError::precondition("the process has no terminal"));
        }
        let side = |value: u32| {
            u16::try_from(value).map_err(|_| RpcError::invalid("a terminal is not that large"))
        };
        let size = (side(request.width)?, side(request.height)?);
        process.size = Some(size);
        if let Some(terminal) = &process.io.terminal {
            set_size(&terminal.master, size)
                .map_err(|e| RpcError::internal(format!("set the size of the terminal: {e}")))?;
        }
        rpc::empty()
    }

    pub(super) fn close_io(&mut self, request: &api::CloseIORequest) -> Answer {
        let key = self.find(&request.id, &request.exec_id)?;
        let process = self
            .processes
            .get_mut(&key)
            .ok_or_else(|| RpcError::internal("no such process"))?;
        if request.stdin {
            process.io.stdin = None;
            if let Some(terminal) = &mut process.io.terminal
                && let Some(input) = terminal.input.take()
            {
                drop(self.poll.release(input));
            }
        }
        rpc::empty()
    }

    pub(super) fn reopen_log(&mut self, request: &api::StateRequest) -> Result<Vec<u8>, RpcError> {
        let container = self
            .containers
            .get_mut(&request.id)
            .ok_or_else(|| RpcError::not_found("container", &request.id))?;
        let Some(log) = &mut container.log else {
            return Err(RpcError::precondition(format!(
                "container {:?} has no log",
                request.id
            )));
        };
        log.reopen().map_err(|e| {
            RpcError::internal(format!("reopen the log {}: {e}", log.path().display()))
        })?;
        rpc::empty()
    }

    pub(super) fn pause(
        &mut self,
        call: Call,
        id: &str,
        pause: bool,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let container = self.container(id)?;
        self.process(container.init)?
            .phase
            .alive()
            .map_err(|e| RpcError::precondition(e.message))?;
        let purpose = Purpose::Pause(call, id.to_owned(), pause);
        self.call_runtime(id, if pause { "pause" } else { "resume" }, None, purpose)
    }

    pub(super) fn update(
        &mut self,
        call: Call,
        request: &api::UpdateTaskRequest,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let container = self.container(&request.id)?;
        self.process(container.init)?
            .phase
            .alive()
            .map_err(|e| RpcError::precondition(e.message))?;
        let resources = request.resources.as_ref().map(|any| any.value.as_slice());
        let resources = resources.ok_or_else(|| RpcError::invalid("resources are missing"))?;
        serde_json::from_slice::<serde::de::IgnoredAny>(resources)
            .map_err(|e| RpcError::invalid(format!("resources are no JSON: {e}")))?;
        self.call_runtime(
            &request.id,
            "update",
            Some(resources),
            Purpose::Update(call),
        )
    }

    fn call_runtime(
        &mut self,
        id: &str,
        verb: &str,
        input: Option<&[u8]>,
        purpose: Purpose,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let number = self.number();
        let container = self.container(id)?;
        let Kind::Oci(runtime) = &container.kind else {
            return Err(RpcError::precondition(format!(
                "{verb}: the pod's init has no runtime"
            )));
        };
        let files = CallFiles::new(&container.bundle, number);
        let call = Invocation {
            bundle: &container.bundle,
            log: &files.log,
            id,
        };
        let mut command = match input {
            Some(_) => runtime.update(&call, &files.input),
            None => runtime.plain(&call, verb, &[]),
        };
        let written = input.map_or(Ok(()), |bytes| std::fs::write(&files.input, bytes));
        let spawned = written
            .and_then(|()| runtime::errors_to_log(&mut command, &files.log))
            .map_err(|e| {
                RpcError::internal(format!(
                    "write to the bundle {}: {e}",
                    container.bundle.display()
                ))
            })
            .and_then(|()| spawn(&mut command, runtime));
        match spawned {
            Ok(pid) => drop(self.jobs.insert(pid, Job { purpose, files })),
            Err(error) => {
                files.remove();
                return Err(error);
            }
        }
        Ok(None)
    }

    pub(super) fn delete(
        &mut self,
        call: Call,
        request: &api::DeleteRequest,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let key = self.find(&request.id, &request.exec_id)?;
        let phase = self.process(key)?.phase;
        if matches!(phase, Phase::Starting | Phase::Running { .. }) {
            return Err(RpcError::precondition("the process is running"));
        }
        if !request.exec_id.is_empty() {
            if matches!(phase, Phase::Draining { .. }) {
                return Err(RpcError::precondition(
                    "the output of the process is not yet taken",
                ));
            }
            self.forget_exec(&request.id, &request.exec_id);
            return delete_answer(phase).map(Some);
        }
        let container = self
            .containers
            .get_mut(&request.id)
            .ok_or_else(|| RpcError::not_found("container", &request.id))?;
        container.deleters.push(call);
        match container.cleanup {
            Cleanup::Due | Cleanup::Failed => self.clean_up(&request.id),
            Cleanup::Clean | Cleanup::InProgress => self.finish_delete(&request.id),
        }
        Ok(None)
    }

    pub(super) fn forget_exec(&mut self, id: &str, exec_id: &str) {
        let key = self
            .containers
            .get_mut(id)
            .and_then(|container| container.execs.remove(exec_id));
        let Some(mut process) = key.and_then(|key| self.processes.remove(&key)) else {
            return;
        };
        process.io.release(&mut self.poll);
        if let Some(cgroup) = process.cgroup {
            cgroup.remove_exec();
        }
        let gone = Err(RpcError::not_found("exec", exec_id));
        self.reply_all(process.waiters, &gone);
        self.reply_all(process.starter.into_iter().collect(), &gone);
    }

    /// Forgets a container that shall be deleted, once nothing is left to do for it.
    pub(super) fn finish_delete(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let over = self.processes.get(&container.init).is_none_or(|process| {
            matches!(process.phase, Phase::Created | Phase::Stopped { .. })
                && container.cleanup == Cleanup::Clean
        });
        if container.deleters.is_empty() || !over {
            return;
        }
        let execs: Vec<String> = container.execs.keys().cloned().collect();
        for exec_id in execs {
            self.forget_exec(id, &exec_id);
        }
        // Taken apart, so that the rest of it is closed before anyone is told.
        let Some(Container {
            deleters,
            init,
            mut audience,
            ..
        }) = self.containers.remove(id)
        else {
            return;
        };
        audience.dismiss(&mut self.poll);
        let init = self.processes.remove(&init);
        let phase = init
            .as_ref()
            .map_or(Phase::Created, |process| process.phase);
        if let Some(mut process) = init {
            process.io.release(&mut self.poll);
            self.reply_all(process.waiters, &Err(RpcError::not_found("container", id)));
        }
        self.reply_all(deleters, &delete_answer(phase));
    }

    pub(super) fn connect(&self, request: &api::ConnectRequest) -> Answer {
        let mut response = api::ConnectResponse::new();
        response.shim_pid = std::process::id();
        env!("CARGO_PKG_VERSION").clone_into(&mut response.version);
        if let Ok(process) = self.find(&request.id, "").and_then(|key| self.process(key)) {
            response.task_pid = process.phase.pid();
        }
        rpc::answer(&response)
    }

    pub(super) fn shut_down(&mut self, request: &api::ShutdownRequest) -> Answer {
        // With tasks left this does nothing, and says so no more than containerd's shims do.
        if self.containers.is_empty() || request.now {
            self.shutdown = true;
            self.end_pod_init();
            // From here on a new shim may be started for this bundle.
            if let Err(e) = std::fs::remove_file(&self.socket) {
                eprintln!("remove {}: {e}", self.socket.display());
            }
        }
        rpc::empty()
    }

    /// The init of the pod's PID namespace is nobody's but this monitor's: it must not be left behind.
    fn end_pod_init(&self) {
        for container in self.containers.values() {
            let Kind::PodInit { .. } = container.kind else {
                continue;
            };
            let Some(process) = self.processes.get(&container.init) else {
                continue;
            };
            if let Phase::Running { pid } = process.phase
                && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            {
                // Not reaped yet, so the number is still its own; one that has ended is what was wanted.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

/// Error number of a process that is gone.
const ESRCH: i32 = 3;

/// Sets the size of a terminal: columns and rows.
pub(super) fn set_size(
    master: impl std::os::fd::AsFd,
    (columns, rows): (u16, u16),
) -> rustix::io::Result<()> {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size)
}
