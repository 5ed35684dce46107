//! The task that owns a pod and its containers.
//!
//! Everything that changes the pod passes through its inbox, one request after the other; whoever only looks reads
//! the view. What takes long without changing the pod (the grace period of a stop, a command in a container) is not
//! done here.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::config::PodConfig;
use super::files::PodFiles;
use super::teardown;
use super::view::{PodState, PodView};
use crate::container::config::{ContainerConfig, Resources};
use crate::container::{self, ContainerState, ContainerView, Exited};
use crate::error::{Chain, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::node::Node;
use crate::runtime::{CreateRequest, Exit, Shim, ShimError, exit_file};
use crate::state::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};

/// Requests that may wait for a pod. The kubelet has a handful in flight; more is a client gone wrong, which then
/// waits in its own call.
const INBOX: usize = 64;
/// SIGKILL.
const KILL: u32 = 9;

type Reply<T> = oneshot::Sender<Result<T>>;

/// What a pod can be asked.
enum Request {
    Stop(Reply<()>),
    Remove(Reply<()>),
    CreateContainer {
        config: Box<ContainerConfig>,
        wire: Vec<u8>,
        reply: Reply<ContainerId>,
    },
    StartContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    RemoveContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    UpdateContainer {
        id: ContainerId,
        resources: Box<Resources>,
        reply: Reply<()>,
    },
    Ended {
        id: ContainerId,
        exit: Result<Exit, ShimError>,
    },
    ShimGone,
}

/// The way to a pod's task. Clones lead to the same.
#[derive(Clone)]
pub struct PodHandle {
    id: PodId,
    inbox: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<PodView>>,
    shim: Option<Shim>,
}

