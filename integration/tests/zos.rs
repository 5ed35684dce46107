//! The zos platform through the CRI, on an emulated LPAR: `zos-runc` refuses what a z/OS runtime would not take, so
//! that whatever runs here was told in z/OS's words.

use anyhow::{Result, ensure};
use zcri_integration::lpar::namespaces;
use zcri_integration::pod::{Ended, pod_security, resources, words};
use zcri_integration::v1::{
    ContainerStatsRequest, Int64Value, LinuxContainerResources, Mount, NamespaceMode,
    NamespaceOption, RuntimeConfigRequest,
};
use zcri_integration::{Test, TestNode};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_a_zos_image_runs_by_a_specification_for_zos() -> Test {
    let node = TestNode::start_zos().await?;
    let pod = node.run_pod(node.host_pod_config("first")?).await?;
    let id = pod.sleeper("c").await?;
    let spec = node.info(&id).await?["runtimeSpec"].clone();
    ensure!(spec.get("linux").is_none(), "{spec:#}");
    ensure!(spec["ociVersion"] == "1.2.1", "{spec:#}");
    let kinds: Vec<_> = spec["zos"]["namespaces"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|namespace| namespace["type"].as_str().unwrap_or_default())
        .collect();
    ensure!(kinds == ["mount", "pid"], "{kinds:?}");
    ensure!(spec["process"].get("capabilities").is_none());
    ensure!(spec["process"].get("oomScoreAdj").is_none());
    let output = node.exec(&id, "echo $IMAGE; umask; id -u").await?;
    ensure!(output.success()? == "zos\n0022\n0", "{output:?}");
    let output = node.exec(&id, "grep -c ' /dev tmpfs' /proc/mounts").await?;
    ensure!(output.success()? == "1", "{output:?}");
    node.finish().await
}

/// The inode of a namespace as a process of a container sees its own.
async fn namespace(node: &TestNode, id: &str, kind: &str) -> Result<String> {
    let output = node
        .exec(id, &format!("readlink /proc/self/ns/{kind}"))
        .await?;
    Ok(output.success()?.to_owned())
}

