//! Frames of RFC 6455, section 5: a sans-io decoder for what a client sends, heads for what the server sends.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// The longest head of a server's frame: it has no mask.
pub const MAX_HEAD: usize = 10;

/// The longest payload of a control frame (section 5.5).
pub const MAX_CONTROL: usize = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Status codes of a close frame (section 7.4.1).
pub mod close {
    /// All is done. Go clients take every other code for an error.
    pub const NORMAL: u16 = 1000;
    /// The peer broke the rules.
    pub const PROTOCOL_ERROR: u16 = 1002;
}

/// The kinds of data messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8; not checked here, as the protocols that use it have base64 in it.
    Text,
    /// Bytes.
    Binary,
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message, given out as it arrives: a message needs no limit and no buffer.
    Data {
        /// The first piece of its message.
        first: bool,
        /// The last piece of its message.
        last: bool,
        /// The message's kind.
        kind: Kind,
        /// The bytes, unmasked; they can be empty.
        bytes: Bytes,
    },
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// An answer.
    Pong,
    /// The client sends no more.
    Close {
        /// Its status code, if it gave one.
        code: Option<u16>,
    },
}

/// A frame that breaks the rules; it ends the connection with [`close::PROTOCOL_ERROR`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A reserved bit is set, and no extension was agreed on.
    #[error("a reserved bit is set")]
    Reserved,
    /// An opcode that RFC 6455 does not define.
    #[error("opcode {opcode} is unknown")]
    Opcode {
        /// The opcode.
        opcode: u8,
    },
    /// Clients must mask (section 5.1).
    #[error("the frame is not masked")]
    Unmasked,
    /// A control frame that is fragmented or too long.
    #[error("a control frame is fragmented or longer than {MAX_CONTROL} bytes")]
    Control,
    /// A continuation without a message, or a new message within another.
    #[error("the fragments are out of order")]
    Fragments,
    /// A length of more than 63 bits, or not in its shortest form.
    #[error("the length is malformed")]
    Length,
    /// A close frame with a body of one byte.
    #[error("the close frame is malformed")]
    Close,
    /// A frame after the close frame.
    #[error("a frame after the close frame")]
    AfterClose,
}

#[derive(Debug)]
struct Partial {
    remaining: u64,
    mask: [u8; 4],
    /// The frame ends its message.
    fin: bool,
    first: bool,
}

#[derive(Debug)]
struct Head {
    opcode: u8,
    fin: bool,
    length: u64,
    mask: [u8; 4],
}

/// Decodes what a client sends.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The message that is being received.
    message: Option<Kind>,
    /// Its frame that is being received.
    frame: Option<Partial>,
    closed: bool,
}

