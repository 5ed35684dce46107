//! Response bodies: whole, cut short, or slow; each counts the bytes that it hands out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

/// Bytes per frame at full speed.
const CHUNK: usize = 64 * 1024;
/// A slow body sends this many frames in a second.
const SLOW_FRAMES_PER_SECOND: u32 = 20;

/// The connection is broken on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the body is cut off here, as the test asked")]
pub(crate) struct CutOff;

/// A body in memory.
#[derive(Debug)]
pub(crate) struct ServedBody {
    rest: Bytes,
    /// Bytes until the connection breaks.
    cut_after: Option<usize>,
    /// Whether the connection had a chance to write what comes before the cut.
    flushed: bool,
    pace: Option<Pace>,
    sent: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Pace {
    chunk: usize,
    pause: Pin<Box<Sleep>>,
}

impl ServedBody {
    pub(crate) fn new(data: Bytes, sent: Arc<AtomicU64>) -> Self {
        Self {
            rest: data,
            cut_after: None,
            flushed: false,
            pace: None,
            sent,
        }
    }

    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    pub(crate) fn slow(mut self, bytes_per_second: usize) -> Self {
        let chunk = (bytes_per_second / SLOW_FRAMES_PER_SECOND as usize).max(1);
        self.pace = Some(Pace {
            chunk,
            pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
        });
        self
    }
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let this = self.get_mut();
        if this.cut_after == Some(0) {
            // hyper throws away what it has not written when a body fails, and writes when one is pending.
            if !std::mem::replace(&mut this.flushed, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(CutOff)));
        }
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let mut size = CHUNK;
        if let Some(pace) = &mut this.pace {
            std::task::ready!(Future::poll(pace.pause.as_mut(), cx));
            let next =
                tokio::time::Instant::now() + Duration::from_secs(1) / SLOW_FRAMES_PER_SECOND;
            pace.pause.as_mut().reset(next);
            size = pace.chunk;
        }
        size = size.min(this.rest.len());
        if let Some(left) = &mut this.cut_after {
            size = size.min(*left);
            *left -= size;
        }
        this.sent.fetch_add(size as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.cut_after != Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
