//! Pods: listing and status, stopping and removing, attempts, handlers.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::labels;
use zcri_integration::v1::{
    ContainerState, NamespaceMode, PodSandboxConfig, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue,
};
use zcri_integration::{Pod, Test, TestNode};

#[tokio::test]
async fn status_and_list_tell_what_was_asked() -> Test {
    let node = TestNode::start().await?;
    let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let config = PodSandboxConfig {
        labels: labels([("app", "web"), ("tier", "1")]),
        annotations: labels([("note", "a \"quoted\" one\n"), ("empty", "")]),
        ..node.pod_config("web")?
    };
    let pod = node.run_pod_with(config.clone(), "runc").await?;
    let after = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let status = node.cri().pod_status(&pod.id).await?;
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(
        (&status.labels, &status.annotations),
        (&config.labels, &config.annotations)
    );
    assert_eq!(status.runtime_handler, "runc");
    assert!(
        (before..=after).contains(&u128::try_from(status.created_at)?),
        "created_at {}",
        status.created_at
    );
    let network = status.network.context("no network")?;
    let ip: std::net::Ipv4Addr = network.ip.parse()?;
    assert_eq!(ip.octets()[..2], [10, 77]);
    assert_eq!(network.additional_ips, []);
    let options = status
        .linux
        .and_then(|linux| linux.namespaces)
        .and_then(|ns| ns.options)
        .context("no namespaces")?;
    assert_eq!(
        (options.network(), options.pid(), options.ipc()),
        (
            NamespaceMode::Pod,
            NamespaceMode::Container,
            NamespaceMode::Pod
        )
    );

    let listed = node.cri().list_pods(PodSandboxFilter::default()).await?;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].id, listed[0].created_at, listed[0].state),
        (&pod.id, status.created_at, status.state)
    );
    assert_eq!(
        (&listed[0].labels, &listed[0].annotations),
        (&config.labels, &config.annotations)
    );
    assert_eq!(
        (&listed[0].metadata, listed[0].runtime_handler.as_str()),
        (&config.metadata, "runc")
    );
    node.finish().await
}

#[tokio::test]
async fn filters_choose_by_id_state_and_labels() -> Test {
    let node = TestNode::start().await?;
    let mut ids = Vec::new();
    for (name, tier) in [("a", "1"), ("b", "1"), ("c", "2")] {
        let config = PodSandboxConfig {
            labels: labels([("tier", tier), ("name", name)]),
            ..node.pod_config(name)?
        };
        ids.push(node.run_pod(config).await?.id);
    }
    node.cri().stop_pod(&ids[1]).await?;
    let state = |state: PodSandboxState| {
        Some(PodSandboxStateValue {
            state: state.into(),
        })
    };
    let list = async |filter: PodSandboxFilter| -> Result<Vec<usize>> {
        let found = node.cri().list_pods(filter).await?;
        let mut found: Vec<usize> = found
            .iter()
            .filter_map(|pod| ids.iter().position(|id| *id == pod.id))
            .collect();
        found.sort_unstable();
        Ok(found)
    };
    let any = PodSandboxFilter::default;
    let none: [usize; 0] = [];
    assert_eq!(list(any()).await?, [0, 1, 2]);
    assert_eq!(
        list(PodSandboxFilter {
            id: ids[2].clone(),
            ..any()
        })
        .await?,
        [2]
    );
    assert_eq!(
        list(PodSandboxFilter {
            id: "f".repeat(64),
            ..any()
        })
        .await?,
        none
    );
    assert_eq!(
        list(PodSandboxFilter {
            state: state(PodSandboxState::SandboxReady),
            ..any()
        })
        .await?,
        [0, 2]
    );
    assert_eq!(
        list(PodSandboxFilter {
            state: state(PodSandboxState::SandboxNotready),
            ..any()
        })
        .await?,
        [1]
    );
    let tier = PodSandboxFilter {
        label_selector: labels([("tier", "1")]),
        ..any()
    };
    assert_eq!(list(tier.clone()).await?, [0, 1]);
    let ready = PodSandboxFilter {
        state: state(PodSandboxState::SandboxReady),
        ..tier.clone()
    };
    assert_eq!(list(ready).await?, [0]);
    let both = PodSandboxFilter {
        label_selector: labels([("tier", "1"), ("name", "c")]),
        ..any()
    };
    assert_eq!(
        list(both).await?,
        none,
        "a selector means all of its labels"
    );
    node.finish().await
}

