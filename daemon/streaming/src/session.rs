//! One upgraded connection from its begin to its end: the protocol's reading side, its answers, what the session
//! does, and whatever ends all that.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::activity::Activity;
use crate::limits::{FAREWELL, LINGER};
use crate::spdy::connection::{Connection as Spdy, go_away_status};
use crate::spdy::stream::Stream;
use crate::transport::Transport;
use crate::websocket::channel::Format;
use crate::websocket::connection::{Channel, Connection as WebSocket, close_code};
use crate::websocket::frame::{Opcode, close, encode};
use crate::websocket::tunnel::{Input, Tunnel};
use crate::writer::Writer;

/// An upgraded connection.
pub(crate) struct Peer {
    /// The connection.
    pub(crate) transport: Transport,
    /// What was read of it behind the upgrade request.
    pub(crate) buffer: BytesMut,
    /// When a session in which nothing moves is ended; zero: never.
    pub(crate) idle_timeout: Duration,
    /// Turns true when the server stops.
    pub(crate) stopped: watch::Receiver<bool>,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It did what it was for.
    Done,
    /// The client ended the connection.
    Gone,
    /// The client broke the rules.
    Protocol(io::Error),
    /// The connection broke.
    Broken(io::Error),
    /// Nothing moved for too long.
    Idle,
    /// The server stops.
    Stopped,
}

impl Ending {
    /// For the log, below the level of what an operator has to know: clients come and go as they like.
    pub(crate) fn log(&self) {
        match self {
            Self::Protocol(error) | Self::Broken(error) => {
                tracing::debug!(%error, "a streaming session broke")
            }
            ending => tracing::debug!(?ending, "a streaming session ended"),
        }
    }
}

/// Runs a session over SPDY; `application` gets the streams that the client opens.
pub(crate) async fn spdy<F>(
    peer: Peer,
    tunnel: bool,
    application: impl FnOnce(mpsc::Receiver<Stream>, Notice) -> F,
) -> Ending
where
    F: Future<Output = ()>,
{
    let activity = Activity::new();
    let (source, sink, tcp) = peer.transport.split();
    let writer = Arc::new(Writer::new(sink, tunnel, activity.clone()));
    let (input, buffer) = if tunnel {
        (
            Input::Tunnel(Tunnel::new(source, peer.buffer, writer.clone())),
            BytesMut::new(),
        )
    } else {
        (Input::Socket(source), peer.buffer)
    };
    let (mut reader, streams) = Spdy::new(input, buffer, writer.clone(), tcp, activity.clone());
    let shared = reader.shared();
    let ending = {
        let ends = until(&writer, &activity, peer.idle_timeout, peer.stopped.clone());
        let (notify, notice) = Notice::new();
        first(reader.run(), application(streams, notice), ends, notify).await
    };
    let farewell = async {
        shared.go_away(go_away_status(&ending))?;
        writer.flush().await?;
        if tunnel {
            writer.answer_below(|out| encode(Opcode::Close, &close::NORMAL.to_be_bytes(), out))?;
        }
        writer.shutdown().await
    };
    part(&ending, farewell, reader.drain(), peer.stopped).await;
    ending
}

/// Runs a session over WebSocket; `application` gets the channels `0..count`.
pub(crate) async fn websocket<F>(
    peer: Peer,
    format: Format,
    count: u8,
    application: impl FnOnce(Vec<Channel>, Notice) -> F,
) -> Ending
where
    F: Future<Output = ()>,
{
    let activity = Activity::new();
    let (source, sink, tcp) = peer.transport.split();
    let writer = Arc::new(Writer::new(sink, false, activity.clone()));
    let mut reader = WebSocket::new(
        source,
        peer.buffer,
        format,
        writer.clone(),
        tcp,
        activity.clone(),
    );
    let channels = reader.channels(count);
    let ending = {
        let ends = until(&writer, &activity, peer.idle_timeout, peer.stopped.clone());
        let (notify, notice) = Notice::new();
        first(reader.run(), application(channels, notice), ends, notify).await
    };
    let farewell = async {
        // After a close frame of the client its answer waits already, and is the last frame.
        if !matches!(ending, Ending::Gone) {
            writer.answer(|out| encode(Opcode::Close, &close_code(&ending).to_be_bytes(), out))?;
        }
        writer.shutdown().await
    };
    part(&ending, farewell, reader.drain(), peer.stopped).await;
    ending
}

/// Tells a session that it is being ended, and why, while it can still say so to its client: a Go
/// client whose connection just breaks takes that for the success of its command.
#[derive(Clone)]
pub(crate) struct Notice(watch::Receiver<Option<&'static str>>);

impl Notice {
    fn new() -> (watch::Sender<Option<&'static str>>, Self) {
        let (notify, notice) = watch::channel(None);
        (notify, Self(notice))
    }

    /// Resolves with the reason.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn given(&self) -> &'static str {
        // Who could tell is dropped with this session only.
        let reason = self
            .0
            .clone()
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| *reason);
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// Runs all until the first ends; what the session held is dropped with that.
async fn first(
    reading: impl Future<Output = Ending>,
    application: impl Future<Output = ()>,
    ends: impl Future<Output = Ending>,
    notify: watch::Sender<Option<&'static str>>,
) -> Ending {
    let (mut reading, mut application, ends) = (pin!(reading), pin!(application), pin!(ends));
    let ending = tokio::select! {
        // What the client sent before the end of its process is no concern of the process any more.
        biased;
        () = &mut application => return Ending::Done,
        ending = &mut reading => return ending,
        ending = ends => ending,
    };
    let reason = match ending {
        Ending::Idle => "nothing moved for too long",
        Ending::Stopped => "the server is stopping",
        other => return other,
    };
    notify.send_replace(Some(reason));
    let last_words = async {
        tokio::select! {
            () = application => {}
            _ = reading => {}
        }
    };
    if timeout(FAREWELL, last_words).await.is_err() {
        tracing::debug!("a session could not tell its client in time why it ends");
    }
    ending
}

/// What ends a session from outside; sends the answers meanwhile.
async fn until(
    writer: &Writer,
    activity: &Activity,
    idle_timeout: Duration,
    mut stopped: watch::Receiver<bool>,
) -> Ending {
    tokio::select! {
        error = writer.flush_answers() => Ending::Broken(error),
        () = activity.idle(idle_timeout) => Ending::Idle,
        // An error means that the server itself is gone.
        _ = stopped.wait_for(|stopped| *stopped) => Ending::Stopped,
    }
}

/// Says farewell, then waits a little for the client to close its side: closing with input unread
/// would make the kernel throw away what the client has not read yet.
async fn part(
    ending: &Ending,
    farewell: impl Future<Output = io::Result<()>>,
    drain: impl Future<Output = ()>,
    mut stopped: watch::Receiver<bool>,
) {
    let limit = match ending {
        Ending::Done => LINGER,
        Ending::Protocol(_) | Ending::Idle | Ending::Stopped | Ending::Gone => FAREWELL,
        Ending::Broken(_) => return,
    };
    // A session that is done waits for nobody when the server stops; the others have less time anyway.
    let stop = async {
        stopped.wait_for(|stopped| *stopped).await.ok();
        if !matches!(ending, Ending::Done) {
            std::future::pending::<()>().await;
        }
    };
    let farewell = async {
        // One that fails ends the wait.
        if farewell.await.is_ok() {
            stop.await;
        }
    };
    let both = async {
        tokio::select! {
            () = farewell => {}
            () = drain => {}
        }
    };
    if timeout(limit, both).await.is_err() {
        tracing::debug!(?ending, "the client did not close its connection in time");
    }
}
