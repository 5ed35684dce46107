//! The socket and the edge of the API: who may connect, what every call answers, how requests are refused.
#![forbid(unsafe_code)]

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tonic::{Code, Status};
use zcri_integration::pod::{container_config, words};
use zcri_integration::v1::{
    AttachRequest, CheckpointContainerRequest, CheckpointPodRequest, ContainerStatsRequest,
    ExecRequest, GetEventsRequest, ListContainerStatsRequest, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStatsRequest, PortForwardRequest,
    RestorePodRequest, RunPodSandboxRequest, RuntimeConfigRequest, StreamContainerStatsRequest,
    StreamContainersRequest, StreamImagesRequest, StreamPodSandboxMetricsRequest,
    StreamPodSandboxStatsRequest, StreamPodSandboxesRequest, UpdatePodSandboxResourcesRequest,
    UpdateRuntimeConfigRequest,
};
use zcri_integration::{Test, TestNode, wait};

/// Refusals of this test's own making are logged as warnings where the cause is the node's.
fn refused<T>(answer: Result<T, Status>, what: &str) -> anyhow::Result<Status> {
    match answer {
        Ok(_) => anyhow::bail!("{what} was accepted"),
        Err(status) => Ok(status),
    }
}

#[tokio::test]
async fn the_node_tells_what_it_is() -> Test {
    let node = TestNode::start().await?;
    let version = node.cri().version().await?;
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("zcri", "v1")
    );
    assert!(!version.runtime_version.is_empty());
    let status = node.cri().node_status().await?;
    let conditions = status.status.context("no conditions")?.conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|c| c.r#type == kind).context(kind)?;
        assert!(condition.status, "{condition:?}");
    }
    let handlers: Vec<&str> = status
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert!(
        ["", "runc"].iter().all(|name| handlers.contains(name)),
        "{handlers:?}"
    );
    let config = node
        .cri()
        .runtime()
        .runtime_config(RuntimeConfigRequest {})
        .await?
        .into_inner();
    let driver = config.linux.context("no linux section")?.cgroup_driver();
    assert_eq!(driver.as_str_name(), "CGROUPFS");
    node.cri()
        .runtime()
        .update_runtime_config(UpdateRuntimeConfigRequest::default())
        .await?;
    node.finish().await
}

#[tokio::test]
async fn the_socket_has_mode_and_group_of_the_configuration() -> Test {
    let node = TestNode::builder()
        .config("[api]\nsocket_mode = \"0604\"\nsocket_group = \"daemon\"")
        .start()
        .await?;
    let socket = std::fs::metadata(node.files().socket())?;
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o7777, 0o604);
    // Debian's base-passwd: daemon is 1.
    assert_eq!(socket.gid(), 1);
    node.finish().await
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_by_default() -> Test {
    let node = TestNode::start().await?;
    let mode = std::fs::metadata(node.files().socket())?
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o660);
    node.finish().await
}

#[tokio::test]
async fn a_second_instance_is_refused_and_the_first_goes_on() -> Test {
    let node = TestNode::start().await?;
    let (status, output) = node.run_second_daemon().await?;
    assert!(!status.success(), "two daemons on one directory");
    assert!(
        output.contains("another zcrid is running"),
        "unclear: {output}"
    );
    assert!(
        output.contains(&node.files().dir.display().to_string()),
        "which directory? {output}"
    );
    node.cri().version().await.context("the first instance")?;
    assert!(
        node.files().socket().exists(),
        "the second instance removed the first one's socket"
    );
    node.finish().await
}

#[tokio::test]
async fn a_stale_socket_is_replaced() -> Test {
    let mut node = TestNode::start().await?;
    node.kill_daemon().await?;
    assert!(node.files().socket().exists(), "SIGKILL leaves the socket");
    node.start_daemon().await?;
    node.cri().version().await?;
    node.finish().await
}

/// A daemon that is asked to end finishes, takes its socket away and says so; a pod and its container go on.
#[tokio::test]
async fn service_supervision_is_told() -> Test {
    let socket_dir = tempfile::tempdir()?;
    let path = socket_dir.path().join("notify");
    let notify = UnixDatagram::bind(&path)?;
    notify.set_read_timeout(Some(wait::PATIENCE))?;
    let told = |wanted: &str| -> anyhow::Result<()> {
        let mut buffer = [0; 1024];
        let mut seen = String::new();
        while !seen.lines().any(|line| line == wanted) {
            let length = notify
                .recv(&mut buffer)
                .with_context(|| format!("no {wanted} in {seen:?}"))?;
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            seen.push('\n');
        }
        Ok(())
    };
    let mut node = TestNode::builder()
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .start()
        .await?;
    told("READY=1")?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let status = node.stop_daemon().await?;
    told("STOPPING=1")?;
    assert!(status.success(), "{status}");
    assert!(!node.files().socket().exists());
    node.start_daemon().await?;
    told("READY=1")?;
    assert_eq!(
        node.cri().status(&id).await?.state().as_str_name(),
        "CONTAINER_RUNNING"
    );
    node.finish().await
}

