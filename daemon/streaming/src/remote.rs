//! Remote commands: exec and attach, on either transport.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::backend::{
    AttachRequest, Backend, ExecRequest, Input, Output, Session, SessionControl, SessionError,
};
use crate::channel::{Channel, Gone};
use crate::limits::{FRAME_SIZE, STREAM_CREATION_TIMEOUT};
use crate::session::Notice;
use crate::spdy::stream::Stream;
use crate::status::Outcome;
use crate::websocket::channel as numbers;
use crate::writer::FrameBuffer;

mod resize;

/// What a client may do.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Run a command.
    Exec(ExecRequest),
    /// Join the container's process.
    Attach(AttachRequest),
}

/// The streams that a session has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wants {
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// The client's ends of a session.
pub(crate) struct Channels {
    error: Channel,
    stdin: Option<Channel>,
    stdout: Option<Channel>,
    stderr: Option<Channel>,
    resize: Option<Channel>,
}

impl Command {
    /// The streams that it has.
    pub(crate) fn wants(&self) -> Wants {
        let (tty, stdin, stdout, stderr) = match self {
            Self::Exec(r) => (r.tty, r.stdin, r.stdout, r.stderr),
            Self::Attach(r) => (r.tty, r.stdin, r.stdout, r.stderr),
        };
        // A terminal has one output.
        Wants {
            tty,
            stdin,
            stdout,
            stderr: stderr && !tty,
        }
    }

    async fn start(self, backend: &dyn Backend) -> Result<Session, SessionError> {
        match self {
            Self::Exec(request) => backend.exec(request).await,
            Self::Attach(request) => backend.attach(request).await,
        }
    }

    fn doing(&self) -> &'static str {
        match self {
            Self::Exec(_) => "executing command in container",
            Self::Attach(_) => "attaching to container",
        }
    }
}

impl Channels {
    /// The channels of WebSocket, which are there from the begin.
    pub(crate) fn numbered(
        channels: Vec<crate::websocket::connection::Channel>,
        wants: Wants,
    ) -> Option<Self> {
        let mut channels = channels.into_iter().map(Channel::Channel);
        let (stdin, stdout, stderr) = (channels.next()?, channels.next()?, channels.next()?);
        let (error, resize) = (channels.next()?, channels.next()?);
        Some(Self {
            error,
            stdin: wants.stdin.then_some(stdin),
            stdout: wants.stdout.then_some(stdout),
            stderr: wants.stderr.then_some(stderr),
            resize: wants.tty.then_some(resize),
        })
    }

    /// Number of the channels of WebSocket.
    pub(crate) const COUNT: u8 = numbers::RESIZE + 1;

    /// Waits for all streams of SPDY that the session is to have, as the Kubernetes servers do. None: they did not
    /// come, or not in time.
    pub(crate) async fn gather(
        streams: mpsc::Receiver<Stream>,
        wants: Wants,
        resize: bool,
    ) -> Option<Self> {
        let mut expected = vec!["error"];
        expected.extend(wants.stdin.then_some("stdin"));
        expected.extend(wants.stdout.then_some("stdout"));
        expected.extend(wants.stderr.then_some("stderr"));
        expected.extend((wants.tty && resize).then_some("resize"));
        let mut got = timeout(STREAM_CREATION_TIMEOUT, collect(streams, &expected))
            .await
            .ok()??;
        Some(Self {
            error: got.remove("error")?,
            stdin: got.remove("stdin"),
            stdout: got.remove("stdout"),
            stderr: got.remove("stderr"),
            resize: got.remove("resize"),
        })
    }

    /// Tells a client of WebSocket that the connection stands: an empty message on the first channel that it reads
    /// (kubelet `createWebSocketStreams`).
    pub(crate) async fn greet(&self) -> Result<(), Gone> {
        let first = self
            .stdout
            .as_ref()
            .or(self.stderr.as_ref())
            .unwrap_or(&self.error);
        first.send_slice(&[]).await
    }

    /// Reports the end and closes what is open.
    async fn report(&self, outcome: &Outcome, json: bool) -> Result<(), Gone> {
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output.finish().await?;
        }
        let message = outcome.encode(json);
        if !message.is_empty() {
            self.error.send_slice(&message).await?;
        }
        self.error.finish().await?;
        for input in [&self.stdin, &self.resize].into_iter().flatten() {
            input.finish().await?;
        }
        Ok(())
    }
}

