//! What the server needs of the daemon: sessions with processes, connections to ports.

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// The standard input of a session, written by the server. `shutdown` (or a drop) is the end of the input.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// A standard output of a session, read by the server until its end.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A connection to a port. `shutdown` closes the direction to the port and leaves the other open.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Makes the sessions. The daemon implements it; tests have one of their own.
///
/// The server calls it when a client has upgraded its connection, so a URL that nobody uses costs nothing. A future
/// that is dropped (the client went away) must leave nothing behind.
pub trait Backend: Send + Sync + 'static {
    /// Starts a command in a container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>>;

    /// Joins the streams of a container's own process.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>>;

    /// Opens one connection to a port of a pod.
    fn port_forward<'a>(
        &'a self,
        pod_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, SessionError>>;
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container.
    pub container_id: String,
    /// The command and its arguments, not interpreted by any shell.
    pub command: Vec<String>,
    /// A terminal for the command. `stderr` is then false: a terminal has one output.
    pub tty: bool,
    /// The client sends input.
    pub stdin: bool,
    /// The client wants the output.
    pub stdout: bool,
    /// The client wants the error output.
    pub stderr: bool,
}

/// The streams of a container's process to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container.
    pub container_id: String,
    /// The container has a terminal. `stderr` is then false.
    pub tty: bool,
    /// The client sends input.
    pub stdin: bool,
    /// The client wants the output.
    pub stdout: bool,
    /// The client wants the error output.
    pub stderr: bool,
}

/// A running session. Dropping it ends the process tree of an exec, or detaches from a container.
pub struct Session {
    /// There if the request asked for it. The server drops it at the end of the client's input.
    pub stdin: Option<Input>,
    /// There if the request asked for it.
    pub stdout: Option<Output>,
    /// There if the request asked for it and the session has no terminal.
    pub stderr: Option<Output>,
    /// The process itself.
    pub control: Box<dyn SessionControl>,
}

/// The process of a session.
pub trait SessionControl: Send + Sync {
    /// Sets the size of the terminal. Called for sessions with a terminal only; what fails is not reported, as the
    /// protocols have no place for it.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()>;

    /// Resolves when the process has ended. The outputs must then reach their end of file by themselves, after all
    /// that the process wrote: the server reads them to that end before it reports the status. It is called once,
    /// and may be dropped before it resolves.
    fn wait(&self) -> BoxFuture<'_, Result<ExitStatus, SessionError>>;
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// 0 to 255; a signal gives 128 + signal.
    pub code: i32,
}

/// Why there is no session, or why it ended without a status.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The container is not running, or is not there.
    #[error("{message}")]
    NotRunning {
        /// For the client, with the container's id.
        message: String,
    },
    /// The command cannot be started. The client sees `message` on the error output and a command that ended with
    /// `code`, as from a shell.
    #[error("{message}")]
    CannotStart {
        /// 126: cannot be executed; 127: is not there.
        code: u8,
        /// What the runtime said.
        message: String,
    },
    /// Anything else; a port that refuses the connection too.
    #[error("{message}")]
    Internal {
        /// For the client.
        message: String,
    },
}
