//! Statistics: what they say is what the kernel says, and what has no source is absent.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::words;
use zcri_integration::usage::{cgroups_v2, du, number, upper, writer};
use zcri_integration::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ImageFsInfoRequest,
    ListContainerStatsRequest, ListPodSandboxStatsRequest, NamespaceMode, PodSandboxStats,
    PodSandboxStatsFilter, PodSandboxStatsRequest,
};
use zcri_integration::{Test, TestNode, wait};

const MIB: u64 = 1 << 20;

/// A file of a container's group, by its names in version 1 and 2.
fn cgroup_file(
    node: &TestNode,
    pod: &str,
    id: &str,
    v1: (&str, &str),
    v2_file: &str,
) -> Result<String> {
    let group = format!("{}/pod-{pod}/{id}", node.slot().cgroup());
    let path = if cgroups_v2() {
        format!("/sys/fs/cgroup{group}/{v2_file}")
    } else {
        format!("/sys/fs/cgroup/{}{group}/{}", v1.0, v1.1)
    };
    std::fs::read_to_string(&path).with_context(|| path)
}

async fn stats(node: &TestNode, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let answer = node.cri().runtime().container_stats(request).await?;
    answer.into_inner().stats.context("no statistics")
}

async fn list(node: &TestNode, filter: ContainerStatsFilter) -> Result<BTreeSet<String>> {
    let request = ListContainerStatsRequest {
        filter: Some(filter),
    };
    let answer = node.cri().runtime().list_container_stats(request).await?;
    let ids = answer
        .into_inner()
        .stats
        .into_iter()
        .map(|one| one.attributes.map(|a| a.id));
    ids.map(|id| id.context("no attributes")).collect()
}

async fn pod_stats(node: &TestNode, id: &str) -> Result<PodSandboxStats> {
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let answer = node.cri().runtime().pod_sandbox_stats(request).await?;
    answer.into_inner().stats.context("no statistics")
}

async fn list_pods(node: &TestNode, filter: PodSandboxStatsFilter) -> Result<Vec<PodSandboxStats>> {
    let request = ListPodSandboxStatsRequest {
        filter: Some(filter),
    };
    let answer = node.cri().runtime().list_pod_sandbox_stats(request).await?;
    Ok(answer.into_inner().stats)
}

#[tokio::test]
async fn numbers_of_a_container_are_those_of_the_kernel() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = writer(&pod, &node, "c").await?;
    let cpu = || -> Result<u64> {
        let text = cgroup_file(&node, "p", &id, ("cpuacct", "cpuacct.usage"), "cpu.stat")?;
        match text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
        {
            Some(us) => Ok(us.parse::<u64>()? * 1000),
            None => Ok(text.trim().parse()?),
        }
    };
    let before = cpu()?;
    let found = stats(&node, &id).await?;
    let after = cpu()?;
    let attributes = found.attributes.context("no attributes")?;
    assert_eq!(attributes.id, id);
    assert_eq!(attributes.metadata.context("no metadata")?.name, "c");
    assert_eq!(attributes.labels["app"], "c");

    let usage = found.cpu.context("no CPU")?;
    let used = number(usage.usage_core_nano_seconds, "CPU time")?;
    ensure!(
        (before..=after).contains(&used),
        "{used} is not in {before}..={after}"
    );
    assert_eq!(
        usage.usage_nano_cores, None,
        "there is nothing to take a rate from"
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_nanos();
    let age = i128::try_from(now)? - i128::from(usage.timestamp);
    ensure!((0..10_000_000_000).contains(&age), "read {age} ns ago");

    let memory = found.memory.context("no memory")?;
    let working_set = number(memory.working_set_bytes, "working set")?;
    let usage_bytes = number(memory.usage_bytes, "usage")?;
    ensure!(working_set > 0 && working_set <= usage_bytes, "{memory:?}");
    assert_eq!(
        number(memory.available_bytes, "available")?,
        64 * MIB - working_set
    );
    ensure!(
        number(memory.rss_bytes, "rss")? <= usage_bytes,
        "{memory:?}"
    );
    ensure!(number(memory.page_faults, "page faults")? > 0, "{memory:?}");
    number(memory.major_page_faults, "major page faults")?;
    let swap = found.swap.context("no swap")?;
    let swapped = number(swap.swap_usage_bytes, "swap")?;
    assert_eq!(
        number(swap.swap_available_bytes, "available swap")?,
        32 * MIB - swapped
    );
    assert_eq!(
        usage.psi.is_some(),
        cgroups_v2(),
        "pressure is in version 2 only"
    );
    assert_eq!(memory.psi.is_some(), cgroups_v2());
    assert_eq!(found.io.is_some(), cgroups_v2());

    let layer = found.writable_layer.context("no writable layer")?;
    let upper = upper(&node, &id);
    assert_eq!(
        number(layer.used_bytes, "bytes")?,
        du("--block-size=1", &upper)?
    );
    assert_eq!(
        number(layer.inodes_used, "inodes")?,
        du("--inodes", &upper)?
    );
    ensure!(layer.timestamp > 0);
    let mountpoint = layer.fs_id.context("no file system")?.mountpoint;
    assert_eq!(PathBuf::from(mountpoint), node.files().root.join("overlay"));
    node.finish().await
}

