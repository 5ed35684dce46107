//! The framing of ttrpc (containerd/ttrpc, `PROTOCOL.md`), without any input or output.
//!
//! A frame is a header of ten bytes and data: the data's length and the stream number in big endian, a type, flags.

/// Bytes of a header.
pub const HEADER_LEN: usize = 10;

/// Most bytes of data in a frame: the limit of the protocol.
pub const MAX_DATA_LEN: usize = 4 << 20;

/// Type of a frame that opens a stream.
pub const REQUEST: u8 = 1;
/// Type of the frame that ends a stream.
pub const RESPONSE: u8 = 2;
/// Type of a frame in a stream that is not unary.
pub const DATA: u8 = 3;

/// Flag of a request: not unary, and more data follows.
pub const FLAG_REMOTE_OPEN: u8 = 2;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Number of the stream; odd when the client opened it.
    pub stream: u32,
    /// Type: [`REQUEST`], [`RESPONSE`], [`DATA`], or one that a later protocol brings.
    pub kind: u8,
    /// Flags, by type.
    pub flags: u8,
    /// The data.
    pub data: Vec<u8>,
}

/// What was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame.
    Frame(Frame),
    /// The header of a frame over the limit. Its data is skipped, the connection goes on.
    Oversized {
        /// Number of the stream.
        stream: u32,
        /// Type of the frame.
        kind: u8,
        /// Length that its header claims.
        len: usize,
    },
}

/// Bytes that are no ttrpc. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte of a frame is reserved and must be zero.
    #[error("not a ttrpc peer: the frame begins with {byte:#04x}")]
    Reserved {
        /// The byte found.
        byte: u8,
    },
}

/// Appends a frame.
///
/// # Errors
/// The data is over [`MAX_DATA_LEN`]; nothing is appended.
pub fn encode(
    out: &mut Vec<u8>,
    stream: u32,
    kind: u8,
    flags: u8,
    data: &[u8],
) -> Result<(), Oversized> {
    let len = u32::try_from(data.len())
        .ok()
        .filter(|_| data.len() <= MAX_DATA_LEN);
    let len = len.ok_or(Oversized { len: data.len() })?;
    out.reserve(HEADER_LEN + data.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(data);
    Ok(())
}

/// Data that does not fit into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {len} bytes is over the limit of {MAX_DATA_LEN}")]
pub struct Oversized {
    /// Its length.
    pub len: usize,
}

/// Turns bytes into frames. Holds at most one incomplete frame and what was fed behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    skip: usize,
}

impl Decoder {
    /// Takes bytes from the peer.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        bytes = bytes.get(skipped..).unwrap_or_default();
        if self.consumed == self.buffer.len() {
            // An idle connection holds no memory.
            self.buffer = Vec::new();
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no ttrpc. Every later call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        let pending = self.buffer.get(self.consumed..).unwrap_or_default();
        match pending.first() {
            None => {
                self.buffer = Vec::new();
                self.consumed = 0;
                return Ok(None);
            }
            Some(0) => {}
            Some(byte) => return Err(FrameError::Reserved { byte: *byte }),
        }
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        // At most 2^24, as the first byte is zero.
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        if len > MAX_DATA_LEN {
            let here = len.min(rest.len());
            self.skip = len - here;
            self.consumed += HEADER_LEN + here;
            return Ok(Some(Decoded::Oversized { stream, kind, len }));
        }
        let Some(data) = rest.get(..len).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.consumed += HEADER_LEN + len;
        Ok(Some(Decoded::Frame(Frame {
            stream,
            kind,
            flags,
            data,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small deterministic generator (xorshift64*), seeded per case so that a failure names its seed.
    struct Random(u64);
    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
        }
        fn bytes(&mut self, len: usize) -> Vec<u8> {
            (0..len)
                .map(|_| u8::try_from(self.below(256)).unwrap())
                .collect()
        }
    }

    fn decode_in_pieces(wire: &[u8], random: &mut Random) -> Result<Vec<Decoded>, FrameError> {
        let (mut decoder, mut decoded, mut rest) = (Decoder::default(), Vec::new(), wire);
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(1 + random.below(rest.len().min(5000)));
            rest = tail;
            decoder.feed(piece);
            while let Some(frame) = decoder.next_frame()? {
                decoded.push(frame);
            }
        }
        assert!(decoder.buffer.is_empty(), "an idle decoder holds no memory");
        Ok(decoded)
    }

    #[test]
    fn every_frame_survives_the_round_trip_in_any_pieces() {
        for seed in 1..200 {
            let mut random = Random(seed);
            let frames: Vec<Frame> = (0..1 + random.below(8))
                .map(|_| {
                    let len = [0, 1, 200, 20_000][random.below(4)];
                    let len = random.below(len + 1);
                    Frame {
                        stream: u32::try_from(random.below(1 << 31)).unwrap(),
                        kind: u8::try_from(random.below(256)).unwrap(),
                        flags: u8::try_from(random.below(256)).unwrap(),
                        data: random.bytes(len),
                    }
                })
                .collect();
            let mut wire = Vec::new();
            for frame in &frames {
                encode(
                    &mut wire,
                    frame.stream,
                    frame.kind,
                    frame.flags,
                    &frame.data,
                )
                .unwrap();
            }
            let decoded = decode_in_pieces(&wire, &mut random).unwrap();
            assert_eq!(
                decoded,
                frames.into_iter().map(Decoded::Frame).collect::<Vec<_>>(),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn golden_request() {
        // The header that ttrpc's own documentation gives for 3 bytes on stream 1.
        let mut wire = Vec::new();
        encode(&mut wire, 1, REQUEST, 0, b"abc").unwrap();
        assert_eq!(wire, [0, 0, 0, 3, 0, 0, 0, 1, 1, 0, b'a', b'b', b'c']);
    }

    #[test]
    fn an_oversized_frame_is_skipped_and_the_next_one_read() {
        for seed in 1..20 {
            let len = MAX_DATA_LEN + 1;
            let mut wire = u32::try_from(len).unwrap().to_be_bytes().to_vec();
            wire.extend([0, 0, 0, 7, REQUEST, 0]);
            wire.resize(HEADER_LEN + len, 0xff);
            encode(&mut wire, 9, REQUEST, 0, b"x").unwrap();
            let decoded = decode_in_pieces(&wire, &mut Random(seed)).unwrap();
            let next = Frame {
                stream: 9,
                kind: REQUEST,
                flags: 0,
                data: b"x".to_vec(),
            };
            assert_eq!(
                decoded,
                [
                    Decoded::Oversized {
                        stream: 7,
                        kind: REQUEST,
                        len
                    },
                    Decoded::Frame(next)
                ]
            );
        }
        let too_much = vec![0; MAX_DATA_LEN + 1];
        assert_eq!(
            encode(&mut Vec::new(), 1, RESPONSE, 0, &too_much),
            Err(Oversized {
                len: MAX_DATA_LEN + 1
            })
        );
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        for seed in 1..2000 {
            let mut random = Random(seed);
            let len = random.below(300);
            let mut wire = random.bytes(len);
            if let Some(first) = wire.first_mut().filter(|_| seed % 2 == 0) {
                *first = 0;
            }
            let mut decoder = Decoder::default();
            decoder.feed(&wire);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
        let mut decoder = Decoder::default();
        decoder.feed(b"GET / HTTP/1.1\r\n");
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::Reserved { byte: b'G' })
        );
    }
}
