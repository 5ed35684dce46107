//! Calls about pod sandboxes.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use zcri_proto::v1 as api;

use super::convert;
use super::deprecated;
use super::events::container_statuses;
use super::filter::{id_matches, labels_match};
use super::info;
use crate::error::{Error, Result};
use crate::pod::config::PodConfig;
use crate::pod::{PodState, PodView, Pods};
use crate::time::now_ns;

pub(super) async fn run(
    pods: &Arc<Pods>,
    request: api::RunPodSandboxRequest,
) -> Result<api::RunPodSandboxResponse> {
    let given = request.config.unwrap_or_default();
    let config = pods
        .node()
        .platform
        .adopt_pod(convert::pod_config(&given)?)?;
    deprecated::of_pod(&given, &pods.node().deprecations);
    tracing::info!(
        name = config.name,
        namespace = config.namespace,
        attempt = config.attempt,
        "run pod sandbox"
    );
    let id = pods
        .run(config, given.encode_to_vec(), request.runtime_handler)
        .await?;
    tracing::info!(pod = %id, "pod sandbox is ready");
    Ok(api::RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    })
}

pub(super) async fn stop(
    pods: &Arc<Pods>,
    request: api::StopPodSandboxRequest,
) -> Result<api::StopPodSandboxResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    pods.stop(&request.pod_sandbox_id).await?;
    Ok(api::StopPodSandboxResponse {})
}

pub(super) async fn remove(
    pods: &Arc<Pods>,
    request: api::RemovePodSandboxRequest,
) -> Result<api::RemovePodSandboxResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    pods.remove(&request.pod_sandbox_id).await?;
    Ok(api::RemovePodSandboxResponse {})
}

pub(super) async fn status(
    pods: &Arc<Pods>,
    request: api::PodSandboxStatusRequest,
) -> Result<api::PodSandboxStatusResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    let pod = pods
        .lookup(&request.pod_sandbox_id)?
        .ok_or_else(|| Error::no_pod(&request.pod_sandbox_id))?;
    // The clock before the picture: what happens in between is told by an event that is newer than this answer.
    let timestamp = now_ns();
    let view = pod.view();
    let info = if request.verbose {
        info::pod(pods.node(), view.clone()).await
    } else {
        HashMap::new()
    };
    Ok(api::PodSandboxStatusResponse {
        status: Some(pod_status(&view)),
        info,
        containers_statuses: container_statuses(&view, &pods.node().facts),
        timestamp,
    })
}

pub(super) async fn update_resources(
    pods: &Arc<Pods>,
    request: api::UpdatePodSandboxResourcesRequest,
) -> Result<api::UpdatePodSandboxResourcesResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    let parse = |field: &str, given: Option<api::LinuxContainerResources>| {
        given
            .map(|given| convert::resources(field, &given))
            .transpose()
    };
    let overhead = parse("overhead", request.overhead)?;
    let resources = parse("resources", request.resources)?;
    let pod = pods
        .lookup(&request.pod_sandbox_id)?
        .ok_or_else(|| Error::no_pod(&request.pod_sandbox_id))?;
    pod.update(overhead, resources).await?;
    Ok(api::UpdatePodSandboxResourcesResponse {})
}

pub(super) async fn list(
    pods: &Arc<Pods>,
    request: api::ListPodSandboxRequest,
) -> Result<api::ListPodSandboxResponse> {
    let views = matching(pods, request.filter)?;
    Ok(api::ListPodSandboxResponse {
        items: views.iter().map(|view| item(view)).collect(),
    })
}

/// The pods that a filter lets through.
///
/// # Errors
/// The state asked for is none.
pub(super) fn matching(
    pods: &Pods,
    filter: Option<api::PodSandboxFilter>,
) -> Result<Vec<Arc<PodView>>> {
    let filter = filter.unwrap_or_default();
    let wanted = filter.state.map(|given| given.state);
    let wanted = wanted.map(|value| convert::known::<api::PodSandboxState>("filter.state", value));
    let wanted = wanted.transpose()?;
    let mut views = pods.views();
    views.retain(|view| {
        id_matches(view.id.as_str(), &filter.id)
            && wanted.is_none_or(|wanted| wanted == state(view))
            && labels_match(&view.config.labels, &filter.label_selector)
    });
    Ok(views)
}

/// For fields that must not be empty.
///
/// # Errors
/// [`Error::Invalid`] with the field's name.
pub(super) fn required(field: &'static str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(Error::Invalid {
            field,
            value: String::new(),
            reason: "must not be empty".into(),
        });
    }
    Ok(())
}

fn state(view: &PodView) -> api::PodSandboxState {
    match view.state {
        PodState::Ready => api::PodSandboxState::SandboxReady,
        PodState::NotReady => api::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn metadata(config: &PodConfig) -> api::PodSandboxMetadata {
    api::PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

pub(super) fn item(view: &PodView) -> api::PodSandbox {
    api::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(metadata(&view.config)),
        state: state(view).into(),
        created_at: view.created_at_ns,
        labels: view.config.labels.clone().into_iter().collect(),
        annotations: view.config.annotations.clone().into_iter().collect(),
        runtime_handler: view.handler.clone(),
    }
}

pub(super) fn pod_status(view: &PodView) -> api::PodSandboxStatus {
    let mut addresses = view.addresses.iter().cloned();
    api::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(metadata(&view.config)),
        state: state(view).into(),
        created_at: view.created_at_ns,
        // Empty on the host's network: the kubelet then takes the node's address.
        network: Some(api::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| api::PodIp { ip }).collect(),
        }),
        linux: Some(api::LinuxPodSandboxStatus {
            namespaces: Some(api::Namespace {
                options: Some(convert::namespaces_to_proto(&view.config.namespaces)),
            }),
        }),
        labels: view.config.labels.clone().into_iter().collect(),
        annotations: view.config.annotations.clone().into_iter().collect(),
        runtime_handler: view.handler.clone(),
    }
}
