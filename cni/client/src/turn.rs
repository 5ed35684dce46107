//! Turns: operations on one pod run one after the other, those on different pods at the same time.
//! Source: SPEC.md section 3, "Lifecycle & Ordering".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Who is in turn, by the pod's id. Holds what is in use and nothing more.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

/// Somebody's turn; it ends when this is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    id: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn of an operation on a pod.
    ///
    /// # Cancel safety
    /// Safe: the place in the queue is lost.
    pub(crate) async fn of(&self, id: &str) -> Turn<'_> {
        let mutex = Arc::clone(self.lock().entry(id.to_owned()).or_default());
        // Before the wait, so that a wait that is given up cleans up too.
        let mut turn = Turn {
            turns: self,
            id: id.to_owned(),
            guard: None,
        };
        turn.guard = Some(mutex.lock_owned().await);
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut turns = self.turns.lock();
        // The map's own reference is the last one when nobody has the turn or waits for it.
        if turns
            .get(&self.id)
            .is_some_and(|mutex| Arc::strong_count(mutex) == 1)
        {
            turns.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_kept() {
        let turns = Turns::default();
        let first = turns.of("a").await;
        assert!(
            timeout(Duration::from_millis(20), turns.of("a"))
                .await
                .is_err()
        );
        let other = turns.of("b").await;
        drop(first);
        let second = timeout(Duration::from_secs(1), turns.of("a")).await;
        assert!(second.is_ok(), "the turn was not given on");
        drop((second, other));
        assert!(turns.lock().is_empty());
    }
}
