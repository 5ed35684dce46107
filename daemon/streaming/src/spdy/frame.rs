//! Frames: a sans-io decoder, and functions that append a frame to a buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::header::{HeaderDecoder, HeaderEncoder, HeaderError, Headers};
use crate::limits::MAX_CONTROL_FRAME;

/// Length of every frame's head.
pub const HEAD: usize = 8;

/// The longest payload: a length has 24 bits.
pub const MAX_PAYLOAD: usize = 0x00ff_ffff;

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FLAG_FIN: u8 = 0x01;
const FLAG_UNIDIRECTIONAL: u8 = 0x02;
const STREAM_ID: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (RST_STREAM).
pub mod reset {
    /// A generic protocol error on the stream.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// A frame for a stream that is not open.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream was refused before anything was done.
    pub const REFUSED_STREAM: u32 = 3;
    /// The stream is no longer needed.
    pub const CANCEL: u32 = 5;
    /// The peer broke the rules of flow control.
    pub const FLOW_CONTROL_ERROR: u32 = 7;
    /// Data after the half-close.
    pub const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// Why a connection ends (GOAWAY).
pub mod goaway {
    /// All is done.
    pub const OK: u32 = 0;
    /// The peer broke the rules.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// The setting that gives the initial window of each stream.
pub const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A piece of a data frame. A frame is given out in as many pieces as it arrives in, so it needs no limit and no
    /// buffer; `fin` is set on the last piece only.
    Data {
        /// The stream.
        stream: u32,
        /// The bytes; empty only for an empty frame.
        bytes: Bytes,
        /// The peer sends no more on this stream.
        fin: bool,
    },
    /// A new stream.
    SynStream {
        /// Its id.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// The peer sends nothing on this stream.
        fin: bool,
        /// The peer wants nothing on this stream.
        unidirectional: bool,
    },
    /// The answer to a new stream.
    SynReply {
        /// The stream.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// The peer sends nothing on this stream.
        fin: bool,
    },
    /// The end of a stream in both directions.
    RstStream {
        /// The stream.
        stream: u32,
        /// One of [`reset`].
        status: u32,
    },
    /// Settings, id and value each.
    Settings(Vec<(u32, u32)>),
    /// A ping, or the answer to one.
    Ping(u32),
    /// The peer will take no more streams.
    GoAway {
        /// The last stream that it took.
        last_stream: u32,
        /// One of [`goaway`].
        status: u32,
    },
    /// More headers for a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// The headers.
        headers: Headers,
        /// The peer sends no more on this stream.
        fin: bool,
    },
    /// The peer takes so many bytes more.
    WindowUpdate {
        /// The stream, or 0 for the whole connection.
        stream: u32,
        /// How many.
        delta: u32,
    },
    /// A control frame of a type that this version does not know, which must be ignored.
    Unknown {
        /// Its type.
        kind: u16,
    },
}

/// A frame that breaks the rules; it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Another version of SPDY.
    #[error("SPDY version {version} is not spoken here")]
    Version {
        /// The version of the frame.
        version: u16,
    },
    /// A control frame longer than [`MAX_CONTROL_FRAME`].
    #[error("a control frame of {length} bytes, more than {MAX_CONTROL_FRAME}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// A control frame whose length does not fit its type.
    #[error("a control frame of type {kind} has {length} bytes")]
    Length {
        /// Its type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// Stream 0 where a stream is demanded.
    #[error("a frame of type {kind} for stream 0")]
    StreamZero {
        /// Its type; 0 for data.
        kind: u16,
    },
    /// A bad header block.
    #[error("stream {stream}")]
    Headers {
        /// The stream it is for.
        stream: u32,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
}

#[derive(Debug)]
struct Partial {
    stream: u32,
    remaining: usize,
    fin: bool,
}

/// Decodes the frames of one direction of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    headers: HeaderDecoder,
    data: Option<Partial>,
}