#[tokio::test]
async fn stopping_ends_everything_and_keeps_the_record() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (a, b) = (pod.sleeper("a").await?, pod.sleeper("b").await?);
    node.cri().stop_pod(&pod.id).await?;
    let status = node.cri().pod_status(&pod.id).await?;
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    assert!(
        status.network.is_none_or(|network| network.ip.is_empty()),
        "a stopped pod has no address"
    );
    for id in [&a, &b] {
        let container = node.cri().status(id).await?;
        assert_eq!(container.state(), ContainerState::ContainerExited);
        assert!(container.finished_at > container.started_at);
    }
    node.cri()
        .stop_pod(&pod.id)
        .await
        .context("StopPodSandbox again")?;
    assert_eq!(node.cri().list_pods(Default::default()).await?.len(), 1);
    node.cri().remove_pod(&pod.id).await?;
    assert_eq!(
        node.cri()
            .pod_status(&pod.id)
            .await
            .err()
            .context("it is removed")?
            .code(),
        Code::NotFound
    );
    assert_eq!(
        node.cri()
            .status(&a)
            .await
            .err()
            .context("its containers too")?
            .code(),
        Code::NotFound
    );
    node.finish().await
}

#[tokio::test]
async fn removing_a_running_pod_removes_what_it_holds() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let running = pod.sleeper("running").await?;
    let created = pod.create(&node.container_config("created").await?).await?;
    node.cri().remove_pod(&pod.id).await?;
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    assert!(
        node.cri()
            .list_containers(Default::default())
            .await?
            .is_empty()
    );
    for id in [&running, &created] {
        assert_eq!(
            node.cri()
                .status(id)
                .await
                .err()
                .context("it is removed")?
                .code(),
            Code::NotFound
        );
    }
    node.cri()
        .remove_pod(&pod.id)
        .await
        .context("RemovePodSandbox again")?;
    node.finish().await
}

/// The same pod after another, as the kubelet restarts one: another attempt is another pod.
#[tokio::test]
async fn attempts_are_pods_of_their_own() -> Test {
    let node = TestNode::start().await?;
    let first = node.pod("p").await?;
    node.cri().stop_pod(&first.id).await?;
    let mut config = first.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let second: Pod<'_> = node.run_pod(config).await?;
    assert_ne!(first.id, second.id);
    assert_eq!(second.sh("echo runs").await?.success()?, "runs");
    assert_eq!(node.cri().list_pods(Default::default()).await?.len(), 2);
    node.finish().await
}

#[tokio::test]
async fn handlers_are_chosen_by_name() -> Test {
    let node = TestNode::start().await?;
    let status = node.cri().node_status().await?;
    ensure!(
        status
            .runtime_handlers
            .iter()
            .any(|handler| handler.name == "crun"),
        "prerequisite: crun is missing; run `make setup`"
    );
    let pod = node.run_pod_with(node.pod_config("crun")?, "crun").await?;
    assert_eq!(pod.sh("echo by crun; exit 3").await?.code, 3);
    let id = pod.sleeper("c").await?;
    assert_eq!(node.exec(&id, "echo exec").await?.success()?, "exec");
    assert_eq!(
        node.cri().pod_status(&pod.id).await?.runtime_handler,
        "crun"
    );
    node.cri().stop(&id, 0).await?;
    assert_eq!(node.cri().status(&id).await?.exit_code, 137);
    node.finish().await
}
