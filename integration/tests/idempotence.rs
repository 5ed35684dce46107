//! A request that is repeated joins the one in flight or gets its result: no retry of a kubelet makes two things of
//! one, starts over, or is refused because a name is taken.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use zcri_integration::pod::words;
use zcri_integration::v1::{ContainerState, Mount, PodSandboxState};
use zcri_integration::{Test, TestNode, wait};

/// Puts a plugin before the node's chain that counts its ADDs, and takes its time for each.
fn slow_network(node: &TestNode, seconds: f32) -> Result<std::path::PathBuf> {
    let count = node.files().dir.join("adds");
    let script = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}}';;\n\
         ADD) echo add >> {}; sleep {seconds}; echo '{{\"cniVersion\":\"1.0.0\"}}';;\nesac\n",
        count.display()
    );
    let plugin = node.files().plugins.join("slow");
    std::fs::write(&plugin, script)?;
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755))?;
    let path = node.files().cni.join("10-test.conflist");
    let mut list: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    list["plugins"]
        .as_array_mut()
        .context("a conflist")?
        .insert(0, serde_json::json!({ "type": "slow" }));
    std::fs::write(path.with_extension("new"), list.to_string())?;
    std::fs::rename(path.with_extension("new"), path)?;
    Ok(count)
}

fn lines(path: &std::path::Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn a_repeated_pod_is_the_same_pod() -> Test {
    let node = TestNode::start().await?;
    let config = node.pod_config("p")?;
    let first = node.cri().run_pod(&config).await?;
    assert_eq!(node.cri().run_pod(&config).await?, first);
    let mut other = config.clone();
    other.metadata.get_or_insert_default().uid = "another-uid".to_owned();
    assert_ne!(
        node.cri().run_pod(&other).await?,
        first,
        "another uid is another pod"
    );
    node.cri().remove_pod(&first).await?;
    assert_ne!(
        node.cri().run_pod(&config).await?,
        first,
        "a pod that was removed is made anew"
    );
    node.finish().await
}

#[tokio::test]
async fn pods_asked_for_at_the_same_time_are_one() -> Test {
    let node = TestNode::start().await?;
    let count = slow_network(&node, 0.3)?;
    let config = node.pod_config("p")?;
    let ids = try_join_all((0..6).map(|_| node.cri().run_pod(&config))).await?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(lines(&count), 1, "the network was made more than once");
    assert_eq!(node.cri().list_pods(Default::default()).await?.len(), 1);
    node.finish().await
}

/// What peers fail at: the retry gets the pod when it is ready, not an error, and not at its own deadline.
#[tokio::test]
async fn a_retry_after_a_deadline_gets_the_pod_when_it_is_ready() -> Test {
    let node = TestNode::start().await?;
    let count = slow_network(&node, 2.0)?;
    let config = node.pod_config("p")?;
    let start = Instant::now();
    let first = tokio::time::timeout(Duration::from_millis(300), node.cri().run_pod(&config)).await;
    ensure!(first.is_err(), "the network was to be slow");
    let id = node.cri().run_pod(&config).await.context("the retry")?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert_eq!(lines(&count), 1, "the retry began again");
    assert_eq!(
        node.cri().pod_status(&id).await?.state(),
        PodSandboxState::SandboxReady
    );
    node.finish().await
}

/// The caller is gone for good: the pod is made all the same, and listed.
#[tokio::test]
async fn a_pod_is_finished_though_its_caller_left() -> Test {
    let node = TestNode::start().await?;
    slow_network(&node, 1.0)?;
    let config = node.pod_config("p")?;
    drop(tokio::time::timeout(Duration::from_millis(200), node.cri().run_pod(&config)).await);
    let pods = wait::until("the pod", wait::PATIENCE, async || {
        let pods = node.cri().list_pods(Default::default()).await?;
        Ok(pods
            .iter()
            .any(|pod| pod.state() == PodSandboxState::SandboxReady)
            .then_some(pods))
    });
    assert_eq!(pods.await?.len(), 1);
    node.finish().await
}

#[tokio::test]
async fn a_pod_that_failed_can_be_asked_for_again() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let config = node.pod_config("p")?;
    let conflist = node.files().cni.join("10-test.conflist");
    let good = std::fs::read_to_string(&conflist)?;
    std::fs::write(
        &conflist,
        r#"{"cniVersion":"1.0.0","name":"bad","plugins":[{"type":"not-there"}]}"#,
    )?;
    for _ in 0..2 {
        let status = node
            .cri()
            .run_pod(&config)
            .await
            .err()
            .context("a pod without a plugin")?;
        assert!(
            status.message().contains("not-there") && !status.message().contains("reserved"),
            "{status:?}"
        );
    }
    std::fs::write(&conflist, good)?;
    let id = wait::until("the pod", wait::PATIENCE, async || {
        Ok(node.cri().run_pod(&config).await.ok())
    })
    .await?;
    assert_eq!(node.cri().list_pods(Default::default()).await?[0].id, id);
    node.finish().await
}

