//! The way to the client: one socket, many who write whole frames.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::{Mutex, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::activity::Activity;
use crate::limits::MAX_PENDING_ANSWERS;
use crate::websocket::frame::{self as websocket, Opcode};

/// The sending half of a connection.
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Writes frames one after the other. Frames of data wait for the socket; answers of the reading side wait in a
/// bounded buffer, so that reading never waits for writing.
pub(crate) struct Writer {
    socket: tokio::sync::Mutex<Socket>,
    answers: Mutex<Answers>,
    answered: Notify,
    /// SPDY within WebSocket: each write is a binary message.
    tunnel: bool,
    activity: Activity,
}

struct Socket {
    sink: Sink,
    /// Answers on their way, whole frames but for what was written of the first.
    pending: BytesMut,
    /// Set while a frame of data is being written. A writer that was dropped in the middle leaves it set: half a
    /// frame is out, so no other may follow.
    midway: bool,
}

#[derive(Default)]
struct Answers {
    /// Frames of the protocol; wrapped into messages in a tunnel.
    frames: BytesMut,
    /// Frames of WebSocket below a tunnel.
    below: BytesMut,
}

/// Space before the payload for the heads of frames, filled in when the frame is sent, so that a frame is one
/// contiguous write and no byte is copied.
pub(crate) const HEADROOM: usize = 32;

impl Writer {
    pub(crate) fn new(sink: Sink, tunnel: bool, activity: Activity) -> Self {
        Self {
            socket: tokio::sync::Mutex::new(Socket {
                sink,
                pending: BytesMut::new(),
                midway: false,
            }),
            answers: Mutex::default(),
            answered: Notify::new(),
            tunnel,
            activity,
        }
    }

    /// Writes the frame `buffer[start..end]`, after the answers that wait. In a tunnel up to
    /// [`websocket::MAX_HEAD`] bytes before `start` are overwritten.
    pub(crate) async fn write(&self, buffer: &mut [u8], start: usize, end: usize) -> Result<()> {
        let mut begin = start;
        if self.tunnel {
            let mut space = [0; websocket::MAX_HEAD];
            let head = websocket::head_of(Opcode::Binary, end - start, &mut space);
            begin = start
                .checked_sub(head.len())
                .ok_or(ErrorKind::InvalidInput)?;
            buffer[begin..start].copy_from_slice(head);
        }
        let mut socket = self.socket.lock().await;
        self.flush_into(&mut socket).await?;
        self.all(&mut socket, [&buffer[begin..end]]).await?;
        self.activity.touch();
        Ok(())
    }

    /// Writes `head` and `payload` as one frame, without the tunnel's wrapping.
    pub(crate) async fn write_parts(&self, head: &[u8], payload: &[u8]) -> Result<()> {
        let mut socket = self.socket.lock().await;
        self.flush_into(&mut socket).await?;
        self.all(&mut socket, [head, payload]).await?;
        self.activity.touch();
        Ok(())
    }

    /// Adds an answer; who [flushes](Self::flush_answers) sends it. An error when the client does not read its
    /// answers.
    pub(crate) fn answer(&self, add: impl FnOnce(&mut BytesMut)) -> Result<()> {
        self.add(|answers| add(&mut answers.frames))
    }

    /// Adds an answer of the layer below a tunnel.
    pub(crate) fn answer_below(&self, add: impl FnOnce(&mut BytesMut)) -> Result<()> {
        self.add(|answers| add(&mut answers.below))
    }

    fn add(&self, add: impl FnOnce(&mut Answers)) -> Result<()> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut answers);
        let length = answers.frames.len() + answers.below.len();
        drop(answers);
        self.answered.notify_one();
        if length > MAX_PENDING_ANSWERS {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "the client does not read its answers",
            ));
        }
        Ok(())
    }

    /// Sends answers as they come, until the connection breaks.
    ///
    /// # Cancel safety
    /// Cancel safe: what is left of the answers is written before the next frame.
    pub(crate) async fn flush_answers(&self) -> Error {
        loop {
            self.answered.notified().await;
            if let Err(error) = self.flush().await {
                return error;
            }
        }
    }

    /// Sends the answers that wait.
    ///
    /// # Cancel safety
    /// Cancel safe, as [`flush_answers`](Self::flush_answers).
    pub(crate) async fn flush(&self) -> Result<()> {
        let mut socket = self.socket.lock().await;
        self.flush_into(&mut socket).await
    }

    /// The end: what waits is sent, then the direction is closed.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let mut socket = self.socket.lock().await;
        self.flush_into(&mut socket).await?;
        socket.sink.shutdown().await
    }

    async fn flush_into(&self, socket: &mut Socket) -> Result<()> {
        if socket.midway {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.collect(&mut socket.pending);
        if socket.pending.is_empty() {
            return Ok(());
        }
        while !socket.pending.is_empty() {
            let written = socket.sink.write(&socket.pending).await?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            socket.pending.advance(written);
        }
        socket.sink.flush().await
    }

    fn collect(&self, pending: &mut BytesMut) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend_from_slice(&answers.below.split());
        let frames = answers.frames.split();
        match self.tunnel {
            true if !frames.is_empty() => websocket::encode(Opcode::Binary, &frames, pending),
            _ => pending.extend_from_slice(&frames),
        }
    }

    async fn all<const N: usize>(&self, socket: &mut Socket, parts: [&[u8]; N]) -> Result<()> {
        socket.midway = true;
        write_all(&mut socket.sink, parts).await?;
        socket.midway = false;
        Ok(())
    }
}

async fn write_all<const N: usize>(sink: &mut Sink, parts: [&[u8]; N]) -> Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = sink.write_vectored(rest).await?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    // TLS keeps records that the socket did not take at once.
    sink.flush().await
}

/// A payload with room for heads before it.
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// With room for a payload of `size`.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; HEADROOM + size],
        }
    }

    /// A buffer that holds `payload`.
    pub(crate) fn from_slice(payload: &[u8]) -> Self {
        let mut buffer = Self::new(payload.len());
        buffer.space().copy_from_slice(payload);
        buffer
    }

    /// Where a payload goes.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADROOM..]
    }

    /// Writes the payload `from..to` with `head` before it.
    pub(crate) async fn send(
        &mut self,
        writer: &Writer,
        head: &[u8],
        from: usize,
        to: usize,
    ) -> Result<()> {
        let start = HEADROOM + from - head.len();
        self.bytes[start..HEADROOM + from].copy_from_slice(head);
        writer.write(&mut self.bytes, start, HEADROOM + to).await
    }

    /// The payload `..length`.
    pub(crate) fn payload(&self, length: usize) -> &[u8] {
        &self.bytes[HEADROOM..HEADROOM + length]
    }
}
