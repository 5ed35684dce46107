//! A tar archive as a stream of entries, with limits: nothing is kept in memory but the entry at hand.

use std::io::{self, BufRead};

use rustix::fs::Timespec;

use super::header::{self, BLOCK, Header};
use super::pax::Extension;
use super::unpack::UnpackError;
use crate::limits::{MAX_PATH_BYTES, MAX_PAX_BYTES};

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// An entry, with its extended headers applied.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    /// With set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    /// Bytes of content; only files have some.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads an archive.
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of content and padding of the current entry that were not read.
    content: u64,
    padding: u64,
    entries: u64,
    max_entries: u64,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R, max_entries: u64) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
            entries: 0,
            max_entries,
        }
    }

    /// The next entry; what is left of the previous one is skipped. After the last one, the rest of the input is
    /// read to its end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut pax = Extension::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else {
                self.drain()?;
                return Ok(None);
            };
            self.count()?;
            match header.kind {
                b'x' => {
                    let data = self.small(header.size, MAX_PAX_BYTES, &header)?;
                    pax = Extension::parse(&data).map_err(|what| malformed(&header.path, &what))?;
                }
                // Global records describe the archive (git's commit id); Docker and containerd ignore them too.
                b'g' => {
                    self.small(header.size, MAX_PAX_BYTES, &header)?;
                }
                b'L' => long_path = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                _ => return self.entry(header, pax, long_path, long_link).map(Some),
            }
        }
    }

    /// Hands the content of the current entry to `sink`, piece by piece.
    pub(super) fn content(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        while self.content > 0 {
            let piece = self.input.fill_buf().map_err(truncated)?;
            if piece.is_empty() {
                return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
            }
            let wanted = usize::try_from(self.content).unwrap_or(usize::MAX);
            let piece = &piece[..piece.len().min(wanted)];
            sink(piece)?;
            let length = piece.len();
            self.input.consume(length);
            self.content -= length as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: Header,
        pax: Extension,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, UnpackError> {
        let path = long_path.or(pax.path).unwrap_or(header.path);
        let link = long_link.or(pax.link).unwrap_or(header.link);
        let kind = match header.kind {
            // Before POSIX a slash at the end made a directory.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(malformed(&path, "its kind: sparse files are not supported")),
            other => {
                let what = format!("its kind: `{}` is not supported", other.escape_ascii());
                return Err(malformed(&path, &what));
            }
        };
        for text in [&path, &link] {
            if text.len() > MAX_PATH_BYTES {
                return Err(UnpackError::Limit {
                    what: format!("a path of {} bytes", text.len()),
                    limit: format!("{MAX_PATH_BYTES} bytes"),
                });
            }
        }
        let id = |pax: Option<u64>, plain: u64, name: &str| {
            // -1 means "leave it" to chown.
            u32::try_from(pax.unwrap_or(plain))
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| malformed(&path, &format!("its {name}")))
        };
        // Whatever size the others state, no content follows them (archive/tar of Go, by which images are built).
        let size = match kind {
            Kind::File => pax.size.unwrap_or(header.size),
            _ => 0,
        };
        self.begin_content(size);
        Ok(Entry {
            uid: id(pax.uid, header.uid, "owner")?,
            gid: id(pax.gid, header.gid, "group")?,
            mtime: pax.mtime.unwrap_or(Timespec {
                tv_sec: header.mtime,
                tv_nsec: 0,
            }),
            size,
            kind,
            mode: header.mode,
            device: header.device,
            xattrs: pax.xattrs,
            path,
            link,
        })
    }

    /// The header at the input's position; none at the end: two blocks of zeros, or (Go writes and reads archives
    /// so) simply no more input.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        let parse = |block: &[u8; BLOCK]| {
            header::parse(block).map_err(|what| malformed(&block[..100.min(BLOCK)], &what))
        };
        match parse(&block)? {
            Some(header) => Ok(Some(header)),
            None => match self.block()? {
                Some(second) if second.iter().any(|b| *b != 0) => Err(UnpackError::Format {
                    reason: "the archive goes on after its end".to_owned(),
                }),
                _ => Ok(None),
            },
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let piece = self.input.fill_buf().map_err(truncated)?;
            if piece.is_empty() {
                if filled == 0 {
                    return Ok(None);
                }
                return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
            }
            let length = piece.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            filled += length;
        }
        Ok(Some(block))
    }

    /// A whole content that is known to be small.
    fn small(&mut self, size: u64, limit: usize, header: &Header) -> Result<Vec<u8>, UnpackError> {
        if size > limit as u64 {
            return Err(UnpackError::Limit {
                what: format!(
                    "an extended header of {size} bytes at `{}`",
                    super::shown(&header.path)
                ),
                limit: format!("{limit} bytes"),
            });
        }
        self.begin_content(size);
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        self.content(|piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(data)
    }

    /// A GNU long name: text that ends with a NUL.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.small(header.size, MAX_PATH_BYTES + 1, header)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn begin_content(&mut self, size: u64) {
        let block = BLOCK as u64;
        self.content = size;
        self.padding = (block - size % block) % block;
    }

    fn skip_content(&mut self) -> Result<(), UnpackError> {
        self.content(|_| Ok(()))?;
        self.content = std::mem::take(&mut self.padding);
        self.content(|_| Ok(()))
    }

    fn drain(&mut self) -> Result<(), UnpackError> {
        loop {
            let length = self.input.fill_buf().map_err(truncated)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    /// Headers of any kind count: a chain of extended ones has no end either.
    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.max_entries {
            return Err(UnpackError::Limit {
                what: "the number of entries".to_owned(),
                limit: format!("{}", self.max_entries),
            });
        }
        Ok(())
    }
}

fn malformed(path: &[u8], what: &str) -> UnpackError {
    let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
    UnpackError::Format {
        reason: format!(
            "the archive's entry `{}` is malformed: {what}",
            super::shown(&path[..end])
        ),
    }
}

fn truncated(error: io::Error) -> UnpackError {
    UnpackError::Format {
        reason: format!("the archive ends within an entry ({error})"),
    }
}
