//! ExecSync: a command in a running container, its output collected.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use zcri_codepage::Rule;
use zcri_sys::file_tag::ccsid;

use super::ContainerView;
use super::output::{self, Chunk};
use super::session::{FifoName, MOST_BYTES, NotStarted, next_id, read_now};
use super::spec;
use crate::error::{Error, Result, Source};
use crate::node::{Node, blocking};
use crate::runtime::{ExecRequest, Shim, ShimError};

/// What of each stream is kept; the rest is read and dropped, and the command goes on (api.proto,
/// ExecSyncResponse).
const OUTPUT_LIMIT: usize = 16 << 20;
/// Capacity of the pipe of each stream, as the kernel has it by default; so much is read at once at most.
const PIPE_BYTES: usize = 64 << 10;
/// How long a command that was killed is waited for: one that the kernel holds (a dead file server) ends never.
const KILLED_MAX: Duration = Duration::from_secs(10);
/// SIGKILL.
const KILL: u32 = 9;

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, up to 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, up to 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// Runs a command to its end, or ends its whole process tree when `timeout` is over.
///
/// A command that leaves a process behind which holds its output does not keep the caller waiting: what was
/// written until the command ended is the output.
///
/// # Errors
/// The container does not run, the command cannot be started, or its time is over.
pub async fn exec_sync(
    node: &Arc<Node>,
    shim: &Shim,
    container: &ContainerView,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput> {
    container.require_running("run a command")?;
    let program = command.first().cloned().unwrap_or_default();
    let exec_id = next_id("sync");
    let (first, rule) = first_process(node, container).await?;
    let process = spec::exec_process(&first, &command, false);
    let process = serde_json::to_vec(&process).map_err(|e| Error::node("encode a process", e))?;
    let mut stdout = Output::open(container.bundle.join(format!("{exec_id}.out")), rule)?;
    let mut stderr = Output::open(container.bundle.join(format!("{exec_id}.err")), rule)?;

    let id = container.id.as_str();
    let failed = |action| move |error| failed(action, id, error);
    let request = ExecRequest {
        id,
        exec_id: &exec_id,
        process,
        terminal: false,
        stdin: None,
        stdout: Some(stdout.path()),
        stderr: Some(stderr.path()),
    };
    shim.exec(request).await.map_err(failed("exec"))?;
    // A limit past the end of time is none.
    let deadline = timeout.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
    // The OCI runtime writes to the command's own streams when it cannot start it.
    let started = reading(shim.start(id, &exec_id), &mut stdout, &mut stderr).await;
    let started =
        started.and_then(|started| started.map_err(|error| not_started(id, &program, error)));
    let result = match started {
        Err(error) => Err(error),
        Ok(_pid) => {
            let run = async {
                let ended = reading(shim.wait(id, &exec_id), &mut stdout, &mut stderr).await?;
                ended.map_err(failed("wait for a command"))
            };
            match deadline {
                None => run.await,
                // The start above is not cut short: what it may have started could not be ended.
                Some(deadline) => match tokio::time::timeout_at(deadline, run).await {
                    Ok(result) => result,
                    Err(_elapsed) => {
                        end_tree(shim, id, &exec_id).await;
                        let seconds = timeout.unwrap_or_default().as_secs();
                        Err(Error::ExecTimeout {
                            id: id.into(),
                            command: program,
                            seconds,
                        })
                    }
                },
            }
        }
    };
    if let Err(error) = shim.delete(id, &exec_id).await {
        tracing::debug!(%error, exec_id, "the shim still holds a command");
    }
    let (exit_code, _) = result?;
    stdout.drain()?;
    stderr.drain()?;
    Ok(ExecOutput {
        stdout: stdout.take(),
        stderr: stderr.take(),
        exit_code,
    })
}

fn failed(action: &'static str, id: &str, error: ShimError) -> Error {
    Error::Runtime {
        action,
        id: id.into(),
        source: Box::new(error),
    }
}

fn not_started(id: &str, program: &str, error: ShimError) -> Error {
    match NotStarted::because_of(&error) {
        NotStarted::ContainerGone => Error::State {
            what: "container",
            id: id.into(),
            state: "exited",
            action: "run a command",
        },
        NotStarted::Program { .. } => Error::Program {
            id: id.into(),
            program: program.into(),
            source: Box::new(error),
        },
        NotStarted::Other => failed("exec", id, error),
    }
}

/// Why a container did not start.
pub(crate) fn start_error(container: &ContainerView, error: ShimError) -> Error {
    let id = container.id.as_str();
    match NotStarted::because_of(&error) {
        NotStarted::Program { .. } => Error::Program {
            id: id.into(),
            program: container
                .config
                .command
                .first()
                .cloned()
                .unwrap_or_default(),
            source: Box::new(error),
        },
        NotStarted::ContainerGone | NotStarted::Other => failed("start", id, error),
    }
}

/// Does `work` while the output of the command is read, without which neither it nor the OCI runtime may go on.
async fn reading<T>(
    work: impl Future<Output = T>,
    stdout: &mut Output,
    stderr: &mut Output,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            read = stdout.read() => read?,
            read = stderr.read() => read?,
        }
    }
}

