//! The daemon dies or is replaced; its pods go on, and the next daemon knows everything.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Signal, kill_process};
use zcri_integration::pod::{pod_security, resources, security, shim_of, words};
use zcri_integration::v1::{
    ContainerState, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxState,
};
use zcri_integration::{Test, TestNode, cri_log, wait};

#[tokio::test]
async fn everything_is_known_again_after_a_kill() -> Test {
    let mut node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    config.labels.insert("app".to_owned(), "x".to_owned());
    let (running, exited, created, pod_id, stopped);
    {
        let pod = node.run_pod(config).await?;
        running = pod.sleeper("running").await?;
        let mut short = node.container_config("exited").await?;
        short.command = words(["/bin/sh", "-c", "exit 9"]);
        exited = pod.run(&short).await?.id;
        created = pod.create(&node.container_config("created").await?).await?;
        pod_id = pod.id;
        stopped = node.pod("stopped").await?.id;
        node.cri().stop_pod(&stopped).await?;
    }
    let picture = async |node: &TestNode| -> Result<_> {
        let mut pods = node.cri().list_pods(Default::default()).await?;
        pods.sort_by(|a, b| a.id.cmp(&b.id));
        let mut containers = node.cri().list_containers(Default::default()).await?;
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let mut statuses = Vec::new();
        for container in &containers {
            statuses.push(node.cri().status(&container.id).await?);
        }
        Ok((
            pods,
            containers,
            statuses,
            node.cri().pod_status(&pod_id).await?,
            node.cri().pod_status(&stopped).await?,
        ))
    };
    let before = picture(&node).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(picture(&node).await?, before);

    assert_eq!(node.exec(&running, "echo exec").await?.success()?, "exec");
    node.cri()
        .update(
            &running,
            LinuxContainerResources {
                memory_limit_in_bytes: 99 << 20,
                ..Default::default()
            },
        )
        .await?;
    node.cri().start(&created).await?;
    assert_eq!(
        node.exec(&created, "echo started").await?.success()?,
        "started"
    );
    node.cri().stop(&running, 0).await?;
    assert_eq!(node.cri().status(&running).await?.exit_code, 137);
    assert_eq!(node.cri().status(&exited).await?.exit_code, 9);
    node.finish().await
}

#[tokio::test]
async fn what_ends_while_nobody_watches_is_told_exactly() -> Test {
    let mut node = TestNode::start().await?;
    let (early, oom);
    {
        let pod = node.pod("p").await?;
        let mut config = node.container_config("early").await?;
        let flag = node.scratch("flags")?;
        config.command = words([
            "/bin/sh",
            "-c",
            "while [ ! -e /flags/go ]; do sleep 0.01; done; echo bye; exit 33",
        ]);
        config.mounts = vec![zcri_integration::v1::Mount {
            host_path: flag.display().to_string(),
            container_path: "/flags".to_owned(),
            ..Default::default()
        }];
        early = pod.start(&config).await?;
        let mut config = node.container_config("oom").await?;
        config.command = words([
            "/bin/sh",
            "-c",
            "while [ ! -e /flags/go ]; do sleep 0.01; done; exec tail /dev/zero",
        ]);
        config.mounts = vec![zcri_integration::v1::Mount {
            host_path: flag.display().to_string(),
            container_path: "/flags".to_owned(),
            ..Default::default()
        }];
        resources(&mut config).memory_limit_in_bytes = 32 << 20;
        resources(&mut config).memory_swap_limit_in_bytes = 32 << 20;
        oom = pod.start(&config).await?;
    }
    node.kill_daemon().await?;
    let began = now_ns()?;
    std::fs::write(node.scratch("flags")?.join("go"), "")?;
    let exit = |id: &str| {
        node.files()
            .state
            .join("containers")
            .join(id)
            .join("exit.json")
    };
    let (first, second) = (exit(&early), exit(&oom));
    wait::until_true("both to end", wait::PATIENCE, || {
        first.exists() && second.exists()
    })
    .await?;
    let ended = now_ns()?;
    node.start_daemon().await?;
    let status = node.exited(&early).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (33, "Error"));
    ensure!(
        (began..=ended).contains(&status.finished_at),
        "finished_at {} is not when it ended",
        status.finished_at
    );
    let status = node.exited(&oom).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    node.finish().await
}

fn now_ns() -> Result<i64> {
    Ok(i64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos(),
    )?)
}

