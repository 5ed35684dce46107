//! Clients over real sockets, made of the crate's own codecs; the golden captures keep those honest.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zcri_streaming::spdy::frame::{Decoder, Encoder, Frame};
use zcri_streaming::spdy::header::Headers;
use zcri_streaming::websocket::frame::apply_mask;

use crate::DEADLINE;

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection after (or before) its upgrade.
pub(crate) struct Connection {
    pub(crate) io: Box<dyn Io>,
    pub(crate) buffer: BytesMut,
}

/// A response without its body.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Host and path of a URL.
pub(crate) fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    rest.split_at(rest.find('/').unwrap())
}

impl Connection {
    pub(crate) async fn to(url: &str) -> Self {
        let stream = TcpStream::connect(split(url).0).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            io: Box::new(stream),
            buffer: BytesMut::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within("write", self.io.write_all(bytes)).await.unwrap();
    }

    /// More bytes into the buffer; 0 is the end, however it came.
    pub(crate) async fn fill(&mut self) -> usize {
        within("read", self.io.read_buf(&mut self.buffer))
            .await
            .unwrap_or(0)
    }

    /// Everything until the end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await > 0 {}
        self.buffer.split().to_vec()
    }

    pub(crate) async fn request(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Response {
        let (host, path) = split(url);
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        self.send(format!("{text}\r\n").as_bytes()).await;
        self.response().await
    }

    pub(crate) async fn response(&mut self) -> Response {
        let end = loop {
            match self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                Some(end) => break end + 4,
                None => assert!(self.fill().await > 0, "no response: {:?}", self.buffer),
            }
        };
        let head = self.buffer.split_to(end);
        let mut lines = std::str::from_utf8(&head).unwrap().lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Response { status, headers }
    }
}

pub(crate) const SPDY: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];

/// A client of SPDY.
pub(crate) struct Spdy {
    pub(crate) connection: Connection,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
    /// What came on each stream, and whether it is closed.
    pub(crate) streams: HashMap<u32, Received>,
    pub(crate) other: Vec<Frame>,
}

#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) replied: bool,
    pub(crate) fin: bool,
    pub(crate) reset: Option<u32>,
}

impl Spdy {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let connection = Connection::to(url).await;
        Self::upgrade(connection, url, protocol).await
    }

    pub(crate) async fn upgrade(mut connection: Connection, url: &str, protocol: &str) -> Self {
        let headers = [SPDY[0], SPDY[1], ("X-Stream-Protocol-Version", protocol)];
        let response = connection.request("POST", url, &headers).await;
        assert_eq!(response.status, 101, "{:?}", response.headers);
        assert_eq!(response.headers["x-stream-protocol-version"], protocol);
        assert_eq!(response.headers["connection"], "Upgrade");
        Self::over(connection)
    }

    pub(crate) fn over(connection: Connection) -> Self {
        let (encoder, decoder) = (Encoder::new(), Decoder::new());
        Self {
            connection,
            encoder,
            decoder,
            next: 1,
            streams: HashMap::new(),
            other: Vec::new(),
        }
    }

    pub(crate) fn encode(&mut self, frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        self.encoder.encode(frame, &mut out);
        out
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let bytes = self.encode(frame);
        self.connection.send(&bytes).await;
    }

    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = Headers::new(headers.iter().copied());
        self.send(&Frame::SynStream {
            stream,
            headers,
            fin: false,
            unidirectional: false,
        })
        .await;
        stream
    }

    /// The streams of a remote command, by type.
    pub(crate) async fn command(&mut self, types: &[&'static str]) -> HashMap<&'static str, u32> {
        let mut streams = HashMap::new();
        for kind in types {
            streams.insert(*kind, self.open(&[("streamtype", kind)]).await);
        }
        streams
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(&Frame::Data {
            stream,
            bytes: Bytes::copy_from_slice(bytes),
            fin,
        })
        .await;
    }

    /// One frame from the server; false at the end of the connection.
    pub(crate) async fn step(&mut self) -> bool {
        let frame = loop {
            match self.decoder.decode(&mut self.connection.buffer).unwrap() {
                Some(frame) => break frame,
                None if self.connection.fill().await == 0 => return false,
                None => {}
            }
        };
        match frame {
            Frame::Data { stream, bytes, fin } => {
                let received = self.streams.entry(stream).or_default();
                assert!(received.replied, "data before the reply on {stream}");
                assert!(!received.fin, "data after the end on {stream}");
                received.bytes.extend_from_slice(&bytes);
                received.fin |= fin;
            }
            Frame::SynReply { stream, .. } => {
                self.streams.entry(stream).or_default().replied = true
            }
            Frame::RstStream { stream, status } => {
                self.streams.entry(stream).or_default().reset = Some(status)
            }
            other => self.other.push(other),
        }
        true
    }

    /// Reads until something is so.
    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            assert!(
                self.step().await,
                "the connection ended before: {what}; {:?} {:?}",
                self.streams,
                self.other
            );
        }
    }

    pub(crate) fn stream(&self, id: u32) -> &Received {
        &self.streams[&id]
    }

    pub(crate) fn text(&self, id: u32) -> String {
        self.streams
            .get(&id)
            .map(|received| String::from_utf8_lossy(&received.bytes).into_owned())
            .unwrap_or_default()
    }

    pub(crate) fn ended(&self, id: u32) -> bool {
        self.streams
            .get(&id)
            .is_some_and(|received| received.fin || received.reset.is_some())
    }

    pub(crate) async fn end(&mut self) {
        while self.step().await {}
    }
}

