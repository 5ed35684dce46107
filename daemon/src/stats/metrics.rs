//! Metrics of pods and containers as cAdvisor would give them, read when somebody asks.
//!
//! A value without a source is absent: pressure on cgroup version 1, a quota that is not there, a limit that is
//! unlimited where the interface's unsigned number cannot say so.

pub mod descriptors;

use std::collections::HashMap;
use std::sync::Arc;

use zcri_sys::cgroup::{Detail, DeviceIo, Pressure, Usage};
use zcri_sys::net_usage::Interface;
use zcri_sys::{filesystem, open_files};

use self::descriptors::{self as d, Descriptor};
use super::{LayerUsage, networks, pod_group, read, running};
use crate::container::{ContainerState, ContainerView};
use crate::error::Result;
use crate::node::Node;
use crate::pod::PodView;
use crate::time::now_ns;

const NS_PER_S: u64 = 1_000_000_000;

/// One value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Of which metric.
    pub descriptor: &'static Descriptor,
    /// Values of [`descriptors::BASE_LABELS`] and of the descriptor's labels.
    pub labels: Vec<String>,
    /// The value.
    pub value: u64,
    /// When it was had, in ns since 1970, if not just now.
    pub at_ns: Option<i64>,
}

/// The metrics of a pod.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    /// Which.
    pub view: Arc<PodView>,
    /// Of the pod: its network.
    pub samples: Vec<Sample>,
    /// Of its running containers.
    pub containers: Vec<(Arc<ContainerView>, Vec<Sample>)>,
}

/// Reads the metrics of pods, in their order.
pub(crate) async fn pods(node: &Arc<Node>, views: Vec<Arc<PodView>>) -> Result<Vec<PodMetrics>> {
    read(node, move |node| {
        let networks = networks(&views)?;
        let mut reader = Reader::new(node);
        Ok(views
            .into_iter()
            .zip(networks)
            .map(|(view, network)| reader.pod(view, network.unwrap_or_default()))
            .collect())
    })
    .await
}

/// Collects the samples that have the same first labels.
struct Samples {
    base: [String; d::BASE_LABELS.len()],
    all: Vec<Sample>,
}

impl Samples {
    fn new(base: [String; d::BASE_LABELS.len()]) -> Self {
        Self {
            base,
            all: Vec::new(),
        }
    }

    fn push(&mut self, descriptor: &'static Descriptor, value: Option<u64>) {
        self.push_with(descriptor, &[], value);
    }

    /// Absent values make no sample.
    fn push_with(&mut self, descriptor: &'static Descriptor, labels: &[&str], value: Option<u64>) {
        let Some(value) = value else {
            return;
        };
        let more = labels.iter().map(|&label| label.to_owned());
        self.all.push(Sample {
            descriptor,
            labels: self.base.iter().cloned().chain(more).collect(),
            value,
            at_ns: None,
        });
    }

    /// In whole seconds: the interface knows no fractions.
    fn push_seconds(&mut self, descriptor: &'static Descriptor, ns: Option<u64>) {
        self.push(descriptor, ns.map(|ns| ns / NS_PER_S));
    }
}

/// What one round of reading has in common.
struct Reader<'n> {
    node: &'n Node,
    filesystem: Option<filesystem::Filesystem>,
    devices: HashMap<(u32, u32), String>,
}

impl<'n> Reader<'n> {
    fn new(node: &'n Node) -> Self {
        Self {
            // All writable layers are on one.
            filesystem: filesystem::of(&node.root.join("overlay")).ok(),
            devices: HashMap::new(),
            node,
        }
    }

    fn pod(&mut self, view: Arc<PodView>, interfaces: Vec<Interface>) -> PodMetrics {
        let mut samples = Samples::new([
            String::new(),
            pod_group(self.node, &view).unwrap_or_default(),
            String::new(),
            view.id.to_string(),
            view.config.namespace.clone(),
            view.config.name.clone(),
        ]);
        for interface in interfaces.iter().filter(|one| one.name != super::LOOPBACK) {
            network(&mut samples, interface);
        }
        PodMetrics {
            samples: samples.all,
            containers: running(&view)
                .map(|container| (container.clone(), self.container(&view, &container)))
                .collect(),
            view,
        }
    }

