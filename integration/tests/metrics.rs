//! Metrics: cAdvisor's names and labels with the kernel's values, for a kubelet without cAdvisor.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use zcri_integration::pod::words;
use zcri_integration::usage::{cgroups_v2, du, number, upper, writer};
use zcri_integration::v1::{
    LinuxContainerResources, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, Metric,
    MetricDescriptor, PodSandboxMetrics,
};
use zcri_integration::{Test, TestNode, wait};

async fn metrics(node: &TestNode) -> Result<(Vec<MetricDescriptor>, Vec<PodSandboxMetrics>)> {
    let mut runtime = node.cri().runtime();
    let descriptors = runtime
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await?;
    let metrics = runtime
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await?;
    Ok((
        descriptors.into_inner().descriptors,
        metrics.into_inner().pod_metrics,
    ))
}

/// The labels of a sample by their names.
fn labels(descriptors: &[MetricDescriptor], metric: &Metric) -> Result<BTreeMap<String, String>> {
    let descriptor = descriptors
        .iter()
        .find(|one| one.name == metric.name)
        .with_context(|| format!("{} has no descriptor", metric.name))?;
    assert_eq!(
        descriptor.label_keys.len(),
        metric.label_values.len(),
        "{metric:?}"
    );
    let labels = descriptor
        .label_keys
        .iter()
        .cloned()
        .zip(metric.label_values.iter().cloned());
    Ok(labels.collect())
}

/// Those without a source on version 1, or on a node without huge pages or block devices in use.
const MAY_BE_ABSENT: [&str; 13] = [
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
];

/// Everything that is said of the only pod.
struct Found {
    descriptors: Vec<MetricDescriptor>,
    pod: PodSandboxMetrics,
}

impl Found {
    async fn on(node: &TestNode) -> Result<Self> {
        let (descriptors, pods) = metrics(node).await?;
        ensure!(pods.len() == 1, "{} pods", pods.len());
        let pod = pods.into_iter().next().context("no pod")?;
        Ok(Self { descriptors, pod })
    }

    fn all(&self) -> Vec<&Metric> {
        let containers = self.pod.container_metrics.iter();
        let containers = containers.flat_map(|one| &one.metrics);
        self.pod.metrics.iter().chain(containers).collect()
    }

    /// The value of the sample with that label.
    fn labelled(&self, name: &str, key: &str, value: &str) -> Result<u64> {
        for metric in self.all().into_iter().filter(|one| one.name == name) {
            let labels = labels(&self.descriptors, metric)?;
            if labels.get(key).is_some_and(|found| found == value) {
                return number(metric.value, name);
            }
        }
        anyhow::bail!("there is no {name} with {key}={value}")
    }

    fn value(&self, name: &str) -> Result<u64> {
        self.labelled(name, "pod", "p")
    }
}

#[tokio::test]
async fn metrics_are_those_that_cadvisor_gives() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = writer(&pod, &node, "c").await?;
    let found = Found::on(&node).await?;
    let (descriptors, of_pod, all) = (&found.descriptors, &found.pod, found.all());
    assert_eq!(descriptors.len(), 56);
    ensure!(descriptors.iter().all(|one| !one.help.is_empty()));
    assert_eq!(of_pod.pod_sandbox_id, pod.id);
    let of_container = of_pod.container_metrics.first().context("no container")?;
    assert_eq!(of_container.container_id, id);

    let names: BTreeSet<&str> = all.iter().map(|one| one.name.as_str()).collect();
    for descriptor in descriptors {
        let name = descriptor.name.as_str();
        ensure!(
            names.contains(name) || MAY_BE_ABSENT.contains(&name),
            "{name} is missing"
        );
        ensure!(
            cgroups_v2() || !name.starts_with("container_pressure") || !names.contains(name),
            "{name} has no source"
        );
    }
    for metric in &all {
        let labels = labels(descriptors, metric)?;
        assert_eq!(
            (labels["namespace"].as_str(), labels["pod"].as_str()),
            ("default", "p")
        );
        ensure!(metric.value.is_some(), "{metric:?}");
    }
    let cpu = of_container
        .metrics
        .iter()
        .find(|one| one.name == "container_cpu_usage_seconds_total")
        .context("no CPU")?;
    let of_cpu = labels(descriptors, cpu)?;
    assert_eq!(of_cpu["container"], "c");
    assert_eq!(of_cpu["name"], id);
    assert_eq!(of_cpu["image"], node.busybox().await?);
    assert_eq!(of_cpu["id"], format!("{}/pod-p/{id}", node.slot().cgroup()));
    assert_eq!(of_cpu["cpu"], "total");

    let live = all
        .iter()
        .filter(|one| one.name != "container_fs_usage_bytes");
    ensure!(
        live.clone().all(|one| one.timestamp == 0),
        "what was read just now has no time"
    );
    node.finish().await
}

