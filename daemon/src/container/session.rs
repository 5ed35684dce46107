//! Exec and attach sessions: commands and containers whose streams a client holds.
//!
//! Without a terminal a command writes to FIFOs that this daemon reads, and no byte crosses the shim; a terminal is
//! the shim's, which copies between it and the FIFOs. Each session has a task of its own, so that one that is dropped
//! at any moment is ended in order: the process tree killed, its end waited for, the shim told to forget it.

mod attach;
mod fifo;

use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;
use zcri_codepage::Rule;
use zcri_streaming::{
    ExecRequest, ExitStatus, Input, Output, Session, SessionControl, SessionError, TerminalSize,
};

use super::exec::{end_tree, first_process};
use super::{ContainerView, spec};
use crate::error::{Chain, Error, Result};
use crate::node::Node;
use crate::runtime::{self, Shim, ShimError};

pub(crate) use attach::{attach, close_taken_stdin};
pub(crate) use fifo::remove_left_fifos;
pub(super) use fifo::{FifoName, MOST_BYTES, read_now};

/// Capacity of the FIFO of a command's output. The command waits when it is full, so this much is held for a client
/// that does not read, at most.
const EXEC_FIFO: usize = 256 << 10;

/// Held by the task of each session, so that a daemon that stops can wait for them.
pub(crate) type Busy = mpsc::Sender<()>;

/// A name for a command that no other has, also of a daemon that died: the time of the first is in it.
pub(super) fn next_id(prefix: &str) -> String {
    static SINCE: LazyLock<i64> = LazyLock::new(crate::time::now_ns);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{prefix}-{:x}-{}",
        *SINCE,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// How a session ended, for as many as ask.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Code(i32),
    /// A command with a terminal, whose session began before it was started.
    CannotStart {
        code: u8,
        message: String,
    },
    Failed(String),
}

impl End {
    fn result(self) -> Result<ExitStatus, SessionError> {
        match self {
            End::Code(code) => Ok(ExitStatus { code }),
            End::CannotStart { code, .. } => Ok(ExitStatus { code: code.into() }),
            End::Failed(message) => Err(SessionError::Internal { message }),
        }
    }
}

/// Starts a command in a container.
pub(crate) async fn exec(
    node: &Arc<Node>,
    shim: &Shim,
    container: &ContainerView,
    request: ExecRequest,
    busy: Busy,
) -> Result<Session, SessionError> {
    let exec_id = next_id("exec");
    let span = tracing::info_span!("exec", container = %container.id, exec_id);
    let (streams, command, rule) = prepare(node, container, &exec_id, &request)
        .await
        .map_err(|e| refused(&e))?;
    let (publish, end) = watch::channel(None);
    let (cancel, cancelled) = oneshot::channel();
    let (started, starting) = oneshot::channel();
    let (keep, kept) = oneshot::channel();
    let task = Task {
        shim: shim.clone(),
        id: container.id.to_string(),
        exec_id: exec_id.clone(),
        tty: request.tty,
    };
    let control = ExecControl {
        shim: shim.clone(),
        id: container.id.to_string(),
        exec_id,
        end: end.clone(),
        _cancel: cancel,
    };
    let Streams {
        stdin,
        stdout,
        stderr,
    } = streams;
    // Dropped from here on, this function drops `control`, which cancels the task.
    tokio::spawn(
        async move {
            let end = task.run(command, started, cancelled).await;
            // The end of its input: now that there is nobody to read it.
            drop(kept);
            publish.send_replace(Some(end));
            task.forget().await;
            drop(busy);
        }
        .instrument(span),
    );
    match starting.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error),
        Err(_gone) => {
            let message = "the session's task ended".into();
            return Err(SessionError::Internal { message });
        }
    }
    let output = |pipe: Option<pipe::Receiver>| {
        let mut end = end.clone();
        let over = async move {
            match end.wait_for(Option::is_some).await.as_deref() {
                // The protocols have no other place for words about a command with a terminal: the session has begun.
                Ok(Some(End::CannotStart { message, .. })) => format!("{message}\r\n"),
                _ => String::new(),
            }
        };
        pipe.map(|pipe| -> Output { Box::new(fifo::FifoOutput::new(pipe, over, rule)) })
    };
    Ok(Session {
        stdin: stdin.map(|pipe| -> Input { Box::new(fifo::FifoInput::of_command(pipe, keep)) }),
        stdout: output(stdout),
        stderr: output(stderr),
        control: Box::new(control),
    })
}