impl Decoder {
    /// At the begin of the connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame, or the next piece of a data frame, from the front of `input`. None: more input is
    /// needed.
    ///
    /// # Errors
    /// See [`FrameError`]; the decoder must not be used again after one.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(partial) = self.data.take() {
            return Ok(self.data_piece(partial, input));
        }
        let Some(head) = input.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let [w0, w1, w2, w3, flags, l0, l1, l2] = *head;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        if w0 & CONTROL == 0 {
            let stream = u32::from_be_bytes([w0, w1, w2, w3]);
            if stream == 0 {
                return Err(FrameError::StreamZero { kind: 0 });
            }
            input.advance(HEAD);
            let partial = Partial {
                stream,
                remaining: length,
                fin: flags & FLAG_FIN != 0,
            };
            if length == 0 {
                return Ok(Some(Frame::Data {
                    stream,
                    bytes: Bytes::new(),
                    fin: partial.fin,
                }));
            }
            return Ok(self.data_piece(partial, input));
        }
        let version = u16::from_be_bytes([w0 & !CONTROL, w1]);
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        if length > MAX_CONTROL_FRAME {
            return Err(FrameError::TooLong { length });
        }
        if input.len() < HEAD + length {
            return Ok(None);
        }
        input.advance(HEAD);
        let payload = input.split_to(length);
        self.control(u16::from_be_bytes([w2, w3]), flags, &payload)
            .map(Some)
    }

    fn data_piece(&mut self, mut partial: Partial, input: &mut BytesMut) -> Option<Frame> {
        if input.is_empty() {
            self.data = Some(partial);
            return None;
        }
        let bytes = input.split_to(input.len().min(partial.remaining)).freeze();
        partial.remaining -= bytes.len();
        let stream = partial.stream;
        let fin = partial.fin && partial.remaining == 0;
        self.data = (partial.remaining > 0).then_some(partial);
        Some(Frame::Data { stream, bytes, fin })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Frame, FrameError> {
        let wrong = FrameError::Length {
            kind,
            length: payload.len(),
        };
        let fin = flags & FLAG_FIN != 0;
        match kind {
            SYN_STREAM => {
                let (head, block) = payload.split_first_chunk::<10>().ok_or(wrong)?;
                let [s0, s1, s2, s3, ..] = *head;
                let stream = stream_id(kind, [s0, s1, s2, s3])?;
                let headers = self.header_block(stream, block)?;
                Ok(Frame::SynStream {
                    stream,
                    headers,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                })
            }
            SYN_REPLY | HEADERS => {
                let (id, block) = payload.split_first_chunk::<4>().ok_or(wrong)?;
                let stream = stream_id(kind, *id)?;
                let headers = self.header_block(stream, block)?;
                Ok(match kind {
                    SYN_REPLY => Frame::SynReply {
                        stream,
                        headers,
                        fin,
                    },
                    _ => Frame::Headers {
                        stream,
                        headers,
                        fin,
                    },
                })
            }
            RST_STREAM => {
                let (id, status) = two_words(payload).ok_or(wrong)?;
                Ok(Frame::RstStream {
                    stream: stream_id(kind, id)?,
                    status: u32::from_be_bytes(status),
                })
            }
            SETTINGS => settings(payload).ok_or(wrong),
            PING => {
                let id: [u8; 4] = payload.try_into().map_err(|_| wrong)?;
                Ok(Frame::Ping(u32::from_be_bytes(id)))
            }
            GOAWAY => {
                let (id, status) = two_words(payload).ok_or(wrong)?;
                let last_stream = u32::from_be_bytes(id) & STREAM_ID;
                Ok(Frame::GoAway {
                    last_stream,
                    status: u32::from_be_bytes(status),
                })
            }
            WINDOW_UPDATE => {
                let (id, delta) = two_words(payload).ok_or(wrong)?;
                let stream = u32::from_be_bytes(id) & STREAM_ID;
                Ok(Frame::WindowUpdate {
                    stream,
                    delta: u32::from_be_bytes(delta) & STREAM_ID,
                })
            }
            _ => Ok(Frame::Unknown { kind }),
        }
    }

    fn header_block(&mut self, stream: u32, block: &[u8]) -> Result<Headers, FrameError> {
        self.headers
            .decode(block)
            .map_err(|source| FrameError::Headers { stream, source })
    }
}

fn stream_id(kind: u16, bytes: [u8; 4]) -> Result<u32, FrameError> {
    match u32::from_be_bytes(bytes) & STREAM_ID {
        0 => Err(FrameError::StreamZero { kind }),
        id => Ok(id),
    }
}