async fn collect(
    mut streams: mpsc::Receiver<Stream>,
    expected: &[&'static str],
) -> Option<HashMap<&'static str, Channel>> {
    let mut got = HashMap::new();
    while got.len() < expected.len() {
        let stream = streams.recv().await?;
        let kind = stream.headers().get("streamtype").unwrap_or_default();
        // A stream of another type, or a second one of the same, is dropped and with that reset.
        if let Some(kind) = expected
            .iter()
            .find(|expected| **expected == kind && !got.contains_key(**expected))
        {
            got.insert(*kind, Channel::Stream(stream));
        }
    }
    Some(got)
}

/// Runs a command until its end; dropped before, it ends the session.
pub(crate) async fn run(
    backend: Arc<dyn Backend>,
    command: Command,
    channels: Channels,
    json: bool,
    notice: Notice,
) {
    let (doing, tty) = (command.doing(), command.wants().tty);
    let session = tokio::select! {
        session = command.start(&*backend) => session,
        reason = notice.given() => Err(SessionError::Internal { message: reason.to_owned() }),
    };
    let outcome = match session {
        Ok(session) => session_of(session, &channels, doing, &notice).await,
        Err(error) => failure(&error, &channels, doing, tty).await,
    };
    // A client that is gone meanwhile is found by the reading side.
    channels.report(&outcome, json).await.ok();
}

/// Moves bytes until the process has ended and its outputs are read, or a notice is given. What writes
/// to the client is never dropped in the middle of a frame, as the status has to follow.
async fn session_of(
    session: Session,
    channels: &Channels,
    doing: &str,
    notice: &Notice,
) -> Outcome {
    let Session {
        stdin,
        stdout,
        stderr,
        control,
    } = session;
    let input = async {
        let resizes = resize::run(channels.resize.as_ref(), &*control);
        tokio::join!(feed(channels.stdin.as_ref(), stdin), resizes);
        std::future::pending::<Outcome>().await
    };
    let output = async {
        let (out, err) = (channels.stdout.as_ref(), channels.stderr.as_ref());
        let pumps = async { tokio::join!(pump(stdout, out, notice), pump(stderr, err, notice)) };
        tokio::join!(exit(&*control, doing, notice), pumps).0
    };
    tokio::select! {
        outcome = output => outcome,
        outcome = input => outcome,
    }
}

async fn exit(control: &dyn SessionControl, doing: &str, notice: &Notice) -> Outcome {
    let status = tokio::select! {
        status = control.wait() => status,
        reason = notice.given() => Err(SessionError::Internal { message: reason.to_owned() }),
    };
    match status {
        Ok(status) => Outcome::Exited(status),
        Err(error) => Outcome::failed(doing, &error),
    }
}

/// A command that cannot be started looks like one that said so and ended: the text of a status with an exit code is
/// not shown by Go clients.
async fn failure(error: &SessionError, channels: &Channels, doing: &str, tty: bool) -> Outcome {
    let SessionError::CannotStart { code, message } = error else {
        return Outcome::failed(doing, error);
    };
    let mut text = message.trim_end().to_owned();
    crate::status::truncate(&mut text);
    text.push_str(if tty { "\r\n" } else { "\n" });
    if let Some(output) = channels.stderr.as_ref().or(channels.stdout.as_ref()) {
        output.send_slice(text.as_bytes()).await.ok();
    }
    Outcome::Exited(crate::backend::ExitStatus {
        code: i32::from(*code),
    })
}

/// Client to process.
async fn feed(from: Option<&Channel>, to: Option<Input>) {
    let (Some(from), Some(mut to)) = (from, to) else {
        return;
    };
    while let Some(bytes) = from.read().await {
        let written = async {
            to.write_all(&bytes).await?;
            to.flush().await
        };
        if written.await.is_err() {
            // The process reads no more. The client is told, and what it still sends is thrown away, so that its
            // other frames come through.
            drop(to);
            from.finish().await.ok();
            while from.read().await.is_some() {}
            return;
        }
    }
    to.shutdown().await.ok();
}

/// Process to client.
async fn pump(from: Option<Output>, to: Option<&Channel>, notice: &Notice) {
    let (Some(mut from), Some(to)) = (from, to) else {
        return;
    };
    let mut buffer = FrameBuffer::new(FRAME_SIZE);
    let mut given = pin!(notice.given());
    loop {
        let read = tokio::select! {
            // Output that never pauses must not keep the notice from being seen.
            biased;
            _ = &mut given => break,
            read = from.read(buffer.space()) => read,
            // The process learns of it by the end of its output, as from a broken pipe.
            () = to.gone() => return,
        };
        // The end of a terminal is an error (EIO).
        let Ok(length @ 1..) = read else { break };
        if to.send(&mut buffer, length).await.is_err() {
            return;
        }
    }
    drop(from);
    to.finish().await.ok();
}
