//! What stands behind the streaming server: sessions with containers, connections to ports of pods.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use zcri_streaming::{AttachRequest, Backend, Duplex, ExecRequest, Session, SessionError};

use crate::container::{self, Busy, refused};
use crate::error::Error;
use crate::pod::Pods;

/// How long a daemon that stops waits for the ends of commands that it has killed. One in uninterruptible sleep does
/// not end sooner; the next daemon finds it.
const PATIENCE: Duration = Duration::from_secs(10);

/// All sessions of the node.
pub struct Sessions {
    pods: Arc<Pods>,
    /// Until the daemon stops: each session's task has a clone.
    busy: Mutex<Option<Busy>>,
    idle: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl Sessions {
    /// With containers and pods of the node.
    pub fn new(pods: Arc<Pods>) -> Arc<Self> {
        // Nothing is sent: what counts is whether a sender is left.
        let (busy, idle) = mpsc::channel(1);
        Arc::new(Self {
            pods,
            busy: Mutex::new(Some(busy)),
            idle: tokio::sync::Mutex::new(idle),
        })
    }

    /// Lets no session begin any more, and waits until those that were dropped have ended their commands.
    pub async fn drain(&self) {
        drop(self.busy().take());
        let mut idle = self.idle.lock().await;
        if tokio::time::timeout(PATIENCE, idle.recv()).await.is_err() {
            tracing::warn!("commands of sessions have not ended; the next start looks after them");
        }
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, Option<Busy>> {
        // Nothing between lock and unlock can leave it half changed.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<Busy, SessionError> {
        let busy = self.busy().clone();
        busy.ok_or_else(|| SessionError::Internal {
            message: "the daemon is stopping".into(),
        })
    }
}

impl Backend for Sessions {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        Box::pin(async move {
            let (pod, container) = self
                .pods
                .container(&request.container_id)
                .map_err(|e| refused(&e))?;
            container
                .require_running("run a command")
                .map_err(|e| refused(&e))?;
            let shim = pod.shim("run a command").map_err(|e| refused(&e))?;
            let node = self.pods.node();
            container::exec(node, shim, &container, request, self.begin()?).await
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        Box::pin(async move {
            let (pod, container) = self
                .pods
                .container(&request.container_id)
                .map_err(|e| refused(&e))?;
            container::attach(&pod, &container, request, self.begin()?).await
        })
    }

    fn port_forward<'a>(
        &'a self,
        pod_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, SessionError>> {
        Box::pin(async move {
            let pod = self
                .pods
                .find(pod_id)
                .ok_or_else(|| refused(&Error::no_pod(pod_id)))?;
            let connection = crate::pod::connect(&pod.view(), port).await;
            let stream = connection.map_err(|e| refused(&e))?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}
