//! What a starting daemon makes of the records: the pods that live go on, what was half made is unmade, what was
//! half removed is removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::actor::{self, Owned, PodParts};
use super::config::PodConfig;
use super::handle::PodHandle;
use super::pods::Pods;
use super::teardown;
use crate::container::{self, ContainerState, ContainerView, Exited};
use crate::error::{Chain, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::messages;
use crate::node::{Node, blocking};
use crate::runtime::{Shim, ShimError, exit_file};
use crate::state::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};

/// Time for a shim to say what became of a container, [`START_PATIENCE`] included.
const SHIM_PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
/// Time for a start that was under way when the last daemon died; an OCI runtime takes a fraction of it.
const START_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// How often such a start is looked at.
const START_PERIOD: std::time::Duration = std::time::Duration::from_millis(5);

/// What is to be done about a pod's record. Pure: from the record and this boot's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// It is whole: go on with it.
    Resume,
    /// Its maker died, or its remover: take it down.
    TakeDown,
    /// It lived before the machine was started again: keep its record, nothing else of it is left.
    Dead,
}

fn plan(record: &PodRecord, boot_id: &str) -> Plan {
    match record.phase {
        PodPhase::Creating | PodPhase::Removing => Plan::TakeDown,
        PodPhase::Ready | PodPhase::Stopped if record.boot_id != boot_id => Plan::Dead,
        PodPhase::Ready | PodPhase::Stopped => Plan::Resume,
    }
}

impl Pods {
    /// Reads the records and brings the node to what they say; then garbage of images may be collected.
    ///
    /// # Errors
    /// The records cannot be listed. A single bad record is logged and left alone.
    pub async fn recover(node: Arc<Node>) -> Result<Arc<Self>> {
        node.network.start().await?;
        let loaded = {
            let node = node.clone();
            blocking(move || {
                let loaded = node.records.load();
                loaded.map_err(|e| Error::node("read the records", e))
            })
            .await?
        };
        for broken in &loaded.broken {
            tracing::error!(zcr = messages::RECORD_BROKEN, error = %Chain(broken), "a record is broken and was left alone");
        }
        let mut whole = loaded.broken.is_empty();
        let mut containers: BTreeMap<String, Vec<ContainerRecord>> = BTreeMap::new();
        for record in loaded.containers {
            containers
                .entry(record.pod_id.clone())
                .or_default()
                .push(record);
        }
        let mut recovering = tokio::task::JoinSet::new();
        for record in loaded.pods {
            let own = containers.remove(&record.id).unwrap_or_default();
            recovering.spawn(recover_pod(node.clone(), record, own));
        }
        for orphan in containers.into_values().flatten() {
            // A pod whose record is broken may be running: its containers are left alone with it.
            if node.records.has_pod(&orphan.pod_id) {
                tracing::error!(
                    container = orphan.id,
                    pod = orphan.pod_id,
                    "left alone with its pod"
                );
                whole = false;
                continue;
            }
            recovering.spawn(remove_orphan(node.clone(), orphan));
        }
        let handles: Vec<PodHandle> = recovering.join_all().await.into_iter().flatten().collect();
        // What is not understood may stand on any layer.
        if whole {
            node.images.collect_garbage().await;
            sweep_network(&node, &handles).await?;
        }
        tracing::info!(zcr = messages::RECOVERED, pods = handles.len(), "recovered");
        Ok(Self::new(node, handles))
    }
}

/// Finds the attachments of pods that no record knows, and has them deleted in the background: a plugin may take its
/// time.
async fn sweep_network(node: &Arc<Node>, handles: &[PodHandle]) -> Result<()> {
    let known = handles.iter().map(|pod| pod.view().id.to_string());
    let strays = node.network.strays(&known.collect()).await?;
    let node = Arc::clone(node);
    tokio::spawn(async move { node.network.sweep(strays).await });
    Ok(())
}

