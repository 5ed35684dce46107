//! Changes of limits: all or nothing, contradictions, what statuses tell; memory that a child runs out of; pods.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::{resources, words};
use zcri_integration::v1::{
    HugepageLimit, LinuxContainerResources, UpdatePodSandboxResourcesRequest,
};
use zcri_integration::{Test, TestNode};

fn is_v1() -> bool {
    Path::new("/sys/fs/cgroup/memory").exists()
}

/// All limits of the container as the kernel has them, seen from inside.
async fn limits(node: &TestNode, id: &str) -> Result<String> {
    let script = if is_v1() {
        "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus \
         memory/memory.limit_in_bytes pids/pids.max"
    } else {
        "cd /sys/fs/cgroup; cat cpu.weight cpu.max cpuset.cpus memory.max memory.swap.max pids.max"
    };
    Ok(node.exec(id, script).await?.success()?.to_owned())
}

async fn told(node: &TestNode, id: &str) -> Result<LinuxContainerResources> {
    let status = node.cri().status(id).await?;
    let told = status.resources.and_then(|given| given.linux);
    told.context("no resources in the status")
}

fn small() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_shares: 512,
        cpuset_cpus: "0".into(),
        ..Default::default()
    }
}

/// The runtime has changed the CPUs when the kernel refuses the memory.
#[tokio::test]
async fn an_update_that_fails_half_way_changes_nothing() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = small();
    let id = pod.start(&config).await?;
    // What is in memory files cannot be written out on a machine without swap, and so the limit not go below it.
    let fill = "head -c 20000000 /dev/zero > /dev/shm/kept";
    node.exec(&id, fill).await?.success()?;
    let (before, status) = (limits(&node, &id).await?, told(&node, &id).await?);
    let change = LinuxContainerResources {
        cpuset_cpus: "0-1".into(),
        cpu_shares: 100,
        cpu_quota: 30_000,
        cpu_period: 50_000,
        memory_limit_in_bytes: 1 << 20,
        ..Default::default()
    };
    if is_v1() && std::thread::available_parallelism()?.get() > 1 {
        let refused = node.cri().update(&id, change.clone()).await;
        let refused = refused.err().context("the kernel took too low a limit")?;
        assert_eq!(refused.code(), Code::Internal, "{refused:?}");
        assert!(refused.message().contains("memory"), "{refused:?}");
        assert_eq!(limits(&node, &id).await?, before);
        assert_eq!(told(&node, &id).await?, status);
    }
    node.allow_log("UpdateContainerResources");
    // No CPU has this number.
    let nowhere = LinuxContainerResources {
        cpuset_cpus: "4000".into(),
        ..change.clone()
    };
    let refused = node.cri().update(&id, nowhere).await.err();
    assert_eq!(refused.context("no such CPU")?.code(), Code::Internal);
    assert_eq!(limits(&node, &id).await?, before);
    assert_eq!(told(&node, &id).await?, status);
    // And it can still be changed.
    let good = LinuxContainerResources {
        memory_limit_in_bytes: 80 << 20,
        ..change
    };
    node.cri().update(&id, good).await?;
    let after = told(&node, &id).await?;
    assert_eq!(
        (after.memory_limit_in_bytes, after.cpu_shares),
        (80 << 20, 100)
    );
    ensure!(limits(&node, &id).await?.contains(&(80 << 20).to_string()));
    node.finish().await
}

/// A limit that could not be recorded is taken back.
#[tokio::test]
async fn an_update_that_cannot_be_recorded_changes_nothing() -> Test {
    let node = TestNode::builder().root_size("32m").start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = small();
    let running = pod.start(&config).await?;
    config.metadata.get_or_insert_default().name = "created".into();
    let created = pod.create(&config).await?;
    let before = limits(&node, &running).await?;
    let status = told(&node, &running).await?;
    let filler = node.files().root.join("filler");
    let full = std::fs::write(&filler, vec![0; 64 << 20]);
    assert_eq!(
        full.err().map(|e| e.kind()),
        Some(std::io::ErrorKind::StorageFull)
    );
    let change = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_shares: 99,
        ..Default::default()
    };
    for id in [&running, &created] {
        let refused = node.cri().update(id, change.clone()).await;
        let refused = refused.err().context("there is no space for a record")?;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert_eq!(told(&node, id).await?, status);
    }
    assert_eq!(limits(&node, &running).await?, before);
    std::fs::remove_file(&filler)?;
    node.cri().start(&created).await?;
    assert_eq!(limits(&node, &created).await?, before);
    node.cri().update(&running, change).await?;
    assert_eq!(told(&node, &running).await?.cpu_shares, 99);
    node.allow_log("space");
    node.finish().await
}

type Change = fn(&mut LinuxContainerResources);

fn page(size: &str) -> HugepageLimit {
    HugepageLimit {
        page_size: size.to_owned(),
        limit: 0,
    }
}

fn file(key: &str) -> std::collections::HashMap<String, String> {
    [(key.to_owned(), "1".to_owned())].into()
}

