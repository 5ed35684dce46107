//! The task that owns a pod and its containers.
//!
//! Everything that changes the pod passes through its inbox, one request after the other; whoever only looks reads
//! the view. What takes long without changing the pod (the grace period of a stop, a command in a container) is not
//! done here.
//!
//! Ends of containers do not wait in that row: a start or a detachment may take its time, and the end of another
//! container is to be seen at once. So the task does two things in turn, [`Actor::serve`] and [`Actor::take_note`],
//! and what both touch is behind a lock that is held over no await.

mod containers;
mod limits;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use super::config::PodConfig;
use super::files::PodFiles;
use super::handle::{PodHandle, Reply, Request};
use super::teardown;
use super::view::{PodState, PodView};
use crate::confinement::PodLabel;
use crate::container::{ContainerState, ContainerView};
use crate::error::{Chain, Result};
use crate::id::{ContainerId, PodId};
use crate::node::Node;
use crate::runtime::{Exit, Handler, Shim, ShimError};
use crate::state::{ContainerRecord, PodPhase, PodRecord};
use crate::stats::Readings;

/// Requests that may wait for a pod. The kubelet has a handful in flight; more is a client gone wrong, which then
/// waits in its own call.
const INBOX: usize = 64;
/// Ends that may wait to be noted. Whoever tells one waits, and has nothing else to do.
const ENDS: usize = 16;

/// A container as its pod's task holds it.
pub(crate) struct Owned {
    pub(crate) record: ContainerRecord,
    pub(crate) view: Arc<ContainerView>,
}

/// All that a pod's task starts with.
pub(crate) struct PodParts {
    pub(crate) id: PodId,
    pub(crate) config: Arc<PodConfig>,
    pub(crate) record: PodRecord,
    pub(crate) label: Option<Arc<PodLabel>>,
    pub(crate) shim: Option<Shim>,
    pub(crate) containers: BTreeMap<ContainerId, Owned>,
}

/// Starts the task of a pod.
pub(crate) fn spawn(node: Arc<Node>, parts: PodParts) -> PodHandle {
    let (inbox, requests) = mpsc::channel(INBOX);
    let (ends, noted) = mpsc::channel(ENDS);
    let shim = parts.shim.clone();
    let (tell, stopping) = watch::channel(false);
    let shared = Shared {
        readings: Arc::default(),
        stopping,
    };
    let (publish, view) = watch::channel(Arc::new(picture(&node, &parts, 0, &shared)));
    let id = parts.id.clone();
    let running: Vec<ContainerId> = parts
        .containers
        .values()
        .filter(|owned| matches!(owned.view.state, ContainerState::Running { .. }))
        .map(|owned| owned.view.id.clone())
        .collect();
    let actor = Actor {
        node,
        id: id.clone(),
        ends,
        publish,
        shared,
        held: Mutex::new(Held { parts, revision: 0 }),
        ending: tokio::sync::Mutex::default(),
        disk: tokio::sync::Mutex::default(),
    };
    for id in &running {
        actor.watch_container(id);
    }
    if shim.is_some() {
        actor.watch_shim();
    }
    tokio::spawn(actor.run(requests, noted));
    PodHandle {
        id,
        inbox,
        view,
        shim,
        stopping: Arc::new(tell),
    }
}

/// What all pictures of a pod have in common.
struct Shared {
    readings: Arc<Readings>,
    stopping: watch::Receiver<bool>,
}

fn picture(node: &Node, parts: &PodParts, revision: u64, shared: &Shared) -> PodView {
    let ready = parts.record.phase == PodPhase::Ready && parts.shim.is_some();
    PodView {
        id: parts.id.clone(),
        config: parts.config.clone(),
        handler: parts.record.handler.clone(),
        created_at_ns: parts.record.created_at_ns,
        state: if ready {
            PodState::Ready
        } else {
            PodState::NotReady
        },
        // Once given back, they are another pod's.
        addresses: if parts.record.network_attached {
            parts.record.addresses.clone()
        } else {
            Vec::new()
        },
        init_pid: parts.record.init_pid,
        stack_cgroup: parts.record.stack_cgroup.clone(),
        label: parts.label.clone(),
        bundle: node.pod_bundle(parts.id.as_str()),
        containers: parts
            .containers
            .iter()
            .map(|(id, owned)| (id.clone(), owned.view.clone()))
            .collect(),
        revision,
        stopping: shared.stopping.clone(),
        readings: shared.readings.clone(),
    }
}

/// Something that ended by itself.
enum End {
    Container {
        id: ContainerId,
        exit: Result<Exit, ShimError>,
    },
    Shim,
}

/// What changes of a pod.
struct Held {
    parts: PodParts,
    /// Number of the picture that was published last.
    revision: u64,
}

struct Actor {
    node: Arc<Node>,
    id: PodId,
    /// Given to those who wait for an end.
    ends: mpsc::Sender<End>,
    publish: watch::Sender<Arc<PodView>>,
    shared: Shared,
    held: Mutex<Held>,
    /// An end is noted once, whoever sees it first.
    ending: tokio::sync::Mutex<()>,
    /// Records are written one after the other: each has all that those before it have.
    disk: tokio::sync::Mutex<()>,
}

impl Actor {
    async fn run(self, requests: mpsc::Receiver<Request>, ends: mpsc::Receiver<End>) {
        tokio::select! {
            () = self.serve(requests) => {}
            () = self.take_note(ends) => {}
        }
    }

