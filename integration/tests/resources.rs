//! Limits: what the kernel enforces, what the status tells, changes while a container runs, memory that runs out.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use zcri_integration::pod::{resources, words};
use zcri_integration::v1::{ContainerState, LinuxContainerResources};
use zcri_integration::{Test, TestNode};

/// Reads a limit of the container, from inside, by its names in cgroup v1 and v2.
async fn limit(node: &TestNode, id: &str, v1: &str, v2: &str) -> Result<String> {
    let read = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
    Ok(node.exec(id, &read).await?.success()?.to_owned())
}

async fn memory(node: &TestNode, id: &str) -> Result<String> {
    limit(node, id, "memory/memory.limit_in_bytes", "memory.max").await
}

/// Quota and period as cgroup v2 writes them.
async fn cpu(node: &TestNode, id: &str) -> Result<String> {
    let v1 = "cd /sys/fs/cgroup/cpu 2>/dev/null && echo $(cat cpu.cfs_quota_us) $(cat cpu.cfs_period_us) || cat /sys/fs/cgroup/cpu.max";
    Ok(node.exec(id, v1).await?.success()?.to_owned())
}

fn modest() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        cpuset_cpus: "0".to_owned(),
        oom_score_adj: 500,
        ..Default::default()
    }
}

#[tokio::test]
async fn limits_are_set_told_and_changed() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = modest();
    let id = pod.start(&config).await?;
    assert_eq!(memory(&node, &id).await?, (64 << 20).to_string());
    assert_eq!(cpu(&node, &id).await?, "50000 100000");
    assert_eq!(
        limit(&node, &id, "cpuset/cpuset.cpus", "cpuset.cpus").await?,
        "0"
    );
    assert_eq!(
        node.exec(&id, "cat /proc/1/oom_score_adj")
            .await?
            .success()?,
        "500"
    );
    let told = async || -> Result<LinuxContainerResources> {
        node.cri()
            .status(&id)
            .await?
            .resources
            .and_then(|r| r.linux)
            .context("no resources in the status")
    };
    let before = told().await?;
    assert_eq!(
        (
            before.memory_limit_in_bytes,
            before.cpu_quota,
            before.cpu_shares
        ),
        (64 << 20, 50_000, 512)
    );

    let change = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 20_000,
        ..modest()
    };
    node.cri().update(&id, change).await?;
    assert_eq!(memory(&node, &id).await?, (128 << 20).to_string());
    assert_eq!(cpu(&node, &id).await?, "20000 100000");
    let after = told().await?;
    assert_eq!(
        (
            after.memory_limit_in_bytes,
            after.cpu_quota,
            after.cpu_shares
        ),
        (128 << 20, 20_000, 512)
    );

    // Zero leaves a value alone.
    node.cri()
        .update(
            &id,
            LinuxContainerResources {
                cpu_quota: 30_000,
                ..Default::default()
            },
        )
        .await?;
    assert_eq!(memory(&node, &id).await?, (128 << 20).to_string());
    assert_eq!(cpu(&node, &id).await?, "30000 100000");
    assert_eq!(told().await?.memory_limit_in_bytes, 128 << 20);
    node.finish().await
}

#[tokio::test]
async fn limits_of_a_created_container_hold_when_it_starts() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = modest();
    let id = pod.create(&config).await?;
    node.cri()
        .update(
            &id,
            LinuxContainerResources {
                memory_limit_in_bytes: 96 << 20,
                ..Default::default()
            },
        )
        .await?;
    node.cri().start(&id).await?;
    assert_eq!(memory(&node, &id).await?, (96 << 20).to_string());
    node.cri().stop(&id, 0).await?;
    let late = node
        .cri()
        .update(&id, modest())
        .await
        .err()
        .context("an exited container was changed")?;
    assert_eq!(late.code(), tonic::Code::FailedPrecondition, "{late:?}");
    node.finish().await
}

#[tokio::test]
async fn memory_that_runs_out_is_told() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 32 << 20;
    // busybox tail keeps what it reads until a newline comes.
    config.command = words(["/bin/sh", "-c", "exec tail /dev/zero"]);
    let id = pod.start(&config).await?;
    let status = node.exited(&id).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    // A kill that has another reason is not taken for it.
    let killed = pod.sleeper("killed").await?;
    node.cri().stop(&killed, 0).await?;
    assert_eq!(node.cri().status(&killed).await?.reason, "Error");
    node.finish().await
}

/// A node that may not lower the score starts the container with the lowest it may, and says so once.
#[tokio::test]
async fn a_score_that_is_too_low_is_the_lowest_possible() -> Test {
    let node = TestNode::builder()
        .allow_log("oom_score_adj")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let mut scores = Vec::new();
    for name in ["a", "b"] {
        let mut config = node.container_config(name).await?;
        resources(&mut config).oom_score_adj = -997;
        let id = pod.start(&config).await?;
        assert_eq!(
            node.cri().status(&id).await?.state(),
            ContainerState::ContainerRunning
        );
        scores.push(
            node.exec(&id, "cat /proc/1/oom_score_adj")
                .await?
                .success()?
                .parse::<i32>()?,
        );
    }
    let log = node.log();
    let said = log
        .lines()
        .filter(|line| line.contains("oom_score_adj"))
        .count();
    if scores == [-997, -997] {
        assert_eq!(said, 0, "{log}");
    } else {
        let lowest: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")?
            .trim()
            .parse()?;
        assert_eq!(scores, [lowest, lowest]);
        assert_eq!(said, 1, "{log}");
    }
    node.finish().await
}

#[tokio::test]
async fn statistics_are_of_the_container() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words([
        "/bin/sh",
        "-c",
        "head -c 5000000 /dev/zero > /written; while :; do :; done",
    ]);
    let id = pod.start(&config).await?;
    let stats = async || -> Result<zcri_integration::v1::ContainerStats> {
        let request = zcri_integration::v1::ContainerStatsRequest {
            container_id: id.clone(),
        };
        node.cri()
            .runtime()
            .container_stats(request)
            .await?
            .into_inner()
            .stats
            .context("no statistics")
    };
    let busy =
        zcri_integration::wait::until("CPU time", zcri_integration::wait::PATIENCE, async || {
            let found = stats().await?;
            let used = found
                .cpu
                .as_ref()
                .and_then(|cpu| cpu.usage_core_nano_seconds)
                .map_or(0, |v| v.value);
            let written = found
                .writable_layer
                .as_ref()
                .and_then(|fs| fs.used_bytes)
                .map_or(0, |v| v.value);
            Ok((used > 50_000_000 && written >= 5_000_000).then_some(found))
        })
        .await?;
    assert_eq!(busy.attributes.as_ref().context("attributes")?.id, id);
    let memory = busy.memory.context("no memory")?;
    ensure!(memory.working_set_bytes.context("no working set")?.value > 0);
    let all = node
        .cri()
        .runtime()
        .list_container_stats(zcri_integration::v1::ListContainerStatsRequest::default())
        .await?;
    assert_eq!(all.into_inner().stats.len(), 1);
    node.finish().await
}
