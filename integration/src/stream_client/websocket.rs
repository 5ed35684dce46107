//! The client's side of RFC 6455, and of the channel protocols on it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::Event;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A client may choose any mask; one that changes the bytes shows whether the server takes it off.
const MASK: [u8; 4] = [0x5a, 0x00, 0xff, 0x13];

/// What is sent.
pub(super) struct Writer<S> {
    socket: WriteHalf<S>,
    base64: bool,
}

/// What comes.
pub(super) struct Reader<S> {
    socket: tokio::io::BufReader<ReadHalf<S>>,
    writer: Arc<Mutex<Writer<S>>>,
    base64: bool,
}

/// Upgrades a connection to `protocol`.
pub(super) async fn upgrade(url: &str, protocol: &str) -> Result<TcpStream> {
    let headers = [
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    super::upgrade(url, "GET", "websocket", &headers).await
}

/// A client on a connection that was upgraded.
pub(super) fn connect<S: AsyncRead + AsyncWrite>(
    socket: S,
    base64: bool,
) -> (Reader<S>, Arc<Mutex<Writer<S>>>) {
    let (read, write) = split(socket);
    let writer = Arc::new(Mutex::new(Writer {
        socket: write,
        base64,
    }));
    let reader = Reader {
        socket: tokio::io::BufReader::with_capacity(64 << 10, read),
        writer: writer.clone(),
        base64,
    };
    (reader, writer)
}

impl<S: AsyncWrite> Writer<S> {
    pub(super) async fn message(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | u8::try_from(short)?),
            middle @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(middle)?.to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
        self.socket.write_all(&frame).await?;
        Ok(self.socket.flush().await?)
    }

    pub(super) async fn binary(&mut self, payload: &[u8]) -> Result<()> {
        self.message(BINARY, payload).await
    }

    pub(super) async fn channel(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        if self.base64 {
            let text = format!("{channel}{}", STANDARD.encode(bytes));
            return self.message(TEXT, text.as_bytes()).await;
        }
        let mut payload = vec![channel];
        payload.extend_from_slice(bytes);
        self.binary(&payload).await
    }

    pub(super) async fn close_channel(&mut self, channel: u8) -> Result<()> {
        self.binary(&[255, channel]).await
    }
}

impl<S: AsyncRead + AsyncWrite> Reader<S> {
    /// The next message with data; none at the end.
    pub(super) async fn message(&mut self) -> Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        loop {
            let Ok(first) = self.socket.read_u8().await else {
                return Ok(None);
            };
            let second = self.socket.read_u8().await?;
            ensure!(second & 0x80 == 0, "a server does not mask");
            let length = match second {
                126 => u64::from(self.socket.read_u16().await?),
                127 => self.socket.read_u64().await?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length)?];
            self.socket.read_exact(&mut payload).await?;
            match first & 0x0f {
                CLOSE => return Ok(None),
                PING => self.writer.lock().await.message(PONG, &payload).await?,
                PONG => {}
                _ => {
                    message.append(&mut payload);
                    if first & 0x80 != 0 {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    /// The next event of the channel protocols.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(message) = self.message().await? else {
                return Ok(None);
            };
            let Some((first, rest)) = message.split_first() else {
                continue;
            };
            if self.base64 {
                return Ok(Some(Event::Data(
                    first - b'0',
                    STANDARD.decode(rest)?.into(),
                )));
            }
            return Ok(Some(match (*first, rest) {
                (255, [channel]) => Event::Closed(*channel),
                (channel, _) => Event::Data(channel, Bytes::from(message).slice(1..)),
            }));
        }
    }
}
