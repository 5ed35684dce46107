//! A client of the streaming server: exec, attach and port-forward sessions as `kubectl` and `crictl` open them.
//!
//! Nothing is read ahead: a session whose client does not ask for the next event is a client that does not read.

mod http;
mod port_forward;
mod spdy;
mod tunnel;
mod websocket;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

pub use http::{Refused, get, upgrade};
pub use port_forward::{Forward, ForwardBy, Port};

/// How a session is spoken, and with which version of the remote command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1 with `v4.channel.k8s.io` and its elders.
    Spdy(&'static str),
    /// WebSocket with `v5.channel.k8s.io` and its elders, base64 ones too.
    WebSocket(&'static str),
}

/// What `kubectl` uses first.
pub const WEBSOCKET: Transport = Transport::WebSocket("v5.channel.k8s.io");
/// What `crictl` uses unless told otherwise.
pub const SPDY: Transport = Transport::Spdy("v4.channel.k8s.io");

/// Numbers of the channels of a remote command.
pub mod channel {
    /// Standard input.
    pub const STDIN: u8 = 0;
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// The status at the end.
    pub const ERROR: u8 = 3;
    /// Sizes of the terminal.
    pub const RESIZE: u8 = 4;
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// The client sends input.
    pub stdin: bool,
    /// The client takes output.
    pub stdout: bool,
    /// The client takes error output.
    pub stderr: bool,
    /// The session has a terminal.
    pub tty: bool,
}

impl Streams {
    /// Output and error output.
    pub const OUTPUT: Self = Self {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    /// Input and both outputs.
    pub const ALL: Self = Self {
        stdin: true,
        ..Self::OUTPUT
    };
    /// A terminal.
    pub const TTY: Self = Self {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };

    fn channels(self) -> Vec<u8> {
        let wanted = [
            (true, channel::ERROR),
            (self.stdin, channel::STDIN),
            (self.stdout, channel::STDOUT),
            (self.stderr, channel::STDERR),
            (self.tty, channel::RESIZE),
        ];
        wanted
            .into_iter()
            .filter_map(|(wanted, channel)| wanted.then_some(channel))
            .collect()
    }
}

/// What comes from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a channel.
    Data(u8, Bytes),
    /// A channel has ended.
    Closed(u8),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The command's exit code.
    Code(i32),
    /// No command ended: why.
    Failure(String),
}

/// All that a session brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Standard output, or the terminal's.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The end.
    pub status: Status,
}

impl Finished {
    /// The standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The error output as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit code.
    ///
    /// # Errors
    /// No command ended.
    pub fn code(&self) -> Result<i32> {
        match &self.status {
            Status::Code(code) => Ok(*code),
            Status::Failure(why) => bail!("no exit code: {why}"),
        }
    }
}

enum Reader {
    Spdy(Box<spdy::Reader<TcpStream>>),
    WebSocket(websocket::Reader<TcpStream>),
}

enum Writer {
    Spdy(Arc<Mutex<spdy::Writer<TcpStream>>>),
    WebSocket(Arc<Mutex<websocket::Writer<TcpStream>>>),
}

/// The sending side of a session; clones send on the same.
#[derive(Clone)]
pub struct Input {
    writer: Arc<Writer>,
    structured: bool,
}

