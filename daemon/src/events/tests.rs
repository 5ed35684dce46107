//! Events are the differences between pictures; a queue that overflows becomes the present state.

use std::collections::BTreeMap;

use super::EventKind::{Created, Deleted, Started, Stopped};
use super::*;
use crate::container::Exited;
use crate::id::ContainerId;

fn container(id: &ContainerId, pod: &PodId, state: ContainerState) -> Arc<ContainerView> {
    Arc::new(ContainerView {
        wlm: None,
        id: id.clone(),
        pod_id: pod.clone(),
        config: Arc::default(),
        resources: Default::default(),
        image_id: String::new(),
        image_ref: String::new(),
        stop_signal: String::new(),
        cgroup: String::new(),
        user: (0, 0, Vec::new()),
        log: None,
        bundle: Default::default(),
        upper: Default::default(),
        created_at_ns: 1,
        state,
        readings: Arc::default(),
    })
}

fn running() -> ContainerState {
    ContainerState::Running {
        started_at_ns: 1,
        pid: 1,
    }
}

fn exited() -> ContainerState {
    ContainerState::Exited(Exited::unseen(1, ""))
}

fn pod(
    id: &PodId,
    revision: u64,
    state: PodState,
    containers: &[(&ContainerId, ContainerState)],
) -> Arc<PodView> {
    Arc::new(PodView {
        id: id.clone(),
        config: Arc::default(),
        handler: String::new(),
        created_at_ns: 1,
        state,
        addresses: Vec::new(),
        init_pid: None,
        stack_cgroup: None,
        label: None,
        stopping: tokio::sync::watch::channel(false).1,
        bundle: Default::default(),
        containers: containers
            .iter()
            .map(|(one, state)| ((*one).clone(), container(one, id, state.clone())))
            .collect::<BTreeMap<_, _>>(),
        revision,
        readings: Arc::default(),
    })
}

/// Takes all that waits.
async fn drain(
    subscription: &mut Subscription,
    views: &[Arc<PodView>],
) -> Vec<(EventKind, String)> {
    let mut found = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(
        std::time::Duration::from_millis(1),
        subscription.next(|| views.to_vec()),
    )
    .await
    {
        found.push((event.kind, event.id));
    }
    found
}

#[test]
fn every_step_of_a_container_is_a_change() {
    let (id, c) = (PodId::random(), ContainerId::random());
    let ready = |state: Option<ContainerState>| {
        let containers: Vec<_> = state.into_iter().map(|state| (&c, state)).collect();
        pod(&id, 0, PodState::Ready, &containers)
    };
    let kinds = |before: Option<ContainerState>, after: Option<ContainerState>| -> Vec<EventKind> {
        changes(Some(&ready(before)), &ready(after))
            .into_iter()
            .inspect(|(_, of)| assert_eq!(of, c.as_str()))
            .map(|(kind, _)| kind)
            .collect()
    };
    let created = ContainerState::Created;
    assert_eq!(kinds(None, Some(created.clone())), [Created]);
    assert_eq!(kinds(Some(created.clone()), Some(running())), [Started]);
    assert_eq!(kinds(Some(running()), Some(running())), []);
    assert_eq!(kinds(Some(running()), Some(exited())), [Stopped]);
    assert_eq!(kinds(Some(created.clone()), Some(exited())), [Stopped]);
    assert_eq!(kinds(Some(exited()), Some(exited())), []);
    assert_eq!(kinds(Some(exited()), None), [Deleted]);
    assert_eq!(kinds(Some(created), None), [Deleted]);
    assert_eq!(kinds(Some(running()), None), [Stopped, Deleted]);
    assert_eq!(kinds(None, Some(running())), [Created, Started]);
}

#[test]
fn a_pod_has_events_of_its_own() {
    let (id, c) = (PodId::random(), ContainerId::random());
    let ready = pod(&id, 0, PodState::Ready, &[(&c, running())]);
    let stopped = pod(&id, 1, PodState::NotReady, &[(&c, exited())]);
    let own = |kind| (kind, id.to_string());
    let of_c = |kind| (kind, c.to_string());
    assert_eq!(
        changes(None, &ready),
        [own(Created), own(Started), of_c(Created), of_c(Started)]
    );
    assert_eq!(
        changes(Some(&ready), &stopped),
        [of_c(Stopped), own(Stopped)],
        "containers end before their pod"
    );
    assert_eq!(changes(Some(&stopped), &stopped), []);
}

