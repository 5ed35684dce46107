//! The pod's network, by CNI.
//!
//! The configuration is read anew for each pod, so that an administrator's change holds at once; the attachment is
//! deleted with the very configuration that made it, which zcri-cni keeps. A deletion that failed is tried again until
//! it succeeds (`retry`), whether or not anybody asks again.

mod bandwidth;
pub(crate) mod isolation;
mod ports;
mod readiness;
mod request;
mod retry;
mod template;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use zcri_cni::{Cni, CniDirs, NetworkList};

use self::ports::HostPorts;
use self::readiness::Readiness;
use self::retry::Retries;
use crate::error::{Chain, Error, Result};
use crate::id::PodId;
use crate::node::blocking;
use crate::pod::config::PodConfig;
use crate::runtime::STACK_AFFINITY;

pub use self::isolation::{Isolation, Place};
pub use self::readiness::NetworkState;
pub use self::retry::PendingDetach;

/// Attaches pods to the configured network.
pub struct Network {
    cni: Cni,
    conf_dir: PathBuf,
    template: Mutex<Option<PathBuf>>,
    netns_token: String,
    stack_name: Option<String>,
    collect_garbage: bool,
    readiness: Arc<Readiness>,
    ports: Arc<HostPorts>,
    retries: Arc<Retries>,
}

/// What an operator may want to know of the network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkReport {
    /// The configuration in use and whether it works.
    pub state: NetworkState,
    /// Pods that are attached.
    pub attachments: usize,
    /// Attachments that could not be deleted yet.
    pub pending: Vec<PendingDetach>,
}

impl Network {
    /// With the configured directories; what is attached is kept under `root`.
    pub fn new(config: &zcri_config::Network, collect_garbage: bool, root: &Path) -> Self {
        let dirs = CniDirs {
            conf_dir: config.conf_dir.clone(),
            plugin_dirs: config.plugin_dirs.clone(),
            cache_dir: root.join("cni"),
        };
        let ports = Arc::<HostPorts>::default();
        let affinity = config.stack_name.iter();
        let affinity = affinity.map(|name| (STACK_AFFINITY, name.into()));
        Self {
            cni: Cni::with_environment(dirs, config.plugin_timeout, affinity),
            conf_dir: config.conf_dir.clone(),
            template: Mutex::new(config.conf_template.clone()),
            netns_token: config.netns_token.clone(),
            stack_name: config.stack_name.clone(),
            collect_garbage,
            readiness: Arc::default(),
            retries: Arc::new(Retries::new(ports.clone())),
            ports,
        }
    }

    /// Begins to watch the configuration. Ends what plugins an earlier daemon left at work: nothing else of the
    /// network may happen before.
    ///
    /// # Errors
    /// The processes of the node cannot be listed.
    pub async fn start(&self) -> Result<()> {
        let ended = self.cni.end_leftovers().await;
        let ended = ended.map_err(|e| failed("find plugins that were left at work", e))?;
        if !ended.is_empty() {
            tracing::info!(pids = ?ended, "CNI plugins of an earlier daemon were ended");
        }
        let readiness = Arc::clone(&self.readiness);
        tokio::spawn(readiness.keep(self.cni.clone(), self.conf_dir.clone()));
        Ok(())
    }

    /// The TCP/IP stack that pods belong to, where it is named.
    pub fn stack_name(&self) -> Option<&str> {
        self.stack_name.as_deref()
    }

    /// Attaches a pod; gives its addresses, the primary one first.
    ///
    /// # Errors
    /// No network is configured, a port of the node is taken, or a plugin failed: what the plugins before it did is
    /// undone. [`Self::detach`] gives the pod's ports back.
    pub async fn attach(
        &self,
        id: &PodId,
        config: &PodConfig,
        place: Place<'_>,
    ) -> Result<Vec<String>> {
        let netns = isolation::netns(place, &self.netns_token, id);
        let attachment = request::attachment(id, config, place, netns)?;
        let list = self.load().await?;
        self.ports.take(id.as_str(), &config.port_mappings)?;
        match list.add(&attachment).await {
            Ok(result) => Ok(result.pod_ips().map(|ip| ip.to_string()).collect()),
            Err(error) => {
                // A range without free addresses shows here first.
                self.readiness.look_again();
                readiness::tell_if_exhausted(&Chain(&error).to_string());
                Err(failed("attach", error))
            }
        }
    }

    async fn load(&self) -> Result<Arc<NetworkList>> {
        let cni = self.cni.clone();
        blocking(move || cni.load().map_err(|e| failed("configuration", e))).await
    }

    /// Takes note of a pod that was attached by an earlier daemon.
    pub fn remember(&self, id: &PodId, config: &PodConfig) {
        self.ports.remember(id.as_str(), &config.port_mappings);
    }

    /// Detaches a pod; one that is not attached is detached.
    ///
    /// # Errors
    /// A plugin failed. It is tried again in the background, and by asking again.
    pub async fn detach(&self, id: &str) -> Result<()> {
        match self.cni.delete(id).await {
            Ok(()) => {
                self.ports.release(id);
                self.retries.done(id);
                Ok(())
            }
            Err(error) => {
                self.retries.failed(&self.cni, id, &error);
                Err(failed("detach", error))
            }
        }
    }

    /// Ids of pods that are attached and not among the `known` ones.
    ///
    /// # Errors
    /// The records of attachments cannot be read.
    pub async fn strays(&self, known: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let all = self.cni.attachments().await;
        let all = all.map_err(|e| failed("read the records of attachments", e))?;
        let ids = all.into_iter().map(|key| key.container_id);
        Ok(ids.filter(|id| !known.contains(id)).collect())
    }

    /// Detaches pods that are gone, and lets the plugins collect what nobody needs, where that is allowed.
    pub async fn sweep(&self, strays: BTreeSet<String>) {
        for id in strays {
            match self.detach(&id).await {
                Ok(()) => tracing::info!(pod = id, "detached a pod that is gone"),
                Err(error) => {
                    tracing::warn!(pod = id, error = %Chain(&error), "a pod that is gone is still attached");
                }
            }
        }
        if !self.collect_garbage {
            return;
        }
        let Ok(list) = self.load().await else { return };
        if let Err(error) = list.gc().await {
            tracing::warn!(error = %Chain(&error), "the plugins collected no garbage");
        }
    }

    /// Writes the configuration for the addresses that the cluster gave this node, if there is a template for it.
    ///
    /// # Errors
    /// The range is malformed, or the template cannot be used.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let template = self.template().clone();
        template::apply(template.as_deref(), &self.conf_dir, cidr).await
    }

    /// Has another template used from the next range on.
    pub fn set_template(&self, template: Option<PathBuf>) {
        *self.template() = template;
    }

    fn template(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.template.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no pod could get a network now, if so. Runs nothing: the answer is the last one known.
    pub async fn problem(&self) -> Option<String> {
        self.readiness.state().await.problem.clone()
    }

    /// All that is to be said of the network.
    pub async fn report(&self) -> NetworkReport {
        NetworkReport {
            state: NetworkState::clone(&*self.readiness.state().await),
            attachments: self.cni.attachments().await.map_or(0, |keys| keys.len()),
            pending: self.retries.list(),
        }
    }
}

fn failed(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Network {
        action,
        source: Box::new(source),
    }
}
