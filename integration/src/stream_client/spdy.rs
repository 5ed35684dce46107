//! The client's side of SPDY/3.1, as Go's client speaks it: no flow control of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::sync::Mutex;
use zcri_streaming::spdy::frame::{Decoder, Encoder, Frame};
use zcri_streaming::spdy::header::Headers;

use super::Event;

/// Room for what is read at once.
const READ_SIZE: usize = 128 << 10;

/// What is sent, and the names of the streams that were opened.
pub(super) struct Writer<S> {
    socket: WriteHalf<S>,
    encoder: Encoder,
    streams: BTreeMap<u8, u32>,
}

/// What comes.
pub(super) struct Reader<S> {
    socket: ReadHalf<S>,
    decoder: Decoder,
    buffer: BytesMut,
    writer: Arc<Mutex<Writer<S>>>,
    names: BTreeMap<u32, u8>,
    next_stream: u32,
    /// Came while a reply was waited for.
    early: std::collections::VecDeque<Event>,
}

/// A client on a connection that was upgraded.
pub(super) fn connect<S: AsyncRead + AsyncWrite + Send>(
    socket: S,
) -> (Reader<S>, Arc<Mutex<Writer<S>>>) {
    let (read, write) = split(socket);
    let writer = Arc::new(Mutex::new(Writer {
        socket: write,
        encoder: Encoder::new(),
        streams: BTreeMap::new(),
    }));
    let reader = Reader {
        socket: read,
        decoder: Decoder::new(),
        buffer: BytesMut::new(),
        writer: writer.clone(),
        names: BTreeMap::new(),
        next_stream: 1,
        early: Default::default(),
    };
    (reader, writer)
}

impl<S: AsyncWrite> Writer<S> {
    async fn frame(&mut self, frame: &Frame) -> Result<()> {
        let mut out = BytesMut::new();
        self.encoder.encode(frame, &mut out);
        self.socket.write_all(&out).await?;
        Ok(self.socket.flush().await?)
    }

    pub(super) async fn send(&mut self, name: u8, bytes: &[u8]) -> Result<()> {
        let stream = *self.streams.get(&name).context("no such stream")?;
        let bytes = Bytes::copy_from_slice(bytes);
        self.frame(&Frame::Data {
            stream,
            bytes,
            fin: false,
        })
        .await
    }

    /// Half-closes a stream.
    pub(super) async fn finish(&mut self, name: u8) -> Result<()> {
        let stream = *self.streams.get(&name).context("no such stream")?;
        self.frame(&Frame::Data {
            stream,
            bytes: Bytes::new(),
            fin: true,
        })
        .await
    }
}

impl<S: AsyncRead + AsyncWrite + Send> Reader<S> {
    /// Opens a stream, known as `name`, and waits for the reply.
    pub(super) async fn open(&mut self, name: u8, headers: Vec<(String, String)>) -> Result<()> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut writer = self.writer.lock().await;
        writer.streams.insert(name, stream);
        self.names.insert(stream, name);
        writer
            .frame(&Frame::SynStream {
                stream,
                headers: Headers::new(headers),
                fin: false,
                unidirectional: false,
            })
            .await?;
        drop(writer);
        loop {
            match self.frame().await?.context("the connection ended")? {
                Frame::SynReply { stream: of, .. } if of == stream => return Ok(()),
                other => {
                    let event = self.event(other).await?;
                    self.early.extend(event);
                }
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_SIZE);
            if self.socket.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return Ok(None);
            }
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.early.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.frame().await? else {
                return Ok(None);
            };
            let events = self.event(frame).await?;
            self.early.extend(events);
        }
    }

    async fn event(&mut self, frame: Frame) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        match frame {
            Frame::Data { stream, bytes, fin } => {
                let name = *self.names.get(&stream).context("data for no stream")?;
                if !bytes.is_empty() {
                    events.push(Event::Data(name, bytes));
                }
                if fin {
                    events.push(Event::Closed(name));
                }
            }
            Frame::RstStream { stream, .. } => {
                let name = *self.names.get(&stream).context("a reset of no stream")?;
                events.push(Event::Closed(name));
            }
            Frame::Ping(id) if id % 2 == 0 => {
                self.writer.lock().await.frame(&Frame::Ping(id)).await?;
            }
            Frame::SynStream { .. } => bail!("the server opened a stream"),
            _ => {}
        }
        Ok(events)
    }
}