#[tokio::test]
async fn no_log_line_is_lost_while_the_daemon_is_dead() -> Test {
    let mut node = TestNode::start().await?;
    let (id, path);
    {
        let pod = node.pod("p").await?;
        let mut config = node.container_config("c").await?;
        config.command = words([
            "/bin/sh",
            "-c",
            "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo line $n; done; sleep 1000000",
        ]);
        id = pod.start(&config).await?;
        path = pod.log_path(&config);
    }
    node.kill_daemon().await?;
    let lines = || std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
    wait::until_true("all lines, with the daemon dead", wait::PATIENCE, || {
        lines() == 3000
    })
    .await?;
    node.start_daemon().await?;
    let texts: Vec<String> = cri_log::parse(&std::fs::read_to_string(&path)?)?
        .into_iter()
        .map(|line| line.text)
        .collect();
    ensure!(
        texts
            .iter()
            .enumerate()
            .all(|(n, text)| *text == format!("line {}", n + 1)),
        "lines are missing or changed"
    );
    std::fs::rename(&path, path.with_extension("old"))?;
    node.cri().reopen_log(&id).await?;
    assert!(path.exists(), "ReopenContainerLog works on an old pod");
    node.finish().await
}

#[tokio::test]
async fn a_shared_pid_namespace_survives_too() -> Test {
    let mut node = TestNode::start().await?;
    let shared = || NamespaceOption {
        pid: NamespaceMode::Pod.into(),
        ..Default::default()
    };
    let (id, pod_config, pod_id, mut second);
    {
        let mut config = node.pod_config("p")?;
        pod_security(&mut config).namespace_options = Some(shared());
        let pod = node.run_pod(config).await?;
        let mut first = node.container_config("first").await?;
        security(&mut first).namespace_options = Some(shared());
        second = node.container_config("second").await?;
        security(&mut second).namespace_options = Some(shared());
        id = pod.start(&first).await?;
        (pod_config, pod_id) = (pod.config, pod.id);
    }
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let other = node.cri().create(&pod_id, &second, &pod_config).await?;
    node.cri().start(&other).await?;
    let seen = node.exec(&other, "readlink /proc/self/ns/pid").await?;
    assert_eq!(
        node.exec(&id, "readlink /proc/self/ns/pid")
            .await?
            .success()?,
        seen.success()?
    );
    node.finish().await
}

