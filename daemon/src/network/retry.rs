//! Attachments that could not be deleted are deleted later.
//!
//! The record of an attachment is kept until its deletion succeeded (zcri-cni), so that no address is lost with a
//! failure; this brings the next try, with growing pauses, for as long as the daemon lives. After a restart the pod's
//! own record, or [`super::Network::sweep`], brings it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::AbortHandle;
use zcri_cni::{Cni, DelErrors};

use super::ports::HostPorts;
use crate::error::Chain;
use crate::messages;

/// Pause before the first retry; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: what an operator repairs is found repaired within this time.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// An attachment that could not be deleted yet.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDetach {
    /// Id of the pod sandbox.
    pub pod: String,
    /// What the plugins said last.
    pub error: String,
    /// How often it failed.
    pub failures: u32,
    /// Time of the first failure, in ns since 1970.
    pub since_ns: i64,
}

struct Pending {
    what: PendingDetach,
    retrying: AbortHandle,
}

/// Everything that is still to be deleted.
pub(super) struct Retries {
    pending: Mutex<BTreeMap<String, Pending>>,
    /// Held for as long.
    ports: Arc<HostPorts>,
}

impl Retries {
    pub(super) fn new(ports: Arc<HostPorts>) -> Self {
        Self {
            pending: Mutex::default(),
            ports,
        }
    }

    /// A deletion failed: there will be another.
    pub(super) fn failed(self: &Arc<Self>, cni: &Cni, id: &str, error: &DelErrors) {
        let mut pending = self.lock();
        if !note(&mut pending, id, error) {
            let task = Arc::clone(self).retry(cni.clone(), id.to_owned());
            let what = PendingDetach {
                pod: id.to_owned(),
                error: Chain(error).to_string(),
                failures: 1,
                since_ns: crate::time::now_ns(),
            };
            let retrying = tokio::spawn(task).abort_handle();
            pending.insert(id.to_owned(), Pending { what, retrying });
        }
    }

    /// A deletion succeeded.
    pub(super) fn done(&self, id: &str) {
        if let Some(pending) = self.lock().remove(id) {
            pending.retrying.abort();
        }
    }

    /// In the order of ids.
    pub(super) fn list(&self) -> Vec<PendingDetach> {
        self.lock().values().map(|p| p.what.clone()).collect()
    }

    async fn retry(self: Arc<Self>, cni: Cni, id: String) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = MAX_PAUSE.min(pause * 2);
            match cni.delete(&id).await {
                Ok(()) => {
                    tracing::info!(
                        zcr = messages::DETACHED,
                        pod = id,
                        "the pod's network is detached at last"
                    );
                    self.ports.release(&id);
                    self.lock().remove(&id);
                    return;
                }
                Err(error) => {
                    tracing::warn!(zcr = messages::STILL_ATTACHED, pod = id, next_try_s = pause.as_secs(), error = %Chain(&error), "the pod's network is still attached");
                    note(&mut self.lock(), &id, &error);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more failure of what is pending; false when it is not.
fn note(pending: &mut BTreeMap<String, Pending>, id: &str, error: &DelErrors) -> bool {
    let Some(known) = pending.get_mut(id) else {
        return false;
    };
    known.what.failures = known.what.failures.saturating_add(1);
    known.what.error = Chain(error).to_string();
    true
}
