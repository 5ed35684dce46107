//! Lists as streams give what the unary lists give: each item once, in chunks, filtered alike.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use tonic::{Response, Status, Streaming};
use zcri_integration::client::spec;
use zcri_integration::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatsFilter, ImageFilter,
    ListContainersRequest, ListPodSandboxMetricsRequest, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatsFilter, StreamContainerStatsRequest,
    StreamContainersRequest, StreamImagesRequest, StreamPodSandboxMetricsRequest,
    StreamPodSandboxStatsRequest, StreamPodSandboxesRequest,
};
use zcri_integration::{Test, TestNode, images};

/// The daemon's items per message.
const CHUNK: usize = 100;

/// The messages of a stream, up to its end.
async fn all<T>(answer: Result<Response<Streaming<T>>, Status>) -> Result<Vec<T>> {
    let mut stream = answer?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

#[tokio::test]
async fn containers_come_in_chunks_each_once() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    let mut made = BTreeSet::new();
    for index in 0..CHUNK + 5 {
        config.metadata.get_or_insert_default().name = format!("c{index}");
        config.labels = [("parity".to_owned(), (index % 2).to_string())].into();
        made.insert(pod.create(&config).await?);
    }
    let stream = async |filter: Option<ContainerFilter>| -> Result<Vec<Vec<_>>> {
        let request = StreamContainersRequest { filter };
        let messages = all(node.cri().runtime().stream_containers(request).await).await?;
        Ok(messages
            .into_iter()
            .map(|message| message.containers)
            .collect())
    };
    let chunks = stream(None).await?;
    assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [CHUNK, 5]);
    let streamed = chunks.concat();
    let ids: BTreeSet<_> = streamed.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids, made);
    let listed = node
        .cri()
        .runtime()
        .list_containers(ListContainersRequest { filter: None })
        .await?;
    assert_eq!(streamed, listed.into_inner().containers);

    let odd = ContainerFilter {
        label_selector: [("parity".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(
        stream(Some(odd.clone())).await?.concat(),
        node.cri().list_containers(odd).await?
    );
    let running = ContainerFilter {
        state: Some(ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    };
    assert_eq!(
        stream(Some(running)).await?.len(),
        0,
        "nothing is no message"
    );
    node.finish().await
}

#[tokio::test]
async fn pods_and_statistics_come_as_in_lists() -> Test {
    let node = TestNode::start().await?;
    let (p, q) = (node.pod("p").await?, node.pod("q").await?);
    let (a, b) = (p.sleeper("a").await?, q.sleeper("b").await?);
    let stopped = node.pod("stopped").await?;
    node.cri().stop_pod(&stopped.id).await?;
    let mut runtime = node.cri().runtime();

    let mut pods = async |filter: Option<PodSandboxFilter>| -> Result<Vec<_>> {
        let request = StreamPodSandboxesRequest { filter };
        let messages = all(runtime.stream_pod_sandboxes(request).await).await?;
        Ok(messages
            .into_iter()
            .flat_map(|message| message.pod_sandboxes)
            .collect())
    };
    assert_eq!(
        pods(None).await?,
        node.cri().list_pods(PodSandboxFilter::default()).await?
    );
    let ready = PodSandboxFilter {
        state: Some(PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        }),
        ..Default::default()
    };
    assert_eq!(pods(Some(ready)).await?.len(), 2);

    let stats = async |filter: Option<ContainerStatsFilter>| -> Result<BTreeSet<String>> {
        let request = StreamContainerStatsRequest { filter };
        let messages = all(node.cri().runtime().stream_container_stats(request).await).await?;
        let found: Vec<_> = messages
            .into_iter()
            .flat_map(|message| message.container_stats)
            .collect();
        ensure!(found.iter().all(|one| one.cpu.is_some()), "{found:?}");
        Ok(found
            .into_iter()
            .filter_map(|one| Some(one.attributes?.id))
            .collect())
    };
    assert_eq!(stats(None).await?, BTreeSet::from([a.clone(), b.clone()]));
    let of_q = ContainerStatsFilter {
        pod_sandbox_id: q.id.clone(),
        ..Default::default()
    };
    assert_eq!(stats(Some(of_q)).await?, BTreeSet::from([b]));

    let pod_stats = async |filter: Option<PodSandboxStatsFilter>| -> Result<BTreeSet<String>> {
        let request = StreamPodSandboxStatsRequest { filter };
        let messages = all(node.cri().runtime().stream_pod_sandbox_stats(request).await).await?;
        let found = messages
            .into_iter()
            .flat_map(|message| message.pod_sandbox_stats);
        Ok(found.filter_map(|one| Some(one.attributes?.id)).collect())
    };
    assert_eq!(
        pod_stats(None).await?,
        BTreeSet::from([p.id.clone(), q.id.clone()])
    );
    let only_p = PodSandboxStatsFilter {
        id: p.id.clone(),
        ..Default::default()
    };
    assert_eq!(
        pod_stats(Some(only_p)).await?,
        BTreeSet::from([p.id.clone()])
    );
    node.finish().await
}

#[tokio::test]
async fn metrics_come_as_in_the_list() -> Test {
    let node = TestNode::start().await?;
    let (p, q) = (node.pod("p").await?, node.pod("q").await?);
    p.sleeper("a").await?;
    q.sleeper("b").await?;
    let request = StreamPodSandboxMetricsRequest {};
    let messages = all(node
        .cri()
        .runtime()
        .stream_pod_sandbox_metrics(request)
        .await)
    .await?;
    let streamed: Vec<_> = messages
        .into_iter()
        .flat_map(|message| message.pod_sandbox_metrics)
        .collect();
    let listed = node
        .cri()
        .runtime()
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await?
        .into_inner();
    let names = |pods: &[zcri_integration::v1::PodSandboxMetrics]| -> BTreeSet<(String, String)> {
        let of = |pod: &zcri_integration::v1::PodSandboxMetrics| -> Vec<(String, String)> {
            let containers = pod.container_metrics.iter().flat_map(|one| &one.metrics);
            pod.metrics
                .iter()
                .chain(containers)
                .map(|m| (pod.pod_sandbox_id.clone(), m.name.clone()))
                .collect()
        };
        pods.iter().flat_map(of).collect()
    };
    assert_eq!(names(&streamed), names(&listed.pod_metrics));
    assert_eq!(streamed.len(), 2);
    node.finish().await
}

#[tokio::test]
async fn images_come_as_in_the_list() -> Test {
    let node = TestNode::start().await?;
    let busybox = node.busybox().await?;
    node.registry.push(
        "library/other",
        "1",
        images::busybox()?.entrypoint(["/bin/true"]).build(),
    );
    node.cri()
        .pull(&node.registry.reference("library/other", "1"))
        .await?;
    let stream = async |filter: Option<ImageFilter>| -> Result<Vec<_>> {
        let request = StreamImagesRequest { filter };
        let messages = all(node.cri().images().stream_images(request).await).await?;
        Ok(messages
            .into_iter()
            .flat_map(|message| message.images)
            .collect())
    };
    let streamed: Vec<zcri_integration::v1::Image> = stream(None).await?;
    assert_eq!(streamed.len(), 2);
    assert_eq!(streamed, node.cri().list_images().await?);
    let filter = |image: &str| {
        Some(ImageFilter {
            image: Some(spec(image)),
        })
    };
    assert_eq!(stream(filter(&busybox)).await?.len(), 1);
    assert_eq!(stream(filter("no/such:image")).await?.len(), 0);
    node.finish().await
}
