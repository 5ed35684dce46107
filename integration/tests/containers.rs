//! The life of a container, and how its process comes out of image and request.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::images;
use zcri_integration::pod::{container_config, security, words};
use zcri_integration::v1::{
    ContainerConfig, ContainerFilter, ContainerState, ContainerStateValue, Signal,
};
use zcri_integration::{Pod, Test, TestNode};

#[tokio::test]
async fn a_container_goes_from_created_to_removed() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.labels = HashMap::from([("app".to_owned(), "x".to_owned())]);
    config.annotations = HashMap::from([("note".to_owned(), "kept".to_owned())]);
    let id = pod.create(&config).await?;
    let created = node.cri().status(&id).await?;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!(
        (created.started_at, created.finished_at, created.exit_code),
        (0, 0, 0)
    );
    assert!(created.created_at > 0);
    node.cri().start(&id).await?;
    let running = node.cri().status(&id).await?;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= created.created_at && running.finished_at == 0);
    node.cri().stop(&id, 0).await?;
    let exited = node.cri().status(&id).await?;
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert!(exited.finished_at >= running.started_at);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (137, "Error"));
    assert_eq!(
        (&exited.labels, &exited.annotations),
        (&config.labels, &config.annotations)
    );
    assert_eq!(exited.metadata, config.metadata);
    assert_eq!(
        exited.image.context("an image")?.image,
        config.image.context("an image")?.image
    );
    assert_eq!(
        exited.log_path,
        pod.log_path(&container_config("c", ""))
            .display()
            .to_string()
    );
    assert!(exited.image_id.starts_with("sha256:") && exited.image_ref.contains("sha256:"));
    node.cri()
        .stop(&id, 0)
        .await
        .context("StopContainer of an exited container")?;
    node.cri().remove(&id).await?;
    assert_eq!(
        node.cri()
            .status(&id)
            .await
            .err()
            .context("it is removed")?
            .code(),
        Code::NotFound
    );
    node.cri()
        .remove(&id)
        .await
        .context("RemoveContainer again")?;
    node.finish().await
}

#[tokio::test]
async fn exit_codes_and_reasons_are_exact() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (n, (script, code, reason)) in [
        ("true", 0, "Completed"),
        ("exit 1", 1, "Error"),
        ("exit 255", 255, "Error"),
        // Process 1 is deaf to its own signals: a child's death is passed on.
        ("sh -c 'kill -TERM $$'; exit $?", 143, "Error"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = node.container_config(&format!("c{n}")).await?;
        config.command = words(["/bin/sh", "-c", script]);
        let ended = pod.run(&config).await?;
        assert_eq!(
            (ended.status.exit_code, ended.status.reason.as_str()),
            (code, reason),
            "{script}"
        );
        assert!(
            ended.status.finished_at >= ended.status.started_at && ended.status.started_at > 0,
            "{script}"
        );
    }
    node.finish().await
}

#[tokio::test]
async fn a_pod_holds_any_number_of_containers() -> Test {
    const CONTAINERS: i32 = 12;
    let node = TestNode::start().await?;
    node.busybox().await?;
    let pod = node.pod("p").await?;
    let runs = (0..CONTAINERS).map(|n| {
        let (node, pod) = (&node, &pod);
        async move {
            let mut config = node.container_config(&format!("c{n}")).await?;
            config.command = words(["/bin/sh", "-c", &format!("echo I am {n}; exit {n}")]);
            let ended = pod.run(&config).await?;
            anyhow::Ok((n, ended.output()))
        }
    });
    for (n, output) in futures::future::try_join_all(runs.collect::<Vec<_>>()).await? {
        assert_eq!((output.code, output.stdout), (n, format!("I am {n}\n")));
    }
    assert_eq!(
        node.cri()
            .list_containers(ContainerFilter::default())
            .await?
            .len(),
        12
    );
    node.finish().await
}

#[tokio::test]
async fn removing_a_running_container_ends_it() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    node.cri().remove(&id).await?;
    assert!(
        node.cri()
            .list_containers(ContainerFilter::default())
            .await?
            .is_empty()
    );
    node.finish().await
}

