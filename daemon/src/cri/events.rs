//! GetContainerEvents.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zcri_proto::v1 as api;

use super::streams::Streamed;
use super::{containers, pods as pod_calls};
use crate::container::spec::NodeFacts;
use crate::error::Result;
use crate::events::{Event, EventKind};
use crate::pod::{PodView, Pods};

/// Messages made ahead of the client. One, so that what waits does so in the subscription, which knows what to do
/// when it becomes too much.
const AHEAD: usize = 1;

/// Everything that happens from now on. A client that subscribes first and lists then misses nothing.
pub(super) async fn subscribe(
    pods: &Arc<Pods>,
    _: api::GetEventsRequest,
) -> Result<Streamed<api::ContainerEventResponse>> {
    let mut subscription = pods.node().events.subscribe();
    let (sender, receiver) = mpsc::channel(AHEAD);
    let pods = pods.clone();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                () = sender.closed() => return,
                event = subscription.next(|| pods.views()) => event,
            };
            let Some(event) = event else {
                return;
            };
            // An error is a client that left.
            if sender
                .send(Ok(message(&event, &pods.node().facts)))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn message(event: &Event, facts: &NodeFacts) -> api::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => api::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => api::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => api::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => api::ContainerEventType::ContainerDeletedEvent,
    };
    api::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: Some(pod_calls::pod_status(&event.pod)),
        containers_statuses: container_statuses(&event.pod, facts),
    }
}

/// The statuses of all containers of a pod.
pub(super) fn container_statuses(pod: &PodView, facts: &NodeFacts) -> Vec<api::ContainerStatus> {
    pod.containers
        .values()
        .map(|view| containers::container_status(view, facts))
        .collect()
}