/// This side's ends.
struct Streams {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

/// What the shim is told, and what is kept until it has been.
struct Command {
    process: Vec<u8>,
    stdin: Option<FifoName>,
    stdout: Option<FifoName>,
    stderr: Option<FifoName>,
    /// The FIFO of the input has to have a reader before it can be opened for writing.
    _stdin_reader: Option<pipe::Receiver>,
}

/// The streams, what the shim is told, and what the outputs are converted from here.
async fn prepare(
    node: &Arc<Node>,
    container: &ContainerView,
    exec_id: &str,
    request: &ExecRequest,
) -> Result<(Streams, Command, Option<Rule>)> {
    container.require_running("run a command")?;
    let (first, rule) = first_process(node, container).await?;
    let process = spec::exec_process(&first, &request.command, request.tty);
    let process = serde_json::to_vec(&process).map_err(|e| Error::node("encode a process", e))?;
    let make = |wanted: bool, suffix: &str| {
        let path = container.bundle.join(format!("{exec_id}.{suffix}"));
        wanted.then(|| FifoName::make(path)).transpose()
    };
    let reader = |name: &Option<FifoName>| {
        name.as_ref()
            .map(|name| name.reader(EXEC_FIFO, true))
            .transpose()
    };
    let (stdin, stdout, stderr) = (
        make(request.stdin, "in")?,
        make(request.stdout, "out")?,
        make(request.stderr && !request.tty, "err")?,
    );
    let stdin_reader = stdin
        .as_ref()
        .map(|name| name.reader(EXEC_FIFO, false))
        .transpose()?;
    let writer = |name: &FifoName| {
        pipe::OpenOptions::new()
            .open_sender(name.path())
            .map_err(|e| Error::node("open the input of a command", e))
    };
    let streams = Streams {
        stdin: stdin.as_ref().map(writer).transpose()?,
        stdout: reader(&stdout)?,
        stderr: reader(&stderr)?,
    };
    let command = Command {
        process,
        stdin,
        stdout,
        stderr,
        _stdin_reader: stdin_reader,
    };
    // What passes a terminal is converted by the shim, which has it.
    let rule = rule.filter(|_| !request.tty);
    Ok((streams, command, rule))
}

/// One command from its start to its end.
struct Task {
    shim: Shim,
    id: String,
    exec_id: String,
    tty: bool,
}

impl Task {
    async fn run(
        &self,
        command: Command,
        started: oneshot::Sender<Result<(), SessionError>>,
        cancelled: oneshot::Receiver<()>,
    ) -> End {
        if let Err(error) = self.create(command).await {
            return tell(started, cannot_start(&error));
        }
        let mut started = Some(started);
        if self.tty {
            // Told before it is started, so that the size of the client's terminal can arrive before the command
            // asks for it.
            started.take().map(|started| started.send(Ok(())));
        }
        // Not cut short: what it may have started could not be ended.
        if let Err(error) = self.shim.start(&self.id, &self.exec_id).await {
            let error = cannot_start(&error);
            tracing::info!(%error, "a command did not start");
            return match started {
                Some(started) => tell(started, error),
                None => ended_by(&error),
            };
        }
        if let Some(started) = started {
            started.send(Ok(())).ok();
        }
        tokio::select! {
            exit = self.shim.wait(&self.id, &self.exec_id) => match exit {
                Ok((code, _)) => End::Code(code),
                Err(error) => End::Failed(Chain(&error).to_string()),
            },
            // Nothing is ever sent: the session is gone.
            _ = cancelled => {
                tracing::info!("the client of a command is gone: the command is ended");
                end_tree(&self.shim, &self.id, &self.exec_id).await;
                End::Failed("the session was ended".into())
            }
        }
    }

    async fn create(&self, command: Command) -> Result<(), ShimError> {
        let path = |name: &Option<FifoName>| name.as_ref().map(|name| name.path().to_owned());
        let (stdin, stdout, stderr) = (
            path(&command.stdin),
            path(&command.stdout),
            path(&command.stderr),
        );
        let request = runtime::ExecRequest {
            id: &self.id,
            exec_id: &self.exec_id,
            process: command.process,
            terminal: self.tty,
            stdin: stdin.as_deref(),
            stdout: stdout.as_deref(),
            stderr: stderr.as_deref(),
        };
        self.shim.exec(request).await
    }

    async fn forget(&self) {
        if let Err(error) = self.shim.delete(&self.id, &self.exec_id).await {
            tracing::debug!(%error, exec_id = self.exec_id, "the shim still holds a command");
        }
    }
}

/// Tells that there is no session.
fn tell(started: oneshot::Sender<Result<(), SessionError>>, error: SessionError) -> End {
    let end = ended_by(&error);
    // Nobody waits for it when the client is gone.
    started.send(Err(error)).ok();
    end
}

fn ended_by(error: &SessionError) -> End {
    match error {
        SessionError::CannotStart { code, message } => End::CannotStart {
            code: *code,
            message: message.clone(),
        },
        other => End::Failed(other.to_string()),
    }
}

/// The domain's refusal as the client is told it.
pub(crate) fn refused(error: &Error) -> SessionError {
    let message = Chain(error).to_string();
    match error {
        Error::NotFound { .. } | Error::State { .. } | Error::Gone { .. } => {
            SessionError::NotRunning { message }
        }
        _ => SessionError::Internal { message },
    }
}

/// Why a command did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStarted {
    /// Its container had ended by then.
    ContainerGone,
    /// The container does not have the program, or may not execute it.
    Program {
        /// A shell's code for it (POSIX, 2.8.2): 127 for what is not found, 126 for what cannot be executed.
        code: u8,
    },
    /// Neither of these: the OCI runtime or its shim failed.
    Other,
}

