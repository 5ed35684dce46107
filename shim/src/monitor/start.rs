//! `Start`: calling the runtime, or forking the pod's init, and what follows when that is done.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use rustix::fs::{Gid, OFlags, Uid};
use zcri_sys::pod_init;

use super::{Monitor, Source, now};
use crate::cgroup::Cgroup;
use crate::container::{
    Cleanup, Container, Io, Key, Kind, LogPipe, Phase, Process, Program, START_FAILED,
};
use crate::cri_log::{Splitter, Stream};
use crate::exit_record::Exit;
use crate::poll::{EventFlags, Poll};
use crate::rpc::{self, Call, Code, RpcError};
use crate::runtime::{self, CallFiles, Invocation, Runtime};
use crate::stdio;

/// What a runtime says when its `exec` knows no `--cgroup` (runc before 1.1).
const UNKNOWN_CGROUP_FLAG: &str = "flag provided but not defined: -cgroup";

/// A call of the runtime that is in flight.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) purpose: Purpose,
    pub(super) files: CallFiles,
}

/// What a call of the runtime is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// `run` or `exec` for a process.
    Start(Key),
    /// `delete` of a container.
    CleanUp(String),
    /// `pause` (true) or `resume` for a caller.
    Pause(Call, String, bool),
    /// `update` for a caller.
    Update(Call),
}

impl Monitor {
    pub(super) fn start(
        &mut self,
        call: Call,
        request: &api::StartRequest,
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let key = self.find(&request.id, &request.exec_id)?;
        self.process(key)?.phase.may_start()?;
        if !request.exec_id.is_empty() {
            let container = self.container(&request.id)?;
            let init = self.process(container.init)?;
            init.phase
                .alive()
                .map_err(|_| RpcError::precondition("the container is not running"))?;
        }
        self.process_mut(key)?.starter = Some(call);
        if let Err(error) = self.begin(key) {
            // The caller is answered there; the process is over.
            self.start_failed(key, error);
        }
        Ok(None)
    }

    fn begin(&mut self, key: Key) -> Result<(), RpcError> {
        let container_id = self.process(key)?.container.clone();
        if let Kind::PodInit { .. } = self.container(&container_id)?.kind {
            return self.begin_pod_init(key, &container_id);
        }
        let number = self.number();
        let container = self.containers.get_mut(&container_id);
        let container = container.ok_or_else(|| RpcError::not_found("container", &container_id))?;
        let files = CallFiles::new(&container.bundle, number);
        let process = self
            .processes
            .get_mut(&key)
            .ok_or_else(|| RpcError::internal("no such process"))?;
        let begun = Launch {
            poll: &mut self.poll,
            container,
            process,
            key,
            id: &container_id,
            files: &files,
        }
        .spawn();
        match begun {
            Ok(pid) => {
                process.phase = Phase::Starting;
                self.jobs.insert(
                    pid,
                    Job {
                        purpose: Purpose::Start(key),
                        files,
                    },
                );
                Ok(())
            }
            Err(error) => {
                files.remove();
                Err(error)
            }
        }
    }

    /// The runtime has ended that was to start a process.
    pub(super) fn start_finished(&mut self, key: Key, files: &CallFiles, code: u32) {
        self.end_console(key);
        let outcome = if code == 0 {
            runtime::read_pid(&files.pid)
                .map_err(|e| format!("the runtime left no process number: {e}"))
        } else {
            Err(runtime::failure(&files.log, &self.last_words(key), code))
        };
        match outcome {
            Ok(pid) => self.started(key, pid, files),
            Err(message) if message.contains(UNKNOWN_CGROUP_FLAG) => self.retry_without_cgroup(key),
            Err(message) => {
                let verb = if self.is_exec(key) { "exec" } else { "run" };
                let error = RpcError::new(
                    Code::UNKNOWN,
                    format!("OCI runtime {verb} failed: {message}"),
                );
                self.start_failed(key, error);
            }
        }
    }

    fn retry_without_cgroup(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if let Some(cgroup) = process.cgroup.take() {
            cgroup.remove_exec();
        }
        if let Some(container) = self.containers.get_mut(&process.container)
            && let Kind::Oci(runtime) = &mut container.kind
        {
            runtime.execs_without_cgroup = true;
        }
        if let Err(error) = self.begin(key) {
            self.start_failed(key, error);
        }
    }

