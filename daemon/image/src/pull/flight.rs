//! One pull for all who want the same: each has a seat, the last to leave stops it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Meter, Progress, PullRequest, fetch};
use crate::error::ImageError;
use crate::image::Image;
use crate::reference::ImageReference;
use crate::registry::Credentials;
use crate::store::Inner;

type Outcome = Result<Arc<Image>, ImageError>;

/// The pulls that are under way.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    flights: HashMap<Key, Flight>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: ImageReference,
    credentials: Option<Credentials>,
}

#[derive(Debug)]
struct Flight {
    /// Tells this pull from a later one with the same key.
    number: u64,
    waiters: usize,
    outcome: watch::Receiver<Option<Outcome>>,
    progress: watch::Receiver<Progress>,
    task: AbortHandle,
}

impl Flights {
    /// Waits for a pull, starting it unless it is under way.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the seat.
    pub(crate) async fn join(store: &Arc<Inner>, request: PullRequest) -> Outcome {
        let reference = request.reference.to_string();
        let mut seat = Seat::take(store, &request);
        let interrupted = || ImageError::Interrupted { reference };
        loop {
            let ended = tokio::select! {
                biased;
                // An error is a sender that is gone without a result: a panic, or the end of the runtime.
                ended = seat.outcome.wait_for(Option::is_some) => {
                    Some(ended.ok().and_then(|outcome| outcome.clone()))
                }
                Ok(()) = seat.progress.changed(), if request.progress.is_some() => None,
            };
            seat.tell(&request);
            if let Some(outcome) = ended {
                return outcome.unwrap_or_else(|| Err(interrupted()));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, key: &Key, number: u64) {
        let mut state = self.state();
        if state
            .flights
            .get(key)
            .is_some_and(|flight| flight.number == number)
        {
            state.flights.remove(key);
        }
    }
}

/// The place of one who waits.
struct Seat {
    store: Arc<Inner>,
    key: Key,
    number: u64,
    outcome: watch::Receiver<Option<Outcome>>,
    progress: watch::Receiver<Progress>,
}

impl Seat {
    fn take(store: &Arc<Inner>, request: &PullRequest) -> Self {
        let key = Key {
            reference: request.reference.clone(),
            credentials: request.credentials.clone(),
        };
        let mut state = store.flights().state();
        // A pull that was lost to a panic is no pull to wait for.
        let lost = |flight: &Flight| flight.outcome.has_changed().is_err();
        if state.flights.get(&key).is_some_and(lost) {
            state.flights.remove(&key);
        }
        state.next += 1;
        let number = state.next;
        let flight = state
            .flights
            .entry(key.clone())
            .or_insert_with(|| Self::start(store, &key, number));
        flight.waiters += 1;
        let mut progress = flight.progress.clone();
        progress.mark_changed();
        Self {
            number: flight.number,
            outcome: flight.outcome.clone(),
            progress,
            key,
            store: Arc::clone(store),
        }
    }

    /// Passes on how far the pull is.
    fn tell(&mut self, request: &PullRequest) {
        let now = *self.progress.borrow_and_update();
        if let Some(sender) = &request.progress {
            sender.send_replace(now);
        }
    }

    fn start(store: &Arc<Inner>, key: &Key, number: u64) -> Flight {
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (sender, outcome) = watch::channel(None);
        let (store, key) = (Arc::clone(store), key.clone());
        let task = tokio::spawn(async move {
            let meter = Meter(Arc::new(progress_sender));
            let credentials = key.credentials.as_ref();
            let result = fetch::pull(&store, &key.reference, credentials, &meter).await;
            // First, so that a request from now on is a new pull.
            store.flights().end(&key, number);
            sender.send_replace(Some(result));
        });
        Flight {
            number,
            waiters: 0,
            outcome,
            progress,
            task: task.abort_handle(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.store.flights().state();
        let Some(flight) = state.flights.get_mut(&self.key) else {
            return;
        };
        if flight.number != self.number {
            return;
        }
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.task.abort();
            state.flights.remove(&self.key);
        }
    }
}
