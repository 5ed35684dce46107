//! The Kubernetes channel protocols: the first byte of a message names a channel, the rest is that channel's data
//! (k8s.io/streaming, package wsstream).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::frame::Event;
use crate::limits::MAX_BASE64_MESSAGE;

/// Standard input of a remote command.
pub const STDIN: u8 = 0;
/// Standard output of a remote command.
pub const STDOUT: u8 = 1;
/// Error output of a remote command.
pub const STDERR: u8 = 2;
/// The status of a remote command.
pub const ERROR: u8 = 3;
/// Terminal sizes for a remote command.
pub const RESIZE: u8 = 4;
/// In version 5: the channel in the second byte is closed.
const CLOSE: u8 = 255;

/// How a channel protocol writes its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// A text message: the channel as a digit, the data in base64.
    pub base64: bool,
    /// The client can close a channel (version 5).
    pub close_signal: bool,
}

/// What a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Data of a channel.
    Data {
        /// The channel.
        channel: u8,
        /// The bytes; not empty.
        bytes: Bytes,
    },
    /// The client sends no more on a channel.
    Closed {
        /// The channel.
        channel: u8,
    },
}

/// A message that breaks the rules; it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// The close signal has exactly one channel behind it.
    #[error("the close signal is malformed")]
    CloseSignal,
    /// Not base64.
    #[error("a message is not base64")]
    Base64,
    /// A base64 message of more than [`MAX_BASE64_MESSAGE`] bytes.
    #[error("a message has more than {MAX_BASE64_MESSAGE} bytes")]
    TooLong,
}

/// Where the decoder is within a message.
#[derive(Debug, Default)]
enum State {
    /// Before its first byte.
    #[default]
    Start,
    /// In the data of a channel.
    Data(u8),
    /// In a close signal; the channel, once it is there.
    Close(Option<u8>),
}

/// Decodes the messages of a client.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    state: State,
    /// What there is of a base64 message.
    text: BytesMut,
}

impl Decoder {
    /// At the begin of the connection.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            state: State::Start,
            text: BytesMut::new(),
        }
    }

    /// Takes a piece of a message, in the order of [`super::frame::Decoder`]. An empty message, and data of no bytes,
    /// say nothing. Other events than data are none of this decoder's business.
    ///
    /// # Errors
    /// See [`ChannelError`]; the decoder must not be used again after one.
    pub fn decode(&mut self, event: Event) -> Result<Option<Input>, ChannelError> {
        let Event::Data {
            last, mut bytes, ..
        } = event
        else {
            return Ok(None);
        };
        if let State::Start = self.state
            && let Some(&first) = bytes.first()
        {
            bytes.advance(1);
            self.state = match first {
                CLOSE if self.format.close_signal => State::Close(None),
                digit if self.format.base64 => State::Data(digit.wrapping_sub(b'0')),
                channel => State::Data(channel),
            };
        }
        let input = match &mut self.state {
            State::Start => None,
            State::Close(channel) => {
                for byte in bytes {
                    if channel.replace(byte).is_some() {
                        return Err(ChannelError::CloseSignal);
                    }
                }
                if last {
                    let channel = channel.ok_or(ChannelError::CloseSignal)?;
                    Some(Input::Closed { channel })
                } else {
                    None
                }
            }
            State::Data(channel) => {
                let channel = *channel;
                let bytes = if self.format.base64 {
                    self.base64(&bytes, last)?
                } else {
                    bytes
                };
                (!bytes.is_empty()).then_some(Input::Data { channel, bytes })
            }
        };
        if last {
            self.state = State::Start;
        }
        Ok(input)
    }

    fn base64(&mut self, piece: &[u8], last: bool) -> Result<Bytes, ChannelError> {
        if self.text.len() + piece.len() > MAX_BASE64_MESSAGE {
            return Err(ChannelError::TooLong);
        }
        self.text.extend_from_slice(piece);
        if !last {
            return Ok(Bytes::new());
        }
        let bytes = STANDARD
            .decode(&self.text)
            .map_err(|_| ChannelError::Base64)?;
        self.text.clear();
        Ok(bytes.into())
    }
}

/// The text of a base64 message.
pub fn encode_base64(channel: u8, data: &[u8], out: &mut String) {
    out.clear();
    out.push(char::from(b'0'.wrapping_add(channel)));
    STANDARD.encode_string(data, out);
}