impl Input {
    /// Sends bytes to standard input.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.send(channel::STDIN, bytes).await
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&self, channel: u8, bytes: &[u8]) -> Result<()> {
        // Both protocols want pieces; 32 KiB is what Go copies at once.
        for piece in bytes.chunks(32 << 10) {
            match &*self.writer {
                Writer::Spdy(writer) => writer.lock().await.send(channel, piece).await?,
                Writer::WebSocket(writer) => writer.lock().await.channel(channel, piece).await?,
            }
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// The connection broke, or the protocol cannot say it.
    pub async fn close(&self) -> Result<()> {
        match &*self.writer {
            Writer::Spdy(writer) => writer.lock().await.finish(channel::STDIN).await,
            Writer::WebSocket(writer) => {
                ensure!(self.structured, "only v5 can end one channel");
                writer.lock().await.close_channel(channel::STDIN).await
            }
        }
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.send(channel::RESIZE, size.as_bytes()).await
    }
}

/// An open session with a command or a container. Dropped, it breaks the connection.
pub struct Remote {
    reader: Reader,
    /// Where input is sent.
    pub input: Input,
    json_status: bool,
    /// What came so far.
    pub seen: Seen,
}

/// Bytes of a session's channels.
#[derive(Debug, Default)]
pub struct Seen {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    error: Vec<u8>,
}

impl Remote {
    /// Opens the session behind a URL.
    ///
    /// # Errors
    /// [`Refused`] if the server does not upgrade the connection.
    pub async fn open(url: &str, transport: Transport, streams: Streams) -> Result<Self> {
        let (reader, writer, protocol) = match transport {
            Transport::Spdy(protocol) => {
                let headers = [("X-Stream-Protocol-Version", protocol)];
                let socket = upgrade(url, "POST", "SPDY/3.1", &headers).await?;
                let (mut reader, writer) = spdy::connect(socket);
                for channel in streams.channels() {
                    reader.open(channel, stream_headers(channel)).await?;
                }
                (
                    Reader::Spdy(Box::new(reader)),
                    Writer::Spdy(writer),
                    protocol,
                )
            }
            Transport::WebSocket(protocol) => {
                let socket = websocket::upgrade(url, protocol).await?;
                let base64 = protocol.starts_with("base64") || protocol.contains(".base64.");
                let (reader, writer) = websocket::connect(socket, base64);
                (
                    Reader::WebSocket(reader),
                    Writer::WebSocket(writer),
                    protocol,
                )
            }
        };
        let number = protocol
            .trim_start_matches('v')
            .split('.')
            .next()
            .and_then(|number| number.parse::<u32>().ok());
        Ok(Self {
            reader,
            input: Input {
                writer: Arc::new(writer),
                structured: number == Some(5),
            },
            json_status: number.is_some_and(|number| number >= 4),
            seen: Seen::default(),
        })
    }

    /// The next event; none at the end of the connection.
    ///
    /// # Errors
    /// The server does not keep to the protocol.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let event = match &mut self.reader {
            Reader::Spdy(reader) => reader.next().await?,
            Reader::WebSocket(reader) => reader.next().await?,
        };
        if let Some(Event::Data(channel, bytes)) = &event {
            match *channel {
                channel::STDOUT => self.seen.stdout.extend_from_slice(bytes),
                channel::STDERR => self.seen.stderr.extend_from_slice(bytes),
                channel::ERROR => self.seen.error.extend_from_slice(bytes),
                other => bail!("data on channel {other}"),
            }
        }
        Ok(event)
    }

    /// Reads until standard output holds `text`.
    ///
    /// # Errors
    /// The session ends before, or nothing more comes.
    pub async fn expect(&mut self, text: &str) -> Result<()> {
        let read = async {
            while !contains(&self.seen.stdout, text.as_bytes()) {
                let event = self.next().await?;
                ensure!(event.is_some(), "the session ended");
            }
            Ok(())
        };
        match tokio::time::timeout(crate::wait::PATIENCE, read).await {
            Ok(Ok(())) => Ok(()),
            other => {
                let why = other.err().map(|_| "nothing more comes".to_owned());
                bail!(
                    "{text:?} did not come ({}): {:?}",
                    why.unwrap_or_else(|| "the session ended".into()),
                    String::from_utf8_lossy(&self.seen.stdout)
                )
            }
        }
    }

    /// Sends lines to a program that answers each with `got LINE`, until its output holds `text`. For what goes another
    /// way than input, such as sizes, and may be overtaken by it.
    ///
    /// # Errors
    /// The program does not answer, or not so within reason.
    pub async fn prod(&mut self, text: &str) -> Result<()> {
        let start = std::time::Instant::now();
        for number in 0_u64.. {
            self.input
                .write(format!("try {number}\n").as_bytes())
                .await?;
            self.expect(&format!("got try {number}\r\n")).await?;
            if contains(&self.seen.stdout, text.as_bytes()) {
                break;
            }
            ensure!(
                start.elapsed() < crate::wait::PATIENCE,
                "{text:?} did not come"
            );
        }
        Ok(())
    }

    /// Reads to the end and keeps nothing but the number of bytes of output, and the exit code.
    ///
    /// # Errors
    /// The server does not end the session with an exit code.
    pub async fn measure(mut self) -> Result<(u64, i32)> {
        let mut count = 0;
        while let Some(event) = self.next().await? {
            if matches!(event, Event::Data(channel::STDOUT | channel::STDERR, _)) {
                count += (self.seen.stdout.len() + self.seen.stderr.len()) as u64;
                self.seen.stdout.clear();
                self.seen.stderr.clear();
            }
        }
        match self.status()? {
            Status::Code(code) => Ok((count, code)),
            Status::Failure(why) => bail!("no exit code: {why}"),
        }
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The server does not end the session, or without a status.
    pub async fn finish(mut self) -> Result<Finished> {
        let read = async {
            while self.next().await?.is_some() {}
            anyhow::Ok(())
        };
        tokio::time::timeout(crate::wait::PATIENCE, read)
            .await
            .context("the session does not end")??;
        let status = self.status()?;
        Ok(Finished {
            stdout: self.seen.stdout,
            stderr: self.seen.stderr,
            status,
        })
    }

    fn status(&self) -> Result<Status> {
        if !self.json_status {
            let text = String::from_utf8_lossy(&self.seen.error).into_owned();
            return Ok(if text.is_empty() {
                Status::Code(0)
            } else {
                Status::Failure(text)
            });
        }
        let status: serde_json::Value =
            serde_json::from_slice(&self.seen.error).with_context(|| {
                format!("the status {:?}", String::from_utf8_lossy(&self.seen.error))
            })?;
        if status["status"] == "Success" {
            return Ok(Status::Code(0));
        }
        if status["reason"] != "NonZeroExitCode" {
            return Ok(Status::Failure(
                status["message"].as_str().unwrap_or_default().to_owned(),
            ));
        }
        let causes = status["details"]["causes"].as_array();
        let code = causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode")
            .and_then(|cause| cause["message"].as_str()?.parse().ok());
        code.map(Status::Code)
            .with_context(|| format!("no exit code in {status}"))
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn stream_headers(channel: u8) -> Vec<(String, String)> {
    let name = match channel {
        channel::STDIN => "stdin",
        channel::STDOUT => "stdout",
        channel::STDERR => "stderr",
        channel::RESIZE => "resize",
        _ => "error",
    };
    // Header names of SPDY are lower case.
    vec![("streamtype".to_owned(), name.to_owned())]
}
