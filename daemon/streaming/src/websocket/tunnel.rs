//! Where the bytes of a SPDY connection come from: the socket, or the messages of a WebSocket that carries it
//! (`SPDY/3.1+portforward.k8s.io`).

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::frame::{Decoder, Event, Kind, Opcode, encode};
use crate::limits::READ_SIZE;
use crate::transport::Source;
use crate::writer::Writer;

/// The source of a SPDY connection.
pub(crate) enum Input {
    /// The socket itself.
    Socket(Source),
    /// The binary messages of a WebSocket, whose bounds mean nothing.
    Tunnel(Tunnel),
}

/// A WebSocket that carries another protocol.
pub(crate) struct Tunnel {
    source: Source,
    buffer: BytesMut,
    decoder: Decoder,
    writer: Arc<Writer>,
}

impl Input {
    /// Reads more to the end of `buffer`; 0 is the end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn fill(&mut self, buffer: &mut BytesMut) -> Result<usize> {
        match self {
            Self::Socket(source) => fill(source, buffer).await,
            Self::Tunnel(tunnel) => tunnel.fill(buffer).await,
        }
    }
}

impl Tunnel {
    /// `buffer` was read already.
    pub(crate) fn new(source: Source, buffer: BytesMut, writer: Arc<Writer>) -> Self {
        Self {
            source,
            buffer,
            decoder: Decoder::new(),
            writer,
        }
    }

    async fn fill(&mut self, out: &mut BytesMut) -> Result<usize> {
        let before = out.len();
        loop {
            while let Some(event) = self.decoder.decode(&mut self.buffer).map_err(invalid)? {
                match event {
                    Event::Data {
                        kind: Kind::Binary,
                        bytes,
                        ..
                    } => out.extend_from_slice(&bytes),
                    Event::Data {
                        kind: Kind::Text, ..
                    } => return Err(invalid("a text message in a tunnel")),
                    Event::Ping(payload) => self
                        .writer
                        .answer_below(|out| encode(Opcode::Pong, &payload, out))?,
                    Event::Pong => {}
                    Event::Close { .. } => return Ok(0),
                }
            }
            if out.len() > before {
                return Ok(out.len() - before);
            }
            if fill(&mut self.source, &mut self.buffer).await? == 0 {
                return Ok(0);
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

/// One read of at most [`READ_SIZE`]; 0 is the end.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn fill(source: &mut Source, buffer: &mut BytesMut) -> Result<usize> {
    // A quarter is enough room to read on: a new buffer for each short read would be waste.
    if buffer.capacity() - buffer.len() < READ_SIZE / 4 {
        buffer.reserve(READ_SIZE);
    }
    source.read_buf(buffer).await
}
