//! A blob as a stream that survives broken connections: what is missing is asked for again by range, at the same
//! endpoint first and then at the others. The content is checked by its reader, who knows the digest.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::time::timeout;
use tracing::debug;

use super::session::{Resource, Session};
use crate::error::ImageError;
use crate::manifest::Descriptor;

/// Broken connections in a row that bring less than [`PROGRESS`].
const MAX_BREAKS: u32 = 6;
/// A connection that brought as much has done its part: breaks are counted anew.
const PROGRESS: u64 = 4 << 20;
/// The first wait before asking again; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);

/// A download in progress.
pub(crate) struct BlobReader {
    sessions: Arc<[Arc<Session>]>,
    /// Which of the sessions is read from.
    current: usize,
    blob: Descriptor,
    /// Bytes handed out.
    offset: u64,
    /// Bytes of the answer that were handed out before.
    skip: u64,
    answer: Option<Response>,
    breaks: u32,
    opened_at: u64,
}

impl BlobReader {
    /// `first` is the session to begin with, as a rule the one that had the manifest.
    pub(crate) fn new(sessions: Arc<[Arc<Session>]>, first: usize, blob: Descriptor) -> Self {
        Self {
            sessions,
            current: first,
            blob,
            offset: 0,
            skip: 0,
            answer: None,
            breaks: 0,
            opened_at: 0,
        }
    }

    /// The host that is read from, for errors.
    pub(crate) fn host(&self) -> &str {
        self.sessions[self.current].host()
    }

    /// The next piece; none after exactly as many bytes as the descriptor says.
    ///
    /// # Errors
    /// When no endpoint has the blob, connections keep breaking, or there is more than the descriptor says.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a piece may be lost. A dropped reader is dropped whole.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ImageError> {
        if self.offset == self.blob.size && self.answer.is_none() {
            return Ok(None);
        }
        loop {
            let mut answer = match self.answer.take() {
                Some(answer) => answer,
                None => self.open().await?,
            };
            let session = &self.sessions[self.current];
            match timeout(session.stall_timeout(), answer.chunk()).await {
                Ok(Ok(Some(mut piece))) => {
                    self.answer = Some(answer);
                    let known = usize::try_from(self.skip)
                        .unwrap_or(usize::MAX)
                        .min(piece.len());
                    piece.advance(known);
                    self.skip -= known as u64;
                    if piece.is_empty() {
                        continue;
                    }
                    return self.take(piece).map(Some);
                }
                // However the answer ends after the last byte.
                _ if self.offset == self.blob.size => return Ok(None),
                Ok(Ok(None)) => {
                    let error = ImageError::WrongSize {
                        host: session.host().to_owned(),
                        digest: self.blob.digest.clone(),
                        expected: self.blob.size,
                        actual: self.offset,
                    };
                    self.broken(error).await?;
                }
                Ok(Err(error)) => {
                    let error = session.unreachable("download broken", error.without_url());
                    self.broken(error).await?;
                }
                Err(_) => {
                    let error = session.unreachable("download", "it stalls");
                    self.broken(error).await?;
                }
            }
        }
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes, ImageError> {
        self.offset += piece.len() as u64;
        if self.offset > self.blob.size {
            return Err(ImageError::WrongSize {
                host: self.host().to_owned(),
                digest: self.blob.digest.clone(),
                expected: self.blob.size,
                actual: self.offset,
            });
        }
        Ok(piece)
    }

    /// After a broken connection: another try, or the error.
    async fn broken(&mut self, error: ImageError) -> Result<(), ImageError> {
        if self.offset - self.opened_at >= PROGRESS {
            self.breaks = 0;
        }
        self.breaks += 1;
        if self.breaks >= MAX_BREAKS {
            return Err(error);
        }
        debug!(host = self.host(), digest = %self.blob.digest, offset = self.offset, %error, "resuming a download");
        tokio::time::sleep(BACKOFF * 2_u32.pow(self.breaks - 1)).await;
        Ok(())
    }

    /// Asks for the rest of the blob, at every endpoint once. The first error counts: it is of the best endpoint.
    async fn open(&mut self) -> Result<Response, ImageError> {
        let mut failure = None;
        for step in 0..self.sessions.len() {
            let index = (self.current + step) % self.sessions.len();
            match self.open_at(&self.sessions[index]).await {
                Ok((answer, skip)) => {
                    self.current = index;
                    self.skip = skip;
                    self.opened_at = self.offset;
                    return Ok(answer);
                }
                Err(error) if error.is_endpoints_fault() => {
                    failure.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| ImageError::NotFound {
            host: String::new(),
            what: format!("blob {}", self.blob.digest),
            message: "no endpoint is configured".to_owned(),
        }))
    }

    /// The answer, and how many of its bytes are known already.
    async fn open_at(&self, session: &Session) -> Result<(Response, u64), ImageError> {
        let answer = session
            .get(Resource::Blob(&self.blob.digest), self.offset)
            .await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((answer, self.offset));
        }
        let start = answer
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .and_then(range_start);
        match start.and_then(|start| self.offset.checked_sub(start)) {
            Some(known) => Ok((answer, known)),
            None => Err(ImageError::RegistryFailed {
                host: session.host().to_owned(),
                what: format!("the range request for blob {}", self.blob.digest),
                status: StatusCode::PARTIAL_CONTENT.as_u16(),
                message: "it sends another range than was asked for".to_owned(),
            }),
        }
    }
}

/// The first byte of `bytes 5-9/10`.
fn range_start(text: &str) -> Option<u64> {
    let (start, _) = text.trim().strip_prefix("bytes")?.trim().split_once('-')?;
    start.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("lines 1-2/3"), None);
    }
}
