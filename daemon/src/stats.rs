//! Usage of pods and containers, read when somebody asks and never otherwise.
//!
//! What the kernel counts is read at each request. Two things need memory between requests, which lives in the views
//! as [`Readings`]: the CPU reading before, for a rate, and the size of the writable layer, for which a tree has to be
//! walked.

mod layer;
pub mod metrics;
mod rate;

use std::sync::Arc;

use tokio::sync::Semaphore;
use zcri_sys::cgroup::Usage;
use zcri_sys::net_usage::{self, Interface};

pub use layer::{Layer, LayerUsage};
pub use rate::Rate;

use crate::container::spec::CgroupsPath;
use crate::container::{ContainerState, ContainerView};
use crate::error::{Error, Result};
use crate::node::{CgroupDriver, Node, blocking};
use crate::pod::config::PodScope;
use crate::pod::{PodFiles, PodState, PodView};
use crate::time::now_ns;

/// Requests that read usage at the same time; each takes a thread. More wait: one reading after the other costs the
/// node less than all at once.
const READERS: usize = 4;

/// The interface of a pod that counts as its network.
pub const DEFAULT_INTERFACE: &str = "eth0";
/// The interface whose traffic leaves no pod: it is left out, as cAdvisor does.
pub const LOOPBACK: &str = "lo";

/// Admits readers.
#[derive(Debug)]
pub struct Readers(Semaphore);

impl Default for Readers {
    fn default() -> Self {
        Self(Semaphore::new(READERS))
    }
}

/// What is remembered of a container or pod between two requests.
#[derive(Debug, Default)]
pub struct Readings {
    pub(crate) rate: Rate,
    pub(crate) layer: Layer,
}

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Which.
    pub view: Arc<ContainerView>,
    /// When its group was read, in ns since 1970.
    pub at_ns: i64,
    /// Its control group.
    pub group: Usage,
    /// CPU rate, in ns per second; `None` at the first reading.
    pub nano_cores: Option<u64>,
    /// Its writable layer; `None` when that is gone.
    pub layer: Option<LayerUsage>,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// Which.
    pub view: Arc<PodView>,
    /// When it was read, in ns since 1970.
    pub at_ns: i64,
    /// Its control group. A pod that names no parent has none: its containers are in the node's.
    pub group: Usage,
    /// CPU rate, in ns per second; `None` at the first reading.
    pub nano_cores: Option<u64>,
    /// Processes in its control group.
    pub processes: Option<u64>,
    /// Interfaces of its network namespace; `None` on the node's network, whose traffic is not the pod's.
    pub network: Option<Vec<Interface>>,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// Reads the usage of containers, in their order.
pub(crate) async fn containers(
    node: &Arc<Node>,
    views: Vec<Arc<ContainerView>>,
) -> Result<Vec<ContainerUsage>> {
    read(node, move |node| {
        Ok(views
            .into_iter()
            .map(|view| container(node, view))
            .collect())
    })
    .await
}

/// Reads the usage of pods, in their order.
pub(crate) async fn pods(node: &Arc<Node>, views: Vec<Arc<PodView>>) -> Result<Vec<PodUsage>> {
    read(node, move |node| {
        let networks = networks(&views)?;
        Ok(views
            .into_iter()
            .zip(networks)
            .map(|(view, network)| pod(node, view, network))
            .collect())
    })
    .await
}

/// All writable layers together, and when the oldest of them was looked at.
pub(crate) async fn writable_layers(
    node: &Arc<Node>,
    views: Vec<Arc<ContainerView>>,
) -> Result<LayerUsage> {
    read(node, move |_| {
        let nothing = LayerUsage {
            at_ns: now_ns(),
            ..LayerUsage::default()
        };
        let layers = views
            .iter()
            .filter_map(|view| view.readings.layer.usage(&view.upper));
        Ok(layers.fold(nothing, |sum, one| LayerUsage {
            at_ns: sum.at_ns.min(one.at_ns),
            bytes: sum.bytes + one.bytes,
            inodes: sum.inodes + one.inodes,
        }))
    })
    .await
}

/// Runs a reading on a thread that may block.
async fn read<T: Send + 'static>(
    node: &Arc<Node>,
    work: impl FnOnce(&Node) -> Result<T> + Send + 'static,
) -> Result<T> {
    let closed = |e| Error::node("wait for a reader", e);
    let _permit = node.readers.0.acquire().await.map_err(closed)?;
    let node = node.clone();
    blocking(move || work(&node)).await
}

fn container(node: &Node, view: Arc<ContainerView>) -> ContainerUsage {
    let at_ns = now_ns();
    let running = matches!(view.state, ContainerState::Running { .. });
    let group = if running {
        node.cgroups.usage(&node.group_of(&view))
    } else {
        Usage::default()
    };
    ContainerUsage {
        at_ns,
        nano_cores: group.cpu_ns.and_then(|ns| view.readings.rate.next(ns)),
        group,
        layer: view.readings.layer.usage(&view.upper),
        view,
    }
}

fn pod(node: &Node, view: Arc<PodView>, network: Option<Vec<Interface>>) -> PodUsage {
    let at_ns = now_ns();
    let path = pod_group(node, &view);
    let group = path
        .as_deref()
        .map(|path| node.cgroups.usage(path))
        .unwrap_or_default();
    PodUsage {
        at_ns,
        nano_cores: group.cpu_ns.and_then(|ns| view.readings.rate.next(ns)),
        group,
        processes: path.and_then(|path| node.cgroups.process_count(&path)),
        network,
        containers: running(&view).map(|view| container(node, view)).collect(),
        view,
    }
}

/// The containers of a pod that run.
pub(crate) fn running(pod: &PodView) -> impl Iterator<Item = Arc<ContainerView>> {
    pod.containers
        .values()
        .filter(|view| matches!(view.state, ContainerState::Running { .. }))
        .cloned()
}

/// The control group of a pod, which is what its containers' groups are in; `None` if it shares that with others or
/// is stopped.
fn pod_group(node: &Node, pod: &PodView) -> Option<String> {
    let parent = pod.config.cgroup_parent.clone();
    if parent.is_empty() || pod.state != PodState::Ready {
        return None;
    }
    let id = pod.id.to_string();
    let below = match node.cgroup_driver {
        CgroupDriver::Cgroupfs => CgroupsPath::Cgroupfs { parent, id },
        CgroupDriver::Systemd => CgroupsPath::Systemd { slice: parent, id },
    }
    .in_tree();
    let (path, _) = below.rsplit_once('/')?;
    (!path.is_empty()).then(|| path.to_owned())
}

/// The interfaces of these pods; one thread reads those of all.
fn networks(views: &[Arc<PodView>]) -> Result<Vec<Option<Vec<Interface>>>> {
    let own = |view: &&Arc<PodView>| {
        view.state == PodState::Ready && view.config.namespaces.network == PodScope::Pod
    };
    let paths: Vec<_> = views
        .iter()
        .filter(own)
        .map(|view| PodFiles::new(view.bundle.clone()).namespace("net"))
        .collect();
    let read =
        net_usage::read(&paths).map_err(|e| Error::node("read the interfaces of pods", e))?;
    let mut read = read.into_iter();
    Ok(views
        .iter()
        .map(|view| if own(&view) { read.next()? } else { None })
        .collect())
}