    fn container(&mut self, pod: &PodView, view: &ContainerView) -> Vec<Sample> {
        let image = &view.config.image;
        let image = if image.user_specified.is_empty() {
            &image.image
        } else {
            &image.user_specified
        };
        let mut samples = Samples::new([
            view.config.name.clone(),
            view.cgroup.clone(),
            image.clone(),
            view.id.to_string(),
            pod.config.namespace.clone(),
            pod.config.name.clone(),
        ]);
        let group = self.node.group_of(view);
        let usage = self.node.cgroups.usage(&group);
        let detail = self.node.cgroups.detail(&group);
        let seconds = |ns: i64| u64::try_from(ns).ok().map(|ns| ns / NS_PER_S);
        samples.push(&d::LAST_SEEN, seconds(now_ns()));
        if let ContainerState::Running { started_at_ns, .. } = view.state {
            samples.push(&d::START_TIME, seconds(started_at_ns));
        }
        cpu(&mut samples, &usage, &detail);
        memory(&mut samples, &usage, &detail);
        pressure(&mut samples, &usage);
        limits(&mut samples, &detail);
        self.processes(&mut samples, view, &detail);
        for io in &detail.io {
            self.io(&mut samples, io);
        }
        if let Some(layer) = view.readings.layer.usage(&view.upper) {
            self.layer(&mut samples, layer);
        }
        samples.all
    }

    fn processes(&self, samples: &mut Samples, view: &ContainerView, detail: &Detail) {
        // One that cannot be read has ended.
        let pids = self
            .node
            .cgroups
            .processes(&view.cgroup)
            .unwrap_or_default();
        samples.push(&d::THREADS, detail.threads);
        samples.push(&d::THREADS_MAX, detail.threads_max);
        if pids.is_empty() {
            return;
        }
        let files = open_files::of(&pids);
        samples.push(&d::PROCESSES, Some(pids.len() as u64));
        samples.push(&d::FILE_DESCRIPTORS, Some(files.descriptors));
        samples.push(&d::SOCKETS, Some(files.sockets));
        let limit = view.state.pid().and_then(open_files::soft_limit);
        samples.push_with(&d::ULIMITS_SOFT, &["max_open_files"], limit);
    }

    fn io(&mut self, samples: &mut Samples, io: &DeviceIo) {
        let number = (io.major, io.minor);
        let name = self.devices.entry(number).or_insert_with(|| {
            filesystem::block_device(io.major, io.minor)
                .unwrap_or_else(|| format!("{}:{}", io.major, io.minor))
        });
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [name.as_str(), &major, &minor, operation];
            samples.push_with(&d::BLKIO_DEVICE_USAGE, &labels, Some(bytes));
        }
        samples.push_with(&d::FS_READ_BYTES, &[name], Some(io.read_bytes));
        samples.push_with(&d::FS_READS, &[name], Some(io.reads));
        samples.push_with(&d::FS_WRITTEN_BYTES, &[name], Some(io.written_bytes));
        samples.push_with(&d::FS_WRITES, &[name], Some(io.writes));
    }

    fn layer(&self, samples: &mut Samples, layer: LayerUsage) {
        let Some(filesystem) = &self.filesystem else {
            return;
        };
        let device = [filesystem.device.as_str()];
        samples.push_with(&d::FS_INODES, &device, Some(filesystem.inodes));
        samples.push_with(&d::FS_INODES_FREE, &device, Some(filesystem.inodes_free));
        samples.push_with(&d::FS_LIMIT, &device, Some(filesystem.bytes));
        samples.push_with(&d::FS_USAGE, &device, Some(layer.bytes));
        if let Some(usage) = samples.all.last_mut() {
            usage.at_ns = Some(layer.at_ns);
        }
    }
}

fn network(samples: &mut Samples, interface: &Interface) {
    let name = [interface.name.as_str()];
    let (received, sent) = (interface.received, interface.sent);
    for (descriptor, value) in [
        (&d::NETWORK_RECEIVE_BYTES, received.bytes),
        (&d::NETWORK_RECEIVE_PACKETS, received.packets),
        (&d::NETWORK_RECEIVE_ERRORS, received.errors),
        (&d::NETWORK_RECEIVE_DROPPED, received.dropped),
        (&d::NETWORK_TRANSMIT_BYTES, sent.bytes),
        (&d::NETWORK_TRANSMIT_PACKETS, sent.packets),
        (&d::NETWORK_TRANSMIT_ERRORS, sent.errors),
        (&d::NETWORK_TRANSMIT_DROPPED, sent.dropped),
    ] {
        samples.push_with(descriptor, &name, Some(value));
    }
}