#[tokio::test]
async fn sighup_ends_nothing() -> Test {
    let node = TestNode::start().await?;
    node.signal_daemon(Signal::HUP)?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.cri().version().await?;
    node.finish().await
}

#[tokio::test]
async fn messages_of_kubelet_size_are_taken() -> Test {
    let node = TestNode::start().await?;
    let mut filter = PodSandboxFilter::default();
    filter
        .label_selector
        .insert("k".to_owned(), "v".repeat(17 << 20));
    assert_eq!(node.cri().list_pods(filter).await?, []);
    let id = node.pod("p").await?.sleeper("c").await?;
    let answer = node
        .cri()
        .exec(&id, ["/bin/head", "-c", "12000000", "/dev/zero"], 30)
        .await?;
    assert_eq!((answer.exit_code, answer.stdout.len()), (0, 12_000_000));
    node.finish().await
}

/// Answered, or UNIMPLEMENTED with the name of the call: never tonic's nameless default, never another failure.
#[tokio::test]
async fn every_call_answers_or_says_its_name() -> Test {
    let node = TestNode::start().await?;
    let mut runtime = node.cri().runtime();
    let mut images = node.cri().images();
    let mut answers: Vec<(&str, Result<(), Status>)> = Vec::new();
    macro_rules! call {
        ($client:ident.$method:ident($request:expr) as $name:literal) => {
            answers.push(($name, $client.$method($request).await.map(drop)));
        };
    }
    call!(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()) as "StreamPodSandboxes");
    call!(runtime.stream_containers(StreamContainersRequest::default()) as "StreamContainers");
    call!(runtime.exec(ExecRequest::default()) as "Exec");
    call!(runtime.attach(AttachRequest::default()) as "Attach");
    call!(runtime.port_forward(PortForwardRequest::default()) as "PortForward");
    call!(runtime.container_stats(ContainerStatsRequest::default()) as "ContainerStats");
    call!(runtime.list_container_stats(ListContainerStatsRequest::default()) as "ListContainerStats");
    call!(runtime.stream_container_stats(StreamContainerStatsRequest::default()) as "StreamContainerStats");
    call!(runtime.pod_sandbox_stats(PodSandboxStatsRequest::default()) as "PodSandboxStats");
    call!(runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()) as "ListPodSandboxStats");
    call!(runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default()) as "StreamPodSandboxStats");
    call!(runtime.checkpoint_container(CheckpointContainerRequest::default()) as "CheckpointContainer");
    call!(runtime.checkpoint_pod(CheckpointPodRequest::default()) as "CheckpointPod");
    call!(runtime.restore_pod(RestorePodRequest::default()) as "RestorePod");
    call!(runtime.get_container_events(GetEventsRequest {}) as "GetContainerEvents");
    call!(runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}) as "ListMetricDescriptors");
    call!(runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}) as "ListPodSandboxMetrics");
    call!(runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {}) as "StreamPodSandboxMetrics");
    call!(runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest::default()) as "UpdatePodSandboxResources");
    call!(images.stream_images(StreamImagesRequest::default()) as "StreamImages");
    for (name, answer) in answers {
        let Err(status) = answer else { continue };
        match status.code() {
            Code::Unimplemented => {
                ensure!(status.message().contains(name), "{name} answers {status:?}")
            }
            // The requests are empty: an id is missing.
            Code::InvalidArgument | Code::NotFound => {}
            other => anyhow::bail!("{name} answers {other:?}: {status:?}"),
        }
    }
    node.finish().await
}

#[tokio::test]
async fn unknown_ids_are_not_found_and_what_is_gone_stays_gone() -> Test {
    let node = TestNode::start().await?;
    let cri = node.cri();
    let unknown = "f".repeat(64);
    for id in [unknown.as_str(), "no-id-at-all", "../../etc"] {
        let config = container_config("c", "x");
        let refusals = [
            refused(cri.pod_status(id).await, "PodSandboxStatus")?,
            refused(
                cri.create(id, &config, &node.pod_config("p")?).await,
                "CreateContainer",
            )?,
            refused(cri.start(id).await, "StartContainer")?,
            refused(cri.status(id).await, "ContainerStatus")?,
            refused(
                cri.update(id, Default::default()).await,
                "UpdateContainerResources",
            )?,
            refused(cri.reopen_log(id).await, "ReopenContainerLog")?,
            refused(cri.exec(id, ["true"], 1).await, "ExecSync")?,
        ];
        for status in refusals {
            assert!(
                matches!(status.code(), Code::NotFound | Code::InvalidArgument),
                "{status:?}"
            );
            assert!(status.message().contains(id), "which id? {status:?}");
        }
        cri.stop_pod(id)
            .await
            .context("StopPodSandbox of nothing")?;
        cri.remove_pod(id)
            .await
            .context("RemovePodSandbox of nothing")?;
        cri.stop(id, 1).await.context("StopContainer of nothing")?;
        cri.remove(id).await.context("RemoveContainer of nothing")?;
    }
    assert_eq!(
        refused(cri.pod_status(&unknown).await, "status")?.code(),
        Code::NotFound
    );
    assert_eq!(
        refused(cri.status(&unknown).await, "status")?.code(),
        Code::NotFound
    );
    node.finish().await
}