impl Decoder {
    /// At the begin of the connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event from the front of `input`. None: more input is needed.
    ///
    /// # Errors
    /// See [`FrameError`]; the decoder must not be used again after one.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        if let (Some(partial), Some(kind)) = (self.frame.take(), self.message) {
            return Ok(self.data_piece(partial, kind, input));
        }
        let Some((head, size)) = head(input)? else {
            return Ok(None);
        };
        if self.closed {
            return Err(FrameError::AfterClose);
        }
        if head.opcode >= CLOSE {
            return self.control(&head, size, input);
        }
        let kind = match (head.opcode, self.message) {
            (CONTINUATION, Some(kind)) => kind,
            (TEXT, None) => Kind::Text,
            (BINARY, None) => Kind::Binary,
            (CONTINUATION | TEXT | BINARY, _) => return Err(FrameError::Fragments),
            (opcode, _) => return Err(FrameError::Opcode { opcode }),
        };
        input.advance(size);
        let first = self.message.replace(kind).is_none();
        let partial = Partial {
            remaining: head.length,
            mask: head.mask,
            fin: head.fin,
            first,
        };
        if partial.remaining == 0 {
            if partial.fin {
                self.message = None;
            }
            return Ok(Some(Event::Data {
                first,
                last: partial.fin,
                kind,
                bytes: Bytes::new(),
            }));
        }
        Ok(self.data_piece(partial, kind, input))
    }

    fn data_piece(
        &mut self,
        mut partial: Partial,
        kind: Kind,
        input: &mut BytesMut,
    ) -> Option<Event> {
        if input.is_empty() {
            self.frame = Some(partial);
            return None;
        }
        let available = input.len();
        let length = usize::try_from(partial.remaining)
            .map_or(available, |remaining| remaining.min(available));
        let mut bytes = input.split_to(length);
        apply_mask(&mut bytes, partial.mask);
        partial.mask.rotate_left(length % 4);
        partial.remaining -= length as u64;
        let first = std::mem::take(&mut partial.first);
        let last = partial.fin && partial.remaining == 0;
        if last {
            self.message = None;
        }
        self.frame = (partial.remaining > 0).then_some(partial);
        Some(Event::Data {
            first,
            last,
            kind,
            bytes: bytes.freeze(),
        })
    }

    fn control(
        &mut self,
        head: &Head,
        size: usize,
        input: &mut BytesMut,
    ) -> Result<Option<Event>, FrameError> {
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        if !matches!(head.opcode, CLOSE | PING | PONG) {
            return Err(FrameError::Opcode {
                opcode: head.opcode,
            });
        }
        if !head.fin || length > MAX_CONTROL {
            return Err(FrameError::Control);
        }
        if input.len() < size + length {
            return Ok(None);
        }
        input.advance(size);
        let mut payload = input.split_to(length);
        apply_mask(&mut payload, head.mask);
        match head.opcode {
            PING => Ok(Some(Event::Ping(payload.freeze()))),
            PONG => Ok(Some(Event::Pong)),
            _ => {
                self.closed = true;
                match payload.first_chunk::<2>() {
                    Some(code) => Ok(Some(Event::Close {
                        code: Some(u16::from_be_bytes(*code)),
                    })),
                    None if payload.is_empty() => Ok(Some(Event::Close { code: None })),
                    None => Err(FrameError::Close),
                }
            }
        }
    }
}

/// The head of a frame and its size. None: it is not there yet.
fn head(input: &[u8]) -> Result<Option<(Head, usize)>, FrameError> {
    let Some(&[b0, b1]) = input.first_chunk::<2>() else {
        return Ok(None);
    };
    if b0 & RESERVED != 0 {
        return Err(FrameError::Reserved);
    }
    if b1 & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let rest = &input[2..];
    let (length, extended) = match b1 & !MASKED {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 8),
            None => return Ok(None),
        },
        short => (u64::from(short), 0),
    };
    let shortest = match extended {
        0 => true,
        2 => length > 125,
        _ => length > 0xffff && length >> 63 == 0,
    };
    if !shortest {
        return Err(FrameError::Length);
    }
    let Some(mask) = rest[extended..].first_chunk::<4>() else {
        return Ok(None);
    };
    let head = Head {
        opcode: b0 & OPCODE,
        fin: b0 & FIN != 0,
        length,
        mask: *mask,
    };
    Ok(Some((head, 2 + extended + 4)))
}

/// Masks or unmasks (section 5.3), 8 bytes at a time; the compiler makes wider ones of them.
pub fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
    let [m0, m1, m2, m3] = mask;
    let wide = u64::from_ne_bytes([m0, m1, m2, m3, m0, m1, m2, m3]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// The kinds of frames that the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A whole text message.
    Text,
    /// A whole binary message.
    Binary,
    /// The end.
    Close,
    /// An answer to a ping.
    Pong,
}

/// The head of an unfragmented, unmasked frame; the slice says how much of the array is used.
#[expect(
    clippy::cast_possible_truncation,
    reason = "each arm has checked the range"
)]
pub fn head_of(opcode: Opcode, length: usize, space: &mut [u8; MAX_HEAD]) -> &[u8] {
    let opcode = match opcode {
        Opcode::Text => TEXT,
        Opcode::Binary => BINARY,
        Opcode::Close => CLOSE,
        Opcode::Pong => PONG,
    };
    space[0] = FIN | opcode;
    match length {
        0..=125 => {
            space[1] = length as u8;
            &space[..2]
        }
        126..=0xffff => {
            space[1] = 126;
            space[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            &space[..4]
        }
        _ => {
            space[1] = 127;
            space[2..].copy_from_slice(&(length as u64).to_be_bytes());
            &space[..]
        }
    }
}

/// Appends a whole frame to `out`.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(head_of(opcode, payload.len(), &mut [0; MAX_HEAD]));
    out.extend_from_slice(payload);
}
