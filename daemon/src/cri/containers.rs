//! Calls about containers.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use zcri_proto::v1 as api;

use super::convert;
use super::deprecated;
use super::filter::{id_matches, labels_match};
use super::info;
use super::pods::required;
use crate::container::config::{ContainerConfig, signal};
use crate::container::spec::{self, NodeFacts, effective_resources};
use crate::container::{self, ContainerState, ContainerView, Exited};
use crate::error::{Error, Result};
use crate::pod::{Pods, StopSignal};

/// What stops a container that names no signal.
const SIGTERM: u32 = 15;

pub(super) async fn create(
    pods: &Arc<Pods>,
    request: api::CreateContainerRequest,
) -> Result<api::CreateContainerResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    let mut given = request.config.unwrap_or_default();
    name_mounted_images(pods, &mut given);
    let config = convert::container_config(&given)?;
    convert::config_of_pod(request.sandbox_config.as_ref())?;
    deprecated::of_container(&given, &pods.node().deprecations);
    tracing::info!(
        name = config.name,
        attempt = config.attempt,
        image = config.image.image,
        "create container"
    );
    let id = pods
        .create_container(&request.pod_sandbox_id, config, given.encode_to_vec())
        .await?;
    tracing::info!(container = %id, "container is created");
    Ok(api::CreateContainerResponse {
        container_id: id.to_string(),
    })
}

/// Puts the ids of mounted images into the configuration, where statuses tell them (api.proto, ImageSpec.image_ref).
fn name_mounted_images(pods: &Pods, config: &mut api::ContainerConfig) {
    for image in config.mounts.iter_mut().filter_map(|m| m.image.as_mut()) {
        // One that is not here is found missing when it is to be mounted.
        if let Some(found) = pods.node().images.find(&image.image) {
            image.image_ref = found.id.to_string();
        }
    }
}

pub(super) async fn start(
    pods: &Arc<Pods>,
    request: api::StartContainerRequest,
) -> Result<api::StartContainerResponse> {
    required("container_id", &request.container_id)?;
    pods.start_container(&request.container_id).await?;
    tracing::info!("container is started");
    Ok(api::StartContainerResponse {})
}

pub(super) async fn stop(
    pods: &Arc<Pods>,
    request: api::StopContainerRequest,
) -> Result<api::StopContainerResponse> {
    required("container_id", &request.container_id)?;
    let grace = convert::seconds("timeout", request.timeout)?;
    let named = pods
        .find_container(&request.container_id)
        .map(|(_, view)| view.stop_signal.clone());
    let number = named
        .as_deref()
        .and_then(signal::number)
        .map_or(SIGTERM, i32::unsigned_abs);
    pods.stop_container(&request.container_id, grace, StopSignal(number))
        .await?;
    Ok(api::StopContainerResponse {})
}

pub(super) async fn remove(
    pods: &Arc<Pods>,
    request: api::RemoveContainerRequest,
) -> Result<api::RemoveContainerResponse> {
    required("container_id", &request.container_id)?;
    pods.remove_container(&request.container_id).await?;
    Ok(api::RemoveContainerResponse {})
}

