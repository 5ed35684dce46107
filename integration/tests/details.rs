//! Details of statuses that clients rely on: verbose information, truncated ids, times, and the image's names.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use tonic::Code;
use zcri_integration::pod::{envs, words};
use zcri_integration::v1::{ContainerStatusRequest, StopContainerRequest};
use zcri_integration::{Test, TestNode};

#[tokio::test]
async fn the_verbose_status_of_a_container_is_as_crictl_prints_it() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.envs = envs([("KEY", "value")]);
    config.annotations = [("note".to_owned(), "x".to_owned())].into();
    let id = pod.create(&config).await?;
    let info = node.info(&id).await?;
    assert_eq!(info["pid"], 0, "it does not run");
    node.cri().start(&id).await?;
    let info = node.info(&id).await?;
    assert_eq!(info["sandboxID"], pod.id);
    let pid = info["pid"].as_u64().context("no pid")?;
    let words = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    ensure!(
        String::from_utf8_lossy(&words).contains("sleep"),
        "{pid} is another process"
    );
    let spec = &info["runtimeSpec"];
    ensure!(
        spec["process"]["env"]
            .as_array()
            .is_some_and(|env| env.contains(&"KEY=value".into())),
        "{spec}"
    );
    assert_eq!(spec["linux"]["cgroupsPath"], info["cgroup"]);
    let asked = &info["config"];
    assert_eq!(asked["metadata"]["name"], "c");
    assert_eq!(asked["image"]["image"], node.busybox().await?);
    assert_eq!(asked["envs"][0]["value"], "value");
    assert_eq!(asked["annotations"]["note"], "x");
    assert_eq!(asked["log_path"], "c.log");
    ensure!(asked.get("tty").is_none(), "what is not set is not shown");
    assert_eq!(info["runtimeType"], "oci");
    ensure!(
        info["runtimeOptions"]["binary_name"]
            .as_str()
            .is_some_and(|name| name.ends_with("/runc"))
    );
    ensure!(info["runtimeOptions"]["systemd_cgroup"] == false);

    let quiet = ContainerStatusRequest {
        container_id: id,
        verbose: false,
    };
    let answer = node
        .cri()
        .runtime()
        .container_status(quiet)
        .await?
        .into_inner();
    ensure!(answer.info.is_empty(), "only who asks gets it");
    node.finish().await
}

#[tokio::test]
async fn the_verbose_status_of_a_pod_is_as_crictl_prints_it() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    let security = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.namespace_options = Some(Default::default());
    config.labels = [("tier".to_owned(), "front".to_owned())].into();
    let pod = node.run_pod(config).await?;
    let info = node.pod_info(&pod.id).await?;
    let pid = info["pid"].as_u64().context("no pid")?;
    ensure!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the init of the PID namespace"
    );
    assert_eq!(info["processStatus"], "running");
    assert_eq!(info["netNamespaceClosed"], false);
    ensure!(
        info["netNamespace"]
            .as_str()
            .is_some_and(|path| std::path::Path::new(path).exists())
    );
    assert_eq!(info["config"]["metadata"]["uid"], "uid-p");
    assert_eq!(info["config"]["labels"]["tier"], "front");
    assert_eq!(info["runtimeHandler"], "runc");
    node.cri().stop_pod(&pod.id).await?;
    let info = node.pod_info(&pod.id).await?;
    assert_eq!(info["processStatus"], "deleted");
    assert_eq!(info["netNamespaceClosed"], true);
    node.finish().await
}

#[tokio::test]
async fn a_truncated_id_is_taken_when_it_names_one() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    // With seventeen, two ids begin with the same digit.
    let mut config = node.container_config("c").await?;
    let mut ids = Vec::new();
    for index in 0..17 {
        config.metadata.get_or_insert_default().name = format!("c{index}");
        ids.push(pod.create(&config).await?);
    }
    let short = &ids[0][..20];
    assert_eq!(node.cri().status(short).await?.id, ids[0]);
    let digit = (0..16)
        .map(|digit| format!("{digit:x}"))
        .find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1)
        .context("no digit begins two")?;
    let refused = node
        .cri()
        .status(&digit)
        .await
        .map_err(|status| status.code());
    assert_eq!(refused.map(drop), Err(Code::InvalidArgument));
    // Neither of them may be said to be stopped or gone.
    let request = StopContainerRequest {
        container_id: digit.clone(),
        timeout: 0,
    };
    let refused = node.cri().runtime().stop_container(request).await;
    assert_eq!(
        refused.map(drop).map_err(|status| status.code()),
        Err(Code::InvalidArgument)
    );
    let refused = node
        .cri()
        .remove(&digit)
        .await
        .map_err(|status| (status.code(), status.message().to_owned()));
    let (code, message) = refused.err().context("it was removed")?;
    ensure!(
        code == Code::InvalidArgument && message.contains("container_id"),
        "{message}"
    );
    assert_eq!(
        node.cri().list_containers(Default::default()).await?.len(),
        17
    );
    node.cri().remove(short).await?;
    ensure!(node.cri().status(&ids[0]).await.is_err());
    node.cri().stop_pod(&pod.id[..12]).await?;
    node.finish().await
}

#[tokio::test]
async fn times_are_in_ns_and_in_order() -> Test {
    let node = TestNode::start().await?;
    let before = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/true"]);
    let id = pod.create(&config).await?;
    let created = node.cri().status(&id).await?;
    assert_eq!(
        (created.started_at, created.finished_at, created.exit_code),
        (0, 0, 0)
    );
    node.cri().start(&id).await?;
    let ended = node.exited(&id).await?;
    let after = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let of_pod = node.cri().pod_status(&pod.id).await?.created_at;
    let order = [
        before,
        of_pod,
        ended.created_at,
        ended.started_at,
        ended.finished_at,
        after,
    ];
    ensure!(order.is_sorted(), "{order:?}");
    assert_eq!(ended.created_at, created.created_at);
    node.finish().await
}

#[tokio::test]
async fn an_image_has_the_same_names_in_every_answer() -> Test {
    let node = TestNode::start().await?;
    let tag = node.busybox().await?;
    let image = node.cri().image_status(&tag).await?.context("no image")?;
    let pod = node.pod("p").await?;
    // As the kubelet does: the id to run, and what the user wrote.
    let mut config = node.container_config("c").await?;
    let spec = config.image.get_or_insert_default();
    spec.image.clone_from(&image.id);
    spec.user_specified_image.clone_from(&tag);
    let id = pod.create(&config).await?;
    let status = node.cri().status(&id).await?;
    let listed = node.cri().list_containers(Default::default()).await?;
    let item = listed.first().context("not listed")?;
    assert_eq!(status.image_id, image.id);
    assert_eq!(status.image_id, item.image_id);
    assert_eq!(status.image_ref, item.image_ref);
    ensure!(image.repo_digests.contains(&status.image_ref), "{status:?}");
    assert_eq!(status.image, item.image);
    assert_eq!(status.image.context("no image")?.image, tag);
    assert_eq!(
        node.cri()
            .image_status(&status.image_ref)
            .await?
            .context("no image")?
            .id,
        image.id
    );
    assert_eq!(node.cri().list_images().await?[0].id, image.id);
    node.finish().await
}
