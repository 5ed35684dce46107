//! Bytes from the client on their way to one consumer: bounded, with an end.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::limits::{COPY_BELOW, STREAM_BUFFER};

/// One producer (who reads the connection), one consumer.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// For the consumer: there are bytes, or the end.
    filled: Notify,
    /// For the producer: there is room.
    drained: Notify,
    /// For everybody: it was reset.
    over: Notify,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    length: usize,
    end: Option<End>,
}

/// How the input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed it; what is in the queue is still to be read.
    Closed,
    /// Nobody wants it any more, on either side.
    Reset,
}

impl Queue {
    /// Adds bytes, whether there is room or not: a producer that finds the queue [`full`](Self::is_full) waits before
    /// it reads more. False: the input had ended.
    pub(crate) fn push(&self, bytes: Bytes) -> bool {
        let mut state = self.lock();
        if state.end.is_some() {
            return false;
        }
        if !bytes.is_empty() {
            // A short piece would keep its whole read buffer alive.
            let bytes = if bytes.len() < COPY_BELOW {
                Bytes::copy_from_slice(&bytes)
            } else {
                bytes
            };
            state.length += bytes.len();
            state.pieces.push_back(bytes);
            drop(state);
            self.filled.notify_one();
        }
        true
    }

    /// Ends the input; the first end stays, but for a reset, which overrules all.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        if end == End::Reset {
            state.pieces.clear();
            state.length = 0;
            state.end = Some(end);
        } else {
            state.end.get_or_insert(end);
        }
        drop(state);
        self.filled.notify_one();
        self.drained.notify_one();
        if end == End::Reset {
            self.over.notify_waiters();
        }
    }

    /// Resolves when it was reset.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn reset(&self) {
        let mut over = std::pin::pin!(self.over.notified());
        // From here on nothing is missed.
        over.as_mut().enable();
        if self.lock().end != Some(End::Reset) {
            over.await;
        }
    }

    /// Whether the producer is to wait.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.lock();
        state.length >= STREAM_BUFFER || state.pieces.len() >= STREAM_BUFFER / 64
    }

    /// Resolves when there is room, or the input has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        while self.is_full() {
            self.drained.notified().await;
        }
    }

    /// The next bytes. None: the end.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes are taken only by the poll that returns them.
    pub(crate) async fn pop(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if let Some(bytes) = state.pieces.pop_front() {
                    state.length -= bytes.len();
                    drop(state);
                    self.drained.notify_one();
                    return Some(bytes);
                }
                if state.end.is_some() {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_pushed_before_the_end_is_read() {
        let queue = Queue::default();
        assert!(queue.push(Bytes::from_static(b"one")));
        assert!(queue.push(Bytes::new()));
        assert!(queue.push(Bytes::from_static(b"two")));
        queue.end(End::Closed);
        assert!(!queue.push(Bytes::from_static(b"three")));
        assert_eq!(queue.pop().await.as_deref(), Some(&b"one"[..]));
        assert_eq!(queue.pop().await.as_deref(), Some(&b"two"[..]));
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn a_reset_throws_away_and_frees_the_producer() {
        let queue = Queue::default();
        queue.push(Bytes::from(vec![0; STREAM_BUFFER]));
        assert!(queue.is_full());
        queue.end(End::Reset);
        queue.room().await;
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn everybody_hears_of_a_reset_and_nobody_of_an_end() {
        let queue = Queue::default();
        queue.end(End::Closed);
        let (one, two) = (queue.reset(), queue.reset());
        let mut both = std::pin::pin!(async { tokio::join!(one, two) });
        let pending = futures::poll!(both.as_mut());
        assert!(pending.is_pending());
        queue.end(End::Reset);
        both.await;
        queue.reset().await;
    }

    #[tokio::test]
    async fn many_tiny_pieces_fill_it_too() {
        let queue = Queue::default();
        let mut pushed = 0;
        while !queue.is_full() {
            queue.push(Bytes::from_static(b"x"));
            pushed += 1;
        }
        assert!(pushed <= STREAM_BUFFER / 64, "{pushed}");
    }
}
