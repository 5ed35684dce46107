//! What happens to pods and containers, told to whoever subscribed.
//!
//! An event is the difference between two pictures of a pod that follow one another, so that nothing that a status
//! shows goes untold, and it carries the newer picture: telling costs neither a process nor a question to anybody.
//!
//! Each subscriber has a queue of its own with a fixed capacity, and the task of a pod never waits for it. When a
//! queue is full it is emptied, and the subscriber is told the deletions that it missed and then the present state of
//! everything, each as the event that leads to that state: it may hear of something twice, but nothing is lost for
//! good and what it hears of one container is in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use crate::container::{ContainerState, ContainerView};
use crate::id::PodId;
use crate::pod::{PodState, PodView};
use crate::time::now_ns;

/// Events that may wait for one subscriber. A node full of pods that all start at once makes fewer.
const CAPACITY: usize = 1024;
/// Deletions that are kept of those that did not fit; of more the oldest are forgotten, and show by absence only.
const DELETIONS: usize = 4096;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Created,
    /// It runs.
    Started,
    /// It ended, or did not start.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a container or pod.
#[derive(Debug, Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The container, or the pod itself.
    pub id: String,
    /// When, in ns since 1970.
    pub at_ns: i64,
    /// The pod afterwards.
    pub pod: Arc<PodView>,
}

/// Tells events.
#[derive(Debug, Default)]
pub struct Events(Mutex<Hub>);

#[derive(Debug, Default)]
struct Hub {
    closed: bool,
    queues: Vec<Weak<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// Whether the queue was too small; from then on only deletions are kept.
    overflowed: bool,
    closed: bool,
}

/// The receiving end. What is published after it was made reaches it.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    /// What is told before anything else.
    resync: VecDeque<Event>,
    /// Revisions of the pods that the last resync told: what led there is not told again.
    told: HashMap<PodId, u64>,
}

/// What a look into the queue gave.
enum Taken {
    Event(Event),
    Nothing,
    End,
}

impl Events {
    /// Begins to listen.
    pub fn subscribe(&self) -> Subscription {
        let queue = Arc::new(Queue::default());
        let mut hub = self.hub();
        queue.lock().closed = hub.closed;
        hub.queues.retain(|queue| queue.strong_count() > 0);
        hub.queues.push(Arc::downgrade(&queue));
        Subscription {
            queue,
            resync: VecDeque::new(),
            told: HashMap::new(),
        }
    }

    /// Tells what happened between two pictures of a pod, the second of which everybody can see already. Never waits.
    pub(crate) fn changed(&self, before: Option<&PodView>, after: &Arc<PodView>) {
        self.tell(after, || changes(before, after));
    }

    /// Tells that a pod is gone, of which this is the last picture.
    pub(crate) fn deleted(&self, last: &Arc<PodView>) {
        self.tell(last, || vec![(EventKind::Deleted, last.id.to_string())]);
    }

    /// Ends all subscriptions, after what waits in them, and those that are still to come.
    pub fn close(&self) {
        let mut hub = self.hub();
        hub.closed = true;
        for queue in hub.queues.drain(..).filter_map(|queue| queue.upgrade()) {
            queue.lock().closed = true;
            queue.changed.notify_one();
        }
    }

