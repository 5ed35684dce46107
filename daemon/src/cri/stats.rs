//! Calls about usage.

use std::sync::Arc;

use zcri_proto::v1 as api;

use super::filter::{id_matches, labels_match};
use super::pods::required;
use crate::container::{ContainerState, ContainerView};
use crate::error::Result;
use crate::pod::Pods;
use crate::stats::{self, ContainerUsage};

pub(super) async fn container(
    pods: &Arc<Pods>,
    request: api::ContainerStatsRequest,
) -> Result<api::ContainerStatsResponse> {
    required("container_id", &request.container_id)?;
    let (_, view) = pods.container(&request.container_id)?;
    let usage = stats::read(pods.node(), vec![view.clone()]).await?;
    Ok(api::ContainerStatsResponse {
        stats: usage.first().map(|usage| message(pods, &view, usage)),
    })
}

pub(super) async fn containers(
    pods: &Arc<Pods>,
    request: api::ListContainerStatsRequest,
) -> Result<api::ListContainerStatsResponse> {
    let filter = request.filter.unwrap_or_default();
    let mut views = Vec::new();
    for pod in pods.views() {
        if !id_matches(pod.id.as_str(), &filter.pod_sandbox_id) {
            continue;
        }
        let matching = pod.containers.values().filter(|view| {
            matches!(view.state, ContainerState::Running { .. })
                && id_matches(view.id.as_str(), &filter.id)
                && labels_match(&view.config.labels, &filter.label_selector)
        });
        views.extend(matching.cloned());
    }
    let usage = stats::read(pods.node(), views.clone()).await?;
    let stats = views
        .iter()
        .zip(&usage)
        .map(|(view, usage)| message(pods, view, usage))
        .collect();
    Ok(api::ListContainerStatsResponse { stats })
}

fn message(pods: &Pods, view: &ContainerView, usage: &ContainerUsage) -> api::ContainerStats {
    let value = |number: Option<u64>| number.map(|value| api::UInt64Value { value });
    let at = usage.at_ns;
    let group = usage.group;
    let limit_left = group
        .memory_limit
        .zip(group.working_set)
        .map(|(limit, used)| limit.saturating_sub(used));
    api::ContainerStats {
        attributes: Some(api::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(api::ContainerMetadata {
                name: view.config.name.clone(),
                attempt: view.config.attempt,
            }),
            labels: view.config.labels.clone().into_iter().collect(),
            annotations: view.config.annotations.clone().into_iter().collect(),
        }),
        cpu: group.cpu_ns.map(|ns| api::CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(Some(ns)),
            usage_nano_cores: value(usage.nano_cores),
            psi: None,
        }),
        memory: group.memory_usage.map(|bytes| api::MemoryUsage {
            timestamp: at,
            working_set_bytes: value(group.working_set),
            available_bytes: value(limit_left),
            usage_bytes: value(Some(bytes)),
            rss_bytes: value(group.rss),
            page_faults: value(group.page_faults),
            major_page_faults: value(group.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(api::FilesystemUsage {
            timestamp: at,
            fs_id: Some(api::FilesystemIdentifier {
                mountpoint: pods
                    .node()
                    .root
                    .join("overlay")
                    .to_string_lossy()
                    .into_owned(),
            }),
            used_bytes: value(Some(usage.layer.bytes)),
            inodes_used: value(Some(usage.layer.inodes)),
        }),
        swap: group.swap_usage.map(|bytes| api::SwapUsage {
            timestamp: at,
            swap_available_bytes: None,
            swap_usage_bytes: value(Some(bytes)),
        }),
        io: None,
    }
}
