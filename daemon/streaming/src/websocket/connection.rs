//! A WebSocket connection with channels.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::channel::{self, Format, Input, encode_base64};
use super::frame::{self, Event, MAX_HEAD, Opcode, close, encode, head_of};
use super::tunnel::fill;
use crate::activity::Activity;
use crate::channel::Gone;
use crate::queue::{End, Queue};
use crate::session::Ending;
use crate::transport::{Source, Tcp};
use crate::writer::{FrameBuffer, Writer};

/// One channel, as its user sees it. Dropping it throws away what the client still sends there.
pub(crate) struct Channel {
    id: u8,
    base64: bool,
    queue: Arc<Queue>,
    writer: Arc<Writer>,
}

impl Channel {
    /// The next bytes of the client. None: it sends no more.
    pub(crate) async fn read(&self) -> Option<Bytes> {
        self.queue.pop().await
    }

    /// Sends the first `length` bytes of the buffer as one message; none is a message too.
    pub(crate) async fn send(
        &self,
        buffer: &mut FrameBuffer,
        length: usize,
    ) -> std::result::Result<(), Gone> {
        let mut space = [0; MAX_HEAD];
        let result = if self.base64 {
            let mut text = String::new();
            encode_base64(self.id, buffer.payload(length), &mut text);
            let head = head_of(Opcode::Text, text.len(), &mut space);
            self.writer.write_parts(head, text.as_bytes()).await
        } else {
            let mut head = [0; MAX_HEAD + 1];
            let websocket = head_of(Opcode::Binary, length + 1, &mut space);
            head[..websocket.len()].copy_from_slice(websocket);
            head[websocket.len()] = self.id;
            buffer
                .send(&self.writer, &head[..=websocket.len()], 0, length)
                .await
        };
        result.map_err(|_| Gone::Connection)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.queue.end(End::Reset);
    }
}

/// The reading side of a connection.
pub(crate) struct Connection {
    source: Source,
    buffer: BytesMut,
    frames: frame::Decoder,
    messages: channel::Decoder,
    format: Format,
    /// By channel.
    queues: Vec<Arc<Queue>>,
    writer: Arc<Writer>,
    tcp: Tcp,
    activity: Activity,
}

impl Connection {
    /// The reading side. `buffer` was read already.
    pub(crate) fn new(
        source: Source,
        buffer: BytesMut,
        format: Format,
        writer: Arc<Writer>,
        tcp: Tcp,
        activity: Activity,
    ) -> Self {
        let (frames, messages) = (frame::Decoder::new(), channel::Decoder::new(format));
        Self {
            source,
            buffer,
            frames,
            messages,
            format,
            queues: Vec::new(),
            writer,
            tcp,
            activity,
        }
    }

    /// The channels `0..count`. Those without a user (input that was not asked for) are dropped by the caller.
    pub(crate) fn channels(&mut self, count: u8) -> Vec<Channel> {
        let channel = |id| {
            let queue = Arc::new(Queue::default());
            Channel {
                id,
                base64: self.format.base64,
                queue,
                writer: self.writer.clone(),
            }
        };
        let channels: Vec<Channel> = (0..count).map(channel).collect();
        self.queues = channels
            .iter()
            .map(|channel| channel.queue.clone())
            .collect();
        channels
    }

    /// Reads until the client ends the connection or breaks the rules.
    pub(crate) async fn run(&mut self) -> Ending {
        match self.read().await {
            Ok(()) => Ending::Gone,
            Err(error) if error.kind() == ErrorKind::InvalidData => Ending::Protocol(error),
            Err(error) => Ending::Broken(error),
        }
    }

    /// Throws away what the client sends, until it ends the connection.
    pub(crate) async fn drain(&mut self) {
        loop {
            self.buffer.clear();
            if !matches!(fill(&mut self.source, &mut self.buffer).await, Ok(1..)) {
                return;
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        loop {
            while let Some(event) = self.frames.decode(&mut self.buffer).map_err(invalid)? {
                match event {
                    Event::Ping(payload) => self
                        .writer
                        .answer(|out| encode(Opcode::Pong, &payload, out))?,
                    Event::Close { code } => {
                        let code = code.unwrap_or(close::NORMAL);
                        self.writer
                            .answer(|out| encode(Opcode::Close, &code.to_be_bytes(), out))?;
                        return Ok(());
                    }
                    Event::Pong => {}
                    data => self.data(data).await?,
                }
            }
            if fill(&mut self.source, &mut self.buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn data(&mut self, event: Event) -> Result<()> {
        self.activity.touch();
        match self.messages.decode(event).map_err(invalid)? {
            Some(Input::Data { channel, bytes }) => {
                // The Kubernetes servers ignore channels that they do not know, and so does this one.
                let Some(queue) = self.queues.get(usize::from(channel)) else {
                    return Ok(());
                };
                queue.push(bytes);
                if queue.is_full() {
                    // Nothing is read meanwhile, so the client is held up too.
                    self.tcp.unless_hung_up(queue.room()).await?;
                }
                Ok(())
            }
            Some(Input::Closed { channel }) => match self.queues.get(usize::from(channel)) {
                Some(queue) => {
                    queue.end(End::Closed);
                    Ok(())
                }
                None => Err(invalid("a close signal for a channel that is not there")),
            },
            None => Ok(()),
        }
    }
}

/// The status for a close frame.
pub(crate) fn close_code(ending: &Ending) -> u16 {
    match ending {
        Ending::Protocol(_) => close::PROTOCOL_ERROR,
        // Of all others the channels have said what there is to say; Go clients take any other code
        // for a failure of the connection.
        _ => close::NORMAL,
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}
