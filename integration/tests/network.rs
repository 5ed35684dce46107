//! The pods' network by real CNI plugins: addresses, traffic, host ports, and their return.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zcri_integration::plugin::{self, leases};
use zcri_integration::pod::words;
use zcri_integration::v1::{PodSandboxState, PortMapping, Protocol};
use zcri_integration::{Pod, Test, TestNode, wait};

/// A web server in the pod on port 80 that says its name.
async fn serve(node: &TestNode, pod: &Pod<'_>, says: &str) -> Result<()> {
    let mut config = node.container_config("web").await?;
    let script =
        format!("mkdir /www && echo {says} > /www/index.html && exec httpd -f -p 80 -h /www");
    config.command = words(["/bin/sh", "-c", &script]);
    pod.start(&config).await.map(drop)
}

/// What the web server at `address` says, once it is up.
async fn ask(address: &str) -> Result<String> {
    wait::until("the web server to answer", wait::PATIENCE, async || {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            return Ok(None);
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text
            .split("\r\n\r\n")
            .nth(1)
            .map(|body| body.trim().to_owned()))
    })
    .await
}

#[tokio::test]
async fn pods_have_addresses_of_their_own_and_reach_each_other() -> Test {
    let node = TestNode::start().await?;
    let (web, client) = (node.pod("web").await?, node.pod("client").await?);
    assert_ne!(web.ip().await?, client.ip().await?);
    serve(&node, &web, "hello").await?;
    let ip = web.ip().await?;
    assert_eq!(ask(&format!("{ip}:80")).await?, "hello", "from the host");
    assert_eq!(
        client
            .sh(&format!("wget -q -O - http://{ip}/"))
            .await?
            .success()?,
        "hello",
        "from another pod"
    );
    let own = client
        .sh("ip -4 -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4; ip link show lo")
        .await?;
    let text = own.success()?;
    assert!(
        text.starts_with(&format!("{}/24", client.ip().await?)),
        "{text}"
    );
    assert!(
        text.contains("LOOPBACK,UP"),
        "the loopback interface is down: {text}"
    );
    // Containers of one pod meet on loopback.
    assert_eq!(
        web.sh("wget -q -O - http://127.0.0.1/").await?.success()?,
        "hello"
    );
    node.finish().await
}

#[tokio::test]
async fn host_ports_lead_to_the_pod_until_it_stops() -> Test {
    let node = TestNode::start().await?;
    let free = || {
        anyhow::Ok(
            std::net::TcpListener::bind("0.0.0.0:0")?
                .local_addr()?
                .port(),
        )
    };
    let port = free()?;
    let mut config = node.pod_config("web")?;
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 80,
        host_port: port.into(),
        host_ip: String::new(),
    }];
    let pod = node.run_pod(config).await?;
    serve(&node, &pod, "by-host-port").await?;
    let gateway = node.slot().subnet().replace(".0/24", ".1");
    assert_eq!(ask(&format!("{gateway}:{port}")).await?, "by-host-port");
    node.cri().stop_pod(&pod.id).await?;
    let late = tokio::time::timeout(
        Duration::from_secs(2),
        TcpStream::connect(format!("{gateway}:{port}")),
    )
    .await;
    assert!(
        !matches!(late, Ok(Ok(_))),
        "the port leads somewhere after the pod was stopped"
    );
    node.finish().await
}

#[tokio::test]
async fn addresses_are_given_back_when_the_pod_stops() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    assert_eq!(leases(&node), 1);
    node.cri().stop_pod(&pod.id).await?;
    assert_eq!(leases(&node), 0, "a stopped pod has no lease");
    node.cri().remove_pod(&pod.id).await?;
    node.finish().await
}

#[tokio::test]
async fn pods_made_at_the_same_time_have_different_addresses() -> Test {
    let node = TestNode::start().await?;
    let pods = (0..8).map(|n| {
        let node = &node;
        async move { node.pod(&format!("p{n}")).await }
    });
    let pods = try_join_all(pods.collect::<Vec<_>>()).await?;
    let ips = try_join_all(pods.iter().map(Pod::ip)).await?;
    assert_eq!(ips.iter().collect::<HashSet<_>>().len(), 8, "{ips:?}");
    try_join_all(pods.iter().map(|pod| node.cri().remove_pod(&pod.id))).await?;
    assert_eq!(leases(&node), 0);
    node.finish().await
}

#[tokio::test]
async fn without_configuration_the_node_says_so_and_fails_at_once() -> Test {
    let node = TestNode::builder()
        .no_cni()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let condition = async || -> Result<_> {
        let conditions = node
            .cri()
            .node_status()
            .await?
            .status
            .context("no conditions")?
            .conditions;
        conditions
            .into_iter()
            .find(|c| c.r#type == "NetworkReady")
            .context("no NetworkReady")
    };
    let now = condition().await?;
    assert!(!now.status && !now.reason.is_empty(), "{now:?}");
    assert!(
        now.message
            .contains(&node.files().cni.display().to_string()),
        "where? {now:?}"
    );
    let config = node.pod_config("p")?;
    let run = tokio::time::timeout(Duration::from_secs(5), node.cri().run_pod(&config));
    let status = run
        .await
        .context("RunPodSandbox hangs")?
        .err()
        .context("a pod without a network")?;
    assert!(
        status
            .message()
            .contains(&node.files().cni.display().to_string()),
        "{status:?}"
    );
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());

    // A configuration that comes later is found, without a restart.
    std::fs::write(
        node.files().cni.join("20-late.conflist"),
        r#"{"cniVersion":"1.0.0","name":"late","plugins":[{"type":"loopback"}]}"#,
    )?;
    wait::until("NetworkReady", wait::PATIENCE, async || {
        Ok(condition().await?.status.then_some(()))
    })
    .await?;
    let pod = node.run_pod(config).await?;
    assert_eq!(
        node.cri().pod_status(&pod.id).await?.state(),
        PodSandboxState::SandboxReady
    );
    node.finish().await
}