    /// Does what is asked, until the pod is removed or nobody can ask any more.
    async fn serve(&self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Stop(reply) => self.settle(reply, self.stop().await),
                Request::Remove(reply) => {
                    let result = self.remove().await;
                    let removed = result.is_ok();
                    if removed {
                        self.publish();
                        self.node.events.deleted(&self.publish.borrow());
                    }
                    self.settle(reply, result);
                    if removed {
                        return;
                    }
                }
                Request::CreateContainer {
                    config,
                    wire,
                    reply,
                } => self.settle(reply, self.create_container(*config, wire).await),
                Request::StartContainer { id, reply } => {
                    self.settle(reply, self.start_container(&id).await);
                }
                Request::RemoveContainer { id, reply } => {
                    self.settle(reply, self.remove_container(&id).await);
                }
                Request::UpdateContainer {
                    id,
                    resources,
                    reply,
                } => self.settle(reply, self.update_container(&id, &resources).await),
                Request::UpdatePod {
                    overhead,
                    resources,
                    reply,
                } => {
                    let (overhead, resources) = (overhead.map(|o| *o), resources.map(|r| *r));
                    self.settle(reply, self.update_pod(overhead, resources).await);
                }
                Request::Settled(reply) => self.settle(reply, Ok(())),
            }
        }
    }

    /// Notes what ends by itself, also while a request is being done.
    async fn take_note(&self, mut ends: mpsc::Receiver<End>) {
        while let Some(end) = ends.recv().await {
            match end {
                End::Shim => self.shim_gone().await,
                End::Container { id, exit } => self.ended(&id, exit).await,
            }
            self.publish();
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing between lock and unlock can leave it half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shim(&self) -> Option<Shim> {
        self.held().parts.shim.clone()
    }

    /// A container as it is now.
    fn container(&self, id: &ContainerId) -> Option<Arc<ContainerView>> {
        let held = self.held();
        held.parts
            .containers
            .get(id)
            .map(|owned| owned.view.clone())
    }

    /// All containers of the pod.
    fn containers(&self) -> Vec<Arc<ContainerView>> {
        let held = self.held();
        let all = held.parts.containers.values();
        all.map(|owned| owned.view.clone()).collect()
    }

    /// The handler that the pod was made with, if it is still configured.
    fn handler(&self) -> Option<Handler> {
        let name = self.held().parts.record.handler.clone();
        self.node.handlers.get(&name).ok().cloned()
    }

    /// Lets everybody see the pod as it is now, and tells what changed.
    fn publish(&self) {
        let mut held = self.held();
        held.revision += 1;
        let after = picture(&self.node, &held.parts, held.revision, &self.shared);
        let after = Arc::new(after);
        let before = self.publish.send_replace(after.clone());
        self.node.events.changed(Some(&before), &after);
    }

    /// Answers a request, after everybody can see its effect.
    fn settle<T>(&self, reply: Reply<T>, result: Result<T>) {
        self.publish();
        // If nobody waits any more, the client gave up: the work is done all the same.
        drop(reply.send(result));
    }

    fn files(&self) -> PodFiles {
        PodFiles::new(self.node.pod_bundle(self.id.as_str()))
    }

    /// Changes the pod's record, on disk and then in memory; after a failure it is as before.
    async fn record(&self, change: impl FnOnce(&mut PodRecord)) -> Result<()> {
        let _turn = self.disk.lock().await;
        let mut record = self.held().parts.record.clone();
        change(&mut record);
        self.node.record_pod(record.clone()).await?;
        self.held().parts.record = record;
        Ok(())
    }

    /// Records a step on the way down. A full disk does not stop it: it is how space is made, and every such step
    /// can be taken again from the record before.
    async fn record_down(&self, change: impl Fn(&mut PodRecord)) -> Result<()> {
        let recorded = self.record(&change).await;
        if recorded.is_err() {
            change(&mut self.held().parts.record);
        }
        going_down(recorded)
    }

    async fn stop(&self) -> Result<()> {
        if self.held().parts.record.phase == PodPhase::Ready {
            self.record_down(|record| record.phase = PodPhase::Stopped)
                .await?;
        }
        for container in self.containers() {
            if let ContainerState::Running { .. } = container.state {
                self.end_container(&container.id).await?;
            }
        }
        // What was never started will not be: volumes must be free when their pod has stopped.
        for container in self.containers() {
            containers::release_mounts(&container).await;
        }
        self.detach_network().await?;
        let record = self.held().parts.record.clone();
        teardown::stop_namespaces(&self.files(), &record).await
    }

    /// Deletes the network attachment. The record says that it may exist until it surely does not.
    async fn detach_network(&self) -> Result<()> {
        let attached = self.held().parts.record.network_attached;
        if attached {
            self.node.network.detach(self.id.as_str()).await?;
            self.record_down(|record| record.network_attached = false)
                .await?;
        }
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        self.stop().await?;
        // That it stopped is to be told before that it is gone.
        self.publish();
        self.record_down(|record| record.phase = PodPhase::Removing)
            .await?;
        for container in self.containers() {
            self.remove_container(&container.id).await?;
        }
        let known = self.held().parts.shim.take();
        let shim = match known {
            // One that was given up for dead may answer after all.
            None => Shim::connect(&self.files().bundle).await.ok(),
            known => known,
        };
        if let Some(shim) = shim {
            shim.shutdown().await;
        }
        let record = self.held().parts.record.clone();
        teardown::remove_pod(&self.node, &self.id, &record).await
    }
}

/// Lets a record fail for want of space only, see [`Actor::record_down`].
fn going_down(recorded: Result<()>) -> Result<()> {
    match recorded {
        Err(error) if error.is_out_of_space() => {
            tracing::warn!(error = %Chain(&error), "going on without the record");
            Ok(())
        }
        other => other,
    }
}
