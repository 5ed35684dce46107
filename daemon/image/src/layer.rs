//! Layers: from a compressed stream to a directory that overlayfs takes as a lower one.
//!
//! Two threads work on a layer, with a bounded channel of recycled buffers between them:
//!
//! ```text
//! async task: HTTP pieces --(mpsc)--> decoder: digest of the blob, inflate, diff id --(buffers)--> unpacker: tar, files
//! ```
//!
//! so that hashing and inflating overlap with the system calls that make files. No compressed copy is kept.

mod archive;
mod dirs;
mod header;
mod measure;
mod pax;
mod stream;
#[cfg(test)]
#[allow(clippy::too_many_lines, reason = "lists of hostile archives")]
mod tests;
mod unpack;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use crate::digest::Digest;
use crate::error::{ImageError, is_disk_full};
use crate::limits::Limits;

pub(crate) use measure::measure;

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// A layer to be unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Digest of the blob.
    pub(crate) digest: Digest,
    /// Bytes of the blob.
    pub(crate) size: u64,
    /// Digest of the archive.
    pub(crate) diff_id: Digest,
    /// For errors.
    pub(crate) host: String,
    pub(crate) limits: Limits,
}

/// Why a layer could not be unpacked.
#[derive(Debug)]
pub(crate) enum LayerError {
    /// The sender went away: the pull was cancelled or its download failed.
    Interrupted,
    /// The error to report.
    Failed(ImageError),
}

/// Unpacks the blob that comes through `pieces` into the empty directory `root`, and checks both of its digests.
/// Blocks; the sender closes the channel after the last piece.
///
/// # Errors
/// See [`LayerError`]. The directory is then half filled.
pub(crate) fn unpack(
    job: &Job,
    pieces: Receiver<Bytes>,
    root: OwnedFd,
) -> Result<DiskUse, LayerError> {
    let (decoder, archive) = stream::decoder(job, pieces);
    let (decoded, unpacked) = std::thread::scope(|scope| {
        let unpacker = std::thread::Builder::new()
            .name("zcri-unpack".to_owned())
            .spawn_scoped(scope, move || unpack::unpack(archive, root, &job.limits));
        let unpacker = match unpacker {
            Ok(unpacker) => unpacker,
            Err(error) => {
                let error = ImageError::io("start a thread for", "a layer", error);
                return (
                    Err(stream::DecodeError::Failed(error)),
                    Ok(DiskUse::default()),
                );
            }
        };
        let decoded = decoder.run();
        let unpacked = unpacker.join().unwrap_or_else(|_| {
            Err(unpack::UnpackError::Format {
                reason: "unpacking it made this program panic".to_owned(),
            })
        });
        (decoded, unpacked)
    });
    verdict(job, decoded, unpacked)
}

/// Which of two threads' results counts. A blob that is not what its digest says explains every other oddity.
fn verdict(
    job: &Job,
    decoded: Result<stream::Digests, stream::DecodeError>,
    unpacked: Result<DiskUse, unpack::UnpackError>,
) -> Result<DiskUse, LayerError> {
    let invalid = |reason: String| ImageError::InvalidLayer {
        layer: job.diff_id.clone(),
        reason,
    };
    let digests = match decoded {
        Err(stream::DecodeError::Interrupted) => return Err(LayerError::Interrupted),
        Err(stream::DecodeError::Failed(error)) => return Err(LayerError::Failed(error)),
        // The unpacker gave up first, for a reason of its own.
        Err(stream::DecodeError::NoReader) => None,
        Err(stream::DecodeError::Corrupt { blob, reason }) => {
            matches(job, "layer", &job.digest, &blob).map_err(LayerError::Failed)?;
            return Err(LayerError::Failed(invalid(reason)));
        }
        Ok(digests) => Some(digests),
    };
    if let Some(digests) = &digests {
        matches(job, "layer", &job.digest, &digests.blob).map_err(LayerError::Failed)?;
        if let Some(archive) = &digests.archive {
            matches(job, "diff id of a layer", &job.diff_id, archive)
                .map_err(LayerError::Failed)?;
        }
    }
    match (unpacked, digests) {
        (Ok(usage), Some(digests)) if digests.archive.is_some() => Ok(usage),
        (Ok(_), _) => Err(LayerError::Interrupted),
        (Err(error), _) => Err(LayerError::Failed(error.into_image_error(job))),
    }
}

fn matches(
    job: &Job,
    what: &'static str,
    expected: &Digest,
    actual: &Digest,
) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what,
        host: job.host.clone(),
        expected: expected.clone(),
        actual: actual.clone(),
    })
}

impl unpack::UnpackError {
    fn into_image_error(self, job: &Job) -> ImageError {
        let layer = job.diff_id.clone();
        match self {
            Self::Format { reason } => ImageError::InvalidLayer { layer, reason },
            Self::Unsafe { path, reason } => ImageError::UnsafePath {
                layer,
                path: shown(&path),
                reason,
            },
            Self::Limit { what, limit } => ImageError::LimitExceeded {
                what: format!("layer {layer}: {what}"),
                limit,
            },
            Self::Attribute { path, source, .. } if is_disk_full(&source) => ImageError::io(
                "set an attribute of",
                format!("{layer}/{}", shown(&path)),
                source,
            ),
            Self::Attribute { path, name, source } => ImageError::Attribute {
                layer,
                path: shown(&path),
                name: shown(&name),
                source: Arc::new(source),
            },
            Self::Io {
                action,
                path,
                source,
            } => ImageError::io(action, format!("{layer}/{}", shown(&path)), source),
        }
    }
}

/// Bytes of a path as text, with what is not printable escaped.
pub(crate) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// An error of a system call as one of std.
fn os(error: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error())
}
