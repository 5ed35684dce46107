//! What a pod's task does to the containers of its pod.

use std::sync::Arc;

use super::{Actor, End, Owned, going_down};
use crate::container::config::ContainerConfig;
use crate::container::{self, ContainerState, ContainerView, Exited};
use crate::error::{Chain, Error, Result};
use crate::id::ContainerId;
use crate::messages;
use crate::node::blocking;
use crate::pod::pods::KILL_PATIENCE;
use crate::pod::teardown;
use crate::pod::view::PodState;
use crate::runtime::{CreateRequest, Exit, Shim, ShimError, exit_file};
use crate::state::{ContainerPhase, ContainerRecord};

/// SIGKILL.
const KILL: u32 = 9;

impl Actor {
    pub(super) async fn create_container(
        &self,
        config: ContainerConfig,
        wire: Vec<u8>,
    ) -> Result<ContainerId> {
        let same = |view: &&Arc<ContainerView>| {
            view.config.name == config.name && view.config.attempt == config.attempt
        };
        if let Some(existing) = self.containers().iter().find(same) {
            return Ok(existing.id.clone());
        }
        let view = self.publish.borrow().clone();
        if view.state != PodState::Ready {
            return Err(Error::State {
                what: "pod sandbox",
                id: self.id.to_string(),
                state: "not ready",
                action: "create a container",
            });
        }
        let owned = container::prepare(&self.node, &view, config, wire).await?;
        let id = owned.view.id.clone();
        self.held().parts.containers.insert(id.clone(), owned);
        Ok(id)
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let view = self.container(id).ok_or_else(|| Error::no_container(id))?;
        match view.state {
            ContainerState::Created => {}
            // A retry of a start whose answer was lost.
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Exited(_) => return Err(view.refuse("start")),
        }
        let shim = self.shim().ok_or_else(|| view.refuse("start"))?;
        self.keep_profile(&view).await?;
        let handler = self.held().parts.record.handler.clone();
        let handler = self.node.handlers.get(&handler)?;
        self.record_container(id, |record| record.phase = ContainerPhase::Starting)
            .await?;
        let stdin = view.config.stdin.then(|| view.bundle.join("stdin"));
        let request = CreateRequest {
            id: id.as_str(),
            bundle: &view.bundle,
            handler: Some(handler),
            terminal: view.config.tty,
            stdin: stdin.as_deref(),
            log: view.log.as_deref(),
        };
        let started = match shim.create(request).await {
            Ok(()) => shim.start(id.as_str(), "").await,
            Err(error) => Err(error),
        };
        let started_at_ns = crate::time::now_ns();
        release_mounts(&view).await;
        match started {
            Ok(pid) => {
                self.runs(id, started_at_ns, pid).await;
                Ok(())
            }
            Err(error) => {
                if let Err(error) = forget(&shim, id).await {
                    tracing::debug!(container = %id, %error, "the shim still holds a container that did not start");
                }
                let exited = Exited::start_failed(Chain(&error).to_string());
                self.set_exited(id, exited).await;
                Err(container::start_error(&view, error))
            }
        }
    }

    /// The AppArmor profile that the container was made with may have been unloaded since.
    async fn keep_profile(&self, view: &Arc<ContainerView>) -> Result<()> {
        if self.node.confinement.apparmor.is_none() {
            return Ok(());
        }
        let (node, view) = (self.node.clone(), view.clone());
        blocking(move || node.confinement.keep_loaded_for(&view.config.security)).await
    }

    /// Takes note of a container's start.
    async fn runs(&self, id: &ContainerId, started_at_ns: i64, pid: u32) {
        self.set_state(id, ContainerState::Running { started_at_ns, pid });
        let running = ContainerPhase::Running { started_at_ns, pid };
        // The record before this one makes recovery ask the shim, so a full disk is no failure here.
        if let Err(error) = self
            .record_container(id, |record| record.phase = running)
            .await
        {
            tracing::warn!(container = %id, error = %Chain(&error), "the start is not recorded");
        }
        if !self.watch_container(id) {
            // The shim ended since, when there was nothing to be noted yet.
            self.ended(id, Err(self.unreachable())).await;
        }
    }

    /// Waits for the shim's end in a task of its own, which then tells this one.
    pub(super) fn watch_shim(&self) {
        let ends = self.ends.clone();
        let bundle = self.files().bundle;
        tokio::spawn(async move {
            Shim::gone(&bundle).await;
            // Nobody listens to the end of a pod that was removed meanwhile.
            drop(ends.send(End::Shim).await);
        });
    }

    /// The shim ended though nobody asked it to: so do its containers.
    pub(super) async fn shim_gone(&self) {
        if self.held().parts.shim.take().is_none() {
            return;
        }
        tracing::error!(zcr = messages::SHIM_GONE, pod = %self.id, "the shim of this pod is gone");
        for container in self.containers() {
            self.ended(&container.id, Err(self.unreachable())).await;
        }
    }