fn cpu(samples: &mut Samples, usage: &Usage, detail: &Detail) {
    let seconds = usage.cpu_ns.map(|ns| ns / NS_PER_S);
    samples.push_with(&d::CPU_USAGE, &["total"], seconds);
    samples.push_seconds(&d::CPU_USER, detail.cpu_user_ns);
    samples.push_seconds(&d::CPU_SYSTEM, detail.cpu_system_ns);
    samples.push(&d::CPU_CFS_PERIODS, detail.periods);
    samples.push(&d::CPU_CFS_THROTTLED_PERIODS, detail.throttled_periods);
    samples.push_seconds(&d::CPU_CFS_THROTTLED, detail.throttled_ns);
}

fn memory(samples: &mut Samples, usage: &Usage, detail: &Detail) {
    samples.push(&d::MEMORY_CACHE, detail.cache);
    samples.push(&d::MEMORY_RSS, usage.rss);
    samples.push(&d::MEMORY_KERNEL, detail.kernel);
    samples.push(&d::MEMORY_MAPPED_FILE, detail.mapped_file);
    samples.push(&d::MEMORY_SWAP, usage.swap_usage);
    samples.push(&d::MEMORY_FAILCNT, detail.failcnt);
    samples.push(&d::MEMORY_USAGE, usage.memory_usage);
    samples.push(&d::MEMORY_MAX_USAGE, detail.max_usage);
    samples.push(&d::MEMORY_WORKING_SET, usage.working_set);
    samples.push(&d::OOM_EVENTS, detail.oom_kills);
    for (kind, own, all) in [
        ("pgfault", detail.own_page_faults, usage.page_faults),
        (
            "pgmajfault",
            detail.own_major_page_faults,
            usage.major_page_faults,
        ),
    ] {
        samples.push_with(&d::MEMORY_FAILURES, &[kind, "container"], own);
        samples.push_with(&d::MEMORY_FAILURES, &[kind, "hierarchy"], all);
    }
    for pages in &detail.hugepages {
        let size = [pages.size.as_str()];
        samples.push_with(&d::HUGETLB_USAGE, &size, Some(pages.usage));
        samples.push_with(&d::HUGETLB_MAX_USAGE, &size, pages.max_usage);
    }
}

fn pressure(samples: &mut Samples, usage: &Usage) {
    let stalled = |pressure: Option<Pressure>| Some(pressure?.full?.total_ns);
    let waiting = |pressure: Option<Pressure>| Some(pressure?.some?.total_ns);
    samples.push_seconds(&d::PRESSURE_CPU_STALLED, stalled(usage.cpu_pressure));
    samples.push_seconds(&d::PRESSURE_CPU_WAITING, waiting(usage.cpu_pressure));
    samples.push_seconds(&d::PRESSURE_IO_STALLED, stalled(usage.io_pressure));
    samples.push_seconds(&d::PRESSURE_IO_WAITING, waiting(usage.io_pressure));
    samples.push_seconds(&d::PRESSURE_MEMORY_STALLED, stalled(usage.memory_pressure));
    samples.push_seconds(&d::PRESSURE_MEMORY_WAITING, waiting(usage.memory_pressure));
}

fn limits(samples: &mut Samples, detail: &Detail) {
    let limits = detail.limits;
    samples.push(&d::SPEC_CPU_PERIOD, limits.cpu_period);
    samples.push(&d::SPEC_CPU_QUOTA, limits.cpu_quota);
    samples.push(&d::SPEC_CPU_SHARES, limits.cpu_shares);
    samples.push(&d::SPEC_MEMORY_LIMIT, limits.memory);
    samples.push(&d::SPEC_MEMORY_RESERVATION, limits.memory_reservation);
    samples.push(&d::SPEC_MEMORY_SWAP_LIMIT, limits.swap);
}