#[tokio::test]
async fn the_cpu_rate_is_that_between_two_requests_and_no_noise() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("busy").await?;
    config.command = words(["/bin/sh", "-c", "while :; do :; done"]);
    let id = pod.start(&config).await?;
    let rate = async || -> Result<Option<u64>> {
        let cpu = stats(&node, &id).await?.cpu.context("no CPU")?;
        Ok(cpu.usage_nano_cores.map(|value| value.value))
    };
    assert_eq!(rate().await?, None);
    assert_eq!(rate().await?, None, "a window of microseconds is none");
    let first = wait::until("a rate", wait::PATIENCE, rate).await?;
    // A loop takes what it gets of one CPU; on a machine as busy as may be that is still something.
    ensure!((10_000_000..1_100_000_000).contains(&first), "{first}");
    let request = ListContainerStatsRequest::default();
    let listed = node
        .cri()
        .runtime()
        .list_container_stats(request)
        .await?
        .into_inner();
    let again = listed.stats[0]
        .cpu
        .as_ref()
        .and_then(|cpu| cpu.usage_nano_cores);
    let again = number(again, "the rate")?;
    ensure!((10_000_000..1_100_000_000).contains(&again), "{again}");
    node.finish().await
}

#[tokio::test]
async fn only_what_runs_is_listed_and_filters_choose() -> Test {
    let node = TestNode::start().await?;
    let (p, q) = (node.pod("p").await?, node.pod("q").await?);
    let (a, b) = (writer(&p, &node, "a").await?, writer(&q, &node, "b").await?);
    let created = p.create(&node.container_config("created").await?).await?;
    let mut config = node.container_config("ended").await?;
    config.command = words(["/bin/sh", "-c", "echo x > /left"]);
    let ended = q.run(&config).await?.id;

    let ids = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
    assert_eq!(
        list(&node, ContainerStatsFilter::default()).await?,
        ids(&[&a, &b])
    );
    let by_id = ContainerStatsFilter {
        id: a[..20].to_owned(),
        ..Default::default()
    };
    assert_eq!(list(&node, by_id).await?, ids(&[&a]));
    let by_pod = ContainerStatsFilter {
        pod_sandbox_id: q.id.clone(),
        ..Default::default()
    };
    assert_eq!(list(&node, by_pod).await?, ids(&[&b]));
    let label = |value: &str| [("app".to_owned(), value.to_owned())].into();
    let by_label = ContainerStatsFilter {
        label_selector: label("b"),
        ..Default::default()
    };
    assert_eq!(list(&node, by_label).await?, ids(&[&b]));
    let contradiction = ContainerStatsFilter {
        id: a.clone(),
        label_selector: label("b"),
        ..Default::default()
    };
    assert_eq!(list(&node, contradiction).await?, ids(&[]));

    for (id, what) in [(&created, "created"), (&ended, "ended")] {
        let found = stats(&node, id).await?;
        ensure!(
            found.cpu.is_none() && found.memory.is_none() && found.swap.is_none(),
            "{what}: {found:?}"
        );
        let layer = found.writable_layer.context("no writable layer")?;
        assert_eq!(
            number(layer.inodes_used, "inodes")?,
            du("--inodes", &upper(&node, id))?,
            "{what}"
        );
    }
    let request = ContainerStatsRequest {
        container_id: "f".repeat(64),
    };
    let refused = node.cri().runtime().container_stats(request).await;
    assert_eq!(
        refused.map(drop).map_err(|status| status.code()),
        Err(Code::NotFound)
    );
    node.finish().await
}

