//! The task that owns a pod and its containers.
//!
//! Everything that changes the pod passes through its inbox, one request after the other; whoever only looks reads
//! the view. What takes long without changing the pod (the grace period of a stop, a command in a container) is not
//! done here.

mod containers;
mod limits;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::config::PodConfig;
use super::files::PodFiles;
use super::handle::{PodHandle, Reply, Request};
use super::teardown;
use super::view::{PodState, PodView};
use crate::container::{ContainerState, ContainerView};
use crate::error::{Chain, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::node::Node;
use crate::runtime::Shim;
use crate::state::{ContainerRecord, PodPhase, PodRecord};
use crate::stats::Readings;

/// Requests that may wait for a pod. The kubelet has a handful in flight; more is a client gone wrong, which then
/// waits in its own call.
const INBOX: usize = 64;
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
    pub(crate) shim: Option<Shim>,
    pub(crate) containers: BTreeMap<ContainerId, Owned>,
}

/// Starts the task of a pod.
pub(crate) fn spawn(node: Arc<Node>, parts: PodParts) -> PodHandle {
    let (inbox, requests) = mpsc::channel(INBOX);
    let actor_shim = parts.shim.clone();
    let readings = Arc::default();
    let (publish, view) = watch::channel(Arc::new(picture(&node, &parts, 0, &readings)));
    let id = parts.id.clone();
    let actor = Actor {
        node,
        parts,
        inbox: inbox.downgrade(),
        publish,
        revision: 0,
        readings,
    };
    for owned in actor.parts.containers.values() {
        if let ContainerState::Running { .. } = owned.view.state {
            actor.watch_container(&owned.view.id);
        }
    }
    if actor.parts.shim.is_some() {
        actor.watch_shim();
    }
    tokio::spawn(actor.run(requests));
    PodHandle {
        id,
        inbox,
        view,
        shim: actor_shim,
    }
}

fn picture(node: &Node, parts: &PodParts, revision: u64, readings: &Arc<Readings>) -> PodView {
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
        bundle: node.pod_bundle(parts.id.as_str()),
        containers: parts
            .containers
            .iter()
            .map(|(id, owned)| (id.clone(), owned.view.clone()))
            .collect(),
        revision,
        readings: readings.clone(),
    }
}

struct Actor {
    node: Arc<Node>,
    parts: PodParts,
    /// Weak, so that the task ends when nobody can ask it any more.
    inbox: mpsc::WeakSender<Request>,
    publish: watch::Sender<Arc<PodView>>,
    /// Number of the picture that was published last.
    revision: u64,
    readings: Arc<Readings>,
}

impl Actor {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Stop(reply) => {
                    let result = self.stop().await;
                    self.settle(reply, result);
                }
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
                } => {
                    let result = self.create_container(*config, wire).await;
                    self.settle(reply, result);
                }
                Request::StartContainer { id, reply } => {
                    let result = self.start_container(&id).await;
                    self.settle(reply, result);
                }
                Request::RemoveContainer { id, reply } => {
                    let result = self.remove_container(&id).await;
                    self.settle(reply, result);
                }
                Request::UpdateContainer {
                    id,
                    resources,
                    reply,
                } => {
                    let result = self.update_container(&id, &resources).await;
                    self.settle(reply, result);
                }
                Request::UpdatePod {
                    overhead,
                    resources,
                    reply,
                } => {
                    let result = self
                        .update_pod(overhead.map(|given| *given), resources.map(|given| *given));
                    self.settle(reply, result);
                }
                Request::Settled(reply) => self.settle(reply, Ok(())),
                Request::ShimGone => {
                    self.shim_gone().await;
                    self.publish();
                }
                Request::Ended { id, exit } => {
                    self.ended(&id, exit).await;
                    self.publish();
                }
            }
        }
    }

    /// Lets everybody see the pod as it is now, and tells what changed.
    fn publish(&mut self) {
        self.revision += 1;
        let after = picture(&self.node, &self.parts, self.revision, &self.readings);
        let after = Arc::new(after);
        let before = self.publish.send_replace(after.clone());
        self.node.events.changed(Some(&before), &after);
    }

    /// Answers a request, after everybody can see its effect.
    fn settle<T>(&mut self, reply: Reply<T>, result: Result<T>) {
        self.publish();
        // If nobody waits any more, the client gave up: the work is done all the same.
        drop(reply.send(result));
    }

    fn files(&self) -> PodFiles {
        PodFiles::new(self.node.pod_bundle(self.parts.id.as_str()))
    }

    fn put_pod(&mut self, phase: PodPhase) -> Result<()> {
        self.parts.record.phase = phase;
        self.node
            .records
            .put_pod(&self.parts.record)
            .map_err(|e| Error::node("record a pod", e))
    }

    /// Records a step on the way down. A full disk does not stop it: it is how space is made, and every such step
    /// can be taken again from the record before.
    fn put_pod_down(&mut self, phase: PodPhase) -> Result<()> {
        going_down(self.put_pod(phase))
    }

    async fn stop(&mut self) -> Result<()> {
        if self.parts.record.phase == PodPhase::Ready {
            self.put_pod_down(PodPhase::Stopped)?;
        }
        let running: Vec<ContainerId> = self
            .parts
            .containers
            .values()
            .filter(|owned| matches!(owned.view.state, ContainerState::Running { .. }))
            .map(|owned| owned.view.id.clone())
            .collect();
        for id in running {
            self.end_container(&id).await?;
        }
        // What was never started will not be: volumes must be free when their pod has stopped.
        for owned in self.parts.containers.values() {
            containers::release_mounts(&owned.view);
        }
        self.detach_network().await?;
        teardown::stop_namespaces(&self.files(), &self.parts.record).await
    }

    /// Deletes the network attachment. The record says that it may exist until it surely does not.
    async fn detach_network(&mut self) -> Result<()> {
        if self.parts.record.network_attached {
            self.node.network.detach(self.parts.id.as_str()).await?;
            self.parts.record.network_attached = false;
            self.put_pod_down(self.parts.record.phase)?;
        }
        Ok(())
    }

    async fn remove(&mut self) -> Result<()> {
        self.stop().await?;
        // That it stopped is to be told before that it is gone.
        self.publish();
        self.put_pod_down(PodPhase::Removing)?;
        let ids: Vec<ContainerId> = self.parts.containers.keys().cloned().collect();
        for id in ids {
            self.remove_container(&id).await?;
        }
        let shim = match self.parts.shim.take() {
            // One that was given up for dead may answer after all.
            None => Shim::connect(&self.files().bundle).await.ok(),
            known => known,
        };
        if let Some(shim) = shim {
            shim.shutdown().await;
        }
        teardown::remove_pod(&self.node, &self.parts.id, &self.parts.record).await
    }
}

/// Lets a record fail for want of space only, see [`Actor::put_pod_down`].
fn going_down(recorded: Result<()>) -> Result<()> {
    match recorded {
        Err(error) if error.is_out_of_space() => {
            tracing::warn!(error = %Chain(&error), "going on without the record");
            Ok(())
        }
        other => other,
    }
}