/// Resources that cannot be, with the field that says so.
const IMPOSSIBLE: [(&str, Change); 16] = [
    ("cpu_period", |r| r.cpu_period = 999),
    ("cpu_period", |r| r.cpu_period = 1_000_001),
    ("cpu_period", |r| r.cpu_period = -1),
    ("cpu_quota", |r| r.cpu_quota = 999),
    ("cpu_quota", |r| r.cpu_quota = -2),
    ("cpu_shares", |r| r.cpu_shares = i64::MIN),
    ("memory_limit_in_bytes", |r| r.memory_limit_in_bytes = -2),
    ("memory_swap_limit_in_bytes", |r| {
        (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2, 1);
    }),
    // Less than the limit of memory that is set already.
    ("memory_swap_limit_in_bytes", |r| {
        r.memory_swap_limit_in_bytes = 1 << 20
    }),
    ("oom_score_adj", |r| r.oom_score_adj = 1001),
    ("cpuset_cpus", |r| r.cpuset_cpus = "1-0".into()),
    ("cpuset_mems", |r| r.cpuset_mems = "a".into()),
    ("hugepage_limits[0].page_size", |r| {
        r.hugepage_limits = vec![page("2 MB")]
    }),
    ("hugepage_limits[1].page_size", |r| {
        r.hugepage_limits = vec![page("2MB"), page("2MB")]
    }),
    ("unified", |r| r.unified = file("../../etc/passwd")),
    ("unified", |r| r.unified = file("memory")),
];

#[tokio::test]
async fn contradictions_and_values_out_of_range_are_refused_by_field() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = small();
    let id = pod.start(&config).await?;
    let before = limits(&node, &id).await?;
    let mut cases = IMPOSSIBLE.to_vec();
    if is_v1() {
        cases.push(("unified", |r| r.unified = file("memory.high")));
    }
    for (field, change) in cases {
        let mut given = LinuxContainerResources::default();
        change(&mut given);
        let status = node.cri().update(&id, given.clone()).await.err();
        let status = status.with_context(|| format!("{field} was taken: {given:?}"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(
            status.message().contains(&format!("linux.{field}")),
            "{field} in {status:?}"
        );
    }
    assert_eq!(limits(&node, &id).await?, before);
    let missing = node.cri().update("no-such-container", small()).await.err();
    assert_eq!(missing.context("it was found")?.code(), Code::NotFound);
    node.finish().await
}

#[tokio::test]
async fn statuses_tell_the_limits_that_hold() -> Test {
    let node = TestNode::builder()
        .config("[runtime]\npids_limit = 77")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = LinuxContainerResources {
        cpu_shares: 1,
        ..small()
    };
    let id = pod.start(&config).await?;
    let told = told(&node, &id).await?;
    assert_eq!(told.cpu_shares, 2, "the kernel's least");
    let kernel = limits(&node, &id).await?;
    assert!(kernel.ends_with("\n77"), "{kernel}");
    if is_v1() {
        assert!(kernel.starts_with("2\n"), "{kernel}");
        let swap = "cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes";
        let swap = node.exec(&id, swap).await?;
        let expected = if swap.code == 0 {
            swap.stdout.trim().parse()?
        } else {
            0
        };
        assert_eq!(told.memory_swap_limit_in_bytes, expected);
    }
    node.finish().await
}

#[tokio::test]
async fn memory_that_a_child_runs_out_of_is_told() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    config.command = words(["/bin/sh", "-c", "tail /dev/zero; exit $?"]);
    let id = pod.start(&config).await?;
    let status = node.exited(&id).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    node.finish().await
}

/// On version 2 the kubelet asks for it; then nothing of the container is left by half.
#[tokio::test]
async fn memory_that_runs_out_ends_the_whole_group_where_asked() -> Test {
    if is_v1() {
        eprintln!("skipped: the memory controller of this machine is of version 1");
        return Ok(());
    }
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    resources(&mut config).unified = [("memory.oom.group".to_owned(), "1".to_owned())].into();
    config.command = words(["/bin/sh", "-c", "tail /dev/zero; sleep 1000"]);
    let id = pod.start(&config).await?;
    let status = node.exited(&id).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    node.finish().await
}

#[tokio::test]
async fn what_a_pod_costs_is_kept_and_told() -> Test {
    let mut node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.id.clone();
    let cost = |memory| {
        Some(LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_shares: 20,
            ..Default::default()
        })
    };
    let info = async |node: &TestNode| -> Result<(serde_json::Value, serde_json::Value)> {
        let info = node.pod_info(&id).await?;
        let of = |name: &str| info[name]["memory_limit_in_bytes"].clone();
        Ok((of("overhead"), of("resources")))
    };
    let update = async |node: &TestNode, overhead, resources| -> Result<(), tonic::Status> {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.clone(),
            overhead,
            resources,
        };
        node.cri()
            .runtime()
            .update_pod_sandbox_resources(request)
            .await
            .map(drop)
    };
    assert!(info(&node).await?.0.is_null());
    update(&node, cost(10), cost(20)).await?;
    assert_eq!(info(&node).await?, (10.into(), 20.into()));
    update(&node, None, cost(30)).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(info(&node).await?, (10.into(), 30.into()));
    let bad = update(&node, None, cost(-5))
        .await
        .err()
        .context("it was taken")?;
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(
        bad.message().contains("resources.memory_limit_in_bytes"),
        "{bad:?}"
    );
    assert_eq!(info(&node).await?, (10.into(), 30.into()));
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "none".into(),
        ..Default::default()
    };
    let missing = node
        .cri()
        .runtime()
        .update_pod_sandbox_resources(request)
        .await
        .err();
    assert_eq!(missing.context("it was found")?.code(), Code::NotFound);
    node.finish().await
}