    /// The process runs: streams flow from here on, and the caller is told.
    fn started(&mut self, key: Key, pid: u32, files: &CallFiles) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        process.phase = Phase::Running { pid };
        let doomed = process.doomed;
        let starter = process.starter.take();
        let is_init = matches!(process.program, Program::Init);
        for pipe in &mut process.io.pipes {
            if let Err(e) = self.poll.set_interest(&mut pipe.watch, EventFlags::IN) {
                eprintln!("watch the output of {}: {e}", process.container);
            }
        }
        if is_init {
            if let Some(container) = self.containers.get_mut(&process.container) {
                watch_container(&mut self.poll, container, key, pid, files);
            }
        } else if !process.terminal {
            // The process has its streams; an end of it must be an end for the caller too.
            (process.io.stdin, process.io.stdout, process.io.stderr) = (None, None, None);
        }
        let mut response = api::StartResponse::new();
        response.pid = pid;
        if let Some(call) = starter {
            self.reply(call, rpc::answer(&response));
        }
        if doomed {
            self.kill_exec(key);
        }
        if let Some(exit) = self.unclaimed.remove(&pid) {
            self.process_exited(key, exit);
        }
    }

    fn start_failed(&mut self, key: Key, error: RpcError) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let exit = Exit {
            code: START_FAILED,
            at: now(),
        };
        process.phase = Phase::Stopped { pid: 0, exit };
        process.io.release(&mut self.poll);
        let (starter, waiters) = (process.starter.take(), std::mem::take(&mut process.waiters));
        let is_init = matches!(process.program, Program::Init);
        let container_id = process.container.clone();
        if let Some(call) = starter {
            self.reply(call, Err(error));
        }
        self.reply_all(waiters, &super::control::wait_answer(exit));
        self.forget_if_doomed(key);
        // A runtime that was killed half-way leaves things; one that failed cleanly has nothing to delete.
        if is_init
            && matches!(
                self.containers.get(&container_id).map(|c| c.cleanup),
                Some(Cleanup::Due)
            )
        {
            self.clean_up(&container_id);
        }
    }

    fn begin_pod_init(&mut self, key: Key, id: &str) -> Result<(), RpcError> {
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| RpcError::not_found("container", id))?;
        let Kind::PodInit { init, report } = &mut container.kind else {
            return Err(RpcError::internal("not a pod's init"));
        };
        let (pid, pipe) = init
            .spawn()
            .map_err(|e| RpcError::internal(format!("fork the pod's init: {e}")))?;
        let process = self
            .processes
            .get_mut(&key)
            .ok_or_else(|| RpcError::internal("no such process"))?;
        // Already the process itself: an early death is seen by its number.
        process.phase = Phase::Running { pid };
        let watch = self
            .poll
            .watch(pipe, Source::InitReport(key), EventFlags::IN);
        *report =
            Some(watch.map_err(|e| RpcError::internal(format!("watch the pod's init: {e}")))?);
        Ok(())
    }

    /// The pod's init says that it is ready, or why not.
    pub(super) fn init_reported(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (pid, starter) = (process.phase.pid(), process.starter.take());
        let Some(container) = self.containers.get_mut(&process.container) else {
            return;
        };
        let Kind::PodInit { report, .. } = &mut container.kind else {
            return;
        };
        let Some(watch) = report.take() else { return };
        let pipe = self.poll.release(watch);
        let mut words = [0; 512];
        // It wrote before it closed or died, and all of it is here.
        let said = rustix::io::read(&pipe, &mut words).unwrap_or(0);
        let said = words.get(..said).unwrap_or_default();
        let answer = if said == [pod_init::READY] {
            let pid_file = container.bundle.join("init.pid");
            if let Err(e) = std::fs::write(&pid_file, pid.to_string()) {
                eprintln!("write {}: {e}", pid_file.display());
            }
            let mut response = api::StartResponse::new();
            response.pid = pid;
            rpc::answer(&response)
        } else {
            let words = String::from_utf8_lossy(said);
            Err(RpcError::internal(format!(
                "the pod's init did not start: {words}"
            )))
        };
        if let Some(call) = starter {
            self.reply(call, answer);
        }
    }

    fn is_exec(&self, key: Key) -> bool {
        self.processes
            .get(&key)
            .is_some_and(|process| matches!(process.program, Program::Exec { .. }))
    }

    /// What a failing runtime wrote to the streams that would have become the container's.
    fn last_words(&self, key: Key) -> Vec<u8> {
        let Some(process) = self.processes.get(&key) else {
            return Vec::new();
        };
        let pipe = process
            .io
            .pipes
            .iter()
            .find(|pipe| pipe.stream == Stream::Err)
            .or(process.io.pipes.first());
        let mut words = vec![0; 4096];
        let len = pipe
            .and_then(|pipe| rustix::io::read(&pipe.watch, &mut words).ok())
            .unwrap_or(0);
        words.truncate(len);
        words
    }
}

/// From here on the container's cgroup is known, and the runtime has something to delete.
fn watch_container(
    poll: &mut Poll<Source>,
    container: &mut Container,
    key: Key,
    pid: u32,
    files: &CallFiles,
) {
    let kept = container.bundle.join("init.pid");
    if let Err(e) = std::fs::rename(&files.pid, &kept) {
        eprintln!("write {}: {e}", kept.display());
    }
    container.cgroup = Cgroup::locate(container.cgroups_path.as_deref(), pid);
    let Some(path) = container.cgroup.as_ref().and_then(Cgroup::oom_events) else {
        return;
    };
    let watched = std::fs::File::open(path)
        .and_then(|f| poll.watch(f.into(), Source::OomEvents(key), EventFlags::PRI));
    match watched {
        Ok(watch) => container.oom_events = Some(watch),
        Err(e) => eprintln!("watch {}: {e}", path.display()),
    }
}