async fn recover_pod(
    node: Arc<Node>,
    mut record: PodRecord,
    mut containers: Vec<ContainerRecord>,
) -> Option<PodHandle> {
    let id = PodId::parse(&record.id)?;
    let plan = plan(&record, &node.boot_id);
    let decoded = (node.wire.decode_pod)(&record.config);
    let config = decoded.and_then(|config| node.platform.adopt_pod(config));
    // Until they surely are gone, its ports are nobody else's.
    if let Ok(config) = &config
        && record.network_attached
    {
        node.network.remember(&id, config);
    }
    if plan == Plan::TakeDown {
        for container in containers.drain(..) {
            remove_orphan(node.clone(), container).await;
        }
        match teardown::unmake(&node, &id, &mut record, None).await {
            Ok(()) => return None,
            // It stays known, as stopped, so that the next removal tries again.
            Err(error) => {
                tracing::error!(pod = %id, error = %Chain(&error), "a pod is only partly taken down")
            }
        }
        record.phase = PodPhase::Stopped;
    }
    let config = match config {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::error!(pod = %id, error = %Chain(&error), "the record of a pod is not understood");
            return None;
        }
    };
    let stopped = record.phase == PodPhase::Stopped || plan == Plan::Dead;
    if record.network_attached && stopped && plan != Plan::TakeDown {
        detach_in_background(&node, &id);
    }
    let shim = match plan {
        Plan::Resume => Shim::find(&node.pod_bundle(id.as_str())).await,
        Plan::TakeDown | Plan::Dead => None,
    };
    if plan == Plan::Resume && shim.is_none() {
        tracing::error!(zcr = messages::SHIM_GONE, pod = %id, "the shim of this pod is gone");
    }
    let label = node.confinement.recall(record.selinux_label.as_deref());
    let mut owned = BTreeMap::new();
    for container in containers {
        if let Some((id, container)) =
            recover_container(&node, shim.as_ref(), &record, &config, container).await
        {
            owned.insert(id, container);
        }
    }
    Some(actor::spawn(
        node,
        PodParts {
            id,
            config,
            record,
            label: label.map(Arc::new),
            shim,
            containers: owned,
        },
    ))
}

/// Goes on with what the last daemon could not do, or a boot has left to do. A failure is tried again by itself.
fn detach_in_background(node: &Arc<Node>, id: &PodId) {
    let (node, id) = (node.clone(), id.clone());
    tokio::spawn(async move {
        if let Err(error) = node.network.detach(id.as_str()).await {
            tracing::debug!(pod = %id, error = %Chain(&error), "the network of a stopped pod is still attached");
        }
    });
}

async fn recover_container(
    node: &Arc<Node>,
    shim: Option<&Shim>,
    pod: &PodRecord,
    config: &PodConfig,
    mut record: ContainerRecord,
) -> Option<(ContainerId, Owned)> {
    let id = ContainerId::parse(&record.id)?;
    if matches!(
        record.phase,
        ContainerPhase::Creating | ContainerPhase::Removing
    ) {
        remove_orphan(node.clone(), record).await;
        return None;
    }
    let view = {
        let (node, record) = (node.clone(), record.clone());
        let log_directory = config.log_directory.clone();
        blocking(move || {
            if let Err(error) = node.images.lease_layers(&record.id, &record.layers) {
                tracing::warn!(container = record.id, error = %Chain(&error), "layers of a container are missing");
            }
            container::view_of(&node, &record, log_directory.as_deref())
        })
        .await
    };
    let view = match view {
        Ok(view) => Arc::new(view),
        Err(error) => {
            tracing::error!(container = %id, error = %Chain(&error), "the record of a container is not understood");
            return None;
        }
    };
    let state = observe(node, shim, pod, &record, &view).await;
    if let (Some(shim), ContainerState::Running { .. }) = (shim, &state) {
        end_sessions(shim, &view).await;
    }
    record.phase = ContainerPhase::from(&state);
    if let Err(error) = node.record_container(record.clone()).await {
        tracing::warn!(container = %id, error = %Chain(&error), "what was found is not recorded");
    }
    if state != ContainerState::Created {
        // The last daemon may have died between the start and this.
        let bundle = view.bundle.clone();
        if let Err(error) = blocking(move || container::release_mounts(&bundle)).await {
            tracing::warn!(container = %id, error = %Chain(&error), "mounts for its start are left");
        }
    }
    let mut view = ContainerView::clone(&view);
    view.state = state;
    let view = Arc::new(view);
    Some((id, Owned { record, view }))
}

/// Ends what sessions of the last daemon left: commands without an owner, names of FIFOs, an input that was its.
async fn end_sessions(shim: &Shim, view: &ContainerView) {
    if let Err(error) = shim.end_execs(view.id.as_str()).await {
        tracing::warn!(container = %view.id, error = %Chain(&error), "commands of the last daemon may be left");
    }
    let bundle = view.bundle.clone();
    let removed = blocking(move || {
        container::remove_left_fifos(&bundle);
        Ok(())
    })
    .await;
    if let Err(error) = removed {
        tracing::warn!(container = %view.id, error = %Chain(&error), "names of FIFOs may be left");
    }
    container::close_taken_stdin(shim, view).await;
}