    fn tell(&self, pod: &Arc<PodView>, changes: impl FnOnce() -> Vec<(EventKind, String)>) {
        let mut hub = self.hub();
        if hub.queues.is_empty() {
            return;
        }
        // After the picture was published: who reads it and then the clock must not look newer than the event.
        let at_ns = now_ns();
        let changes = changes();
        hub.queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else {
                return false;
            };
            for (kind, id) in &changes {
                queue.push(Event {
                    kind: *kind,
                    id: id.clone(),
                    at_ns,
                    pod: pod.clone(),
                });
            }
            true
        });
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&self, event: Event) {
        let mut waiting = self.lock();
        if !waiting.overflowed && waiting.events.len() >= CAPACITY {
            waiting.overflowed = true;
            waiting
                .events
                .retain(|event| event.kind == EventKind::Deleted);
        }
        if waiting.overflowed {
            if event.kind != EventKind::Deleted {
                return;
            }
            if waiting.events.len() >= DELETIONS {
                waiting.events.pop_front();
            }
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event; `None` when the daemon stops. `views` gives the pods as they are, for when events were missed.
    ///
    /// # Cancel safety
    /// Safe: an event is taken only when it is returned.
    pub async fn next(&mut self, views: impl Fn() -> Vec<Arc<PodView>>) -> Option<Event> {
        loop {
            match self.take(&views) {
                Taken::Event(event) => return Some(event),
                Taken::End => return None,
                // What comes after the look has left a permit.
                Taken::Nothing => self.queue.changed.notified().await,
            }
        }
    }

    fn take(&mut self, views: impl Fn() -> Vec<Arc<PodView>>) -> Taken {
        loop {
            if let Some(event) = self.resync.pop_front() {
                return Taken::Event(event);
            }
            let mut waiting = self.queue.lock();
            if waiting.overflowed {
                waiting.overflowed = false;
                self.resync = std::mem::take(&mut waiting.events);
                drop(waiting);
                // After the flag was cleared: what is not in these pictures will be in the queue.
                self.tell_present(&views());
                continue;
            }
            match waiting.events.pop_front() {
                Some(event) => {
                    drop(waiting);
                    if !self.was_told(&event) {
                        return Taken::Event(event);
                    }
                }
                None if waiting.closed => return Taken::End,
                None => return Taken::Nothing,
            }
        }
    }

    fn tell_present(&mut self, views: &[Arc<PodView>]) {
        self.told = views
            .iter()
            .map(|view| (view.id.clone(), view.revision))
            .collect();
        let at_ns = now_ns();
        for view in views {
            let mut tell = |kind, id: &str| {
                self.resync.push_back(Event {
                    kind,
                    id: id.to_owned(),
                    at_ns,
                    pod: view.clone(),
                });
            };
            let state = match view.state {
                PodState::Ready => EventKind::Started,
                PodState::NotReady => EventKind::Stopped,
            };
            tell(state, view.id.as_str());
            for container in view.containers.values() {
                tell(reached(&container.state), container.id.as_str());
            }
        }
    }

    /// Whether a resync told what this event led to. A deletion is told in any case: absence tells nothing.
    fn was_told(&self, event: &Event) -> bool {
        event.kind != EventKind::Deleted
            && self
                .told
                .get(&event.pod.id)
                .is_some_and(|told| event.pod.revision <= *told)
    }
}

/// The event that leads to a state.
fn reached(state: &ContainerState) -> EventKind {
    match state {
        ContainerState::Created => EventKind::Created,
        ContainerState::Running { .. } => EventKind::Started,
        ContainerState::Exited(_) => EventKind::Stopped,
    }
}

/// What happened between two pictures, in an order in which it may have happened.
fn changes(before: Option<&PodView>, after: &PodView) -> Vec<(EventKind, String)> {
    let mut changes = Vec::new();
    let pod_state = |view: &PodView| view.state;
    if before.is_none() {
        changes.push((EventKind::Created, after.id.to_string()));
        if after.state == PodState::Ready {
            changes.push((EventKind::Started, after.id.to_string()));
        }
    }
    for (id, container) in &after.containers {
        let was = before.and_then(|before| before.containers.get(id));
        let steps = steps(was.map(|was| &was.state), container);
        changes.extend(steps.into_iter().map(|kind| (kind, id.to_string())));
    }
    for (id, gone) in before.iter().flat_map(|before| &before.containers) {
        if !after.containers.contains_key(id) {
            if let ContainerState::Running { .. } = gone.state {
                changes.push((EventKind::Stopped, id.to_string()));
            }
            changes.push((EventKind::Deleted, id.to_string()));
        }
    }
    let was_ready = before.map(pod_state) != Some(PodState::NotReady);
    if was_ready && after.state == PodState::NotReady {
        changes.push((EventKind::Stopped, after.id.to_string()));
    }
    changes
}

fn steps(was: Option<&ContainerState>, now: &ContainerView) -> Vec<EventKind> {
    use ContainerState::{Created, Exited, Running};
    let mut steps = Vec::new();
    if was.is_none() {
        steps.push(EventKind::Created);
    }
    match (was, &now.state) {
        (None | Some(Created), Running { .. }) => steps.push(EventKind::Started),
        (None | Some(Created | Running { .. }), Exited(_)) => steps.push(EventKind::Stopped),
        _ => {}
    }
    steps
}

#[cfg(test)]
mod tests;
