//! The way to a pod's task: its requests, and who may send them.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::view::PodView;
use crate::container::ContainerState;
use crate::container::config::{ContainerConfig, Resources};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::runtime::Shim;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What a pod can be asked.
pub(super) enum Request {
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
    UpdatePod {
        overhead: Option<Box<Resources>>,
        resources: Option<Box<Resources>>,
        reply: Reply<()>,
    },
    Settled(Reply<()>),
}

/// The way to a pod's task. Clones lead to the same.
#[derive(Clone)]
pub struct PodHandle {
    pub(super) id: PodId,
    pub(super) inbox: mpsc::Sender<Request>,
    pub(super) view: watch::Receiver<Arc<PodView>>,
    pub(super) shim: Option<Shim>,
    pub(super) stopping: Arc<watch::Sender<bool>>,
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
        self.stopping.send_replace(true);
        self.ask(Request::Stop).await
    }

    /// Stops the pod, and removes it with all that is in it.
    ///
    /// # Errors
    /// Something is left; asking again goes on.
    pub async fn remove(&self) -> Result<()> {
        self.stopping.send_replace(true);
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

    /// Waits until everything that the pod was asked for before is done, and seen in [`view`](Self::view).
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    ///
    /// # Errors
    /// The pod is gone.
    pub async fn settled(&self) -> Result<()> {
        self.ask(Request::Settled).await
    }

    /// Notes what the pod costs now; what is not given stays.
    ///
    /// # Errors
    /// It could not be recorded; nothing is changed then.
    pub async fn update(
        &self,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let (overhead, resources) = (overhead.map(Box::new), resources.map(Box::new));
        self.ask(|reply| Request::UpdatePod {
            overhead,
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
