//! Between a container's record and what others see of it.

use std::path::Path;
use std::sync::Arc;

use zcri_config::WlmTarget;

use super::config::ContainerConfig;
use super::spec;
use super::state::{ContainerState, ContainerView, Exited};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::node::Node;
use crate::state::{ContainerPhase, ContainerRecord};

/// The view of a container that a record describes.
///
/// # Errors
/// The record's configuration is not understood.
pub(crate) fn view_of(
    node: &Node,
    record: &ContainerRecord,
    log_directory: Option<&Path>,
) -> Result<ContainerView> {
    let broken = |what: &str| {
        Error::node(
            format!("read the record of container {}", record.id),
            what.to_owned(),
        )
    };
    let id = ContainerId::parse(&record.id).ok_or_else(|| broken("bad id"))?;
    let pod_id = PodId::parse(&record.pod_id).ok_or_else(|| broken("bad pod id"))?;
    let config = (node.wire.decode_container)(&record.config)?;
    view_with(node, record, id, pod_id, config, log_directory)
}

/// The same of a container whose parts are known.
pub(super) fn view_with(
    node: &Node,
    record: &ContainerRecord,
    id: ContainerId,
    pod_id: PodId,
    config: ContainerConfig,
    log_directory: Option<&Path>,
) -> Result<ContainerView> {
    let resources = match record.resources.as_slice() {
        [] => config.resources.clone(),
        updated => (node.wire.decode_resources)(updated)?,
    };
    let state = match &record.phase {
        ContainerPhase::Running { started_at_ns, pid } => ContainerState::Running {
            started_at_ns: *started_at_ns,
            pid: *pid,
        },
        ContainerPhase::Exited {
            started_at_ns,
            finished_at_ns,
            exit_code,
            reason,
            message,
        } => ContainerState::Exited(Exited {
            started_at_ns: *started_at_ns,
            finished_at_ns: *finished_at_ns,
            exit_code: *exit_code,
            reason: reason.clone(),
            message: message.clone(),
        }),
        _ => ContainerState::Created,
    };
    // Without the pod's directory there is nowhere to log to (api.proto, ContainerConfig.log_path).
    let log = log_directory
        .zip(config.log_path.as_deref())
        .map(|(dir, path)| dir.join(path));
    Ok(ContainerView {
        bundle: node.container_bundle(id.as_str()),
        upper: node.overlay(id.as_str()).join("upper"),
        id,
        pod_id,
        config: Arc::new(config),
        resources,
        image_id: record.image_id.clone(),
        image_ref: record.image_ref.clone(),
        stop_signal: record.stop_signal.clone(),
        cgroup: record.cgroup.clone(),
        wlm: wlm_of(node, &record.id),
        user: record.user.clone(),
        log,
        created_at_ns: record.created_at_ns,
        state,
        readings: Arc::default(),
    })
}

/// As the container was told when it was made: the rules may have changed since.
fn wlm_of(node: &Node, id: &str) -> Option<WlmTarget> {
    if !node.platform.has_workload_manager() {
        return None;
    }
    let spec = std::fs::read(node.container_bundle(id).join("config.json")).ok()?;
    spec::zos::wlm_of(&serde_json::from_slice(&spec).ok()?)
}

impl From<&ContainerState> for ContainerPhase {
    fn from(state: &ContainerState) -> Self {
        match state.clone() {
            ContainerState::Created => ContainerPhase::Created,
            ContainerState::Running { started_at_ns, pid } => {
                ContainerPhase::Running { started_at_ns, pid }
            }
            ContainerState::Exited(Exited {
                started_at_ns,
                finished_at_ns,
                exit_code,
                reason,
                message,
            }) => ContainerPhase::Exited {
                started_at_ns,
                finished_at_ns,
                exit_code,
                reason,
                message,
            },
        }
    }
}
