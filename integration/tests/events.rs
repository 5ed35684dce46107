//! GetContainerEvents: everything that happens, in order, with the statuses of that moment; slow and stuck clients.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tonic::Streaming;
use zcri_integration::pod::{shim_of, words};
use zcri_integration::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
    PodSandboxStatusRequest,
};
use zcri_integration::{Test, TestNode, wait};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

type Events = Streaming<ContainerEventResponse>;

async fn subscribe(node: &TestNode) -> Result<Events> {
    let answer = node
        .cri()
        .runtime()
        .get_container_events(GetEventsRequest {})
        .await?;
    Ok(answer.into_inner())
}

async fn next(events: &mut Events) -> Result<ContainerEventResponse> {
    let event = tokio::time::timeout(wait::PATIENCE, events.message())
        .await
        .context("no event comes")??;
    event.context("the stream ended")
}

/// The next event is of this kind and object.
async fn expect(
    events: &mut Events,
    kind: ContainerEventType,
    id: &str,
) -> Result<ContainerEventResponse> {
    let event = next(events).await?;
    ensure!(
        event.container_event_type() == kind && event.container_id == id,
        "instead of {} of {id}: {} of {}",
        kind.as_str_name(),
        event.container_event_type().as_str_name(),
        event.container_id
    );
    ensure!(event.created_at > 0);
    Ok(event)
}

fn pod_state(event: &ContainerEventResponse) -> Result<PodSandboxState> {
    Ok(event
        .pod_sandbox_status
        .as_ref()
        .context("no status of the pod")?
        .state())
}

/// The states of containers in an event.
fn states(event: &ContainerEventResponse) -> BTreeMap<String, ContainerState> {
    event
        .containers_statuses
        .iter()
        .map(|one| (one.id.clone(), one.state()))
        .collect()
}

#[tokio::test]
async fn the_life_of_a_pod_is_told_in_order_with_its_statuses() -> Test {
    let node = TestNode::start().await?;
    let mut events = subscribe(&node).await?;
    let pod = node.pod("p").await?;
    let created = expect(&mut events, Created, &pod.id).await?;
    let status = created.pod_sandbox_status.context("no status of the pod")?;
    assert_eq!(status.metadata.context("no metadata")?.uid, "uid-p");
    ensure!(!status.network.context("no network")?.ip.is_empty());
    let started = expect(&mut events, Started, &pod.id).await?;
    assert_eq!(pod_state(&started)?, PodSandboxState::SandboxReady);

    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/sh", "-c", "exit 7"]);
    let id = pod.create(&config).await?;
    let created = expect(&mut events, Created, &id).await?;
    assert_eq!(
        states(&created),
        [(id.clone(), ContainerState::ContainerCreated)].into()
    );
    node.cri().start(&id).await?;
    let started = expect(&mut events, Started, &id).await?;
    let status = &started.containers_statuses[0];
    ensure!(
        status.started_at > 0 && status.state() == ContainerState::ContainerRunning,
        "{status:?}"
    );
    let stopped = expect(&mut events, Stopped, &id).await?;
    let status = &stopped.containers_statuses[0];
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert_eq!(
        *status,
        node.cri().status(&id).await?,
        "the same as a question gives"
    );
    ensure!(stopped.created_at >= started.created_at && started.created_at >= created.created_at);
    node.cri().remove(&id).await?;
    let deleted = expect(&mut events, Deleted, &id).await?;
    ensure!(deleted.containers_statuses.is_empty());

    // Ends by force: it stops before it is gone, and the pod after its containers.
    let sleeper = pod.sleeper("sleeper").await?;
    expect(&mut events, Created, &sleeper).await?;
    expect(&mut events, Started, &sleeper).await?;
    let other = pod.sleeper("other").await?;
    expect(&mut events, Created, &other).await?;
    expect(&mut events, Started, &other).await?;
    node.cri().remove(&other).await?;
    let stopped = expect(&mut events, Stopped, &other).await?;
    assert_eq!(states(&stopped)[&other], ContainerState::ContainerExited);
    expect(&mut events, Deleted, &other).await?;
    node.cri().remove_pod(&pod.id).await?;
    expect(&mut events, Stopped, &sleeper).await?;
    let stopped = expect(&mut events, Stopped, &pod.id).await?;
    assert_eq!(pod_state(&stopped)?, PodSandboxState::SandboxNotready);
    expect(&mut events, Deleted, &sleeper).await?;
    let deleted = expect(&mut events, Deleted, &pod.id).await?;
    assert_eq!(
        pod_state(&deleted)?,
        PodSandboxState::SandboxNotready,
        "the last status that there was"
    );
    node.finish().await
}

