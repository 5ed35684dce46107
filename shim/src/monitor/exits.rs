//! Ends: of runtimes, of processes, and of what belongs to them.
//!
//! The order for a container's process: exit seen; the rest of its cgroup killed where no PID namespace did that;
//! its output read to the end; `exit.json` written; `Wait` answered; `RUNTIME delete` begun. Where processes may still
//! hold the output, because they share a PID namespace, its end may come only when `RUNTIME delete` is done.

use rustix::process::{WaitOptions, WaitStatus};

use super::start::{Job, Purpose};
use super::{Monitor, now};
use crate::cgroup::SIGKILL;
use crate::container::{Cleanup, Key, Kind, Phase, Program};
use crate::cri_log::Stream;
use crate::exit_record::{Exit, ExitRecord};
use crate::rpc::{self, Code, RpcError};
use crate::runtime::{self, CallFiles, Invocation};

/// Exit code of a process that SIGKILL ended, or of a shell that saw its child end so.
const KILLED: u32 = 128 + 9;

impl Monitor {
    /// Children have ended.
    pub(super) fn reap(&mut self) {
        // The counter only says that there is something; how much, the waiting tells.
        rustix::io::read(&self.children, &mut [0; 8]).ok();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let exit = Exit {
                        code: exit_code(status),
                        at: now(),
                    };
                    self.reaped(pid.as_raw_nonzero().get().unsigned_abs(), exit);
                }
                Err(rustix::io::Errno::INTR) => {}
                // None has ended, or there is none.
                Ok(None) | Err(_) => break,
            }
        }
        if !self
            .jobs
            .values()
            .any(|job| matches!(job.purpose, Purpose::Start(_)))
        {
            // Whoever they were, nobody asks for them.
            self.unclaimed.clear();
        }
    }

    fn reaped(&mut self, pid: u32, exit: Exit) {
        if let Some(job) = self.jobs.remove(&pid) {
            self.job_finished(job, exit.code);
            return;
        }
        let running = self
            .processes
            .iter()
            .find(|(_, process)| process.phase == Phase::Running { pid });
        match running.map(|(key, _)| *key) {
            Some(key) => self.process_exited(key, exit),
            // Perhaps one whose runtime has yet to say that it started it; else an orphan.
            None => drop(self.unclaimed.insert(pid, exit)),
        }
    }

    fn job_finished(&mut self, job: Job, code: u32) {
        match job.purpose {
            Purpose::Start(key) => self.start_finished(key, &job.files, code),
            Purpose::CleanUp(id) => self.cleaned_up(&id, &job.files, code),
            Purpose::Pause(call, id, paused) => {
                if code == 0
                    && let Some(container) = self.containers.get_mut(&id)
                {
                    container.paused = paused;
                }
                self.reply(
                    call,
                    outcome(if paused { "pause" } else { "resume" }, &job.files, code),
                );
            }
            Purpose::Update(call) => self.reply(call, outcome("update", &job.files, code)),
        }
        job.files.remove();
    }

    /// A process that was asked for has ended.
    pub(super) fn process_exited(&mut self, key: Key, exit: Exit) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        process.phase = Phase::Draining {
            pid: process.phase.pid(),
            exit,
        };
        let id = process.container.clone();
        let is_init = matches!(process.program, Program::Init);
        let all_dead = !is_init || self.container_ended(key, &id, exit);
        self.drain(key, all_dead);
        self.finish_if_drained(key);
        if is_init {
            // Last, as whoever waits for the end need not wait for a program to be started.
            self.clean_up(&id);
        }
    }

    /// What the end of its first process means for a container. Are all its processes dead already?
    fn container_ended(&mut self, key: Key, id: &str, exit: Exit) -> bool {
        let Some(container) = self.containers.get_mut(id) else {
            return true;
        };
        container.paused = false;
        if let Some(watch) = container.oom_events.take() {
            drop(self.poll.release(watch));
        }
        if let Kind::PodInit { report, .. } = &container.kind {
            if report.is_some() {
                self.init_reported(key);
            }
            return true;
        }
        if let Some(cgroup) = &container.cgroup {
            let kills = cgroup.oom_kills().max(container.oom_kills);
            container.oom_killed = exit.code == KILLED && kills > 0;
            if !container.own_pid_namespace {
                cgroup.signal_all(SIGKILL);
            }
        }
        container.own_pid_namespace
    }

    /// The kernel counted an OOM kill in a container that goes on.
    pub(super) fn oom_event(&mut self, key: Key) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        let Some(container) = self.containers.get_mut(&process.container) else {
            return;
        };
        let Some(watch) = container.oom_events.take() else {
            return;
        };
        // The event lasts until the descriptor itself was read; it fails when the cgroup is gone.
        match rustix::io::pread(&watch, &mut [0; 1024], 0) {
            Ok(_) => {
                let kills = container
                    .cgroup
                    .as_ref()
                    .map_or(0, crate::cgroup::Cgroup::oom_kills);
                container.oom_kills = container.oom_kills.max(kills);
                container.oom_events = Some(watch);
            }
            Err(_gone) => drop(self.poll.release(watch)),
        }
    }

    /// Ends a drained process: its exit goes to disk, and those who wait for it are told.
    pub(super) fn finish_if_drained(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let Phase::Draining { pid, exit } = process.phase else {
            return;
        };
        if !process.io.pipes.is_empty() || process.io.terminal.is_some() {
            return;
        }
        process.phase = Phase::Stopped { pid, exit };
        process.io.release(&mut self.poll);
        let waiters = std::mem::take(&mut process.waiters);
        let id = process.container.clone();
        if matches!(process.program, Program::Init)
            && let Some(container) = self.containers.get_mut(&id)
        {
            for stream in [Stream::Out, Stream::Err] {
                container.audience.end(&mut self.poll, stream);
            }
            let record = ExitRecord::new(pid, exit, container.oom_killed);
            if let Err(e) = record.write(&container.bundle) {
                eprintln!("write exit.json in {}: {e}", container.bundle.display());
            }
        }
        self.reply_all(waiters, &super::control::wait_answer(exit));
        self.forget_if_doomed(key);
        self.finish_delete(&id);
    }

    /// Calls `RUNTIME delete`.
    pub(super) fn clean_up(&mut self, id: &str) {
        let number = self.number();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Kind::Oci(runtime) = &container.kind else {
            return;
        };
        let files = CallFiles::new(&container.bundle, number);
        let call = Invocation {
            bundle: &container.bundle,
            log: &files.log,
            id,
        };
        let mut command = runtime.delete(&call);
        let spawned = runtime::errors_to_log(&mut command, &files.log)
            .map_err(|e| RpcError::internal(e.to_string()))
            .and_then(|()| super::start::spawn(&mut command, runtime));
        match spawned {
            Ok(pid) => {
                container.cleanup = Cleanup::InProgress;
                self.jobs.insert(
                    pid,
                    Job {
                        purpose: Purpose::CleanUp(id.to_owned()),
                        files,
                    },
                );
            }
            Err(e) => self.cleanup_failed(id, &e.message),
        }
    }

    fn cleaned_up(&mut self, id: &str, files: &CallFiles, code: u32) {
        let message = if code == 0 {
            String::new()
        } else {
            runtime::failure(&files.log, b"", code)
        };
        if code == 0 || message.contains("does not exist") {
            if let Some(container) = self.containers.get_mut(id) {
                container.cleanup = Cleanup::Clean;
            }
        } else {
            return self.cleanup_failed(id, &message);
        }
        // The processes are dead now: what they wrote is in the pipes.
        if let Some(init) = self.containers.get(id).map(|container| container.init) {
            self.drain(init, true);
            self.finish_if_drained(init);
        }
        self.finish_delete(id);
    }

    fn cleanup_failed(&mut self, id: &str, message: &str) {
        eprintln!("delete of {id} by the runtime: {message}");
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let init = self.processes.get(&container.init);
        if init.is_some_and(|process| process.phase.pid() == 0) {
            // It never ran. A runtime that fails to start also undoes what it did, and one that is broken for good
            // must not keep the pod from being removed.
            container.cleanup = Cleanup::Clean;
            return self.finish_delete(id);
        }
        container.cleanup = Cleanup::Failed;
        let deleters = std::mem::take(&mut container.deleters);
        let error = RpcError::new(
            Code::UNKNOWN,
            format!("OCI runtime delete failed: {message}"),
        );
        let init = container.init;
        self.reply_all(deleters, &Err(error));
        // Nothing will tell any more that the last processes are dead.
        self.drain(init, true);
        self.finish_if_drained(init);
    }
}

fn outcome(verb: &str, files: &CallFiles, code: u32) -> rpc::Answer {
    if code == 0 {
        return rpc::empty();
    }
    let message = runtime::failure(&files.log, b"", code);
    Err(RpcError::new(
        Code::UNKNOWN,
        format!("OCI runtime {verb} failed: {message}"),
    ))
}

/// The exit code as shells count: 128 + the signal for a killed process.
fn exit_code(status: WaitStatus) -> u32 {
    let signalled = || {
        status
            .terminating_signal()
            .map(|signal| 128 + signal.unsigned_abs())
    };
    status
        .exit_status()
        .map(i32::unsigned_abs)
        .or_else(signalled)
        .unwrap_or(255)
}