#[tokio::test]
async fn events_come_in_order_and_end_with_the_daemon() {
    let (events, id) = (Events::default(), PodId::random());
    let unheard = pod(&id, 0, PodState::Ready, &[]);
    events.changed(None, &unheard);
    let mut subscription = events.subscribe();
    let stopped = pod(&id, 1, PodState::NotReady, &[]);
    events.changed(Some(&unheard), &stopped);
    events.deleted(&stopped);
    events.close();
    for kind in [Stopped, Deleted] {
        let event = subscription.next(Vec::new).await.unwrap();
        assert_eq!((event.kind, event.id), (kind, id.to_string()));
        assert_eq!(event.pod.state, PodState::NotReady);
    }
    assert!(subscription.next(Vec::new).await.is_none());
    assert!(events.subscribe().next(Vec::new).await.is_none());
}

#[tokio::test]
async fn an_overflow_becomes_the_present_state_and_loses_no_deletion() {
    let (events, id) = (Events::default(), PodId::random());
    let (kept, gone) = (ContainerId::random(), ContainerId::random());
    let mut subscription = events.subscribe();
    let mut before = pod(&id, 0, PodState::Ready, &[]);
    let mut step = |revision: u64, containers: &[(&ContainerId, ContainerState)]| {
        let after = pod(&id, revision, PodState::Ready, containers);
        events.changed(Some(&before), &after);
        before = after.clone();
        after
    };
    for round in 0..CAPACITY as u64 {
        step(round * 3 + 1, &[(&gone, running())]);
        step(round * 3 + 2, &[(&gone, exited())]);
        step(round * 3 + 3, &[]);
    }
    let last = CAPACITY as u64 * 3 + 1;
    let present = step(last, &[(&kept, exited())]);
    let told = drain(&mut subscription, &[present]).await;
    let expected = [(Started, id.to_string()), (Stopped, kept.to_string())];
    let (deletions, present) = told.split_at(told.len() - 2);
    assert_eq!(present, expected);
    assert_eq!(deletions.len(), CAPACITY);
    assert!(
        deletions
            .iter()
            .all(|one| *one == (Deleted, gone.to_string()))
    );
    // From here on as before.
    step(last + 1, &[]);
    assert_eq!(
        drain(&mut subscription, &[]).await,
        [(Deleted, kept.to_string())]
    );
}

#[tokio::test]
async fn what_a_resync_told_is_not_told_by_older_events() {
    let (events, id, c) = (Events::default(), PodId::random(), ContainerId::random());
    let mut subscription = events.subscribe();
    let empty = pod(&id, 0, PodState::Ready, &[]);
    let one = pod(&id, 1, PodState::Ready, &[(&c, ContainerState::Created)]);
    for _ in 0..=CAPACITY {
        events.changed(Some(&empty), &one);
    }
    // The pictures are newer than what comes into the queue after them.
    let newest = pod(&id, 3, PodState::Ready, &[(&c, exited())]);
    let first = subscription.next(|| vec![newest.clone()]).await.unwrap();
    assert_eq!(first.kind, Started);
    let two = pod(&id, 2, PodState::Ready, &[(&c, running())]);
    events.changed(Some(&one), &two);
    events.changed(Some(&two), &newest);
    let four = pod(&id, 4, PodState::NotReady, &[]);
    events.changed(Some(&newest), &four);
    assert_eq!(
        drain(&mut subscription, &[]).await,
        [
            (Stopped, c.to_string()),
            (Deleted, c.to_string()),
            (Stopped, id.to_string())
        ]
    );
}

#[tokio::test]
async fn who_left_costs_nothing() {
    let (events, id) = (Events::default(), PodId::random());
    drop(events.subscribe());
    let mut stays = events.subscribe();
    assert_eq!(events.hub().queues.len(), 1);
    events.changed(None, &pod(&id, 0, PodState::NotReady, &[]));
    assert_eq!(
        drain(&mut stays, &[]).await,
        [(Created, id.to_string()), (Stopped, id.to_string())]
    );
    drop(stays);
    events.deleted(&pod(&id, 0, PodState::NotReady, &[]));
    assert!(events.hub().queues.is_empty());
}