#[tokio::test]
async fn a_repeated_container_is_the_same_container() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let config = node.container_config("c").await?;
    let first = pod.create(&config).await?;
    assert_eq!(pod.create(&config).await?, first);
    node.cri().start(&first).await?;
    assert_eq!(pod.create(&config).await?, first, "also when it runs");
    let mut next = config.clone();
    next.metadata.get_or_insert_default().attempt = 1;
    assert_ne!(
        pod.create(&next).await?,
        first,
        "another attempt is another container"
    );
    let other_pod = node.pod("q").await?;
    assert_ne!(
        other_pod.create(&config).await?,
        first,
        "the same name in another pod is another container"
    );
    node.cri().remove(&first).await?;
    let again = pod.create(&config).await?;
    assert_ne!(again, first, "a container that was removed is made anew");
    assert_eq!(
        node.cri().status(&again).await?.state(),
        ContainerState::ContainerCreated
    );
    node.finish().await
}

#[tokio::test]
async fn containers_asked_for_at_the_same_time_are_one() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let config = node.container_config("c").await?;
    let ids = try_join_all((0..8).map(|_| pod.create(&config))).await?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(
        node.cri().list_containers(Default::default()).await?.len(),
        1
    );
    node.finish().await
}

#[tokio::test]
async fn a_container_that_was_refused_can_be_asked_for_again() -> Test {
    let node = TestNode::builder()
        .allow_log("CreateContainer")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let good = node.container_config("c").await?;
    let mut bad = good.clone();
    // A source below a file: it cannot be made.
    let file = node.scratch("x")?.join("file");
    std::fs::write(&file, "")?;
    let source = file.join("below").display().to_string();
    bad.mounts = vec![Mount {
        host_path: source.clone(),
        container_path: "/v".to_owned(),
        ..Default::default()
    }];
    for _ in 0..2 {
        let error = pod
            .create(&bad)
            .await
            .err()
            .context("a mount that cannot be")?;
        let text = format!("{error:#}");
        assert!(
            text.contains(&source) && !text.contains("reserved"),
            "{text}"
        );
    }
    let id = pod.start(&good).await?;
    assert_eq!(node.exec(&id, "echo runs").await?.success()?, "runs");
    node.finish().await
}

#[tokio::test]
async fn stops_at_the_same_time_all_succeed() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words([
        "/bin/sh",
        "-c",
        "trap 'sleep 0.3; exit 6' TERM; echo ready; while :; do sleep 0.01; done",
    ]);
    let id = pod.start(&config).await?;
    // Before its trap is set, process 1 ignores the signal.
    wait::until_true("the trap", wait::PATIENCE, || {
        pod.log(&config).is_ok_and(|lines| !lines.is_empty())
    })
    .await?;
    try_join_all((0..5).map(|_| node.cri().stop(&id, 10))).await?;
    let status = node.cri().status(&id).await?;
    ensure!(status.exit_code == 6, "{status:?}");
    try_join_all((0..3).map(|_| node.cri().stop_pod(&pod.id))).await?;
    try_join_all((0..3).map(|_| node.cri().remove_pod(&pod.id))).await?;
    node.finish().await
}

/// A stop and a removal that arrive while the pod is being made wait for it, or end it: never both, never neither.
#[tokio::test]
async fn a_removal_during_the_making_leaves_nothing() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    slow_network(&node, 0.5)?;
    let config = node.pod_config("p")?;
    let run = tokio::spawn({
        let (cri, config) = (node.cri().clone(), config.clone());
        async move { cri.run_pod(&config).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    for pod in node.cri().list_pods(Default::default()).await? {
        node.cri().remove_pod(&pod.id).await?;
    }
    if let Ok(id) = run.await? {
        node.cri().remove_pod(&id).await?;
    }
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    node.finish().await
}

/// A stop that meets a start which is under way lets it finish, and then stops the container.
#[tokio::test]
async fn a_stop_during_a_start_leaves_it_stopped() -> Test {
    let mut node = TestNode::builder().prepare().await?;
    let dir = node.scratch("slow-runc")?;
    let (called, go_on, program) = (dir.join("called"), dir.join("go-on"), dir.join("runc"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &go_on,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )?;
    let runc = zcri_integration::binaries::system("runc", "runc")?;
    // Its `run` tells that it was called, and waits for a word.
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' run '*) touch {called}; cat {go_on};; esac\nexec {runc} \"$@\"\n",
        called = called.display(),
        go_on = go_on.display(),
        runc = runc.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    node.add_config(&format!("[runtime.handlers.slow]\npath = {program:?}\n"))?;
    node.start_daemon().await?;
    let pod = node.run_pod_with(node.pod_config("p")?, "slow").await?;
    let id = pod.create(&node.container_config("c").await?).await?;
    let start = tokio::spawn({
        let (cri, id) = (node.cri().clone(), id.clone());
        async move { cri.start(&id).await }
    });
    wait::until_true("the runtime to be called", wait::PATIENCE, || {
        called.exists()
    })
    .await?;
    let stop = tokio::spawn({
        let (cri, id) = (node.cri().clone(), id.clone());
        async move { cri.stop(&id, 0).await }
    });
    // Requests of one connection are served in their order, so that the stop is under way after these.
    for _ in 0..3 {
        node.cri().version().await?;
    }
    std::fs::write(&go_on, "")?;
    start.await??;
    stop.await??;
    let status = node.cri().status(&id).await?;
    assert_eq!(
        status.state(),
        ContainerState::ContainerExited,
        "{status:?}"
    );
    assert_eq!(status.exit_code, 137);
    node.finish().await
}