#[tokio::test]
async fn filters_choose_by_id_state_pod_and_labels() -> Test {
    let node = TestNode::start().await?;
    let (one, two) = (node.pod("one").await?, node.pod("two").await?);
    let labelled = async |pod: &Pod<'_>, name: &str, tier: &str| -> Result<String> {
        let mut config = node.container_config(name).await?;
        config.labels = HashMap::from([
            ("tier".to_owned(), tier.to_owned()),
            ("name".to_owned(), name.to_owned()),
        ]);
        pod.create(&config).await
    };
    let ids = [
        labelled(&one, "a", "1").await?,
        labelled(&one, "b", "2").await?,
        labelled(&two, "c", "1").await?,
    ];
    node.cri().start(&ids[0]).await?;
    let list = async |filter: ContainerFilter| -> Result<Vec<usize>> {
        let found = node.cri().list_containers(filter).await?;
        let mut found: Vec<_> = found
            .iter()
            .filter_map(|c| ids.iter().position(|id| *id == c.id))
            .collect();
        found.sort_unstable();
        Ok(found)
    };
    let filter = |change: &dyn Fn(&mut ContainerFilter)| {
        let mut filter = ContainerFilter::default();
        change(&mut filter);
        filter
    };
    let in_state = |state: ContainerState| {
        filter(&|f| {
            f.state = Some(ContainerStateValue {
                state: state.into(),
            })
        })
    };
    let tier = HashMap::from([("tier".to_owned(), "1".to_owned())]);
    let in_one = |f: &mut ContainerFilter| {
        f.pod_sandbox_id.clone_from(&one.id);
        f.label_selector.clone_from(&tier);
    };
    let cases: [(ContainerFilter, &[usize]); 7] = [
        (filter(&|_| ()), &[0, 1, 2]),
        (filter(&|f| f.id.clone_from(&ids[1])), &[1]),
        (filter(&|f| f.pod_sandbox_id.clone_from(&two.id)), &[2]),
        (in_state(ContainerState::ContainerRunning), &[0]),
        (in_state(ContainerState::ContainerCreated), &[1, 2]),
        (filter(&|f| f.label_selector.clone_from(&tier)), &[0, 2]),
        (filter(&in_one), &[0]),
    ];
    for (filter, wanted) in cases {
        assert_eq!(list(filter.clone()).await?, wanted, "{filter:?}");
    }
    let listed = node
        .cri()
        .list_containers(filter(&|f| f.id.clone_from(&ids[2])))
        .await?;
    let status = node.cri().status(&ids[2]).await?;
    assert_eq!(
        (&listed[0].pod_sandbox_id, &listed[0].metadata),
        (&two.id, &status.metadata)
    );
    assert_eq!(
        (&listed[0].image_ref, &listed[0].image_id),
        (&status.image_ref, &status.image_id)
    );
    assert_eq!(
        (&listed[0].labels, listed[0].created_at),
        (&status.labels, status.created_at)
    );
    node.finish().await
}

/// The signal is the image's, or the request's before it; after the grace period it is SIGKILL.
#[tokio::test]
async fn stopping_sends_the_right_signal_and_waits_no_longer_than_needed() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let image = images::busybox()?.stop_signal("SIGUSR1").build();
    node.registry.push("signal", "1", image);
    let usr1 = node.registry.reference("signal", "1");
    node.cri().pull(&usr1).await?;
    let plain = node.busybox().await?;
    let trap = "for s in TERM USR1 INT; do trap \"echo got $s; exit 7\" $s; done; echo ready; while :; do sleep 0.01; done";
    let cases = [
        (plain.as_str(), None, "TERM"),
        (&usr1, None, "USR1"),
        (&usr1, Some(Signal::Sigint), "INT"),
    ];
    for (n, (image, signal, name)) in cases.into_iter().enumerate() {
        let mut config = container_config(&format!("c{n}"), image);
        config.command = words(["/bin/sh", "-c", trap]);
        config.stop_signal = signal.map_or(0, i32::from);
        let id = pod.start(&config).await?;
        ready(&pod, &config).await?;
        node.cri().stop(&id, 20).await?;
        let status = node.cri().status(&id).await?;
        assert_eq!(status.exit_code, 7, "{name}");
        let text = zcri_integration::cri_log::stream(&pod.log(&config)?, "stdout");
        assert_eq!(text, format!("ready\ngot {name}\n"));
    }
    node.finish().await
}

