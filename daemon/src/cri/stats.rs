//! Calls about usage.

use std::path::Path;
use std::sync::Arc;

use zcri_proto::v1 as api;
use zcri_sys::cgroup::{Pressure, Stall, Usage};
use zcri_sys::net_usage::Interface;

use super::filter::{id_matches, labels_match};
use super::pods::required;
use super::{containers as container_calls, pods as pod_calls};
use crate::container::ContainerView;
use crate::error::{Error, Result};
use crate::pod::{PodState, PodView, Pods};
use crate::stats::{self, ContainerUsage, DEFAULT_INTERFACE, LOOPBACK, LayerUsage, PodUsage};

pub(super) async fn container(
    pods: &Arc<Pods>,
    request: api::ContainerStatsRequest,
) -> Result<api::ContainerStatsResponse> {
    required("container_id", &request.container_id)?;
    let (_, view) = pods.container(&request.container_id)?;
    let usage = stats::containers(pods.node(), vec![view]).await?;
    Ok(api::ContainerStatsResponse {
        stats: usage
            .first()
            .map(|usage| container_message(&pods.node().root, usage)),
    })
}

pub(super) async fn containers(
    pods: &Arc<Pods>,
    request: api::ListContainerStatsRequest,
) -> Result<api::ListContainerStatsResponse> {
    let views = running_containers(pods, request.filter);
    Ok(api::ListContainerStatsResponse {
        stats: container_messages(pods, views).await?,
    })
}

/// The running containers that a filter lets through.
pub(super) fn running_containers(
    pods: &Pods,
    filter: Option<api::ContainerStatsFilter>,
) -> Vec<Arc<ContainerView>> {
    let filter = filter.unwrap_or_default();
    let mut views = Vec::new();
    for pod in pods.views() {
        if id_matches(pod.id.as_str(), &filter.pod_sandbox_id) {
            views.extend(stats::running(&pod).filter(|view| {
                id_matches(view.id.as_str(), &filter.id)
                    && labels_match(&view.config.labels, &filter.label_selector)
            }));
        }
    }
    views
}

/// Reads containers and says what was read.
pub(super) async fn container_messages(
    pods: &Pods,
    views: Vec<Arc<ContainerView>>,
) -> Result<Vec<api::ContainerStats>> {
    let usage = stats::containers(pods.node(), views).await?;
    let root = &pods.node().root;
    Ok(usage
        .iter()
        .map(|usage| container_message(root, usage))
        .collect())
}

pub(super) async fn pod(
    pods: &Arc<Pods>,
    request: api::PodSandboxStatsRequest,
) -> Result<api::PodSandboxStatsResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    let pod = pods
        .lookup(&request.pod_sandbox_id)?
        .ok_or_else(|| Error::no_pod(&request.pod_sandbox_id))?;
    let stats = pod_messages(pods, vec![pod.view()]).await?;
    Ok(api::PodSandboxStatsResponse {
        stats: stats.into_iter().next(),
    })
}

pub(super) async fn pods(
    pods: &Arc<Pods>,
    request: api::ListPodSandboxStatsRequest,
) -> Result<api::ListPodSandboxStatsResponse> {
    let views = ready_pods(pods, request.filter);
    Ok(api::ListPodSandboxStatsResponse {
        stats: pod_messages(pods, views).await?,
    })
}

/// The pods that a filter lets through and that use anything.
pub(super) fn ready_pods(
    pods: &Pods,
    filter: Option<api::PodSandboxStatsFilter>,
) -> Vec<Arc<PodView>> {
    let filter = filter.unwrap_or_default();
    let mut views = pods.views();
    views.retain(|view| {
        view.state == PodState::Ready
            && id_matches(view.id.as_str(), &filter.id)
            && labels_match(&view.config.labels, &filter.label_selector)
    });
    views
}

/// Reads pods and says what was read.
pub(super) async fn pod_messages(
    pods: &Pods,
    views: Vec<Arc<PodView>>,
) -> Result<Vec<api::PodSandboxStats>> {
    let usage = stats::pods(pods.node(), views).await?;
    let root = &pods.node().root;
    Ok(usage.iter().map(|usage| pod_message(root, usage)).collect())
}

fn pod_message(root: &Path, usage: &PodUsage) -> api::PodSandboxStats {
    let (view, at) = (&usage.view, usage.at_ns);
    let network = usage
        .network
        .as_ref()
        .map(|interfaces| network_message(at, interfaces));
    api::PodSandboxStats {
        attributes: Some(api::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: Some(pod_calls::metadata(&view.config)),
            labels: view.config.labels.clone().into_iter().collect(),
            annotations: view.config.annotations.clone().into_iter().collect(),
        }),
        linux: Some(api::LinuxPodSandboxStats {
            cpu: cpu_message(at, &usage.group, usage.nano_cores),
            memory: memory_message(at, &usage.group),
            network,
            process: usage.processes.map(|count| api::ProcessUsage {
                timestamp: at,
                process_count: number(Some(count)),
            }),
            containers: usage
                .containers
                .iter()
                .map(|container| container_message(root, container))
                .collect(),
            io: io_message(at, &usage.group),
        }),
        windows: None,
    }
}

