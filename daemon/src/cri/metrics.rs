//! Calls about metrics: what the kubelet passes on where cAdvisor does not run.

use std::sync::Arc;

use zcri_proto::v1 as api;

use crate::error::Result;
use crate::pod::{PodView, Pods};
use crate::stats::metrics::descriptors::{ALL, BASE_LABELS, Kind};
use crate::stats::metrics::{self, PodMetrics, Sample};

pub(super) async fn descriptors(
    _: &Arc<Pods>,
    _: api::ListMetricDescriptorsRequest,
) -> Result<api::ListMetricDescriptorsResponse> {
    let descriptors = ALL
        .iter()
        .map(|one| api::MetricDescriptor {
            name: one.name.into(),
            help: one.help.into(),
            label_keys: BASE_LABELS
                .iter()
                .chain(one.labels)
                .map(|&label| label.to_owned())
                .collect(),
        })
        .collect();
    Ok(api::ListMetricDescriptorsResponse { descriptors })
}

pub(super) async fn pods(
    pods: &Arc<Pods>,
    _: api::ListPodSandboxMetricsRequest,
) -> Result<api::ListPodSandboxMetricsResponse> {
    let views = super::stats::ready_pods(pods, None);
    Ok(api::ListPodSandboxMetricsResponse {
        pod_metrics: messages(pods, views).await?,
    })
}

/// Reads pods and says what was read.
pub(super) async fn messages(
    pods: &Pods,
    views: Vec<Arc<PodView>>,
) -> Result<Vec<api::PodSandboxMetrics>> {
    let read = metrics::pods(pods.node(), views).await?;
    Ok(read.into_iter().map(message).collect())
}

fn message(pod: PodMetrics) -> api::PodSandboxMetrics {
    let samples = |samples: Vec<Sample>| samples.into_iter().map(sample).collect();
    api::PodSandboxMetrics {
        pod_sandbox_id: pod.view.id.to_string(),
        metrics: samples(pod.samples),
        container_metrics: pod
            .containers
            .into_iter()
            .map(|(view, metrics)| api::ContainerMetrics {
                container_id: view.id.to_string(),
                metrics: samples(metrics),
            })
            .collect(),
    }
}

fn sample(sample: Sample) -> api::Metric {
    let kind = match sample.descriptor.kind {
        Kind::Counter => api::MetricType::Counter,
        Kind::Gauge => api::MetricType::Gauge,
    };
    api::Metric {
        name: sample.descriptor.name.into(),
        // 0 for what was read just now (api.proto, Metric).
        timestamp: sample.at_ns.unwrap_or(0),
        metric_type: kind.into(),
        label_values: sample.labels,
        value: Some(api::UInt64Value {
            value: sample.value,
        }),
    }
}