fn two_words(payload: &[u8]) -> Option<([u8; 4], [u8; 4])> {
    let (first, rest) = payload.split_first_chunk::<4>()?;
    Some((*first, rest.try_into().ok()?))
}

/// A count, then flags (8 bits), id (24 bits) and value of each setting.
fn settings(payload: &[u8]) -> Option<Frame> {
    let (count, rest) = payload.split_first_chunk::<4>()?;
    let (entries, []) = rest.as_chunks::<8>() else {
        return None;
    };
    if usize::try_from(u32::from_be_bytes(*count)).ok()? != entries.len() {
        return None;
    }
    let entry = |&[_, i0, i1, i2, v0, v1, v2, v3]: &[u8; 8]| {
        (
            u32::from_be_bytes([0, i0, i1, i2]),
            u32::from_be_bytes([v0, v1, v2, v3]),
        )
    };
    Some(Frame::Settings(entries.iter().map(entry).collect()))
}

/// The head of a data frame of `length` bytes (at most [`MAX_PAYLOAD`]).
pub fn data_head(stream: u32, length: usize, fin: bool) -> [u8; HEAD] {
    let [s0, s1, s2, s3] = (stream & STREAM_ID).to_be_bytes();
    let [l0, l1, l2] = length_bytes(length);
    [s0, s1, s2, s3, if fin { FLAG_FIN } else { 0 }, l0, l1, l2]
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "callers keep to MAX_PAYLOAD"
)]
fn length_bytes(length: usize) -> [u8; 3] {
    debug_assert!(length <= MAX_PAYLOAD, "a frame of {length} bytes");
    [(length >> 16) as u8, (length >> 8) as u8, length as u8]
}

/// Writes the frames of one direction of one connection.
#[derive(Debug, Default)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Encoder {
    /// At the begin of the connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `frame` to `out`. A frame that is only received ([`Frame::Unknown`]) is left out.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data { stream, bytes, fin } => {
                out.put_slice(&data_head(*stream, bytes.len(), *fin));
                out.put_slice(bytes);
            }
            Frame::SynStream {
                stream,
                headers,
                fin,
                unidirectional,
            } => {
                let flags = if *fin { FLAG_FIN } else { 0 }
                    | if *unidirectional {
                        FLAG_UNIDIRECTIONAL
                    } else {
                        0
                    };
                self.with_headers(SYN_STREAM, flags, headers, out, |out| {
                    out.put_u32(*stream);
                    out.put_bytes(0, 6);
                });
            }
            Frame::SynReply {
                stream,
                headers,
                fin,
            } => {
                self.with_headers(SYN_REPLY, u8::from(*fin), headers, out, |out| {
                    out.put_u32(*stream)
                });
            }
            Frame::Headers {
                stream,
                headers,
                fin,
            } => {
                self.with_headers(HEADERS, u8::from(*fin), headers, out, |out| {
                    out.put_u32(*stream)
                });
            }
            Frame::RstStream { stream, status } => words(RST_STREAM, &[*stream, *status], out),
            Frame::Settings(entries) => {
                control_head(SETTINGS, 0, 4 + 8 * entries.len(), out);
                out.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for (id, value) in entries {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(id) => words(PING, &[*id], out),
            Frame::GoAway {
                last_stream,
                status,
            } => words(GOAWAY, &[*last_stream, *status], out),
            Frame::WindowUpdate { stream, delta } => words(WINDOW_UPDATE, &[*stream, *delta], out),
            Frame::Unknown { .. } => {}
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        flags: u8,
        headers: &Headers,
        out: &mut BytesMut,
        fixed: impl FnOnce(&mut BytesMut),
    ) {
        let start = out.len();
        control_head(kind, flags, 0, out);
        fixed(out);
        self.headers.encode(headers, out);
        let length = length_bytes(out.len() - start - HEAD);
        out[start + 5..start + HEAD].copy_from_slice(&length);
    }
}

fn control_head(kind: u16, flags: u8, length: usize, out: &mut BytesMut) {
    out.put_u16(u16::from(CONTROL) << 8 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_slice(&length_bytes(length));
}

fn words(kind: u16, words: &[u32], out: &mut BytesMut) {
    control_head(kind, 0, 4 * words.len(), out);
    for word in words {
        out.put_u32(*word);
    }
}
