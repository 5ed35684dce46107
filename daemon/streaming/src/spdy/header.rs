//! Header blocks: name and value pairs, compressed by one zlib stream per direction that begins with the dictionary
//! of SPDY/3 (draft 3.1, section 2.6.10).

use bytes::{BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use thiserror::Error;

use crate::limits::{MAX_HEADER_BLOCK, MAX_HEADERS};

/// The dictionary of SPDY/3, with which both directions begin.
pub const DICTIONARY: &[u8; 1423] = include_bytes!("dictionary.bin");

/// Adler-32 of [`DICTIONARY`], by which a zlib stream names it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The begin of a zlib stream: deflate with a window of 32 KiB, a preset dictionary, a valid check (RFC 1950, 2.2).
const ZLIB_HEADER: [u8; 2] = [0x78, 0x20];

/// The longest stored block (RFC 1951, 3.2.4).
const MAX_STORED: usize = 0xffff;

/// The headers of one frame, in their order. Names are lowercase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    pairs: Vec<(String, String)>,
}

/// A header block that breaks the rules. The zlib stream cannot be continued after it, so it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Not a zlib stream, or one with another dictionary.
    #[error("the header block is not compressed as SPDY/3 demands")]
    Compression,
    /// Inflated longer than [`MAX_HEADER_BLOCK`].
    #[error("the header block has more than {MAX_HEADER_BLOCK} bytes")]
    TooLong,
    /// More than [`MAX_HEADERS`].
    #[error("the header block has more than {MAX_HEADERS} headers")]
    TooMany,
    /// A length that goes past the block, or bytes after the last pair.
    #[error("the header block is malformed")]
    Malformed,
    /// A name that is empty, not lowercase ASCII, or there twice.
    #[error("the header block has an invalid name")]
    Name,
    /// A value that is not UTF-8.
    #[error("the header block has an invalid value")]
    Value,
}

impl Headers {
    /// Headers from name and value pairs.
    pub fn new<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self {
            pairs: pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }

    /// The value of a name (lowercase).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Inflates the header blocks of one direction of one connection.
#[derive(Debug)]
pub struct HeaderDecoder {
    inflate: Decompress,
    block: Vec<u8>,
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderDecoder {
    /// At the begin of the connection.
    pub fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
            block: Vec::new(),
        }
    }

    /// Decodes the compressed block of one frame.
    ///
    /// # Errors
    /// See [`HeaderError`]; the decoder must not be used again after one.
    pub fn decode(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        self.block.clear();
        // One more than allowed, so that a block of exactly the limit is told from a longer one.
        self.block.reserve_exact(MAX_HEADER_BLOCK + 1);
        let mut input = compressed;
        while !input.is_empty() {
            let consumed = self.inflate(input)?;
            if self.block.len() > MAX_HEADER_BLOCK {
                return Err(HeaderError::TooLong);
            }
            input = input.get(consumed..).ok_or(HeaderError::Compression)?;
        }
        parse(&self.block)
    }

    /// Inflates as much as there is room for; how much of the input that took, never nothing.
    fn inflate(&mut self, input: &[u8]) -> Result<usize, HeaderError> {
        let before = self.inflate.total_in();
        let result = self
            .inflate
            .decompress_vec(input, &mut self.block, FlushDecompress::Sync);
        let consumed = usize::try_from(self.inflate.total_in() - before)
            .map_err(|_| HeaderError::Compression)?;
        match result {
            Ok(Status::Ok | Status::BufError) if consumed > 0 => Ok(consumed),
            Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) && consumed > 0 => {
                self.inflate
                    .set_dictionary(DICTIONARY)
                    .map_err(|_| HeaderError::Compression)?;
                Ok(consumed)
            }
            _ => Err(HeaderError::Compression),
        }
    }
}

/// The pairs of an inflated block: a count, then length and text of each name and value.
///
/// # Errors
/// See [`HeaderError`].
pub fn parse(block: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = block;
    let count = take_u32(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(HeaderError::TooMany);
    }
    let mut headers = Headers {
        pairs: Vec::with_capacity(count),
    };
    for _ in 0..count {
        let name = std::str::from_utf8(take_text(&mut rest)?).map_err(|_| HeaderError::Name)?;
        let lowercase = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase());
        if name.is_empty() || !lowercase || headers.get(name).is_some() {
            return Err(HeaderError::Name);
        }
        let value = std::str::from_utf8(take_text(&mut rest)?).map_err(|_| HeaderError::Value)?;
        headers.pairs.push((name.to_owned(), value.to_owned()));
    }
    if rest.is_empty() {
        Ok(headers)
    } else {
        Err(HeaderError::Malformed)
    }
}

fn take_u32(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (number, after) = rest
        .split_first_chunk::<4>()
        .ok_or(HeaderError::Malformed)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| HeaderError::Malformed)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], HeaderError> {
    let length = take_u32(rest)?;
    let (text, after) = rest
        .split_at_checked(length)
        .ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(text)
}

/// Writes the header blocks of one direction of one connection.
///
/// What the server sends in headers is next to nothing (an empty block for each stream), so the blocks are stored
/// and not compressed: the peer inflates them all the same, and a connection has no 256 KiB of compressor.
#[derive(Debug, Default)]
pub struct HeaderEncoder {
    begun: bool,
}

impl HeaderEncoder {
    /// At the begin of the connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the block of one frame to `out`.
    pub fn encode(&mut self, headers: &Headers, out: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            out.put_slice(&ZLIB_HEADER);
            out.put_u32(DICTIONARY_ID);
        }
        for part in serialize(headers).chunks(MAX_STORED) {
            put_stored(part, out);
        }
        // Go's inflater gives out the last block only when it has seen the begin of another: a sync flush, as the
        // other side sends it too.
        put_stored(&[], out);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most MAX_STORED")]
fn put_stored(data: &[u8], out: &mut BytesMut) {
    let length = data.len() as u16;
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(data);
}

/// The block before compression; the inverse of [`parse`].
#[expect(
    clippy::cast_possible_truncation,
    reason = "headers are made by this process: some bytes"
)]
pub fn serialize(headers: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    block.put_u32(headers.pairs.len() as u32);
    for (name, value) in headers.iter() {
        for text in [name, value] {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
    }
    block
}
