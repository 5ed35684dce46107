//! What a session reads from and writes to, whatever the transport.

use bytes::Bytes;

use crate::spdy::stream::Stream;
use crate::websocket::connection::Channel as WebSocketChannel;
use crate::writer::FrameBuffer;

/// Why nothing more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The client does not want this channel any more.
    Channel,
    /// The connection is broken.
    Connection,
}

/// A stream of SPDY or a channel of WebSocket.
pub(crate) enum Channel {
    /// SPDY.
    Stream(Stream),
    /// WebSocket.
    Channel(WebSocketChannel),
}

impl Channel {
    /// The next bytes of the client. None: it sends no more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn read(&self) -> Option<Bytes> {
        match self {
            Self::Stream(stream) => stream.read().await,
            Self::Channel(channel) => channel.read().await,
        }
    }

    /// Sends the first `length` bytes of the buffer. Not cancel safe: half a frame could be out, and the connection
    /// ends with that.
    pub(crate) async fn send(&self, buffer: &mut FrameBuffer, length: usize) -> Result<(), Gone> {
        match self {
            Self::Stream(stream) => stream.send(buffer, length).await,
            Self::Channel(channel) => channel.send(buffer, length).await,
        }
    }

    /// Sends a short message.
    pub(crate) async fn send_slice(&self, message: &[u8]) -> Result<(), Gone> {
        self.send(&mut FrameBuffer::from_slice(message), message.len())
            .await
    }

    /// Tells the client that no more comes here, where the protocol can say it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn finish(&self) -> Result<(), Gone> {
        match self {
            Self::Stream(stream) => stream.finish().await,
            Self::Channel(_) => Ok(()),
        }
    }

    /// Resolves when the client does not want this channel any more, though the connection lives.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn gone(&self) {
        match self {
            Self::Stream(stream) => stream.gone().await,
            Self::Channel(_) => std::future::pending().await,
        }
    }
}
