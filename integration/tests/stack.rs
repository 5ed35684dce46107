//! Pods without network namespaces, on the node's TCP/IP stack.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use zcri_integration::plugin;
use zcri_integration::pod::pod_security;
use zcri_integration::v1::{NamespaceMode, NamespaceOption};
use zcri_integration::{Test, TestNode};

/// Where the second version of control groups is mounted here, be it without controllers.
fn unified() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.find(|mount| mount.get(2) == Some(&"cgroup2"));
    let found = found.context("prerequisite: cgroup2 is not mounted")?;
    Ok(PathBuf::from(found[1]))
}

/// The group in the unified hierarchy, from the content of `/proc/PID/cgroup`.
fn unified_group(text: &str) -> Result<&str> {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("0::"))
        .context("no unified hierarchy")
}

async fn node() -> Result<TestNode> {
    TestNode::builder()
        .config("[network]\nisolation = \"stack\"\nnetns_token = \"stack:{id}\"")
        .start()
        .await
}

#[tokio::test]
async fn a_pod_is_on_the_nodes_stack_and_in_the_group_that_its_plugin_knows() -> Test {
    let node = node().await?;
    let input = node.files().dir.join("input");
    plugin::install(
        &node,
        "reader",
        &format!(
            "[ $CNI_COMMAND = STATUS ] || {{ cat; echo; echo $CNI_COMMAND $CNI_NETNS; }} >> {}; echo $result",
            input.display()
        ),
    )?;
    plugin::only(&node, "reader", &["cgroupPath"])?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;

    let told = std::fs::read_to_string(&input)?;
    let mut told = told.lines();
    let request: Value = serde_json::from_str(told.next().unwrap_or_default())?;
    let cgroup = request["runtimeConfig"]["cgroupPath"].as_str();
    let cgroup = cgroup.context("no cgroupPath")?;
    assert!(cgroup.contains(&pod.id), "{cgroup} is not the pod's own");
    assert_eq!(told.next(), Some(format!("ADD stack:{}", pod.id).as_str()));
    let dir = unified()?.join(cgroup.trim_start_matches('/'));
    assert!(dir.is_dir(), "{} is missing", dir.display());

    // Everything of the pod is in that group: its shim, its containers, commands in them.
    let own = node
        .exec(&id, "readlink /proc/self/ns/net; cat /proc/self/cgroup")
        .await?;
    let (net, groups) = own.success()?.split_once('\n').context("two answers")?;
    assert_eq!(
        Path::new(net),
        std::fs::read_link("/proc/self/ns/net")?,
        "it has a network namespace"
    );
    let group = unified_group(groups)?;
    assert!(group.starts_with(cgroup), "{group} is not below {cgroup}");
    let shims = std::fs::read_to_string(dir.join(format!("shim-{}/cgroup.procs", pod.id)))?;
    assert_eq!(shims.lines().count(), 1, "{shims:?}");

    node.cri().remove_pod(&pod.id).await?;
    assert!(!dir.exists(), "{} is left", dir.display());
    let told = std::fs::read_to_string(&input)?;
    assert_eq!(
        told.lines().last(),
        Some(format!("DEL stack:{}", pod.id).as_str())
    );
    node.finish().await
}

#[tokio::test]
async fn a_pod_with_the_nodes_network_is_in_no_such_group() -> Test {
    let node = node().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Node.into(),
        ..Default::default()
    });
    let pod = node.run_pod(config).await?;
    let id = pod.sleeper("c").await?;
    let groups = node.exec(&id, "cat /proc/self/cgroup").await?;
    let group = unified_group(groups.success()?)?.to_owned();
    assert!(!group.contains(&pod.id), "{group}");
    node.finish().await
}

/// They would be the node's.
#[tokio::test]
async fn sysctls_of_the_network_are_refused() -> Test {
    let node = node().await?;
    node.allow_log("RunPodSandbox");
    let mut config = node.pod_config("p")?;
    let linux = config.linux.get_or_insert_default();
    linux
        .sysctls
        .insert("net.ipv4.ip_forward".into(), "0".into());
    let status = node.cri().run_pod(&config).await.err();
    let status = status.context("the node's sysctl was set")?;
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status.message().contains("net.ipv4.ip_forward"),
        "{status:?}"
    );
    node.finish().await
}

/// A daemon with another configuration goes on with the pods that are there.
#[tokio::test]
async fn old_pods_keep_what_they_have() -> Test {
    let mut node = node().await?;
    plugin::install(&node, "none", "echo $result")?;
    plugin::only(&node, "none", &[])?;
    let (pod, config) = {
        let pod = node.pod("p").await?;
        pod.sleeper("before").await?;
        (pod.id, pod.config)
    };
    node.kill_daemon().await?;
    let drop_in = node.files().dir.join("etc/zcri.toml.d/50-test.toml");
    std::fs::write(drop_in, "[network]\nisolation = \"namespace\"")?;
    node.start_daemon().await?;
    let container = node.container_config("after").await?;
    let old = node.cri().create(&pod, &container, &config).await?;
    node.cri().start(&old).await?;
    let new = node.pod("q").await?.sleeper("c").await?;
    let host = std::fs::read_link("/proc/self/ns/net")?;
    for (container, on_stack) in [(old, true), (new, false)] {
        let own = node.exec(&container, "readlink /proc/self/ns/net").await?;
        assert_eq!(Path::new(own.success()?) == host, on_stack, "{own:?}");
    }
    node.finish().await
}