async fn ready(pod: &Pod<'_>, config: &ContainerConfig) -> Result<()> {
    let look = || {
        pod.log(config)
            .is_ok_and(|lines| lines.iter().any(|line| line.text == "ready"))
    };
    zcri_integration::wait::until_true(
        "the program to be ready",
        zcri_integration::wait::PATIENCE,
        look,
    )
    .await
}

/// A container that has begun to ignore the signal to end.
async fn deaf(node: &TestNode, pod: &Pod<'_>, name: &str) -> Result<String> {
    let mut config = node.container_config(name).await?;
    config.command = words([
        "/bin/sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 0.01; done",
    ]);
    let id = pod.start(&config).await?;
    ready(pod, &config).await?;
    Ok(id)
}

#[tokio::test]
async fn a_container_that_ignores_its_signal_is_killed_after_the_grace_period() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = deaf(&node, &pod, "deaf").await?;
    let start = Instant::now();
    node.cri().stop(&id, 1).await?;
    let took = start.elapsed();
    ensure!(
        (Duration::from_secs(1)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    assert_eq!(node.cri().status(&id).await?.exit_code, 137);

    // Without one it is killed at once, also while another stop waits.
    let id = deaf(&node, &pod, "deaf2").await?;
    let patient = tokio::spawn({
        let (cri, id) = (node.cri().clone(), id.clone());
        async move { cri.stop(&id, 600).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    node.cri().stop(&id, 0).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(5),
        "a stop with no grace took {:?}",
        start.elapsed()
    );
    patient.await??;
    node.finish().await
}

#[tokio::test]
async fn a_stop_returns_within_milliseconds_of_the_exit() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    // The fastest of some: the machine may be busy.
    let mut best = Duration::MAX;
    for n in 0..5 {
        let mut config = node.container_config(&format!("c{n}")).await?;
        // /proc/uptime has hundredths of a second; `date` of busybox has no more.
        config.command = words([
            "/bin/sh",
            "-c",
            "trap 'exit 0' TERM; echo ready; while :; do sleep 0.001; done",
        ]);
        let id = pod.start(&config).await?;
        ready(&pod, &config).await?;
        node.cri().stop(&id, 10).await?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let finished =
            Duration::from_nanos(u64::try_from(node.cri().status(&id).await?.finished_at)?);
        best = best.min(now.saturating_sub(finished));
    }
    ensure!(
        best < Duration::from_millis(60),
        "the fastest of five took {best:?}"
    );
    node.finish().await
}

/// A container leaves no process behind when it ends, however they hang together.
#[tokio::test]
async fn the_end_of_a_container_is_the_end_of_its_processes() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    let shared = || zcri_integration::v1::NamespaceOption {
        pid: zcri_integration::v1::NamespaceMode::Pod.into(),
        ..Default::default()
    };
    zcri_integration::pod::pod_security(&mut config).namespace_options = Some(shared());
    let pod = node.run_pod(config).await?;
    let mut watcher = node.container_config("watcher").await?;
    security(&mut watcher).namespace_options = Some(shared());
    let watcher = pod.start(&watcher).await?;
    let mut parent = node.container_config("parent").await?;
    parent.command = words([
        "/bin/sh",
        "-c",
        "sh -c 'sleep 4444 & sleep 4444 & wait' & exec sleep 4444",
    ]);
    security(&mut parent).namespace_options = Some(shared());
    let id = pod.start(&parent).await?;
    let count = async || -> Result<usize> {
        let seen = node.exec(&watcher, "ps -o args").await?;
        Ok(seen
            .stdout
            .lines()
            .filter(|line| line.trim() == "sleep 4444")
            .count())
    };
    zcri_integration::wait::until(
        "the children",
        zcri_integration::wait::PATIENCE,
        async || Ok((count().await? == 3).then_some(())),
    )
    .await?;
    node.cri().stop(&id, 0).await?;
    node.cri().remove(&id).await?;
    zcri_integration::wait::until(
        "the children to end",
        zcri_integration::wait::PATIENCE,
        async || Ok((count().await? == 0).then_some(())),
    )
    .await?;
    node.finish().await
}