#[tokio::test]
async fn requests_without_their_parts_are_invalid() -> Test {
    let node = TestNode::start().await?;
    let run = async |config: Option<PodSandboxConfig>| {
        let request = RunPodSandboxRequest {
            config,
            runtime_handler: String::new(),
        };
        refused(
            node.cri().runtime().run_pod_sandbox(request).await,
            "RunPodSandbox",
        )
    };
    let good = node.pod_config("p")?;
    let mut nameless = good.clone();
    nameless.metadata.get_or_insert_default().name.clear();
    let no_metadata = PodSandboxConfig {
        metadata: None,
        ..good.clone()
    };
    for (config, field) in [
        (None, "config"),
        (Some(no_metadata), "metadata"),
        (Some(nameless), "name"),
    ] {
        let status = run(config).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(field), "{field}: {status:?}");
    }
    let pod = node.pod("p").await?;
    let image = node.busybox().await?;
    let no_metadata = {
        let mut c = container_config("c", &image);
        c.metadata = None;
        c
    };
    let no_image = {
        let mut c = container_config("c", &image);
        c.image = None;
        c
    };
    let relative = {
        let mut c = container_config("c", &image);
        c.mounts = vec![zcri_integration::v1::Mount {
            host_path: "etc".into(),
            container_path: "/x".into(),
            ..Default::default()
        }];
        c
    };
    for (config, field) in [
        (no_metadata, "metadata"),
        (no_image, "image"),
        (relative, "etc"),
    ] {
        let status = refused(
            node.cri().create(&pod.id, &config, &pod.config).await,
            "CreateContainer",
        )?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(field), "{field}: {status:?}");
    }
    assert!(
        node.cri()
            .list_containers(Default::default())
            .await?
            .is_empty(),
        "a refused container is listed"
    );
    node.finish().await
}

#[tokio::test]
async fn unknown_handlers_and_images_are_named() -> Test {
    let node = TestNode::start().await?;
    let config = node.pod_config("p")?;
    let status = refused(
        node.cri().run_pod_with(&config, "no-such-handler").await,
        "RunPodSandbox",
    )?;
    assert!(
        matches!(status.code(), Code::InvalidArgument | Code::NotFound),
        "{status:?}"
    );
    assert!(status.message().contains("no-such-handler"), "{status:?}");
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    let pod = node.pod("p").await?;
    let absent = node.registry.reference("not/pulled", "1");
    let create = node
        .cri()
        .create(&pod.id, &container_config("c", &absent), &pod.config)
        .await;
    let status = refused(create, "CreateContainer")?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("not/pulled"), "{status:?}");
    for malformed in ["", "UPPER CASE", "a@b@c", "host:port:x/y", "x@sha256:12"] {
        let status = refused(node.cri().pull(malformed).await, malformed)?;
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{malformed:?}: {status:?}"
        );
    }
    node.finish().await
}

#[tokio::test]
async fn a_container_that_does_not_run_is_told_so() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.create(&node.container_config("c").await?).await?;
    let status = refused(node.cri().exec(&id, ["true"], 1).await, "ExecSync")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    node.cri().start(&id).await?;
    let started = node.cri().status(&id).await?.started_at;
    node.cri()
        .start(&id)
        .await
        .context("a repeated StartContainer gets the result of the first")?;
    assert_eq!(node.cri().status(&id).await?.started_at, started);
    let empty = refused(
        node.cri().exec(&id, words([]), 1).await,
        "ExecSync without a command",
    )?;
    assert_eq!(empty.code(), Code::InvalidArgument, "{empty:?}");
    node.cri().stop_pod(&pod.id).await?;
    let late = node
        .cri()
        .create(&pod.id, &node.container_config("d").await?, &pod.config)
        .await;
    assert_eq!(
        refused(late, "CreateContainer in a stopped pod")?.code(),
        Code::FailedPrecondition
    );
    node.finish().await
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_file_and_line() -> Test {
    let node = TestNode::builder()
        .config("[api]\nlisten_on = \"x\"")
        .prepare()
        .await?;
    let (status, output) = node.run_second_daemon().await?;
    assert!(!status.success());
    assert!(
        output.contains("listen_on") && output.contains("50-test.toml") && output.contains('2'),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn logs_are_lines_of_json_when_asked() -> Test {
    let node = TestNode::builder()
        .config("[log]\nformat = \"json\"")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    node.cri()
        .runtime()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?;
    let log = node.log();
    for line in log.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(
            value["level"].is_string() && value["timestamp"].is_string(),
            "{line}"
        );
    }
    ensure!(
        log.contains("RunPodSandbox") && log.contains(&pod.id),
        "neither call nor pod is in the log: {log}"
    );
    node.finish().await
}