/// The bridge's address, which the pod can reach.
fn gateway(node: &TestNode) -> String {
    node.slot().subnet().replace(".0/24", ".1")
}

/// Bytes received and sent by an interface, as the pod itself sees it.
async fn counters(node: &TestNode, id: &str, interface: &str) -> Result<(u64, u64)> {
    let text = node
        .exec(id, "cat /proc/net/dev")
        .await?
        .success()?
        .to_owned();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
        .context("no such interface")?;
    let numbers: Vec<&str> = line.split_whitespace().collect();
    Ok((numbers[0].parse()?, numbers[8].parse()?))
}

#[tokio::test]
async fn a_pod_has_numbers_of_its_own() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (a, b) = (writer(&pod, &node, "a").await?, pod.sleeper("b").await?);
    let before = counters(&node, &a, "eth0").await?;
    node.exec(&a, &format!("ping -c 3 -i 0.1 {} || true", gateway(&node)))
        .await?;
    let found = pod_stats(&node, &pod.id).await?;
    let after = counters(&node, &a, "eth0").await?;
    ensure!(after.1 > before.1, "nothing was sent: {before:?} {after:?}");

    let attributes = found.attributes.context("no attributes")?;
    let metadata = attributes.metadata.context("no metadata")?;
    assert_eq!(
        (attributes.id, metadata.name, metadata.uid),
        (pod.id.clone(), "p".into(), "uid-p".into())
    );
    let linux = found.linux.context("no linux")?;
    let network = linux.network.context("no network")?;
    let default = network.default_interface.context("no default interface")?;
    assert_eq!(default.name, "eth0");
    let received = number(default.rx_bytes, "received")?;
    let sent = number(default.tx_bytes, "sent")?;
    ensure!(
        (before.0..=after.0).contains(&received),
        "{received}: {before:?} {after:?}"
    );
    ensure!(
        sent > before.1 && sent <= after.1,
        "{sent}: {before:?} {after:?}"
    );
    assert_eq!(
        number(default.rx_errors, "errors")? + number(default.tx_errors, "errors")?,
        0
    );
    ensure!(
        network
            .interfaces
            .iter()
            .all(|one| one.name != "lo" && one.name != "eth0")
    );
    ensure!(network.timestamp > 0);

    let containers: BTreeSet<_> = linux
        .containers
        .iter()
        .flat_map(|one| &one.attributes)
        .map(|a| a.id.clone())
        .collect();
    assert_eq!(containers, BTreeSet::from([a.clone(), b.clone()]));
    let sum: u64 = linux
        .containers
        .iter()
        .map(|one| {
            one.cpu
                .as_ref()
                .and_then(|cpu| cpu.usage_core_nano_seconds)
                .map_or(0, |v| v.value)
        })
        .sum();
    // The pod's group is read before its containers' groups.
    ensure!(sum > 0, "{:?}", linux.containers);
    let cpu = number(
        linux.cpu.context("no CPU")?.usage_core_nano_seconds,
        "CPU time",
    )?;
    ensure!(cpu > 0 && cpu < sum * 10, "{cpu} is not about {sum}");
    ensure!(number(linux.memory.context("no memory")?.usage_bytes, "memory")? >= 4_000_000);
    let process = linux.process.context("no processes")?;
    assert_eq!(
        number(process.process_count, "processes")?,
        2,
        "two containers with one process each"
    );

    node.finish().await
}