#[tokio::test]
async fn values_are_those_of_the_kernel() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = writer(&pod, &node, "c").await?;
    let found = Found::on(&node).await?;
    let value = |name: &str| found.value(name);
    assert_eq!(value("container_spec_memory_limit_bytes")?, 64 << 20);
    assert_eq!(value("container_spec_cpu_quota")?, 50_000);
    assert_eq!(value("container_spec_cpu_period")?, 100_000);
    assert_eq!(value("container_processes")?, 1);
    assert_eq!(value("container_threads")?, 1);
    ensure!(value("container_file_descriptors")? >= 3);
    assert_eq!(value("container_sockets")?, 0);
    ensure!(value("container_memory_max_usage_bytes")? >= value("container_memory_rss")?);
    assert_eq!(value("container_oom_events_total")?, 0);
    assert_eq!(
        value("container_fs_usage_bytes")?,
        du("--block-size=1", &upper(&node, &id))?
    );
    ensure!(found.labelled("container_network_receive_bytes_total", "interface", "eth0")? > 0);
    ensure!(
        found
            .labelled("container_network_receive_bytes_total", "interface", "lo")
            .is_err()
    );
    ensure!(found.labelled("container_memory_failures_total", "failure_type", "pgfault")? > 0);
    let soft: u64 = node.exec(&id, "ulimit -n").await?.success()?.parse()?;
    assert_eq!(
        found.labelled("container_ulimits_soft", "ulimit", "max_open_files")?,
        soft
    );
    let started = node.cri().status(&id).await?.started_at / 1_000_000_000;
    assert_eq!(
        value("container_start_time_seconds")?,
        started.unsigned_abs()
    );
    node.finish().await
}

#[tokio::test]
async fn an_oom_kill_is_counted() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/sh", "-c", "tail /dev/zero; sleep 1000"]);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    });
    pod.start(&config).await?;
    wait::until("an OOM kill to be counted", wait::PATIENCE, async || {
        let (_, pods) = metrics(&node).await?;
        let container = pods.first().and_then(|pod| pod.container_metrics.first());
        let kills = container.and_then(|one| {
            one.metrics
                .iter()
                .find(|m| m.name == "container_oom_events_total")
        });
        Ok(kills.and_then(|m| m.value).filter(|kills| kills.value == 1))
    })
    .await?;
    node.finish().await
}

/// One request by hand.
fn http(address: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The value of a line.
fn line(answer: &str, name: &str) -> Result<f64> {
    let value = answer
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value
        .with_context(|| format!("no {name} in {answer}"))?
        .parse()?)
}

/// The same of one that counts things.
fn count(answer: &str, name: &str) -> Result<String> {
    line(answer, name).map(|value| value.to_string())
}

/// A node that serves metrics, and where.
async fn with_metrics() -> Result<(TestNode, SocketAddr)> {
    let node = TestNode::builder()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await?;
    let log = node.log();
    let address = log
        .lines()
        .find(|line| line.contains("metrics are served"))
        .and_then(|line| line.split("address=").nth(1));
    let address: SocketAddr = address.context("no address")?.trim().parse()?;
    Ok((node, address))
}

#[tokio::test]
async fn prometheus_hears_of_calls_pods_and_images() -> Test {
    let (node, address) = with_metrics().await?;
    let pod = node.pod("p").await?;
    pod.sleeper("c").await?;
    let unknown = node.cri().status("f00").await;
    ensure!(unknown.is_err());
    let answer = http(address, "GET /metrics")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    let calls = "zcri_operations_latency_seconds_count{operation=\"RunPodSandbox\"}";
    assert_eq!(count(&answer, calls)?, "1");
    let sum = "zcri_operations_latency_seconds_sum{operation=\"RunPodSandbox\"}";
    ensure!(line(&answer, sum)? > 0.0);
    let errors = "zcri_operations_errors_total{operation=\"ContainerStatus\",code=\"NotFound\"}";
    assert_eq!(count(&answer, errors)?, "1");
    assert_eq!(count(&answer, "zcri_pods{state=\"ready\"}")?, "1");
    assert_eq!(count(&answer, "zcri_containers{state=\"running\"}")?, "1");
    assert_eq!(count(&answer, "zcri_images")?, "1");
    ensure!(line(&answer, "zcri_image_store_bytes")? > 100_000.0);
    ensure!(line(&answer, "process_resident_memory_bytes")? > 1e6);
    ensure!(http(address, "GET /")?.starts_with("HTTP/1.1 404"));
    ensure!(http(address, "POST /metrics")?.starts_with("HTTP/1.1 405"));
    node.finish().await
}

#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out_and_the_daemon_not_up() -> Test {
    let (mut node, address) = with_metrics().await?;
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(address))
        .collect::<Result<_, _>>()?;
    let answer = tokio::task::spawn_blocking(move || http(address, "GET /metrics")).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(node.stop_daemon().await?.success());
    drop(silent);
    node.finish().await
}

#[tokio::test]
async fn nothing_listens_by_default() -> Test {
    let node = TestNode::start().await?;
    ensure!(!node.log().contains("metrics are served"));
    node.finish().await
}
