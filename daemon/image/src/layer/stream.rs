//! The decoder's side of a layer: pieces of a blob in, buffers of its archive out, both digests on the way.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc::Receiver as Pieces;

use super::Job;
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::limits::MAX_ZSTD_WINDOW_LOG;

/// Bytes of a buffer between the threads: large enough that handing one over costs nothing, small enough for L2.
const BUFFER: usize = 256 << 10;
/// Full buffers that may wait. Two more are being filled and emptied.
const BUFFERS: usize = 4;
/// Bytes of a refused layer that are still fetched to tell a damaged one from a hostile one.
const MAX_DRAINED: u64 = 64 << 20;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// zstd's skippable frames, `0x184D2A50` to `0x184D2A5F`, may come first (eStargz, zstd:chunked).
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Why decoding stopped.
#[derive(Debug)]
pub(super) enum DecodeError {
    /// The pieces ended before the blob did.
    Interrupted,
    /// The unpacker takes no more; the rest of the blob was not looked at.
    NoReader,
    /// The compression is damaged. The whole blob was hashed, so that its digest can tell by whom.
    Corrupt { blob: Digest, reason: String },
    /// An error of its own.
    Failed(ImageError),
}

/// The digests of a layer.
#[derive(Debug)]
pub(super) struct Digests {
    pub(super) blob: Digest,
    /// None: the unpacker refused the archive before its end.
    pub(super) archive: Option<Digest>,
}

/// Both ends of a layer: the decoder for one thread, the archive's bytes for another.
pub(super) fn decoder(job: &Job, pieces: Pieces<Bytes>) -> (Decoder, ArchiveBytes) {
    let (full_sender, full) = sync_channel(BUFFERS);
    let (empty_sender, empty) = channel();
    let decoder = Decoder {
        blob: Blob {
            pieces,
            piece: Bytes::new(),
            hasher: job.digest.hasher(),
            received: 0,
            size: job.size,
            interrupted: false,
        },
        job: job.clone(),
        full: full_sender,
        empty,
    };
    let archive = ArchiveBytes {
        full,
        empty: empty_sender,
        buffer: Vec::new(),
        position: 0,
    };
    (decoder, archive)
}

/// The blob as it comes, hashed once per piece.
struct Blob {
    pieces: Pieces<Bytes>,
    piece: Bytes,
    hasher: Hasher,
    received: u64,
    size: u64,
    interrupted: bool,
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else {
                if self.received < self.size {
                    self.interrupted = true;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                return Ok(&[]);
            };
            self.hasher.update(&piece);
            self.received += piece.len() as u64;
            self.piece = piece;
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

/// `Read::read` of what has a buffer.
fn read_buffered(from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
    let available = from.fill_buf()?;
    let length = available.len().min(into.len());
    into[..length].copy_from_slice(&available[..length]);
    from.consume(length);
    Ok(length)
}

impl Read for Blob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

impl Blob {
    /// The first four bytes, zeros where there are fewer, without consuming them.
    fn start(&mut self) -> io::Result<[u8; 4]> {
        let mut start = [0; 4];
        self.fill_buf()?;
        // The network may cut anywhere.
        while self.piece.len() < start.len() && self.received < self.size {
            let first = std::mem::take(&mut self.piece);
            self.fill_buf()?;
            self.piece = Bytes::from([first, std::mem::take(&mut self.piece)].concat());
        }
        let length = self.piece.len().min(start.len());
        start[..length].copy_from_slice(&self.piece[..length]);
        Ok(start)
    }

    /// Reads to the end, so that the digest is of the whole.
    fn drain(&mut self) -> Result<(), DecodeError> {
        loop {
            match self.fill_buf().map(<[u8]>::len) {
                Ok(0) => return Ok(()),
                Ok(length) => self.consume(length),
                Err(_) => return Err(DecodeError::Interrupted),
            }
        }
    }
}

/// By the first bytes, whatever the media type says: producers get it wrong, and the digests hold either way.
enum Plain {
    Gzip(Box<MultiGzDecoder<Blob>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Blob>>),
    Tar(Blob),
}

impl Plain {
    fn new(mut blob: Blob) -> Result<Self, Box<(Blob, io::Error)>> {
        let start = match blob.start() {
            Ok(start) => start,
            Err(error) => return Err(Box::new((blob, error))),
        };
        if start.starts_with(GZIP_MAGIC) {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(blob))));
        }
        let is_zstd = start == *ZSTD_MAGIC
            || start[0] & 0xf0 == 0x50 && start[1..].starts_with(ZSTD_SKIPPABLE);
        if !is_zstd {
            return Ok(Self::Tar(blob));
        }
        let mut decoder = zstd::stream::read::Decoder::try_with_buffer(blob).map_err(Box::new)?;
        if let Err(error) = decoder.window_log_max(MAX_ZSTD_WINDOW_LOG) {
            return Err(Box::new((decoder.into_inner(), error)));
        }
        Ok(Self::Zstd(Box::new(decoder)))
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(decoder) => decoder.read(into),
            Self::Tar(blob) => blob.read(into),
        }
    }

    fn into_blob(self) -> Blob {
        match self {
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.into_inner(),
            Self::Tar(blob) => blob,
        }
    }
}