    fn unreachable(&self) -> ShimError {
        ShimError::Unreachable {
            socket: self.files().bundle,
            source: std::io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// Waits for the container's end in a task of its own, which then tells this one; false if there is no shim to
    /// wait for.
    pub(super) fn watch_container(&self, id: &ContainerId) -> bool {
        let Some(shim) = self.shim() else {
            return false;
        };
        let ends = self.ends.clone();
        let (id, bundle) = (id.clone(), self.node.container_bundle(id.as_str()));
        tokio::spawn(async move {
            let exit = match shim.wait(id.as_str(), "").await {
                Ok(told) => Ok(exit_of(&bundle, told).await),
                Err(error) => Err(error),
            };
            // As above.
            drop(ends.send(End::Container { id, exit }).await);
        });
        true
    }

    /// Ends a container at once and records how.
    pub(super) async fn end_container(&self, id: &ContainerId) -> Result<()> {
        let Some(shim) = self.shim() else {
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
        let exit = match exit {
            Ok(told) => Ok(exit_of(&self.node.container_bundle(id.as_str()), told).await),
            Err(error) => Err(error),
        };
        self.ended(id, exit).await;
        Ok(())
    }

    /// Takes note of a container's end, once.
    pub(super) async fn ended(&self, id: &ContainerId, exit: Result<Exit, ShimError>) {
        let _turn = self.ending.lock().await;
        let Some(view) = self.container(id) else {
            return;
        };
        let ContainerState::Running { started_at_ns, .. } = view.state else {
            return;
        };
        let exited = match exit {
            Ok(exit) => Exited::seen(started_at_ns, exit),
            Err(error) => match exit_file(&view.bundle).await {
                Some(exit) => Exited::seen(started_at_ns, exit),
                None => {
                    tracing::error!(pod = %self.id, container = %id, error = %Chain(&error), "the shim is lost");
                    teardown::kill_orphan(&self.node, self.handler().as_ref(), &view).await;
                    Exited::unseen(started_at_ns, "the pod's shim ended before the container")
                }
            },
        };
        tracing::info!(pod = %self.id, container = %id, exit_code = exited.exit_code, reason = exited.reason,
            "container ended");
        self.set_exited(id, exited).await;
        // Now, because what comes next may remove it.
        self.publish();
    }

    /// Clears what a container of a lost shim has left with the OCI runtime.
    async fn end_orphan(&self, id: &ContainerId) -> Result<()> {
        let Some(view) = self.container(id) else {
            return Ok(());
        };
        let of_this_boot = {
            let held = self.held();
            let owned = held.parts.containers.get(id);
            owned.is_some_and(|owned| owned.record.boot_id == self.node.boot_id)
        };
        if !of_this_boot || !view.state.was_started() {
            return Ok(());
        }
        teardown::end_orphan(&self.node, self.handler().as_ref(), &view).await
    }

    pub(super) async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let Some(view) = self.container(id) else {
            return Ok(());
        };
        if let ContainerState::Running { .. } = view.state {
            self.end_container(id).await?;
        }
        if let Some(shim) = self.shim() {
            let failed = |source| Error::Runtime {
                action: "delete",
                id: id.to_string(),
                source: Box::new(source),
            };
            forget(&shim, id).await.map_err(failed)?;
        } else {
            self.end_orphan(id).await?;
        }
        going_down(
            self.record_container(id, |record| record.phase = ContainerPhase::Removing)
                .await,
        )?;
        let (node, cgroup) = (self.node.clone(), view.cgroup.clone());
        // The OCI runtime removes it; one that fails at a start may not.
        drop(blocking(move || Ok(node.cgroups.remove(&cgroup))).await);
        container::unmake(&self.node, id).await?;
        self.held().parts.containers.remove(id);
        Ok(())
    }

    fn set_state(&self, id: &ContainerId, state: ContainerState) {
        if let Some(owned) = self.held().parts.containers.get_mut(id) {
            change_view(owned, |view| view.state = state);
        }
    }

    async fn set_exited(&self, id: &ContainerId, exited: Exited) {
        let state = ContainerState::Exited(exited);
        let phase = ContainerPhase::from(&state);
        self.set_state(id, state);
        // The shim's note is on disk too: after a restart the end is found there.
        if let Err(error) = self
            .record_container(id, |record| record.phase = phase)
            .await
        {
            tracing::warn!(container = %id, error = %Chain(&error), "the end is not recorded");
        }
    }

    /// Changes a container's record, on disk and then in memory; after a failure it is as before.
    pub(super) async fn record_container(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<()> {
        let _turn = self.disk.lock().await;
        let known = {
            let held = self.held();
            held.parts.containers.get(id).map(|o| o.record.clone())
        };
        let Some(mut record) = known else {
            return Ok(());
        };
        change(&mut record);
        self.node.record_container(record.clone()).await?;
        if let Some(owned) = self.held().parts.containers.get_mut(id) {
            owned.record = record;
        }
        Ok(())
    }
}

/// Replaces the view of a container by one with a change.
pub(super) fn change_view(owned: &mut Owned, change: impl FnOnce(&mut ContainerView)) {
    let mut view = ContainerView::clone(&owned.view);
    change(&mut view);
    owned.view = Arc::new(view);
}

/// The shim's note of an end, which has more than what it told.
async fn exit_of(bundle: &std::path::Path, (code, at_ns): (i32, i64)) -> Exit {
    exit_file(bundle).await.unwrap_or(Exit {
        code,
        at_ns,
        oom_killed: false,
    })
}

/// Lets go what was mounted for the start alone. A failure shows again when the container is removed.
pub(super) async fn release_mounts(view: &ContainerView) {
    let bundle = view.bundle.clone();
    if let Err(error) = blocking(move || container::release_mounts(&bundle)).await {
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
