//! Lists as streams: the same items as the unary lists give, from one look at the node, a chunk at a time.
//!
//! What is to be listed is decided when the call comes; messages are made, and usage is read, when the client takes
//! them, so that a list of any length takes the memory of one chunk.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use zcri_proto::v1 as api;

use super::status::to_status;
use super::{containers, images, metrics, pods as pod_calls, stats};
use crate::error::Result;
use crate::pod::Pods;

/// Items in one message: few enough that a message of the largest items stays far below the 4 MiB that gRPC takes by
/// default, many enough that messages cost nothing.
pub(super) const CHUNK: usize = 100;

/// An answer in many messages.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) async fn pods(
    pods: &Arc<Pods>,
    request: api::StreamPodSandboxesRequest,
) -> Result<Streamed<api::StreamPodSandboxesResponse>> {
    let views = pod_calls::matching(pods, request.filter)?;
    Ok(made_of(views, |chunk| api::StreamPodSandboxesResponse {
        pod_sandboxes: chunk.iter().map(|view| pod_calls::item(view)).collect(),
    }))
}

pub(super) async fn containers(
    pods: &Arc<Pods>,
    request: api::StreamContainersRequest,
) -> Result<Streamed<api::StreamContainersResponse>> {
    let views = containers::matching(pods, request.filter)?;
    Ok(made_of(views, |chunk| api::StreamContainersResponse {
        containers: chunk.iter().map(|view| containers::item(view)).collect(),
    }))
}

pub(super) async fn images(
    pods: &Arc<Pods>,
    request: api::StreamImagesRequest,
) -> Result<Streamed<api::StreamImagesResponse>> {
    let found = images::matching(pods, request.filter);
    Ok(made_of(found, |chunk| api::StreamImagesResponse {
        images: chunk.iter().map(|image| images::message(image)).collect(),
    }))
}

pub(super) async fn container_stats(
    pods: &Arc<Pods>,
    request: api::StreamContainerStatsRequest,
) -> Result<Streamed<api::StreamContainerStatsResponse>> {
    let views = stats::running_containers(pods, request.filter);
    Ok(read_from(pods, views, async |pods, chunk| {
        Ok(api::StreamContainerStatsResponse {
            container_stats: stats::container_messages(&pods, chunk).await?,
        })
    }))
}

pub(super) async fn pod_stats(
    pods: &Arc<Pods>,
    request: api::StreamPodSandboxStatsRequest,
) -> Result<Streamed<api::StreamPodSandboxStatsResponse>> {
    let views = stats::ready_pods(pods, request.filter);
    Ok(read_from(pods, views, async |pods, chunk| {
        Ok(api::StreamPodSandboxStatsResponse {
            pod_sandbox_stats: stats::pod_messages(&pods, chunk).await?,
        })
    }))
}

pub(super) async fn pod_metrics(
    pods: &Arc<Pods>,
    _: api::StreamPodSandboxMetricsRequest,
) -> Result<Streamed<api::StreamPodSandboxMetricsResponse>> {
    let views = stats::ready_pods(pods, None);
    Ok(read_from(pods, views, async |pods, chunk| {
        Ok(api::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics: metrics::messages(&pods, chunk).await?,
        })
    }))
}

/// A message per chunk.
fn made_of<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    message: impl Fn(Vec<I>) -> T + Send + 'static,
) -> Streamed<T> {
    Box::pin(tokio_stream::iter(
        chunks(items).map(move |chunk| Ok(message(chunk))),
    ))
}

/// A message per chunk, for which something has to be read.
fn read_from<I, T, F>(
    pods: &Arc<Pods>,
    items: Vec<I>,
    message: impl Fn(Arc<Pods>, Vec<I>) -> F + Send + 'static,
) -> Streamed<T>
where
    I: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let pods = pods.clone();
    let messages = tokio_stream::iter(chunks(items)).then(move |chunk| {
        let message = message(pods.clone(), chunk);
        async move { message.await.map_err(|error| to_status(&error)) }
    });
    Box::pin(messages)
}

fn chunks<I>(items: Vec<I>) -> impl Iterator<Item = Vec<I>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<I> = items.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_in_one_chunk_and_none_is_empty() {
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let items: Vec<usize> = (0..count).collect();
            let found: Vec<_> = chunks(items.clone()).collect();
            assert_eq!(found.concat(), items);
            assert_eq!(found.len(), count.div_ceil(CHUNK));
            assert!(found.iter().all(|chunk| chunk.len() <= CHUNK));
        }
    }
}
