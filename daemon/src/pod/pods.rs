//! All pods of the node, by id and by what makes them the same request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::config::PodConfig;
use super::create::{self, Failed};
use super::handle::PodHandle;
use super::view::{PodKey, PodState, PodView};
use crate::container::config::ContainerConfig;
use crate::container::{ContainerState, ContainerView};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::node::Node;
use crate::runtime::ShimError;

/// SIGKILL.
const KILL: u32 = 9;
/// How long the end of a killed container may take before a stop gives up. A process in uninterruptible sleep does
/// not end sooner for being waited for.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// A stop signal by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal(pub u32);

/// The way in to every pod.
pub struct Pods {
    node: Arc<Node>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    pods: BTreeMap<PodId, PodHandle>,
    keys: HashMap<PodKey, Slot>,
}

/// Where a request stands that others may repeat.
#[derive(Clone)]
enum Slot {
    Creating(watch::Receiver<Option<Outcome>>),
    Made(PodId),
}

type Outcome = Result<PodId, Arc<Error>>;

impl Pods {
    /// With the pods that recovery found.
    pub(crate) fn new(
        node: Arc<Node>,
        recovered: impl IntoIterator<Item = PodHandle>,
    ) -> Arc<Self> {
        let mut index = Index::default();
        for handle in recovered {
            let view = handle.view();
            // Of a failed pod that is still to be removed and the one made in its place, the latter is meant.
            let key = PodKey::of(&view.config);
            if view.state == PodState::Ready || !index.keys.contains_key(&key) {
                index.keys.insert(key, Slot::Made(view.id.clone()));
            }
            index.pods.insert(view.id.clone(), handle);
        }
        Arc::new(Self {
            node,
            index: Mutex::new(index),
        })
    }

    /// What all pods share.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// All pods as they are now, in the order of their ids.
    pub fn views(&self) -> Vec<Arc<PodView>> {
        self.index().pods.values().map(PodHandle::view).collect()
    }

    /// The pod with that id, or with the only id that begins so.
    pub fn find(&self, id: &str) -> Option<PodHandle> {
        self.lookup(id).ok().flatten()
    }

    /// As [`find`](Self::find), for requests that must not take several pods for none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when several ids begin so.
    pub fn lookup(&self, id: &str) -> Result<Option<PodHandle>> {
        let index = self.index();
        if let Some(pod) = index.pods.get(id) {
            return Ok(Some(pod.clone()));
        }
        let found = index
            .pods
            .iter()
            .filter(|(whole, _)| starts(whole.as_str(), id));
        only("pod_sandbox_id", id, found.map(|(_, pod)| pod.clone()))
    }

    /// The pod and the container with that id, or with the only id that begins so.
    pub fn find_container(&self, id: &str) -> Option<(PodHandle, Arc<ContainerView>)> {
        self.lookup_container(id).ok().flatten()
    }

    /// As [`find_container`](Self::find_container), for requests that must not take several containers for none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when several ids begin so.
    pub fn lookup_container(&self, id: &str) -> Result<Option<(PodHandle, Arc<ContainerView>)>> {
        let mut found = Vec::new();
        for pod in self.index().pods.values() {
            let view = pod.view();
            if let Some(container) = view.containers.get(id) {
                return Ok(Some((pod.clone(), container.clone())));
            }
            let matching = view
                .containers
                .values()
                .filter(|container| starts(container.id.as_str(), id));
            found.extend(matching.map(|container| (pod.clone(), container.clone())));
        }
        only("container_id", id, found.into_iter())
    }

    /// The container with that id.
    ///
    /// # Errors
    /// There is none, or several ids begin so.
    pub fn container(&self, id: &str) -> Result<(PodHandle, Arc<ContainerView>)> {
        self.lookup_container(id)?
            .ok_or_else(|| Error::no_container(id))
    }