fn container_message(root: &Path, usage: &ContainerUsage) -> api::ContainerStats {
    let (view, at) = (&usage.view, usage.at_ns);
    api::ContainerStats {
        attributes: Some(api::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(container_calls::metadata(&view.config)),
            labels: view.config.labels.clone().into_iter().collect(),
            annotations: view.config.annotations.clone().into_iter().collect(),
        }),
        cpu: cpu_message(at, &usage.group, usage.nano_cores),
        memory: memory_message(at, &usage.group),
        writable_layer: usage.layer.map(|layer| layer_message(root, &layer)),
        swap: usage.group.swap_usage.map(|used| api::SwapUsage {
            timestamp: at,
            swap_available_bytes: number(left(usage.group.swap_limit, Some(used))),
            swap_usage_bytes: number(Some(used)),
        }),
        io: io_message(at, &usage.group),
    }
}

/// Writable layers, on the file system that has all of them.
pub(super) fn layer_message(root: &Path, layer: &LayerUsage) -> api::FilesystemUsage {
    api::FilesystemUsage {
        timestamp: layer.at_ns,
        fs_id: Some(api::FilesystemIdentifier {
            mountpoint: root.join("overlay").to_string_lossy().into_owned(),
        }),
        used_bytes: number(Some(layer.bytes)),
        inodes_used: number(Some(layer.inodes)),
    }
}

fn cpu_message(at: i64, group: &Usage, nano_cores: Option<u64>) -> Option<api::CpuUsage> {
    Some(api::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: number(Some(group.cpu_ns?)),
        usage_nano_cores: number(nano_cores),
        psi: group.cpu_pressure.map(psi_message),
    })
}

fn memory_message(at: i64, group: &Usage) -> Option<api::MemoryUsage> {
    Some(api::MemoryUsage {
        timestamp: at,
        working_set_bytes: number(group.working_set),
        available_bytes: number(left(group.memory_limit, group.working_set)),
        usage_bytes: number(Some(group.memory_usage?)),
        rss_bytes: number(group.rss),
        page_faults: number(group.page_faults),
        major_page_faults: number(group.major_page_faults),
        psi: group.memory_pressure.map(psi_message),
    })
}

fn io_message(at: i64, group: &Usage) -> Option<api::IoUsage> {
    Some(api::IoUsage {
        timestamp: at,
        psi: Some(psi_message(group.io_pressure?)),
    })
}

fn psi_message(pressure: Pressure) -> api::PsiStats {
    let data = |stall: Stall| api::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    api::PsiStats {
        full: pressure.full.map(data),
        some: pressure.some.map(data),
    }
}

fn network_message(at: i64, interfaces: &[Interface]) -> api::NetworkUsage {
    let message = |one: &Interface| api::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: number(Some(one.received.bytes)),
        rx_errors: number(Some(one.received.errors)),
        tx_bytes: number(Some(one.sent.bytes)),
        tx_errors: number(Some(one.sent.errors)),
    };
    let is_default = |one: &&Interface| one.name == DEFAULT_INTERFACE;
    api::NetworkUsage {
        timestamp: at,
        default_interface: interfaces.iter().find(is_default).map(message),
        interfaces: interfaces
            .iter()
            .filter(|one| !is_default(one) && one.name != LOOPBACK)
            .map(message)
            .collect(),
    }
}

/// What a limit leaves; nothing is said of what has no limit.
fn left(limit: Option<u64>, used: Option<u64>) -> Option<u64> {
    Some(limit?.saturating_sub(used?))
}

fn number(value: Option<u64>) -> Option<api::UInt64Value> {
    value.map(|value| api::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Usage {
        let stall = |total_ns| {
            Some(Stall {
                avg10: 1.5,
                total_ns,
                ..Stall::default()
            })
        };
        Usage {
            cpu_ns: Some(5),
            cpu_pressure: Some(Pressure {
                some: stall(7000),
                full: None,
            }),
            memory_usage: Some(100),
            memory_limit: Some(90),
            working_set: Some(95),
            io_pressure: Some(Pressure {
                some: stall(1),
                full: stall(2),
            }),
            ..Usage::default()
        }
    }

    #[test]
    fn pressure_is_passed_on() {
        let psi = cpu_message(9, &group(), None).unwrap().psi.unwrap();
        assert_eq!(psi.some.unwrap().total, 7000);
        assert_eq!(psi.full, None);
        let io = io_message(9, &group()).unwrap();
        assert_eq!((io.timestamp, io.psi.unwrap().full.unwrap().total), (9, 2));
    }

    #[test]
    fn what_has_no_source_is_absent_and_never_nothing() {
        let none = Usage::default();
        assert_eq!(cpu_message(9, &none, Some(1)), None);
        assert_eq!(memory_message(9, &none), None);
        assert_eq!(io_message(9, &none), None);
        let memory = memory_message(9, &group()).unwrap();
        assert_eq!(memory.rss_bytes, None);
        assert_eq!(memory.psi, None);
        assert_eq!(
            memory.available_bytes,
            number(Some(0)),
            "more than the limit leaves nothing"
        );
        let unlimited = Usage {
            memory_limit: None,
            ..group()
        };
        assert_eq!(memory_message(9, &unlimited).unwrap().available_bytes, None);
    }

    #[test]
    fn the_pods_interface_is_the_default_one() {
        let interface = |name: &str| Interface {
            name: name.into(),
            ..Interface::default()
        };
        let usage = network_message(9, &["lo", "net1", "eth0"].map(interface));
        assert_eq!(usage.default_interface.unwrap().name, "eth0");
        let others: Vec<_> = usage.interfaces.into_iter().map(|one| one.name).collect();
        assert_eq!(others, ["net1"]);
    }
}
