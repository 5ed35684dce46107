//! When something last moved in a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by all who move bytes of one session. Pings do not count: Go clients send them every five seconds, and a
/// session with nothing else is what an idle timeout is for.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    begin: Instant,
    /// Milliseconds from `begin`.
    last: Arc<AtomicU64>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            last: Arc::default(),
        }
    }

    /// Something moved.
    pub(crate) fn touch(&self) {
        let elapsed = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Resolves when nothing moved for `timeout`; never if that is zero.
    pub(crate) async fn idle(&self, timeout: Duration) {
        if timeout.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let last = self.begin + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let Some(until) = last.checked_add(timeout) else {
                return std::future::pending().await;
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_when_nothing_moved() {
        let activity = Activity::new();
        let (start, timeout) = (Instant::now(), Duration::from_secs(10));
        let mover = activity.clone();
        let moves = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            mover.touch();
        };
        tokio::join!(moves, activity.idle(timeout));
        assert_eq!(start.elapsed(), Duration::from_secs(17));
    }
}