pub(super) async fn update(
    pods: &Arc<Pods>,
    request: api::UpdateContainerResourcesRequest,
) -> Result<api::UpdateContainerResourcesResponse> {
    required("container_id", &request.container_id)?;
    let resources = convert::resources("linux", &request.linux.unwrap_or_default())?;
    let (pod, container) = pods.container(&request.container_id)?;
    pod.update_container(container.id.clone(), resources)
        .await?;
    Ok(api::UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_log(
    pods: &Arc<Pods>,
    request: api::ReopenContainerLogRequest,
) -> Result<api::ReopenContainerLogResponse> {
    required("container_id", &request.container_id)?;
    let (pod, container) = pods.container(&request.container_id)?;
    container.require_running("reopen its log")?;
    let shim = pod.shim("reopen a log")?;
    shim.reopen_log(container.id.as_str())
        .await
        .map_err(|source| Error::Runtime {
            action: "reopen the log",
            id: container.id.to_string(),
            source: Box::new(source),
        })?;
    Ok(api::ReopenContainerLogResponse {})
}

pub(super) async fn exec_sync(
    pods: &Arc<Pods>,
    request: api::ExecSyncRequest,
) -> Result<api::ExecSyncResponse> {
    required("container_id", &request.container_id)?;
    let command = convert::command("cmd", &request.cmd)?;
    // api.proto: 0 is no limit.
    let timeout =
        Some(convert::seconds("timeout", request.timeout)?).filter(|given| !given.is_zero());
    let (pod, container) = pods.container(&request.container_id)?;
    container.require_running("run a command")?;
    let shim = pod.shim("run a command")?;
    let output = container::exec_sync(pods.node(), shim, &container, command, timeout).await?;
    Ok(api::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}

pub(super) async fn list(
    pods: &Arc<Pods>,
    request: api::ListContainersRequest,
) -> Result<api::ListContainersResponse> {
    let views = matching(pods, request.filter)?;
    Ok(api::ListContainersResponse {
        containers: views.iter().map(|view| item(view)).collect(),
    })
}

/// The containers that a filter lets through.
///
/// # Errors
/// The state asked for is none.
pub(super) fn matching(
    pods: &Pods,
    filter: Option<api::ContainerFilter>,
) -> Result<Vec<Arc<ContainerView>>> {
    let filter = filter.unwrap_or_default();
    let wanted = filter.state.map(|given| given.state);
    let wanted = wanted.map(|value| convert::known::<api::ContainerState>("filter.state", value));
    let wanted = wanted.transpose()?;
    let mut containers = Vec::new();
    for pod in pods.views() {
        if !id_matches(pod.id.as_str(), &filter.pod_sandbox_id) {
            continue;
        }
        let matching = pod.containers.values().filter(|view| {
            id_matches(view.id.as_str(), &filter.id)
                && wanted.is_none_or(|wanted| wanted == state(view))
                && labels_match(&view.config.labels, &filter.label_selector)
        });
        containers.extend(matching.cloned());
    }
    Ok(containers)
}

pub(super) async fn status(
    pods: &Arc<Pods>,
    request: api::ContainerStatusRequest,
) -> Result<api::ContainerStatusResponse> {
    required("container_id", &request.container_id)?;
    let (pod, view) = pods.container(&request.container_id)?;
    let info = if request.verbose {
        info::container(pods.node(), view.clone(), pod.view().handler.clone()).await
    } else {
        HashMap::new()
    };
    Ok(api::ContainerStatusResponse {
        status: Some(container_status(&view, &pods.node().facts)),
        info,
    })
}

fn state(view: &ContainerView) -> api::ContainerState {
    match view.state {
        ContainerState::Created => api::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => api::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => api::ContainerState::ContainerExited,
    }
}

pub(super) fn metadata(config: &ContainerConfig) -> api::ContainerMetadata {
    api::ContainerMetadata {
        name: config.name.clone(),
        attempt: config.attempt,
    }
}

pub(super) fn item(view: &ContainerView) -> api::Container {
    api::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod_id.to_string(),
        metadata: Some(metadata(&view.config)),
        image: Some(image(view)),
        image_ref: view.image_ref.clone(),
        state: state(view).into(),
        created_at: view.created_at_ns,
        labels: view.config.labels.clone().into_iter().collect(),
        annotations: view.config.annotations.clone().into_iter().collect(),
        image_id: view.image_id.clone(),
    }
}

/// The image by the name that was asked for: what specs and people compare.
fn image(view: &ContainerView) -> api::ImageSpec {
    let mut image = convert::image_ref_to_proto(&view.config.image);
    if !image.user_specified_image.is_empty() {
        image.image.clone_from(&image.user_specified_image);
    }
    image
}

pub(super) fn container_status(view: &ContainerView, facts: &NodeFacts) -> api::ContainerStatus {
    let never = Exited {
        started_at_ns: 0,
        finished_at_ns: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
    };
    let exited = match &view.state {
        ContainerState::Created => never,
        ContainerState::Running { started_at_ns, .. } => Exited {
            started_at_ns: *started_at_ns,
            ..never
        },
        ContainerState::Exited(exited) => exited.clone(),
    };
    let (uid, gid, groups) = &view.user;
    api::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(metadata(&view.config)),
        state: state(view).into(),
        created_at: view.created_at_ns,
        started_at: exited.started_at_ns,
        finished_at: exited.finished_at_ns,
        exit_code: exited.exit_code,
        image: Some(image(view)),
        image_ref: view.image_ref.clone(),
        reason: exited.reason,
        message: exited.message,
        labels: view.config.labels.clone().into_iter().collect(),
        annotations: annotations(view),
        mounts: convert::mounts_to_proto(&view.config.mounts),
        log_path: view
            .log
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: Some(api::ContainerResources {
            linux: Some(convert::resources_to_proto(&effective_resources(
                &view.resources,
                facts,
            ))),
            windows: None,
        }),
        image_id: view.image_id.clone(),
        user: Some(convert::user_to_proto(*uid, *gid, groups)),
        stop_signal: convert::stop_signal_to_proto(&view.stop_signal).into(),
    }
}

/// The annotations of the request, and on z/OS what the container is to the workload manager.
fn annotations(view: &ContainerView) -> HashMap<String, String> {
    let mut all: HashMap<_, _> = view.config.annotations.clone().into_iter().collect();
    let wlm = view.wlm.clone().unwrap_or_default();
    for (name, value) in [
        (spec::zos::CLASS, wlm.class),
        (spec::zos::QUALIFIER, wlm.qualifier),
    ] {
        all.extend(value.map(|value| (name.to_owned(), value)));
    }
    all
}