#[tokio::test]
async fn a_start_that_fails_and_a_lost_shim_are_told() -> Test {
    let node = TestNode::builder()
        .allow_log("the shim")
        .allow_log("shim of this pod is gone")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("bad").await?;
    config.command = words(["/no/such/program"]);
    let bad = pod.create(&config).await?;
    let good = pod.sleeper("good").await?;
    let mut events = subscribe(&node).await?;
    ensure!(node.cri().start(&bad).await.is_err());
    let stopped = expect(&mut events, Stopped, &bad).await?;
    let status = stopped
        .containers_statuses
        .iter()
        .find(|one| one.id == bad)
        .context("no status")?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );

    rustix::process::kill_process(shim_of(&pod.id)?, rustix::process::Signal::KILL)?;
    let ended = expect(&mut events, Stopped, &good).await?;
    assert_eq!(states(&ended)[&good], ContainerState::ContainerExited);
    let stopped = expect(&mut events, Stopped, &pod.id).await?;
    assert_eq!(pod_state(&stopped)?, PodSandboxState::SandboxNotready);
    node.finish().await
}

#[tokio::test]
async fn each_subscriber_hears_everything_from_its_beginning_on() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut first = subscribe(&node).await?;
    let a = pod.create(&node.container_config("a").await?).await?;
    let mut second = subscribe(&node).await?;
    let b = pod.create(&node.container_config("b").await?).await?;
    expect(&mut first, Created, &a).await?;
    expect(&mut first, Created, &b).await?;
    let heard = expect(&mut second, Created, &b).await?;
    assert_eq!(
        states(&heard).len(),
        2,
        "with the statuses of all containers of the pod"
    );
    drop(first);
    node.cri().remove(&a).await?;
    expect(&mut second, Deleted, &a).await?;
    node.finish().await
}

#[tokio::test]
async fn the_stream_ends_when_the_daemon_stops() -> Test {
    let mut node = TestNode::start().await?;
    let mut events;
    let id;
    {
        let pod = node.pod("p").await?;
        events = subscribe(&node).await?;
        id = pod.create(&node.container_config("c").await?).await?;
    }
    let begin = std::time::Instant::now();
    let status = node.stop_daemon().await?;
    ensure!(status.success());
    ensure!(
        begin.elapsed() < Duration::from_secs(4),
        "it waited for the stream: {:?}",
        begin.elapsed()
    );
    expect(&mut events, Created, &id).await?;
    let end = tokio::time::timeout(wait::PATIENCE, events.message()).await?;
    match end {
        Ok(None) => {}
        other => bail!("instead of an orderly end: {other:?}"),
    }
    node.finish().await
}

/// More than the queue, the stream and the socket of one client hold.
const ROUNDS: usize = 700;

#[tokio::test]
async fn a_stuck_client_delays_nobody_and_then_hears_how_things_are() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut lively = subscribe(&node).await?;
    let mut stuck = subscribe(&node).await?;
    // Bulky statuses fill what is between the daemon and the client, so that its queue fills too.
    let mut config = node.container_config("c").await?;
    config.annotations = [("bulk".to_owned(), "x".repeat(20_000))].into();
    let kept = pod.create(&config).await?;
    expect(&mut lively, Created, &kept).await?;
    let mut last = String::new();
    for round in 0..ROUNDS {
        let metadata = config.metadata.get_or_insert_default();
        metadata.name = format!("c{round}");
        last = pod.create(&config).await?;
        node.cri().remove(&last).await?;
        expect(&mut lively, Created, &last).await?;
        expect(&mut lively, Deleted, &last).await?;
    }
    node.cri().start(&kept).await?;
    expect(&mut lively, Started, &kept).await?;

    let (mut deletions, mut of_kept, mut of_last) = (0, Vec::new(), Vec::new());
    while of_kept.last() != Some(&Started) {
        let event = next(&mut stuck).await?;
        let kind = event.container_event_type();
        deletions += usize::from(kind == Deleted);
        if event.container_id == kept {
            of_kept.push(kind);
        }
        if event.container_id == last {
            of_last.push(kind);
        }
    }
    assert_eq!(deletions, ROUNDS, "no deletion is lost");
    assert_eq!(of_last, [Deleted], "its creation did not fit any more");
    // It heard of the creation before it was stuck, and of the present state afterwards.
    assert_eq!(of_kept, [Created, Started]);
    node.cri().stop(&kept, 0).await?;
    expect(&mut stuck, Stopped, &kept).await?;
    node.finish().await
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_keep_the_daemon_up() -> Test {
    let mut node = TestNode::start().await?;
    let _stuck = subscribe(&node).await?;
    {
        let pod = node.pod("p").await?;
        let mut config = node.container_config("c").await?;
        config.annotations = [("bulk".to_owned(), "x".repeat(200_000))].into();
        for round in 0..20 {
            config.metadata.get_or_insert_default().name = format!("c{round}");
            pod.create(&config).await?;
        }
    }
    let status = node.stop_daemon().await?;
    ensure!(status.success(), "{status}");
    node.finish().await
}

#[tokio::test]
async fn a_status_of_a_pod_has_those_of_its_containers_and_its_time() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let mut events = subscribe(&node).await?;
    let answer = node
        .cri()
        .runtime()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    assert_eq!(answer.containers_statuses, [node.cri().status(&id).await?]);
    node.cri().stop(&id, 0).await?;
    let stopped = expect(&mut events, Stopped, &id).await?;
    ensure!(
        answer.timestamp > 0 && answer.timestamp < stopped.created_at,
        "what comes later is newer"
    );
    node.finish().await
}