    /// Makes a pod. A request with the same name, namespace, uid and attempt as one in flight or done joins it: it
    /// gets the same id, or the same error.
    ///
    /// The work goes on when the caller gives up.
    ///
    /// # Errors
    /// Why the pod could not be made; nothing is left of it then.
    pub async fn run(
        self: &Arc<Self>,
        config: PodConfig,
        wire: Vec<u8>,
        handler: String,
    ) -> Result<PodId> {
        let key = PodKey::of(&config);
        let mut outcome = match self.enter(&key) {
            Entry::Made(handle) if handle.view().state == PodState::Ready => {
                return Ok(handle.view().id.clone());
            }
            Entry::Made(handle) => {
                let id = handle.view().id.to_string();
                return Err(Error::State {
                    what: "pod sandbox",
                    id,
                    state: "stopped",
                    action: "run it again",
                });
            }
            Entry::Creating(outcome) => outcome,
            Entry::New(sender) => {
                let outcome = sender.subscribe();
                let pods = self.clone();
                tokio::spawn(async move {
                    let made =
                        create::create(pods.node.clone(), PodId::random(), config, wire, handler)
                            .await;
                    sender.send_replace(Some(pods.leave(key, made)));
                });
                outcome
            }
        };
        let done = outcome.wait_for(Option::is_some).await;
        match done.as_deref() {
            Ok(Some(Ok(id))) => Ok(id.clone()),
            Ok(Some(Err(error))) => Err(Error::Shared(error.clone())),
            // The maker ended without a word: it panicked, and recovery clears up.
            _ => Err(Error::Gone {
                id: "being made".into(),
            }),
        }
    }

    /// Stops a pod; one that is not there is stopped.
    ///
    /// # Errors
    /// See [`PodHandle::stop`].
    pub async fn stop(&self, id: &str) -> Result<()> {
        match self.lookup(id)? {
            Some(pod) => forgive_gone(pod.stop().await),
            None => self.no_such_pod(id),
        }
    }

    /// Removes a pod with all that is in it; one that is not there is removed.
    ///
    /// # Errors
    /// See [`PodHandle::remove`].
    pub async fn remove(&self, id: &str) -> Result<()> {
        let Some(pod) = self.lookup(id)? else {
            return self.no_such_pod(id);
        };
        forgive_gone(pod.remove().await)?;
        let view = pod.view();
        let mut index = self.index();
        index.pods.remove(&view.id);
        index
            .keys
            .retain(|_, slot| !matches!(slot, Slot::Made(id) if *id == view.id));
        Ok(())
    }

    /// Makes a container in a pod. A repeated request finds the container.
    ///
    /// # Errors
    /// See [`PodHandle::create_container`].
    pub async fn create_container(
        &self,
        pod: &str,
        config: ContainerConfig,
        wire: Vec<u8>,
    ) -> Result<ContainerId> {
        let pod = self.lookup(pod)?.ok_or_else(|| Error::no_pod(pod))?;
        pod.create_container(config, wire).await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// See [`PodHandle::start_container`].
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let (pod, container) = self.container(id)?;
        pod.start_container(container.id.clone()).await
    }

    /// Ends a container: its stop signal, then SIGKILL when `grace` is over. One that is not there, or does not run,
    /// is stopped. Answers as soon as the shim says that it ended.
    ///
    /// # Errors
    /// It cannot be signalled, or does not end even when killed.
    pub async fn stop_container(
        &self,
        id: &str,
        grace: Duration,
        signal: StopSignal,
    ) -> Result<()> {
        let Some((pod, container)) = self.lookup_container(id)? else {
            return self.no_such_container(id);
        };
        let id = &container.id;
        let running = match container.state {
            ContainerState::Running { .. } => true,
            // It may be about to run: a start that was asked for before is done first.
            ContainerState::Created => {
                forgive_gone(pod.settled().await)?;
                pod.view()
                    .containers
                    .get(id)
                    .is_some_and(|now| now.state.pid().is_some())
            }
            ContainerState::Exited(_) => false,
        };
        if !running {
            return Ok(());
        }
        let failed = |source| Error::Runtime {
            action: "stop",
            id: id.to_string(),
            source: Box::new(source),
        };
        let shim = pod.shim("stop a container")?;
        if !grace.is_zero() {
            ignore_gone(shim.kill(id.as_str(), "", signal.0, false).await).map_err(failed)?;
            if tokio::time::timeout(grace, pod.ended(id)).await.is_ok() {
                return Ok(());
            }
        }
        ignore_gone(shim.kill(id.as_str(), "", KILL, true).await).map_err(failed)?;
        tokio::time::timeout(KILL_PATIENCE, pod.ended(id))
            .await
            .map_err(|_| Error::State {
                what: "container",
                id: id.to_string(),
                state: "killed but has not ended",
                action: "stop",
            })
    }