/// A client of WebSocket.
pub(crate) struct WebSocket {
    pub(crate) connection: Connection,
    /// What came, by channel: the messages.
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) close: Option<u16>,
    pub(crate) pongs: Vec<Vec<u8>>,
    pub(crate) text: bool,
}

pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

pub(crate) fn websocket_headers(protocol: &str) -> Vec<(&str, &str)> {
    let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "websocket")];
    headers.extend([("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", KEY)]);
    if !protocol.is_empty() {
        headers.push(("Sec-WebSocket-Protocol", protocol));
    }
    headers
}

impl WebSocket {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let mut connection = Connection::to(url).await;
        let response = connection
            .request("GET", url, &websocket_headers(protocol))
            .await;
        assert_eq!(response.status, 101);
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            response.headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(
            response
                .headers
                .get("sec-websocket-protocol")
                .map_or("", String::as_str),
            protocol
        );
        Self {
            connection,
            messages: Vec::new(),
            close: None,
            pongs: Vec::new(),
            text: false,
        }
    }

    pub(crate) async fn frame(&mut self, first: u8, payload: &[u8]) {
        let bytes = masked(first, payload);
        self.connection.send(&bytes).await;
    }

    pub(crate) async fn send(&mut self, channel: u8, data: &[u8]) {
        let mut payload = vec![channel];
        payload.extend_from_slice(data);
        self.frame(0x82, &payload).await;
    }

    /// One frame from the server, which never fragments; false at the end.
    pub(crate) async fn step(&mut self) -> bool {
        let (head, length) = loop {
            let buffer = &self.connection.buffer;
            let head = match buffer.get(1).copied() {
                Some(126) if buffer.len() >= 4 => {
                    Some((4, usize::from(u16::from_be_bytes([buffer[2], buffer[3]]))))
                }
                Some(127) if buffer.len() >= 10 => Some((
                    10,
                    u64::from_be_bytes(buffer[2..10].try_into().unwrap()) as usize,
                )),
                Some(short @ 0..=125) => Some((2, usize::from(short))),
                _ => None,
            };
            match head {
                Some((head, length)) if buffer.len() >= head + length => break (head, length),
                _ if self.connection.fill().await == 0 => return false,
                _ => {}
            }
        };
        let frame = self.connection.buffer.split_to(head + length);
        let payload = frame[head..].to_vec();
        match frame[0] {
            0x81 => {
                self.text = true;
                self.messages.push(payload);
            }
            0x82 => self.messages.push(payload),
            0x88 => self.close = Some(u16::from_be_bytes([payload[0], payload[1]])),
            0x8a => self.pongs.push(payload),
            other => panic!("a frame {other:#x}"),
        }
        true
    }

    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            assert!(self.step().await, "the connection ended before: {what}");
        }
    }

    /// All data of a channel.
    pub(crate) fn channel(&self, channel: u8) -> Vec<u8> {
        let messages = self
            .messages
            .iter()
            .filter(|message| message.first() == Some(&channel));
        messages.flat_map(|message| message[1..].to_vec()).collect()
    }

    pub(crate) async fn end(&mut self) {
        while self.step().await {}
    }
}

/// A masked frame.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    out.extend_from_slice(&mask);
    let mut payload = payload.to_vec();
    apply_mask(&mut payload, mask);
    out.extend_from_slice(&payload);
    out
}