/// Kills a command with all that descends from it, and waits for its end.
pub(super) async fn end_tree(shim: &Shim, id: &str, exec_id: &str) {
    if let Err(error) = shim.kill(id, exec_id, KILL, true).await {
        tracing::debug!(%error, exec_id, "a command that is over its time could not be killed");
    }
    match tokio::time::timeout(KILLED_MAX, shim.wait(id, exec_id)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, exec_id, "the end of a killed command was not seen");
        }
        Err(_elapsed) => tracing::warn!(
            container = id,
            exec_id,
            "a killed command does not end: the kernel holds it"
        ),
    }
}

/// The first process of the container, and what its output is converted from, as its specification has them. Its profile
/// is in the kernel then, for another process under it.
pub(super) async fn first_process(
    node: &Arc<Node>,
    container: &ContainerView,
) -> Result<(oci_spec::runtime::Process, Option<Rule>)> {
    let file = container.bundle.join("config.json");
    let node = node.clone();
    blocking(move || {
        let read = || -> std::result::Result<_, Source> {
            let spec: oci_spec::runtime::Spec = serde_json::from_slice(&std::fs::read(&file)?)?;
            let process = spec.process().clone().ok_or("no process in it")?;
            Ok((process, output::rule_of(&spec)))
        };
        let found = read().map_err(|source| Error::Node {
            action: format!("read {}", file.display()),
            source,
        })?;
        let profile = found.0.apparmor_profile().as_deref();
        node.confinement.keep_loaded(profile)?;
        Ok(found)
    })
    .await
}

/// One stream: a FIFO that the command writes to and this end reads.
struct Output {
    name: FifoName,
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    /// Something did not fit any more.
    full: bool,
    rule: Option<Rule>,
    chunk: Chunk,
}

impl Output {
    fn open(path: PathBuf, rule: Option<Rule>) -> Result<Self> {
        let name = FifoName::make(path)?;
        // It never seems ended: the exit of the command is the end.
        let pipe = name.reader(PIPE_BYTES, true)?;
        Ok(Self {
            name,
            pipe,
            bytes: Vec::new(),
            full: false,
            rule,
            chunk: Chunk::new(rule, PIPE_BYTES),
        })
    }

    fn path(&self) -> &Path {
        self.name.path()
    }

    /// # Cancel safety
    /// Safe: a read that is not ready has taken nothing.
    async fn read(&mut self) -> Result<()> {
        let count = self
            .pipe
            .read(self.chunk.room())
            .await
            .map_err(|e| Error::node("read a command's output", e))?;
        self.keep(count);
        Ok(())
    }

    fn keep(&mut self, count: usize) {
        let text = self.chunk.take(count, || ccsid(&self.pipe));
        if !self.full {
            let kept = Chunk::cut(self.rule, text, OUTPUT_LIMIT - self.bytes.len());
            self.full = kept.len() < text.len();
            self.bytes.extend_from_slice(kept);
        }
    }

    /// Takes what is in the pipe now, and not what a process that goes on puts in meanwhile.
    fn drain(&mut self) -> Result<()> {
        let mut left = MOST_BYTES;
        while left > 0 {
            let count = read_now(&self.pipe, self.chunk.room())
                .map_err(|e| Error::node("read a command's output", e))?;
            if count == 0 {
                return Ok(());
            }
            self.keep(count);
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