#[tokio::test]
async fn only_pods_that_are_ready_are_listed_and_filters_choose() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    config.labels = [("tier".to_owned(), "front".to_owned())].into();
    node.run_pod(config).await?;
    let by = |id: &str, tier: &str| PodSandboxStatsFilter {
        id: id.to_owned(),
        label_selector: [("tier", tier)]
            .iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let other = node.pod("other").await?;
    assert_eq!(list_pods(&node, by("", "")).await?.len(), 2);
    assert_eq!(list_pods(&node, by(&other.id, "")).await?.len(), 1);
    assert_eq!(list_pods(&node, by("", "front")).await?.len(), 1);
    assert_eq!(list_pods(&node, by(&other.id, "front")).await?.len(), 0);

    node.cri().stop_pod(&other.id).await?;
    assert_eq!(
        list_pods(&node, by("", "")).await?.len(),
        1,
        "what is stopped uses nothing"
    );
    let stopped = pod_stats(&node, &other.id)
        .await?
        .linux
        .context("no linux")?;
    ensure!(
        stopped.network.is_none() && stopped.cpu.is_none() && stopped.process.is_none(),
        "{stopped:?}"
    );
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: "f".repeat(64),
    };
    let refused = node.cri().runtime().pod_sandbox_stats(request).await;
    assert_eq!(
        refused.map(drop).map_err(|status| status.code()),
        Err(Code::NotFound)
    );
    node.finish().await
}

#[tokio::test]
async fn what_is_not_the_pods_own_is_absent() -> Test {
    let node = TestNode::start().await?;
    let mut host = node.pod_config("host")?;
    let linux = host.linux.get_or_insert_default();
    linux.cgroup_parent = String::new();
    let options = linux
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default();
    options.network = NamespaceMode::Node.into();
    let pod = node.run_pod(host).await?;
    let mut config = node.container_config("c").await?;
    zcri_integration::pod::security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .network = NamespaceMode::Node.into();
    pod.start(&config).await?;
    let found = pod_stats(&node, &pod.id).await?.linux.context("no linux")?;
    assert_eq!(found.network, None, "the node's traffic is not the pod's");
    ensure!(
        found.cpu.is_none() && found.process.is_none(),
        "the group is the node's: {found:?}"
    );
    ensure!(
        found.containers[0].cpu.is_some(),
        "a container has a group of its own"
    );
    node.finish().await
}

#[tokio::test]
async fn the_size_of_a_layer_is_told_with_its_time_and_summed_up() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (a, b) = (
        writer(&pod, &node, "a").await?,
        writer(&pod, &node, "b").await?,
    );
    let layer = async |id: &str| -> Result<_> {
        stats(&node, id)
            .await?
            .writable_layer
            .context("no writable layer")
    };
    let first = layer(&a).await?;
    let again = layer(&a).await?;
    assert_eq!(
        first, again,
        "within its time a result is given again, with its own time"
    );
    layer(&b).await?;
    let answer = node
        .cri()
        .images()
        .image_fs_info(ImageFsInfoRequest {})
        .await?
        .into_inner();
    let all = answer
        .container_filesystems
        .first()
        .context("no container file system")?;
    let sum = du("--block-size=1", &upper(&node, &a))? + du("--block-size=1", &upper(&node, &b))?;
    assert_eq!(number(all.used_bytes, "bytes")?, sum);
    ensure!(
        all.timestamp <= again.timestamp,
        "a sum is as old as its oldest part"
    );
    // What is written later is seen later.
    node.exec(&a, "head -c 3000000 /dev/zero > /more")
        .await?
        .success()?;
    wait::until("the new file to be counted", wait::PATIENCE, async || {
        let now = layer(&a).await?;
        let grown =
            number(now.used_bytes, "bytes")? >= number(first.used_bytes, "bytes")? + 3_000_000;
        Ok((grown && now.timestamp > first.timestamp).then_some(()))
    })
    .await?;
    node.finish().await
}