/// A plugin that fails while there is a file, at these commands.
fn if_broken(flag: &Path, commands: &str) -> String {
    format!(
        "case $CNI_COMMAND in {commands}) [ ! -e {} ] || fail 11 'not today';; esac; echo $result",
        flag.display()
    )
}

#[tokio::test]
async fn a_failing_plugin_undoes_those_before_it() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let log = node.files().dir.join("calls");
    let tracing = |name: &str| format!("echo {name} $CNI_COMMAND >> {};", log.display());
    plugin::install(
        &node,
        "tracer",
        &format!("{} echo $result", tracing("first")),
    )?;
    plugin::install(
        &node,
        "breaker",
        &format!(
            "{} [ $CNI_COMMAND = DEL ] || fail 142 'the cable is cut' 'by a shovel'",
            tracing("second")
        ),
    )?;
    plugin::chain(&node, json!({ "type": "tracer" }))?;
    plugin::chain(&node, json!({ "type": "breaker" }))?;
    let config = node.pod_config("p")?;
    let status = node
        .cri()
        .run_pod(&config)
        .await
        .err()
        .context("a pod with a broken network")?;
    assert!(
        status.message().contains("the cable is cut") && status.message().contains("by a shovel"),
        "{status:?}"
    );
    assert!(
        status.message().contains("breaker"),
        "which plugin? {status:?}"
    );
    assert_eq!(leases(&node), 0, "the address was not given back");
    let calls = std::fs::read_to_string(&log)?;
    assert_eq!(
        calls.lines().collect::<Vec<_>>(),
        ["first ADD", "second ADD", "second DEL", "first DEL"]
    );
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn a_missing_plugin_is_named() -> Test {
    let node = TestNode::builder()
        .allow_log("no-such-plugin")
        .start()
        .await?;
    plugin::chain(&node, json!({ "type": "no-such-plugin" }))?;
    let status = node
        .cri()
        .run_pod(&node.pod_config("p")?)
        .await
        .err()
        .context("a pod without its plugin")?;
    assert!(status.message().contains("no-such-plugin"), "{status:?}");
    assert_eq!(leases(&node), 0);
    node.finish().await
}

/// A DEL that fails keeps the pod: a later one gives the address back.
#[tokio::test]
async fn an_address_is_not_forgotten_when_its_return_fails() -> Test {
    let node = TestNode::builder()
        .allow_log("StopPodSandbox")
        .allow_log("not today")
        .start()
        .await?;
    let flag = node.files().dir.join("broken");
    let when = if_broken(&flag, "DEL");
    plugin::install(&node, "moody", &when)?;
    plugin::chain(&node, json!({ "type": "moody" }))?;
    let pod = node.pod("p").await?;
    std::fs::write(&flag, "")?;
    let status = node
        .cri()
        .stop_pod(&pod.id)
        .await
        .err()
        .context("the plugin's failure is not told")?;
    assert!(status.message().contains("not today"), "{status:?}");
    std::fs::remove_file(&flag)?;
    node.cri().stop_pod(&pod.id).await?;
    assert_eq!(leases(&node), 0);
    ensure!(
        node.cri().pod_status(&pod.id).await?.state() == PodSandboxState::SandboxNotready,
        "it is stopped"
    );
    node.finish().await
}

/// A pod whose undoing fails stays removable: it is listed, and its removal gives the address back.
#[tokio::test]
async fn a_pod_that_could_not_be_undone_is_listed_until_it_is_removed() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .allow_log("not today")
        .start()
        .await?;
    let flag = node.files().dir.join("broken");
    let when = if_broken(&flag, "*");
    plugin::install(&node, "moody", &when)?;
    plugin::chain(&node, json!({ "type": "moody" }))?;
    std::fs::write(&flag, "")?;
    let config = node.pod_config("p")?;
    let status = node.cri().run_pod(&config).await.err();
    let status = status.context("a pod with a broken network")?;
    assert!(status.message().contains("not today"), "{status:?}");
    let pods = node.cri().list_pods(Default::default()).await?;
    let [pod] = pods.as_slice() else {
        anyhow::bail!("one pod that is not undone, and not {pods:?}");
    };
    assert_eq!(pod.state(), PodSandboxState::SandboxNotready);
    std::fs::remove_file(&flag)?;
    node.cri().remove_pod(&pod.id).await?;
    assert_eq!(leases(&node), 0);
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    node.finish().await
}

/// The configuration that a pod was made with is the one that takes it down.
#[tokio::test]
async fn a_changed_configuration_does_not_strand_old_pods() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    std::fs::write(
        node.files().cni.join("10-test.conflist"),
        r#"{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"loopback"}]}"#,
    )?;
    node.cri().stop_pod(&pod.id).await?;
    assert_eq!(leases(&node), 0, "the old network's DEL did not run");
    node.finish().await
}