    /// Removes a container, ending it first if it runs; one that is not there is removed.
    ///
    /// # Errors
    /// See [`PodHandle::remove_container`].
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let Some((pod, container)) = self.lookup_container(id)? else {
            return self.no_such_container(id);
        };
        forgive_gone(pod.remove_container(container.id.clone()).await)
    }

    /// Nothing is to be done to what is not there, unless the id is the beginning of several.
    fn no_such_pod(&self, id: &str) -> Result<()> {
        let index = self.index();
        let named = index.pods.keys().filter(|pod| starts(pod.as_str(), id));
        only_one("pod_sandbox_id", id, named.count())
    }

    /// As [`Pods::no_such_pod`].
    fn no_such_container(&self, id: &str) -> Result<()> {
        let views = self.views();
        let all = views.iter().flat_map(|view| view.containers.keys());
        let named = all.filter(|container| starts(container.as_str(), id));
        only_one("container_id", id, named.count())
    }

    fn enter(&self, key: &PodKey) -> Entry {
        let mut index = self.index();
        match index.keys.get(key) {
            // Without a sender and without an outcome its maker panicked.
            Some(Slot::Creating(outcome))
                if outcome.has_changed().is_ok() || outcome.borrow().is_some() =>
            {
                return Entry::Creating(outcome.clone());
            }
            Some(Slot::Creating(_)) => {}
            Some(Slot::Made(id)) => {
                if let Some(handle) = index.pods.get(id) {
                    return Entry::Made(handle.clone());
                }
            }
            None => {}
        }
        let (sender, receiver) = watch::channel(None);
        index.keys.insert(key.clone(), Slot::Creating(receiver));
        Entry::New(sender)
    }

    fn leave(&self, key: PodKey, made: Result<PodHandle, Failed>) -> Outcome {
        let mut index = self.index();
        match made {
            Ok(handle) => {
                let id = handle.view().id.clone();
                index.keys.insert(key, Slot::Made(id.clone()));
                self.node.events.changed(None, &handle.view());
                index.pods.insert(id.clone(), handle);
                Ok(id)
            }
            Err(Failed { error, remains }) => {
                index.keys.remove(&key);
                // What is left of it is listed as not ready, for a removal to try again.
                if let Some(handle) = remains {
                    self.node.events.changed(None, &handle.view());
                    index.pods.insert(handle.view().id.clone(), handle);
                }
                Err(Arc::new(error))
            }
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing between lock and unlock can leave the index half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entry {
    New(watch::Sender<Option<Outcome>>),
    Creating(watch::Receiver<Option<Outcome>>),
    Made(PodHandle),
}

/// Refuses an id that several begin with: to take it for none would say that they are gone.
fn only_one(field: &'static str, id: &str, named: usize) -> Result<()> {
    if named < 2 {
        return Ok(());
    }
    Err(Error::Invalid {
        field,
        value: id.into(),
        reason: format!("begins the ids of {named}"),
    })
}

/// A truncated id names what it begins, if it is not empty.
fn starts(whole: &str, prefix: &str) -> bool {
    !prefix.is_empty() && whole.starts_with(prefix)
}

/// The only one of those whose id begins with `id`.
fn only<T>(field: &'static str, id: &str, mut found: impl Iterator<Item = T>) -> Result<Option<T>> {
    let first = found.next();
    match found.count() {
        0 => Ok(first),
        more => Err(Error::Invalid {
            field,
            value: id.to_owned(),
            reason: format!("is the beginning of {} ids", more + 1),
        }),
    }
}

/// What is gone is stopped and removed.
fn forgive_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Gone { .. }) => Ok(()),
        other => other,
    }
}

fn ignore_gone(result: Result<(), ShimError>) -> Result<(), ShimError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