/// What became of a container while nobody looked.
async fn observe(
    node: &Arc<Node>,
    shim: Option<&Shim>,
    pod: &PodRecord,
    record: &ContainerRecord,
    view: &Arc<ContainerView>,
) -> ContainerState {
    let started_at_ns = match &record.phase {
        ContainerPhase::Exited { .. } => return view.state.clone(),
        ContainerPhase::Created if record.boot_id == node.boot_id => return view.state.clone(),
        ContainerPhase::Created => 0,
        ContainerPhase::Running { started_at_ns, .. } => *started_at_ns,
        _ => crate::time::now_ns(),
    };
    if record.boot_id != node.boot_id {
        return ContainerState::Exited(Exited::unseen(started_at_ns, "the node was started again"));
    }
    if let Some(exit) = exit_file(&view.bundle).await {
        return ContainerState::Exited(Exited::seen(started_at_ns, exit));
    }
    match shim {
        Some(shim) => match patiently(settled(shim, record)).await {
            Ok(Some(pid)) if pid > 0 => ContainerState::Running { started_at_ns, pid },
            Ok(None) => match patiently(shim.wait(record.id.as_str(), "")).await {
                Ok((code, at_ns)) => ContainerState::Exited(Exited::seen(
                    started_at_ns,
                    crate::runtime::Exit {
                        code,
                        at_ns,
                        oom_killed: false,
                    },
                )),
                Err(error) => ContainerState::Exited(Exited::unseen(
                    started_at_ns,
                    &Chain(&error).to_string(),
                )),
            },
            // It does not say. What the record says holds until it does: its end will be told.
            Err(error) if !error.is_not_found() => {
                tracing::warn!(container = record.id, error = %Chain(&error), "the shim does not answer for it");
                let pid = view.state.pid().unwrap_or(0);
                ContainerState::Running { started_at_ns, pid }
            }
            // The daemon died before it told the shim to start: nothing ran.
            _ if record.phase == ContainerPhase::Starting => {
                if let Err(error) = shim.delete(record.id.as_str(), "").await {
                    tracing::debug!(container = record.id, %error, "the shim still holds a container");
                }
                ContainerState::Created
            }
            _ => ContainerState::Exited(Exited::unseen(started_at_ns, "the shim does not know it")),
        },
        None => {
            teardown::kill_orphan(node, node.handlers.get(&pod.handler).ok(), view).await;
            ContainerState::Exited(Exited::unseen(
                started_at_ns,
                "the pod's shim ended before the container",
            ))
        }
    }
}

/// A shim that is stuck must not keep the daemon from serving the other pods.
async fn patiently<T>(call: impl Future<Output = Result<T, ShimError>>) -> Result<T, ShimError> {
    match tokio::time::timeout(SHIM_PATIENCE, call).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(ShimError::Silent {
            seconds: SHIM_PATIENCE.as_secs(),
        }),
    }
}

/// Whether the container runs, as [`Shim::running`]; a start that the last daemon asked for is let finish first, for
/// the shim refuses to forget a container that is being started.
async fn settled(shim: &Shim, record: &ContainerRecord) -> Result<Option<u32>, ShimError> {
    let deadline = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        let found = shim.running(record.id.as_str()).await?;
        if found != Some(0)
            || record.phase != ContainerPhase::Starting
            || tokio::time::Instant::now() > deadline
        {
            return Ok(found);
        }
        // Fails when it is under way already.
        if let Ok(pid) = shim.start(record.id.as_str(), "").await {
            return Ok(Some(pid));
        }
        tokio::time::sleep(START_PERIOD).await;
    }
}

/// Removes a container that nobody owns.
async fn remove_orphan(node: Arc<Node>, record: ContainerRecord) -> Option<PodHandle> {
    let id = ContainerId::parse(&record.id)?;
    if let Ok(shim) = Shim::connect(&node.pod_bundle(&record.pod_id)).await {
        let ended = shim.kill(id.as_str(), "", 9, true).await;
        if ended.is_ok() {
            drop(patiently(shim.wait(id.as_str(), "")).await);
        }
        if let Err(error) = shim.delete(id.as_str(), "").await {
            tracing::warn!(container = %id, %error, "the shim still holds a container that is being removed");
        }
    }
    if let Err(error) = container::unmake(&node, &id).await {
        tracing::error!(container = %id, error = %Chain(&error), "a container is only partly removed");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_has_a_plan() {
        let record = |phase, boot: &str| PodRecord {
            id: String::new(),
            boot_id: boot.into(),
            config: Vec::new(),
            handler: String::new(),
            created_at_ns: 0,
            phase,
            addresses: Vec::new(),
            network_attached: false,
            stack_cgroup: None,
            selinux_label: None,
            init_pid: None,
        };
        for boot in ["this", "before"] {
            assert_eq!(
                plan(&record(PodPhase::Creating, boot), "this"),
                Plan::TakeDown
            );
            assert_eq!(
                plan(&record(PodPhase::Removing, boot), "this"),
                Plan::TakeDown
            );
        }
        for phase in [PodPhase::Ready, PodPhase::Stopped] {
            assert_eq!(plan(&record(phase, "this"), "this"), Plan::Resume);
            assert_eq!(plan(&record(phase, "before"), "this"), Plan::Dead);
        }
    }
}