fn of_node(kind: &str) -> Result<String> {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
    Ok(link.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_ipc_and_uts_of_its_own_and_neither_network_nor_user_nor_cgroup() -> Test {
    let node = TestNode::start_zos().await?;
    let mut own = node.host_pod_config("own")?;
    own.hostname = "zospod".into();
    let own = node.run_pod(own).await?;
    let (a, b) = (own.sleeper("a").await?, own.sleeper("b").await?);
    let other = node.run_pod(node.host_pod_config("other")?).await?;
    let stranger = other.sleeper("c").await?;

    let ipc = namespace(&node, &a, "ipc").await?;
    ensure!(
        ipc == namespace(&node, &b, "ipc").await?,
        "shared in the pod"
    );
    ensure!(ipc != namespace(&node, &stranger, "ipc").await?);
    ensure!(ipc != of_node("ipc")?);
    for kind in ["net", "user", "cgroup"] {
        ensure!(
            namespace(&node, &a, kind).await? == of_node(kind)?,
            "{kind}"
        );
    }
    for kind in ["mnt", "pid"] {
        let (one, two) = (
            namespace(&node, &a, kind).await?,
            namespace(&node, &b, kind).await?,
        );
        ensure!(one != two && one != of_node(kind)?, "{kind}");
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_has_an_init_and_is_joined_by_path() -> Test {
    let node = TestNode::start_zos().await?;
    let mut config = node.host_pod_config("shared")?;
    namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = node.run_pod(config).await?;
    let mut container = node.container_config("a").await?;
    container.linux = None;
    let a = pod.start(&container).await?;
    let mut container = node.container_config("b").await?;
    container.linux = None;
    let b = pod.start(&container).await?;
    ensure!(namespace(&node, &a, "pid").await? == namespace(&node, &b, "pid").await?);
    let path = node.info(&b).await?["runtimeSpec"]["zos"]["namespaces"][1]["path"].clone();
    ensure!(path.as_str().is_some_and(|path| path.starts_with('/')));
    // An orphan is the init's to reap.
    let output = node.exec(&a, "(sleep 0.05 &) ; kill -0 1").await?;
    output.success()?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_may_use_the_namespaces_of_the_node() -> Test {
    let node = TestNode::start_zos().await?;
    let mut config = node.host_pod_config("host")?;
    let options = namespaces(&mut config);
    options.ipc = NamespaceMode::Node.into();
    options.pid = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let mut container = node.container_config("a").await?;
    container.linux = None;
    let id = pod.start(&container).await?;
    for kind in ["ipc", "uts", "pid"] {
        ensure!(
            namespace(&node, &id, kind).await? == of_node(kind)?,
            "{kind}"
        );
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_linux_section_inherits_user_and_namespaces() -> Test {
    let node = TestNode::start_zos().await?;
    let mut config = node.host_pod_config("silent")?;
    let security = pod_security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.run_as_group = Some(Int64Value { value: 2000 });
    security.supplemental_groups = vec![4711];
    let pod = node.run_pod(config).await?;
    let ended = run(&node, &pod, "id -u; id -g; id -G; echo $$").await?;
    let output = ended.output();
    let lines: Vec<_> = output.success()?.lines().collect();
    ensure!(lines[..2] == ["1000", "2000"], "{lines:?}");
    let groups: Vec<_> = lines[2].split(' ').collect();
    ensure!(groups.contains(&"4711"), "{groups:?}");
    ensure!(
        lines[3] == "1",
        "each container has a PID namespace: {lines:?}"
    );
    let user = ended.status.user.unwrap_or_default().linux;
    ensure!(user.is_some_and(|user| (user.uid, user.gid) == (1000, 2000)));
    node.finish().await
}

/// A container as a kubelet for neither Linux nor Windows sends it.
async fn run(node: &TestNode, pod: &zcri_integration::Pod<'_>, script: &str) -> Result<Ended> {
    let mut config = node.container_config("silent").await?;
    config.linux = None;
    config.command = words(["/bin/sh", "-c", script]);
    pod.run(&config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_recorded_and_become_no_cgroup() -> Test {
    let node = TestNode::start_zos().await?;
    let pod = node.run_pod(node.host_pod_config("limits")?).await?;
    let mut config = node.container_config("c").await?;
    *resources(&mut config) = LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    let id = pod.start(&config).await?;
    let shown = async || {
        let status = node.cri().status(&id).await?;
        let linux = status.resources.unwrap_or_default().linux;
        Ok::<_, anyhow::Error>(linux.unwrap_or_default())
    };
    ensure!(shown().await?.memory_limit_in_bytes == 64 << 20);
    let update = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    node.cri().update(&id, update).await?;
    let after = shown().await?;
    ensure!(after.memory_limit_in_bytes == 128 << 20 && after.cpu_shares == 512);
    let text = node.info(&id).await?["runtimeSpec"].to_string();
    ensure!(!text.contains("memory") && !text.contains("cpu"), "{text}");
    let mut runtime = node.cri().runtime();
    let asked = runtime.runtime_config(RuntimeConfigRequest {});
    ensure!(asked.await?.into_inner().linux.is_none());
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_without_a_source_are_absent() -> Test {
    let node = TestNode::start_zos().await?;
    let pod = node.run_pod(node.host_pod_config("stats")?).await?;
    let id = pod.sleeper("c").await?;
    node.exec(&id, "dd if=/dev/zero of=/f bs=1k count=100")
        .await?;
    let request = ContainerStatsRequest { container_id: id };
    let answer = node.cri().runtime().container_stats(request).await?;
    let stats = answer.into_inner().stats.unwrap_or_default();
    ensure!(stats.cpu.is_none() && stats.memory.is_none() && stats.swap.is_none());
    let layer = stats.writable_layer.unwrap_or_default();
    ensure!(
        layer
            .used_bytes
            .is_some_and(|bytes| bytes.value >= 100 << 10)
    );
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_linux_style_request_works() -> Test {
    let node = TestNode::start_zos().await?;
    let mut config = node.host_pod_config("linuxy")?;
    pod_security(&mut config).privileged = false;
    let pod = node.run_pod(config).await?;
    let scratch = node.scratch("volume")?;
    std::fs::write(scratch.join("f"), "from the node")?;
    let output = pod
        .sh_with(
            "cat /data/f; ! touch /data/g; ! touch /x; grep NoNewPrivs /proc/self/status",
            |config| {
                config.mounts.push(Mount {
                    container_path: "/data".into(),
                    host_path: scratch.display().to_string(),
                    readonly: true,
                    ..Default::default()
                });
                let security = zcri_integration::pod::security(config);
                security.readonly_rootfs = true;
                security.no_new_privs = true;
                security.masked_paths = vec!["/proc/kcore".into()];
                security.readonly_paths = vec!["/proc/sys".into()];
                security.capabilities = Some(zcri_integration::v1::Capability {
                    add_capabilities: vec!["NET_ADMIN".into()],
                    drop_capabilities: vec!["ALL".into()],
                    ..Default::default()
                });
                security.namespace_options = Some(NamespaceOption {
                    network: NamespaceMode::Node.into(),
                    pid: NamespaceMode::Container.into(),
                    ..Default::default()
                });
            },
        )
        .await?;
    let text = output.success()?;
    ensure!(text.starts_with("from the node"), "{output:?}");
    ensure!(text.ends_with('1'), "{output:?}");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_daemon() -> Test {
    let mut node = TestNode::start_zos().await?;
    let id = {
        let pod = node.run_pod(node.host_pod_config("stays")?).await?;
        pod.sleeper("c").await?
    };
    let before = node.info(&id).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let after = node.info(&id).await?;
    ensure!(before["pid"] == after["pid"] && after["wlm"]["serviceClass"] == "SYSCNTNR");
    ensure!(node.exec(&id, "echo here").await?.success()? == "here");
    node.finish().await
}