/// Decompresses, for a thread of its own.
pub(super) struct Decoder {
    blob: Blob,
    job: Job,
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

impl Decoder {
    /// Works until the end of the blob.
    pub(super) fn run(self) -> Result<Digests, DecodeError> {
        let Self {
            blob,
            job,
            full,
            empty,
        } = self;
        let mut plain = match Plain::new(blob) {
            Ok(plain) => plain,
            Err(failed) => return Err(corrupt(failed.0, &failed.1)),
        };
        // An archive that is not compressed has been hashed as a blob.
        let shared = matches!(plain, Plain::Tar(_)) && job.digest.same_kind(&job.diff_id);
        let mut hasher = job.diff_id.hasher();
        let limit = job.limits.unpacked(job.size);
        let mut total: u64 = 0;
        loop {
            let mut buffer = empty.try_recv().unwrap_or_else(|_| vec![0; BUFFER]);
            let filled = match fill(&mut plain, &mut buffer) {
                Ok(filled) => filled,
                Err(error) => return Err(corrupt(plain.into_blob(), &error)),
            };
            if filled == 0 {
                break;
            }
            total += filled as u64;
            if total > limit {
                return Err(DecodeError::Failed(ImageError::LimitExceeded {
                    what: format!(
                        "layer {} of {} bytes, unpacked to more than its size allows,",
                        job.digest, job.size
                    ),
                    limit: format!("{limit} bytes"),
                }));
            }
            buffer.truncate(filled);
            if !shared {
                hasher.update(&buffer);
            }
            if full.send(buffer).is_err() {
                return refused(plain.into_blob());
            }
        }
        drop(full);
        let mut blob = plain.into_blob();
        blob.drain()?;
        let blob = blob.hasher.finish();
        let archive = if shared {
            blob.clone()
        } else {
            hasher.finish()
        };
        Ok(Digests {
            blob,
            archive: Some(archive),
        })
    }
}

/// The unpacker has an objection. If the blob turns out to be damaged, that is the better explanation.
fn refused(mut blob: Blob) -> Result<Digests, DecodeError> {
    if blob.size - blob.received > MAX_DRAINED {
        return Err(DecodeError::NoReader);
    }
    blob.drain()?;
    Ok(Digests {
        blob: blob.hasher.finish(),
        archive: None,
    })
}

/// Fills a buffer as far as the archive goes.
fn fill(plain: &mut Plain, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.resize(BUFFER, 0);
    let mut filled = 0;
    while filled < buffer.len() {
        match plain.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn corrupt(mut blob: Blob, error: &io::Error) -> DecodeError {
    if blob.interrupted {
        return DecodeError::Interrupted;
    }
    if let Err(interrupted) = blob.drain() {
        return interrupted;
    }
    DecodeError::Corrupt {
        reason: format!("its compression is damaged: {error}"),
        blob: blob.hasher.finish(),
    }
}

/// The unpacker's end. The input ends early when the decoder fails, which the decoder reports.
pub(super) struct ArchiveBytes {
    full: Receiver<Vec<u8>>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
}

impl BufRead for ArchiveBytes {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.buffer.len() {
            let Ok(next) = self.full.recv() else {
                return Ok(&[]);
            };
            let emptied = std::mem::replace(&mut self.buffer, next);
            self.position = 0;
            if emptied.capacity() > 0 {
                // The decoder may be gone already.
                drop(self.empty.send(emptied));
            }
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for ArchiveBytes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}