impl PodHandle {
    /// The pod as it is now.
    pub fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }

    /// The pod's shim, if it has one that lives.
    ///
    /// # Errors
    /// [`Error::State`] for a pod whose shim is gone.
    pub fn shim(&self, action: &'static str) -> Result<&Shim> {
        let state = "without a shim";
        self.shim.as_ref().ok_or_else(|| Error::State {
            what: "pod sandbox",
            id: self.id.to_string(),
            state,
            action,
        })
    }

    /// Waits until a container does not run any more (or is gone).
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn ended(&self, id: &ContainerId) {
        let ended = |view: &Arc<PodView>| {
            !matches!(
                view.containers.get(id).map(|c| &c.state),
                Some(ContainerState::Running { .. })
            )
        };
        // An error means that the pod is gone, and the container with it.
        drop(self.view.clone().wait_for(ended).await.map(|_| ()));
    }

    /// Stops the pod: ends its containers, takes its network away.
    ///
    /// # Errors
    /// The network could not be taken away; asking again tries again.
    pub async fn stop(&self) -> Result<()> {
        self.ask(Request::Stop).await
    }

    /// Stops the pod, and removes it with all that is in it.
    ///
    /// # Errors
    /// Something is left; asking again goes on.
    pub async fn remove(&self) -> Result<()> {
        self.ask(Request::Remove).await
    }

    /// Makes a container, or finds the one that an equal request made.
    ///
    /// # Errors
    /// The image is missing, the request asks for what cannot be, or the node refused; nothing is left then.
    pub async fn create_container(
        &self,
        config: ContainerConfig,
        wire: Vec<u8>,
    ) -> Result<ContainerId> {
        let config = Box::new(config);
        self.ask(|reply| Request::CreateContainer {
            config,
            wire,
            reply,
        })
        .await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The OCI runtime's words; the container is then exited with code 128.
    pub async fn start_container(&self, id: ContainerId) -> Result<()> {
        self.ask(|reply| Request::StartContainer { id, reply })
            .await
    }

    /// Removes a container, ending it first if it runs.
    ///
    /// # Errors
    /// Something is left; asking again goes on.
    pub async fn remove_container(&self, id: ContainerId) -> Result<()> {
        self.ask(|reply| Request::RemoveContainer { id, reply })
            .await
    }

    /// Changes the limits of a container.
    ///
    /// # Errors
    /// The OCI runtime's words; the limits are then as before.
    pub async fn update_container(&self, id: ContainerId, resources: Resources) -> Result<()> {
        let resources = Box::new(resources);
        self.ask(|reply| Request::UpdateContainer {
            id,
            resources,
            reply,
        })
        .await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Gone {
            id: self.id.to_string(),
        };
        self.inbox.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

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
    let (publish, view) = watch::channel(Arc::new(picture(&node, &parts)));
    let id = parts.id.clone();
    let actor = Actor {
        node,
        parts,
        inbox: inbox.downgrade(),
        publish,
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

fn picture(node: &Node, parts: &PodParts) -> PodView {
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
        bundle: node.pod_bundle(parts.id.as_str()),
        containers: parts
            .containers
            .iter()
            .map(|(id, owned)| (id.clone(), owned.view.clone()))
            .collect(),
    }
}

struct Actor {
    node: Arc<Node>,
    parts: PodParts,
    /// Weak, so that the task ends when nobody can ask it any more.
    inbox: mpsc::WeakSender<Request>,
    publish: watch::Sender<Arc<PodView>>,
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

    fn publish(&self) {
        self.publish
            .send_replace(Arc::new(picture(&self.node, &self.parts)));
    }

    /// Answers a request, after everybody can see its effect.
    fn settle<T>(&self, reply: Reply<T>, result: Result<T>) {
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
        self.put_pod_down(PodPhase::Removing)?;
        let ids: Vec<ContainerId> = self.parts.containers.keys().cloned().collect();
        for id in ids {
            self.remove_container(&id).await?;
        }
        if let Some(shim) = self.parts.shim.take() {
            shim.shutdown().await;
        }
        teardown::remove_pod(&self.node, &self.parts.id, &self.parts.record).await
    }

    async fn create_container(
        &mut self,
        config: ContainerConfig,
        wire: Vec<u8>,
    ) -> Result<ContainerId> {
        let same = |owned: &&Owned| {
            owned.view.config.name == config.name && owned.view.config.attempt == config.attempt
        };
        if let Some(existing) = self.parts.containers.values().find(same) {
            return Ok(existing.view.id.clone());
        }
        let view = self.publish.borrow().clone();
        if view.state != PodState::Ready {
            let id = self.parts.id.to_string();
            return Err(Error::State {
                what: "pod sandbox",
                id,
                state: "not ready",
                action: "create a container",
            });
        }
        let owned = container::prepare(&self.node, &view, config, wire).await?;
        let id = owned.view.id.clone();
        self.parts.containers.insert(id.clone(), owned);
        Ok(id)
    }

    async fn start_container(&mut self, id: &ContainerId) -> Result<()> {
        let owned = self
            .parts
            .containers
            .get_mut(id)
            .ok_or_else(|| Error::no_container(id))?;
        match owned.view.state {
            ContainerState::Created => {}
            // A retry of a start whose answer was lost.
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Exited(_) => return Err(owned.view.refuse("start")),
        }
        let id_text = id.to_string();
        let shim = self
            .parts
            .shim
            .clone()
            .ok_or_else(|| owned.view.refuse("start"))?;
        let handler = self.node.handlers.get(&self.parts.record.handler)?;
        set_phase(&self.node, owned, ContainerPhase::Starting)?;
        let stdin = owned
            .view
            .config
            .stdin
            .then(|| owned.view.bundle.join("stdin"));
        let request = CreateRequest {
            id: id.as_str(),
            bundle: &owned.view.bundle,
            handler: Some(handler),
            terminal: owned.view.config.tty,
            stdin: stdin.as_deref(),
            log: owned.view.log.as_deref(),
        };
        let started = match shim.create(request).await {
            Ok(()) => shim.start(id.as_str(), "").await,
            Err(error) => Err(error),
        };
        match started {
            Ok(pid) => {
                let started_at_ns = crate::time::now_ns();
                set_state(owned, ContainerState::Running { started_at_ns, pid });
                set_phase(
                    &self.node,
                    owned,
                    ContainerPhase::Running { started_at_ns, pid },
                )?;
                self.watch_container(id);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = shim.delete(id.as_str(), "").await {
                    tracing::debug!(container = %id, %error, "the shim still holds a container that did not start");
                }
                let exited = Exited::start_failed(Chain(&error).to_string());
                set_exited(&self.node, owned, exited);
                Err(Error::Runtime {
                    action: "start",
                    id: id_text,
                    source: Box::new(error),
                })
            }
        }
    }

    /// Waits for the shim's end in a task of its own, which then tells this one.
    fn watch_shim(&self) {
        let inbox = self.inbox.clone();
        let bundle = self.node.pod_bundle(self.parts.id.as_str());
        tokio::spawn(async move {
            Shim::gone(&bundle).await;
            if let Some(inbox) = inbox.upgrade() {
                // A closed inbox is a pod that was removed meanwhile.
                drop(inbox.send(Request::ShimGone).await);
            }
        });
    }

    /// The shim ended though nobody asked it to: so do its containers.
    async fn shim_gone(&mut self) {
        if self.parts.shim.take().is_none() {
            return;
        }
        tracing::error!(pod = %self.parts.id, "the shim of this pod is gone");
        let ids: Vec<ContainerId> = self.parts.containers.keys().cloned().collect();
        for id in ids {
            let source = std::io::ErrorKind::ConnectionReset.into();
            let socket = self.node.pod_bundle(self.parts.id.as_str());
            self.ended(&id, Err(ShimError::Unreachable { socket, source }))
                .await;
        }
    }

    /// Waits for the container's end in a task of its own, which then tells this one.
    fn watch_container(&self, id: &ContainerId) {
        let (Some(shim), Some(inbox)) = (self.parts.shim.clone(), self.inbox.upgrade()) else {
            return;
        };
        let inbox = inbox.downgrade();
        let (id, bundle) = (id.clone(), self.node.container_bundle(id.as_str()));
        tokio::spawn(async move {
            let exit = shim.wait(id.as_str(), "").await.map(|(code, at_ns)| {
                exit_file(&bundle).unwrap_or(Exit {
                    code,
                    at_ns,
                    oom_killed: false,
                })
            });
            if let Some(inbox) = inbox.upgrade() {
                // A closed inbox is a pod that was removed meanwhile.
                drop(inbox.send(Request::Ended { id, exit }).await);
            }
        });
    }

    /// Ends a container at once and records how.
    async fn end_container(&mut self, id: &ContainerId) -> Result<()> {
        let Some(shim) = self.parts.shim.clone() else {
            return Ok(());
        };
        let failed = |source: ShimError| Error::Runtime {
            action: "kill",
            id: id.to_string(),
            source: Box::new(source),
        };
        match shim.kill(id.as_str(), "", KILL, true).await {
            Err(error) if !error.is_not_found() => return Err(failed(error)),
            _ => {}
        }
        let exit = shim.wait(id.as_str(), "").await.map(|(code, at_ns)| {
            exit_file(&self.node.container_bundle(id.as_str())).unwrap_or(Exit {
                code,
                at_ns,
                oom_killed: false,
            })
        });
        self.ended(id, exit).await;
        Ok(())
    }

    /// Takes note of a container's end, once.
    async fn ended(&mut self, id: &ContainerId, exit: Result<Exit, ShimError>) {
        let Some(owned) = self.parts.containers.get_mut(id) else {
            return;
        };
        let ContainerState::Running { started_at_ns, .. } = owned.view.state else {
            return;
        };
        let exited = match exit {
            Ok(exit) => Exited::seen(started_at_ns, exit),
            Err(error) => match exit_file(&owned.view.bundle) {
                Some(exit) => Exited::seen(started_at_ns, exit),
                None => {
                    tracing::error!(pod = %self.parts.id, container = %id, error = %Chain(&error), "the shim is lost");
                    let handler = self
                        .node
                        .handlers
                        .get(&self.parts.record.handler)
                        .ok()
                        .cloned();
                    teardown::kill_orphan(&self.node, handler.as_ref(), &owned.view).await;
                    Exited::unseen(started_at_ns, "the pod's shim ended before the container")
                }
            },
        };
        tracing::info!(pod = %self.parts.id, container = %id, exit_code = exited.exit_code, reason = exited.reason,
            "container ended");
        set_exited(&self.node, owned, exited);
    }

    async fn remove_container(&mut self, id: &ContainerId) -> Result<()> {
        let Some(owned) = self.parts.containers.get(id) else {
            return Ok(());
        };
        if let ContainerState::Running { .. } = owned.view.state {
            self.end_container(id).await?;
        }
        if let Some(shim) = &self.parts.shim {
            let failed = |source| Error::Runtime {
                action: "delete",
                id: id.to_string(),
                source: Box::new(source),
            };
            shim.delete(id.as_str(), "").await.map_err(failed)?;
        }
        let Some(owned) = self.parts.containers.get_mut(id) else {
            return Ok(());
        };
        going_down(set_phase(&self.node, owned, ContainerPhase::Removing))?;
        container::unmake(&self.node, id).await?;
        self.parts.containers.remove(id);
        Ok(())
    }

    async fn update_container(&mut self, id: &ContainerId, resources: &Resources) -> Result<()> {
        let owned = self
            .parts
            .containers
            .get_mut(id)
            .ok_or_else(|| Error::no_container(id))?;
        let merged = container::spec::merge_resources(&owned.view.resources, resources);
        match owned.view.state {
            ContainerState::Running { .. } => {
                let shim = self
                    .parts
                    .shim
                    .clone()
                    .ok_or_else(|| owned.view.refuse("update"))?;
                let limits = container::spec::linux_resources(resources, &self.node.facts);
                let json =
                    serde_json::to_vec(&limits).map_err(|e| Error::node("encode resources", e))?;
                let failed = |source| Error::Runtime {
                    action: "update",
                    id: id.to_string(),
                    source: Box::new(source),
                };
                shim.update(id.as_str(), json).await.map_err(failed)?;
            }
            ContainerState::Created => {
                container::rewrite_resources(&self.node, &owned.view, &merged)?
            }
            ContainerState::Exited(_) => return Err(owned.view.refuse("update")),
        }
        owned.record.resources = (self.node.wire.encode_resources)(&merged);
        self.node
            .records
            .put_container(&owned.record)
            .map_err(|e| Error::node("record a container", e))?;
        let mut view = ContainerView::clone(&owned.view);
        view.resources = merged;
        owned.view = Arc::new(view);
        Ok(())
    }
}

fn set_state(owned: &mut Owned, state: ContainerState) {
    let mut view = ContainerView::clone(&owned.view);
    view.state = state;
    owned.view = Arc::new(view);
}

fn set_phase(node: &Node, owned: &mut Owned, phase: ContainerPhase) -> Result<()> {
    owned.record.phase = phase;
    node.records
        .put_container(&owned.record)
        .map_err(|e| Error::node("record a container", e))
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

fn set_exited(node: &Node, owned: &mut Owned, exited: Exited) {
    let state = ContainerState::Exited(exited);
    let phase = ContainerPhase::from(&state);
    set_state(owned, state);
    // The shim's note is on disk too: after a restart the end is found there.
    if let Err(error) = set_phase(node, owned, phase) {
        tracing::warn!(container = %owned.view.id, error = %Chain(&error), "the end is not recorded");
    }
}