/// All that is needed to call the runtime for one process.
struct Launch<'a> {
    poll: &'a mut Poll<Source>,
    container: &'a mut Container,
    process: &'a mut Process,
    key: Key,
    id: &'a str,
    files: &'a CallFiles,
}

impl Launch<'_> {
    fn spawn(mut self) -> Result<u32, RpcError> {
        let Kind::Oci(runtime) = &self.container.kind else {
            return Err(RpcError::internal("no runtime"));
        };
        let runtime = runtime.clone();
        let console = self.console()?;
        let mut command =
            self.command(&runtime, console.then_some(self.files.console.as_path()))?;
        if self.process.terminal {
            runtime::errors_to_log(&mut command, &self.files.log)
                .map_err(|e| RpcError::internal(format!("write to the bundle: {e}")))?;
        } else {
            self.streams(&mut command)
                .map_err(|e| RpcError::internal(format!("open the streams: {e}")))?;
        }
        let pid = spawn(&mut command, &runtime)?;
        if matches!(self.process.program, Program::Init) {
            self.container.cleanup = Cleanup::Due;
        }
        Ok(pid)
    }

    fn command(&mut self, runtime: &Runtime, console: Option<&Path>) -> Result<Command, RpcError> {
        let call = Invocation {
            bundle: &self.container.bundle,
            log: &self.files.log,
            id: self.id,
        };
        let Program::Exec { process } = &self.process.program else {
            return Ok(runtime.run(&call, &self.files.pid, console));
        };
        std::fs::write(&self.files.input, process).map_err(|e| {
            RpcError::internal(format!("write {}: {e}", self.files.input.display()))
        })?;
        let mut flag = None;
        if runtime.execs_into_cgroups()
            && let Some(cgroup) = &self.container.cgroup
        {
            // Without one, the tree is found by its parents.
            match cgroup.create_for_exec(&format!("zcri-exec-{}", self.key)) {
                Ok((own, argument)) => {
                    self.process.cgroup = Some(own);
                    flag = Some(argument);
                }
                Err(e) => eprintln!("make a cgroup for an exec in {}: {e}", self.id),
            }
        }
        Ok(runtime.exec(
            &call,
            &self.files.input,
            &self.files.pid,
            console,
            flag.as_deref(),
        ))
    }

    /// Prepares to receive the terminal.
    fn console(&mut self) -> Result<bool, RpcError> {
        if self.process.terminal {
            let listener =
                super::terminal::listen_for_console(&self.files.console).map_err(|e| {
                    RpcError::internal(format!("listen on {}: {e}", self.files.console.display()))
                })?;
            let watch = self
                .poll
                .watch(listener, Source::Console(self.key), EventFlags::IN);
            self.process.io.console =
                Some(watch.map_err(|e| RpcError::internal(format!("watch: {e}")))?);
        }
        Ok(self.process.terminal)
    }

    /// Gives the command its streams.
    fn streams(&mut self, command: &mut Command) -> std::io::Result<()> {
        // A container's output is taken even if it has no log: somebody may attach.
        let is_init = matches!(self.process.program, Program::Init);
        let Io {
            stdin,
            stdout,
            stderr,
            pipes,
            ..
        } = &mut self.process.io;
        if let Some(fifo) = stdin.as_ref() {
            let end = stdio::open_for_process(fifo, OFlags::RDONLY)?;
            give(&end, self.container.stream_owner)?;
            command.stdin(end);
        }
        for (stream, fifo) in [(Stream::Out, stdout), (Stream::Err, stderr)] {
            let end: OwnedFd = if let Some(fifo) = fifo.as_ref() {
                stdio::open_for_process(fifo.as_fd(), OFlags::WRONLY)?
            } else if is_init {
                let (reader, writer) = stdio::output_pipe()?;
                let watch =
                    self.poll
                        .watch(reader, Source::Pipe(self.key, stream), EventFlags::empty())?;
                pipes.push(LogPipe {
                    watch,
                    stream,
                    splitter: Splitter::default(),
                    last_read: Duration::ZERO,
                });
                writer
            } else {
                stdio::null()?
            };
            give(&end, self.container.stream_owner)?;
            match stream {
                Stream::Out => command.stdout(end),
                Stream::Err => command.stderr(end),
            };
        }
        Ok(())
    }
}

/// Gives a stream to its process. `/dev/null` belongs to the node.
fn give(end: &OwnedFd, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    let mode = rustix::fs::fstat(end)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::fchown(end, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Starts a runtime without waiting for it; its end comes as an event.
pub(super) fn spawn(command: &mut Command, runtime: &Runtime) -> Result<u32, RpcError> {
    let spawned = command.spawn();
    match spawned {
        Ok(child) => Ok(child.id()),
        Err(e) => Err(RpcError::new(
            Code::UNKNOWN,
            format!("start the OCI runtime {:?}: {e}", runtime.binary),
        )),
    }
}
