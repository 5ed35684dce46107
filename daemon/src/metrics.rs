//! Metrics of the daemon itself, for Prometheus. (Those of pods and containers go to the kubelet, see `stats`.)

pub mod http;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::container::ContainerState;
use crate::pod::{PodState, Pods};

/// Upper bounds of the classes of latency, in seconds: from a list to a slow pull.
const BOUNDS: [f64; 9] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 60.0];

/// What calls did. There are only as many entries as there are calls in the interface and codes of gRPC.
#[derive(Debug, Default)]
pub struct Operations(Mutex<BTreeMap<&'static str, Operation>>);

#[derive(Debug, Default, Clone)]
struct Operation {
    /// How many calls were in each class; in the last one those above all bounds.
    classes: [u64; BOUNDS.len() + 1],
    total: Duration,
    /// Failures by code.
    errors: BTreeMap<String, u64>,
}

impl Operations {
    /// Takes note of a call that was answered; `code` is that of a failure.
    pub fn note(&self, name: &'static str, took: Duration, code: Option<tonic::Code>) {
        let mut all = self.lock();
        let operation = all.entry(name).or_default();
        let seconds = took.as_secs_f64();
        let class = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = operation.classes.get_mut(class.unwrap_or(BOUNDS.len())) {
            *count += 1;
        }
        operation.total += took;
        if let Some(code) = code {
            *operation.errors.entry(format!("{code:?}")).or_default() += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Operation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Text in the format of Prometheus.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    /// No label here has a character that would have to be escaped.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        match labels.as_slice() {
            [] => writeln!(self.0, "{name} {value}").ok(),
            labels => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")).ok(),
        };
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// Everything, as it is now.
pub(crate) fn text(pods: &Pods) -> String {
    let mut text = Text::default();
    text.family("zcri_build_info", "gauge", "The daemon's version.");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.sample("zcri_build_info", &version, 1);
    operations(&mut text, &pods.node().operations);
    objects(&mut text, pods);
    let usage = pods.node().images.usage();
    let images = pods.node().images.list().len();
    text.one("zcri_images", "gauge", "Images.", images);
    let help = "Bytes that the layers of images take on disk.";
    text.one("zcri_image_store_bytes", "gauge", help, usage.bytes);
    let help = "Files and directories of the layers of images.";
    text.one("zcri_image_store_inodes", "gauge", help, usage.inodes);
    process(&mut text);
    text.0
}

fn operations(text: &mut Text, operations: &Operations) {
    let all = operations.lock().clone();
    let name = "zcri_operations_latency_seconds";
    text.family(name, "histogram", "Time to the answer of a call.");
    for (operation, found) in &all {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(ToString::to_string);
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, of_class) in bounds.zip(found.classes) {
            count += of_class;
            let labels = [("operation", *operation), ("le", bound.as_str())];
            text.sample(&format!("{name}_bucket"), &labels, count);
        }
        let labels = [("operation", *operation)];
        let total = found.total.as_secs_f64();
        text.sample(&format!("{name}_sum"), &labels, total);
        text.sample(&format!("{name}_count"), &labels, count);
    }
    let name = "zcri_operations_errors_total";
    text.family(name, "counter", "Calls that failed, by code.");
    for (operation, found) in &all {
        for (code, count) in &found.errors {
            let labels = [("operation", *operation), ("code", code.as_str())];
            text.sample(name, &labels, count);
        }
    }
}

fn objects(text: &mut Text, pods: &Pods) {
    let views = pods.views();
    text.family("zcri_pods", "gauge", "Pod sandboxes by state.");
    for (label, state) in [("ready", PodState::Ready), ("notready", PodState::NotReady)] {
        let count = views.iter().filter(|view| view.state == state).count();
        text.sample("zcri_pods", &[("state", label)], count);
    }
    let mut counts = [("created", 0), ("running", 0), ("exited", 0)];
    for container in views.iter().flat_map(|view| view.containers.values()) {
        let [created, running, exited] = &mut counts;
        match container.state {
            ContainerState::Created => created.1 += 1,
            ContainerState::Running { .. } => running.1 += 1,
            ContainerState::Exited(_) => exited.1 += 1,
        }
    }
    text.family("zcri_containers", "gauge", "Containers by state.");
    for (state, count) in counts {
        text.sample("zcri_containers", &[("state", state)], count);
    }
}

/// What every Prometheus client tells of its process, where this system says it.
fn process(text: &mut Text) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        let help = "Resident memory of the daemon.";
        let name = "process_resident_memory_bytes";
        text.one(name, "gauge", help, kib * 1024);
    }
    if let Some(threads) = field("Threads:") {
        let help = "Threads of the daemon.";
        text.one("process_threads", "gauge", help, threads);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        let help = "Open file descriptors of the daemon.";
        text.one("process_open_fds", "gauge", help, files.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_class_and_code() {
        let all = Operations::default();
        let note = |ms, code| all.note("RunPodSandbox", Duration::from_millis(ms), code);
        note(1, None);
        note(30, None);
        note(61_000, Some(tonic::Code::NotFound));
        let mut text = Text::default();
        operations(&mut text, &all);
        for line in [
            "zcri_operations_latency_seconds_bucket{operation=\"RunPodSandbox\",le=\"0.001\"} 1",
            "zcri_operations_latency_seconds_bucket{operation=\"RunPodSandbox\",le=\"0.02\"} 1",
            "zcri_operations_latency_seconds_bucket{operation=\"RunPodSandbox\",le=\"0.05\"} 2",
            "zcri_operations_latency_seconds_bucket{operation=\"RunPodSandbox\",le=\"60\"} 2",
            "zcri_operations_latency_seconds_bucket{operation=\"RunPodSandbox\",le=\"+Inf\"} 3",
            "zcri_operations_latency_seconds_sum{operation=\"RunPodSandbox\"} 61.031",
            "zcri_operations_latency_seconds_count{operation=\"RunPodSandbox\"} 3",
            "zcri_operations_errors_total{operation=\"RunPodSandbox\",code=\"NotFound\"} 1",
        ] {
            assert!(text.0.lines().any(|one| one == line), "{line}: {}", text.0);
        }
    }
}
