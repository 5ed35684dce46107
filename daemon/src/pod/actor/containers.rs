//! What a pod's task does to the containers of its pod.

use std::sync::Arc;

use super::{Actor, Owned, going_down};
use crate::container::config::ContainerConfig;
use crate::container::{self, ContainerState, ContainerView, Exited};
use crate::error::{Chain, Error, Result};
use crate::id::ContainerId;
use crate::messages;
use crate::node::Node;
use crate::pod::handle::Request;
use crate::pod::pods::KILL_PATIENCE;
use crate::pod::teardown;
use crate::pod::view::PodState;
use crate::runtime::{CreateRequest, Exit, Shim, ShimError, exit_file};
use crate::state::ContainerPhase;

/// SIGKILL.
const KILL: u32 = 9;

impl Actor {
    pub(super) async fn create_container(
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

    pub(super) async fn start_container(&mut self, id: &ContainerId) -> Result<()> {
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
        release_mounts(&owned.view);
        match started {
            Ok(pid) => {
                let started_at_ns = crate::time::now_ns();
                set_state(owned, ContainerState::Running { started_at_ns, pid });
                let running = ContainerPhase::Running { started_at_ns, pid };
                // The record before this one makes recovery ask the shim, so a full disk is no failure here.
                if let Err(error) = set_phase(&self.node, owned, running) {
                    tracing::warn!(container = %id, error = %Chain(&error), "the start is not recorded");
                }
                self.watch_container(id);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = forget(&shim, id).await {
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
    pub(super) fn watch_shim(&self) {
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
    pub(super) async fn shim_gone(&mut self) {
        if self.parts.shim.take().is_none() {
            return;
        }
        tracing::error!(zcr = messages::SHIM_GONE, pod = %self.parts.id, "the shim of this pod is gone");
        let ids: Vec<ContainerId> = self.parts.containers.keys().cloned().collect();
        for id in ids {
            let source = std::io::ErrorKind::ConnectionReset.into();
            let socket = self.node.pod_bundle(self.parts.id.as_str());
            self.ended(&id, Err(ShimError::Unreachable { socket, source }))
                .await;
        }
    }

    /// Waits for the container's end in a task of its own, which then tells this one.
    pub(super) fn watch_container(&self, id: &ContainerId) {
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
    pub(super) async fn end_container(&mut self, id: &ContainerId) -> Result<()> {
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
        // A process in uninterruptible sleep must not keep the pod from answering.
        let ended = tokio::time::timeout(KILL_PATIENCE, shim.wait(id.as_str(), "")).await;
        let Ok(exit) = ended else {
            let state = "killed but has not ended";
            return Err(Error::State {
                what: "container",
                id: id.to_string(),
                state,
                action: "go on",
            });
        };
        let exit = exit.map(|(code, at_ns)| {
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
    pub(super) async fn ended(&mut self, id: &ContainerId, exit: Result<Exit, ShimError>) {
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
        // Now, because what comes next may remove it.
        self.publish();
    }

    /// Clears what a container of a lost shim has left with the OCI runtime.
    async fn end_orphan(&self, id: &ContainerId) -> Result<()> {
        let Some(owned) = self.parts.containers.get(id) else {
            return Ok(());
        };
        if owned.record.boot_id != self.node.boot_id || !owned.view.state.was_started() {
            return Ok(());
        }
        let handler = self.node.handlers.get(&self.parts.record.handler).ok();
        teardown::end_orphan(&self.node, handler, &owned.view).await
    }

    pub(super) async fn remove_container(&mut self, id: &ContainerId) -> Result<()> {
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
            forget(shim, id).await.map_err(failed)?;
        } else {
            self.end_orphan(id).await?;
        }
        let Some(owned) = self.parts.containers.get_mut(id) else {
            return Ok(());
        };
        going_down(set_phase(&self.node, owned, ContainerPhase::Removing))?;
        container::unmake(&self.node, id).await?;
        self.parts.containers.remove(id);
        Ok(())
    }
}

/// Lets go what was mounted for the start alone. A failure shows again when the container is removed.
pub(super) fn release_mounts(view: &ContainerView) {
    if let Err(error) = container::release_mounts(&view.bundle) {
        tracing::warn!(container = %view.id, error = %Chain(&error), "mounts for its start are left");
    }
}

/// Makes the shim forget a container. One that runs although its start seemed to fail is ended first.
async fn forget(shim: &Shim, id: &ContainerId) -> Result<(), ShimError> {
    if shim.delete(id.as_str(), "").await.is_ok() {
        return Ok(());
    }
    if shim.kill(id.as_str(), "", KILL, true).await.is_ok() {
        // Whether it ended shows in the answer to the deletion.
        drop(tokio::time::timeout(KILL_PATIENCE, shim.wait(id.as_str(), "")).await);
    }
    shim.delete(id.as_str(), "").await
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

fn set_exited(node: &Node, owned: &mut Owned, exited: Exited) {
    let state = ContainerState::Exited(exited);
    let phase = ContainerPhase::from(&state);
    set_state(owned, state);
    // The shim's note is on disk too: after a restart the end is found there.
    if let Err(error) = set_phase(node, owned, phase) {
        tracing::warn!(container = %owned.view.id, error = %Chain(&error), "the end is not recorded");
    }
}