impl NotStarted {
    /// Reads it from the answer.
    pub(super) fn because_of(error: &ShimError) -> Self {
        if error.is_not_found() || error.is_precondition() {
            return Self::ContainerGone;
        }
        Self::in_words(&Chain(error).to_string())
    }

    /// Reads it from the runtime's words.
    fn in_words(message: &str) -> Self {
        let message = message.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        // The last one is runc's when the container ends while it looks at it.
        if says(&["that has stopped", "stopped container", "lstat /proc/"]) {
            Self::ContainerGone
        } else if says(&["/attr/"]) {
            // The kernel did not let the process be confined; "exec" and a reason are there too.
            Self::Other
        } else if !says(&["exec: ", "exec /", "executable"]) {
            Self::Other
        } else if says(&["not found", "no such file or directory"]) {
            Self::Program { code: 127 }
        } else if says(&["permission denied", "exec format error", "is a directory"]) {
            Self::Program { code: 126 }
        } else {
            Self::Other
        }
    }
}

/// Why a command did not start, as the client of a session is told it.
fn cannot_start(error: &ShimError) -> SessionError {
    let message = Chain(error).to_string();
    match NotStarted::because_of(error) {
        NotStarted::ContainerGone => SessionError::NotRunning { message },
        NotStarted::Program { code } => SessionError::CannotStart { code, message },
        NotStarted::Other => SessionError::Internal { message },
    }
}

/// The handle of a command. When it goes, so does the command.
struct ExecControl {
    shim: Shim,
    id: String,
    exec_id: String,
    end: watch::Receiver<Option<End>>,
    _cancel: oneshot::Sender<()>,
}

impl SessionControl for ExecControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        Box::pin(resize(&self.shim, &self.id, &self.exec_id, size))
    }

    fn wait(&self) -> BoxFuture<'_, Result<ExitStatus, SessionError>> {
        Box::pin(wait_for_end(self.end.clone()))
    }
}

async fn resize(shim: &Shim, id: &str, exec_id: &str, size: TerminalSize) {
    if let Err(error) = shim.resize(id, exec_id, size.width, size.height).await {
        // The protocols have no place for it, and the client will say it again with its next size.
        tracing::debug!(%error, id, exec_id, "the terminal was not resized");
    }
}

async fn wait_for_end(mut end: watch::Receiver<Option<End>>) -> Result<ExitStatus, SessionError> {
    let found = end.wait_for(Option::is_some).await;
    match found.as_deref() {
        Ok(Some(end)) => end.clone().result(),
        // Its task ended without a word.
        _ => Err(SessionError::Internal {
            message: "the session's task ended".into(),
        }),
    }
}

/// The file that says that a client had the standard input of a container that gives it away only once.
fn stdin_taken(bundle: &Path) -> std::path::PathBuf {
    bundle.join("stdin.taken")
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::ttrpc::Code;

    use super::*;

    #[test]
    fn what_did_not_start_has_a_shells_code() {
        let start = |code: Code, message: &str| {
            let error = ShimError::Answer {
                code,
                message: message.into(),
            };
            match cannot_start(&error) {
                SessionError::CannotStart { code, .. } => i32::from(code),
                SessionError::NotRunning { .. } => -1,
                SessionError::Internal { .. } => 0,
            }
        };
        let runc = "OCI runtime exec failed: exec failed: unable to start container process: ";
        for (message, code) in [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            (
                "exec: \"/nope\": stat /nope: no such file or directory",
                127,
            ),
            // crun
            (
                "executable file `nope` not found: No such file or directory",
                127,
            ),
            ("exec: \"/etc/passwd\": permission denied", 126),
            ("exec /x: exec format error", 126),
            ("something else", 0),
            (
                "unable to apply apparmor profile: apparmor failed to apply profile: write /proc/thread-self/attr/apparmor/exec: no such file or directory",
                0,
            ),
            (
                "error during container init: write /proc/thread-self/attr/exec: permission denied",
                0,
            ),
            (
                "exec: \"/usr/sbin/selinuxenabled\": no such file or directory",
                127,
            ),
            ("open /dev/ptmx: no such file or directory", 0),
            ("cannot exec in a container that has stopped", -1),
            ("cannot exec in a stopped container", -1),
            (
                "namespace path: lstat /proc/18053/ns/ipc: no such file or directory",
                -1,
            ),
        ] {
            assert_eq!(
                start(Code::UNKNOWN, &format!("{runc}{message}")),
                code,
                "{message}"
            );
        }
        assert_eq!(start(Code::NOT_FOUND, "container not found"), -1);
        assert_eq!(start(Code::FAILED_PRECONDITION, "not running"), -1);
    }

    #[test]
    fn ids_are_unique() {
        let ids: std::collections::BTreeSet<_> = (0..100).map(|_| next_id("exec")).collect();
        assert_eq!(ids.len(), 100);
    }
}