/// A daemon killed while it makes a pod: the next one has the pod whole or not at all, and a retry succeeds.
#[tokio::test]
async fn a_daemon_killed_amid_a_pod_leaves_nothing() -> Test {
    let mut node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    node.busybox().await?;
    let config = node.pod_config("p")?;
    for after in [0, 2, 5, 10, 20, 30, 45, 60, 90, 150] {
        let run = tokio::spawn({
            let (cri, config) = (node.cri().clone(), config.clone());
            async move { cri.run_pod(&config).await }
        });
        tokio::time::sleep(Duration::from_millis(after)).await;
        node.kill_daemon().await?;
        // An error, or the answer came before the end.
        let answer = run.await?;
        node.start_daemon().await?;
        let listed = node.cri().list_pods(Default::default()).await?;
        if let Ok(id) = &answer {
            ensure!(
                listed.iter().any(|pod| pod.id == *id),
                "a pod that was answered for is gone after {after} ms"
            );
        }
        let again = node
            .run_pod(config.clone())
            .await
            .with_context(|| format!("killed after {after} ms"))?;
        assert_eq!(
            again.sh("echo runs").await?.success()?,
            "runs",
            "killed after {after} ms"
        );
        node.remove_pods().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_daemon_killed_amid_a_container_leaves_nothing() -> Test {
    let mut node = TestNode::builder().allow_log("Container").start().await?;
    node.busybox().await?;
    for after in [0, 2, 5, 10, 20, 40, 80] {
        let (pod_id, pod_config) = {
            let pod = node.pod("p").await?;
            (pod.id, pod.config)
        };
        let config = node.container_config("c").await?;
        let start = tokio::spawn({
            let (cri, pod_id, pod_config, config) = (
                node.cri().clone(),
                pod_id.clone(),
                pod_config.clone(),
                config.clone(),
            );
            async move {
                let id = cri.create(&pod_id, &config, &pod_config).await?;
                cri.start(&id).await?;
                Ok::<_, tonic::Status>(id)
            }
        });
        tokio::time::sleep(Duration::from_millis(after)).await;
        node.kill_daemon().await?;
        let answer = start.await?;
        node.start_daemon().await?;
        if let Ok(id) = answer {
            assert_eq!(
                node.cri().status(&id).await?.state(),
                ContainerState::ContainerRunning,
                "killed after {after} ms"
            );
        }
        let id = node
            .cri()
            .create(&pod_id, &config, &pod_config)
            .await
            .with_context(|| format!("killed after {after} ms"))?;
        let state = node.cri().status(&id).await?.state();
        match state {
            ContainerState::ContainerCreated => node
                .cri()
                .start(&id)
                .await
                .with_context(|| format!("killed after {after} ms"))?,
            ContainerState::ContainerRunning => {}
            other => anyhow::bail!(
                "killed after {after} ms, it is {other:?}: {:?}",
                node.cri().status(&id).await?
            ),
        }
        assert_eq!(
            node.exec(&id, "echo runs").await?.success()?,
            "runs",
            "killed after {after} ms"
        );
        node.remove_pods().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_daemon_killed_amid_a_removal_finishes_it_at_the_retry() -> Test {
    let mut node = TestNode::builder().allow_log("PodSandbox").start().await?;
    for after in [0, 2, 5, 10, 20, 40, 80] {
        let pod_id = {
            let pod = node.pod("p").await?;
            pod.sleeper("c").await?;
            pod.id
        };
        let remove = tokio::spawn({
            let (cri, id) = (node.cri().clone(), pod_id.clone());
            async move { cri.remove_pod(&id).await }
        });
        tokio::time::sleep(Duration::from_millis(after)).await;
        node.kill_daemon().await?;
        drop(remove.await?);
        node.start_daemon().await?;
        node.cri()
            .remove_pod(&pod_id)
            .await
            .with_context(|| format!("killed after {after} ms"))?;
        assert!(node.cri().list_pods(Default::default()).await?.is_empty());
        let slot = node.slot();
        let gone = || zcri_integration::leaks::daemon_paths(slot).is_empty();
        wait::until_true("everything to be gone", wait::PATIENCE, gone)
            .await
            .with_context(|| format!("killed after {after} ms"))?;
    }
    node.finish().await
}

/// The shim of a pod dies: its containers are ended and told so, the pod is not ready, and all of it can be removed.
#[tokio::test]
async fn a_lost_shim_is_noticed() -> Test {
    let node = TestNode::builder()
        .allow_log("shim")
        .allow_log("an orphan was not deleted")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let other = node.pod("other").await?;
    kill_process(shim_of(&pod.id)?, Signal::KILL)?;
    wait::until("the pod to be not ready", wait::PATIENCE, async || {
        let state = node.cri().pod_status(&pod.id).await?.state();
        Ok((state == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code != 0, "{status:?}");
    assert_eq!(
        other.sh("echo fine").await?.success()?,
        "fine",
        "another pod"
    );
    node.finish().await
}

/// The same, while no daemon watches.
#[tokio::test]
async fn a_shim_lost_meanwhile_is_noticed_at_the_start() -> Test {
    let mut node = TestNode::builder()
        .allow_log("shim")
        .allow_log("an orphan was not deleted")
        .start()
        .await?;
    let (pod_id, id) = {
        let pod = node.pod("p").await?;
        let id = pod.sleeper("c").await?;
        (pod.id, id)
    };
    let shim = shim_of(&pod_id)?;
    node.kill_daemon().await?;
    kill_process(shim, Signal::KILL)?;
    node.start_daemon().await?;
    wait::until("the pod to be not ready", wait::PATIENCE, async || {
        let state = node.cri().pod_status(&pod_id).await?.state();
        Ok((state == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    ensure!(node.exited(&id).await?.exit_code != 0);
    node.finish().await
}

/// The shim's process, by its command line.
/// The handler of a pod may be configured no more when the pod is found without its shim: what started a container
/// deletes it.
#[tokio::test]
async fn an_orphan_of_a_handler_that_is_gone_is_deleted_by_its_runtime() -> Test {
    let mut node = TestNode::builder()
        .allow_log("shim")
        .allow_log("an orphan was not deleted")
        .prepare()
        .await?;
    let keeps = node.scratch("keeps")?;
    let runc = zcri_integration::binaries::system("runc", "runc")?;
    node.add_config(&format!(
        "[runtime.handlers.passing]\npath = {runc:?}\nroot = {keeps:?}\n"
    ))?;
    node.start_daemon().await?;
    let (pod_id, id) = {
        let config = node.pod_config("p")?;
        let pod = node.run_pod_with(config, "passing").await?;
        let id = pod.sleeper("c").await?;
        (pod.id, id)
    };
    ensure!(
        keeps.join(&id).exists(),
        "the runtime keeps a container here"
    );
    let shim = shim_of(&pod_id)?;
    node.kill_daemon().await?;
    kill_process(shim, Signal::KILL)?;
    node.add_config("")?;
    node.start_daemon().await?;
    node.exited(&id).await?;
    node.cri().remove(&id).await?;
    ensure!(!keeps.join(&id).exists(), "and would do so for ever");
    node.finish().await
}

/// An upgrade is a restart: an orderly one loses nothing either, and does not wait for what runs.
#[tokio::test]
async fn an_orderly_restart_is_quick_and_keeps_all() -> Test {
    let mut node = TestNode::start().await?;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(node.pod(&format!("p{n}")).await?.sleeper("c").await?);
    }
    let start = std::time::Instant::now();
    let status = node.stop_daemon().await?;
    ensure!(
        status.success() && start.elapsed() < Duration::from_secs(5),
        "{status} after {:?}",
        start.elapsed()
    );
    node.start_daemon().await?;
    for id in &ids {
        assert_eq!(node.exec(id, "echo fine").await?.success()?, "fine");
    }
    node.finish().await
}
