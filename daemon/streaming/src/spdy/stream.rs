//! One stream, as its user sees it.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Shared;
use super::frame::{data_head, reset};
use super::header::Headers;
use crate::channel::Gone;
use crate::queue::{End, Queue};
use crate::writer::FrameBuffer;

/// A stream that the client opened. Dropping it resets it, unless both sides have ended it.
pub(crate) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) queue: Arc<Queue>,
    pub(super) shared: Arc<Shared>,
}

impl Stream {
    /// What it is for.
    pub(crate) fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The next bytes of the client. None: the client has closed or reset the stream.
    pub(crate) async fn read(&self) -> Option<Bytes> {
        let bytes = self.queue.pop().await?;
        self.shared.consumed(self.id, bytes.len());
        Some(bytes)
    }

    /// Sends the first `length` bytes of the buffer. It must not be dropped before it is done, unless the connection
    /// is dropped too.
    pub(crate) async fn send(&self, buffer: &mut FrameBuffer, length: usize) -> Result<(), Gone> {
        let mut sent = 0;
        while sent < length {
            let part = self.shared.reserve(self.id, length - sent).await?;
            let head = data_head(self.id, part, false);
            let result = buffer
                .send(&self.shared.writer, &head, sent, sent + part)
                .await;
            result.map_err(|_| Gone::Connection)?;
            sent += part;
        }
        Ok(())
    }

    /// Closes the direction to the client.
    ///
    /// # Cancel safety
    /// Cancel safe: the frame goes the way of the answers, after all data of this stream, which has
    /// left already.
    pub(crate) async fn finish(&self) -> Result<(), Gone> {
        if !self.shared.finish(self.id) {
            return Ok(());
        }
        let writer = &self.shared.writer;
        let head = data_head(self.id, 0, true);
        writer
            .answer(|out| out.extend_from_slice(&head))
            .map_err(|_| Gone::Connection)?;
        writer.flush().await.map_err(|_| Gone::Connection)
    }

    /// Resolves when the client has reset the stream.
    pub(crate) async fn gone(&self) {
        self.queue.reset().await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.reset(self.id, reset::CANCEL);
        // Also of a stream that both sides have ended: whoever reads the connection may wait for room in it.
        self.queue.end(End::Reset);
    }
}
