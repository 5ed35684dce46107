//! Port-forward sessions: connections to ports of a pod, many on one connection.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

use super::{Event, spdy, tunnel, upgrade, websocket};

/// How a port-forward session is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardBy {
    /// SPDY/3.1.
    Spdy,
    /// SPDY/3.1 in a WebSocket.
    Tunnel,
    /// Two channels of a WebSocket for each port of the URL.
    Channels,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Boxed = Box<dyn Stream>;

/// A port-forward session.
pub struct Forward {
    reader: Reader,
    next: u8,
}

enum Reader {
    Spdy(Box<spdy::Reader<Boxed>>, Arc<Mutex<spdy::Writer<Boxed>>>),
    Channels(
        websocket::Reader<tokio::net::TcpStream>,
        Arc<Mutex<websocket::Writer<tokio::net::TcpStream>>>,
    ),
}

/// One connection in a session: the numbers of its data and its error channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Bytes of the connection.
    pub data: u8,
    /// Why there is none.
    pub error: u8,
}

impl Forward {
    /// Opens a session.
    ///
    /// # Errors
    /// [`super::Refused`] if the server does not upgrade the connection.
    pub async fn open(url: &str, by: ForwardBy) -> Result<Self> {
        let reader = match by {
            ForwardBy::Spdy => {
                let headers = [("X-Stream-Protocol-Version", "portforward.k8s.io")];
                let socket: Boxed = Box::new(upgrade(url, "POST", "SPDY/3.1", &headers).await?);
                let (reader, writer) = spdy::connect(socket);
                Reader::Spdy(Box::new(reader), writer)
            }
            ForwardBy::Tunnel => {
                let stream: Boxed =
                    Box::new(tunnel::open(url, "SPDY/3.1+portforward.k8s.io").await?);
                let (reader, writer) = spdy::connect(stream);
                Reader::Spdy(Box::new(reader), writer)
            }
            ForwardBy::Channels => {
                let socket = websocket::upgrade(url, "v4.channel.k8s.io").await?;
                let (reader, writer) = websocket::connect(socket, false);
                Reader::Channels(reader, writer)
            }
        };
        Ok(Self { reader, next: 0 })
    }

    /// Opens the next connection, to `port`. With channels it is there already, and its first bytes name the port.
    ///
    /// # Errors
    /// The server does not keep to the protocol.
    pub async fn connect(&mut self, port: u16) -> Result<Port> {
        let pair = Port {
            data: self.next,
            error: self.next + 1,
        };
        let request = (self.next / 2).to_string();
        self.next += 2;
        if let Reader::Spdy(reader, writer) = &mut self.reader {
            let headers = |kind: &str| {
                [
                    ("streamtype", kind),
                    ("port", &port.to_string()),
                    ("requestid", &request),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec()
            };
            reader.open(pair.error, headers("error")).await?;
            // As the Go client does: nothing is ever sent there.
            writer.lock().await.finish(pair.error).await?;
            reader.open(pair.data, headers("data")).await?;
        } else {
            for channel in [pair.data, pair.error] {
                match self.next().await? {
                    Some(Event::Data(of, bytes))
                        if of == channel && bytes[..] == port.to_le_bytes() => {}
                    other => bail!("instead of port {port} on channel {channel}: {other:?}"),
                }
            }
        }
        Ok(pair)
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(32 << 10) {
            match &self.reader {
                Reader::Spdy(_, writer) => writer.lock().await.send(channel, piece).await?,
                Reader::Channels(_, writer) => writer.lock().await.channel(channel, piece).await?,
            }
        }
        Ok(())
    }

    /// Half-closes a connection.
    ///
    /// # Errors
    /// The connection broke, or the protocol cannot say it.
    pub async fn finish(&mut self, channel: u8) -> Result<()> {
        match &self.reader {
            Reader::Spdy(_, writer) => writer.lock().await.finish(channel).await,
            Reader::Channels(..) => bail!("channels cannot be half-closed"),
        }
    }

    /// The next event; none at the end of the session.
    ///
    /// # Errors
    /// The server does not keep to the protocol, or nothing comes.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let next = async {
            match &mut self.reader {
                Reader::Spdy(reader, _) => reader.next().await,
                Reader::Channels(reader, _) => reader.next().await,
            }
        };
        tokio::time::timeout(crate::wait::PATIENCE, next)
            .await
            .context("nothing comes")?
    }

    /// Reads one channel until `done` says that its bytes are all; events of others are dropped.
    ///
    /// # Errors
    /// The channel or the session ends before.
    pub async fn read_until(
        &mut self,
        channel: u8,
        mut done: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u8>> {
        let mut seen = Vec::new();
        while !done(&seen) {
            match self.next().await? {
                Some(Event::Data(of, bytes)) if of == channel => seen.extend_from_slice(&bytes),
                Some(Event::Closed(of)) if of == channel => {
                    bail!(
                        "channel {channel} ended: {:?}",
                        String::from_utf8_lossy(&seen)
                    )
                }
                Some(_) => {}
                None => bail!("the session ended: {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        Ok(seen)
    }
}
