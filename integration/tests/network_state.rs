//! What the daemon keeps and tells of the pods' network: readiness, what could not be detached, what a dead daemon
//! left, the node's range.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zcri_integration::plugin::{self, leases};
use zcri_integration::v1::{
    NetworkConfig, RuntimeCondition, RuntimeConfig, UpdateRuntimeConfigRequest,
};
use zcri_integration::{Test, TestNode, binaries, wait};

/// NetworkReady of the node.
async fn readiness(node: &TestNode) -> Result<RuntimeCondition> {
    let status = node.cri().node_status().await?.status;
    let conditions = status.context("no conditions")?.conditions;
    let mut all = conditions.into_iter();
    all.find(|c| c.r#type == "NetworkReady")
        .context("no NetworkReady")
}

async fn until_ready(node: &TestNode, ready: bool) -> Result<RuntimeCondition> {
    wait::until("NetworkReady to change", wait::PATIENCE, async || {
        let now = readiness(node).await?;
        Ok((now.status == ready).then_some(now))
    })
    .await
}

/// What `zcrid status network` prints.
fn status_network(node: &TestNode) -> Result<String> {
    let output = Command::new(binaries::ours("zcrid")?)
        .arg("--config")
        .arg(&node.files().config)
        .args(["status", "network"])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_failed_detach_is_told_and_tried_again_by_itself() -> Test {
    let node = TestNode::builder()
        .allow_log("StopPodSandbox")
        .allow_log("not today")
        .start()
        .await?;
    let flag = node.files().dir.join("broken");
    plugin::install(
        &node,
        "moody",
        &format!(
            "[ $CNI_COMMAND = ADD -o ! -e {} ] || fail 11 'not today'; echo $result",
            flag.display()
        ),
    )?;
    plugin::chain(&node, json!({ "type": "moody" }))?;
    let pod = node.pod("p").await?;
    let status = status_network(&node)?;
    let attached = status
        .lines()
        .find_map(|line| line.strip_prefix("attached pods"));
    assert_eq!(attached.map(str::trim), Some("1"), "{status}");
    std::fs::write(&flag, "")?;
    node.cri().stop_pod(&pod.id).await.unwrap_err();
    let told = status_network(&node)?;
    let line = told.lines().find(|line| line.starts_with("to be detached"));
    let line = line.with_context(|| format!("nothing to be detached in {told}"))?;
    assert!(
        line.contains(&pod.id) && line.contains("not today"),
        "{line}"
    );
    std::fs::remove_file(&flag)?;
    // Nobody asks again.
    wait::until_true("the address to be given back", wait::PATIENCE, || {
        leases(&node) == 0
    })
    .await?;
    wait::until_true("nothing to be detached", wait::PATIENCE, || {
        status_network(&node).is_ok_and(|told| !told.contains("to be detached"))
    })
    .await?;
    node.cri().remove_pod(&pod.id).await?;
    node.finish().await
}

#[tokio::test]
async fn attachments_of_pods_that_are_gone_are_deleted_at_the_start() -> Test {
    let mut node = TestNode::start().await?;
    let pod = node.pod("kept").await?.id;
    let calls = node.files().dir.join("calls");
    plugin::install(
        &node,
        "tracer",
        &format!(
            "echo $CNI_COMMAND $CNI_CONTAINERID >> {}; echo $result",
            calls.display()
        ),
    )?;
    plugin::only(&node, "tracer", &[])?;
    node.kill_daemon().await?;
    // As a pod is recorded whose own record was lost.
    let records = node.files().root.join("cni");
    let cni = zcri_cni::Cni::new(
        zcri_cni::CniDirs {
            conf_dir: node.files().cni.clone(),
            plugin_dirs: vec![node.files().plugins.clone()],
            cache_dir: records.clone(),
        },
        wait::PATIENCE,
    );
    let gone = zcri_cni::Attachment {
        container_id: "gone".into(),
        netns: PathBuf::from("/proc/1/ns/net"),
        ifname: "eth0".into(),
        args: Vec::new(),
        runtime_config: Default::default(),
    };
    cni.load()?.add(&gone).await?;
    node.start_daemon().await?;
    // GC comes last, and names what is attached.
    wait::until_true("the start to be over", wait::PATIENCE, || {
        std::fs::read_to_string(&calls).is_ok_and(|calls| calls.contains("GC"))
    })
    .await?;
    let calls = std::fs::read_to_string(&calls)?;
    let calls: Vec<_> = calls.lines().filter(|c| !c.starts_with("STATUS")).collect();
    assert_eq!(calls, ["ADD gone", "DEL gone", "GC"]);
    assert!(!records.join("gone:eth0").exists());
    assert!(
        records.join(format!("{pod}:eth0")).exists(),
        "the pod that lives"
    );
    node.finish().await
}

#[tokio::test]
async fn garbage_is_not_collected_where_it_must_not_be() -> Test {
    let mut node = TestNode::builder()
        .config("[network]\ngc = \"off\"")
        .start()
        .await?;
    let calls = node.files().dir.join("calls");
    plugin::install(
        &node,
        "tracer",
        &format!("echo $CNI_COMMAND >> {}; echo $result", calls.display()),
    )?;
    plugin::only(&node, "tracer", &[])?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.pod("p").await?;
    node.remove_pods().await?;
    let calls = std::fs::read_to_string(&calls)?;
    assert!(calls.contains("DEL") && !calls.contains("GC"), "{calls}");
    node.finish().await
}

#[tokio::test]
async fn a_plugin_at_work_when_the_daemon_dies_is_ended() -> Test {
    let mut node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let pid_file = node.files().dir.join("pid");
    plugin::install(
        &node,
        "slow",
        &format!(
            "[ $CNI_COMMAND != ADD ] || {{ echo $$ > {}; exec sleep 1000; }}; echo $result",
            pid_file.display()
        ),
    )?;
    plugin::chain(&node, json!({ "type": "slow" }))?;
    let config = node.pod_config("p")?;
    let cri = node.cri().clone();
    let running = tokio::spawn(async move { cri.run_pod(&config).await });
    let pid = wait::until("the plugin to work", wait::PATIENCE, async || {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        Ok(text.trim().parse::<u32>().ok())
    })
    .await?;
    node.kill_daemon().await?;
    running.await?.unwrap_err();
    // One that has ended and that nobody waited for has no command line.
    let works = || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    assert!(works(), "it went with the daemon: this test shows nothing");
    node.start_daemon().await?;
    assert!(!works(), "the plugin goes on");
    assert_eq!(leases(&node), 0);
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn readiness_follows_the_directory_wherever_it_goes() -> Test {
    let node = TestNode::start().await?;
    until_ready(&node, true).await?;
    let (dir, away) = (&node.files().cni, node.files().dir.join("away"));
    std::fs::rename(dir, &away)?;
    let gone = until_ready(&node, false).await?;
    assert!(
        gone.message.contains(&dir.display().to_string()),
        "{gone:?}"
    );
    std::fs::rename(&away, dir)?;
    until_ready(&node, true).await?;
    std::fs::rename(dir, &away)?;
    until_ready(&node, false).await?;
    std::fs::create_dir(dir)?;
    let file = "10-test.conflist";
    std::fs::write(dir.join(file), "{")?;
    let broken = until_ready(&node, false).await?;
    assert!(!broken.message.is_empty(), "{broken:?}");
    std::fs::copy(away.join(file), dir.join(file))?;
    until_ready(&node, true).await?;
    node.pod("p").await?;
    node.finish().await
}

#[tokio::test]
async fn what_a_plugin_says_to_status_is_the_nodes_condition() -> Test {
    let node = TestNode::start().await?;
    let flag = node.files().dir.join("full");
    plugin::install(
        &node,
        "ranger",
        &format!(
            "[ $CNI_COMMAND != STATUS -o ! -e {} ] || fail 50 'the range is exhausted'; echo $result",
            flag.display()
        ),
    )?;
    std::fs::write(&flag, "")?;
    plugin::only(&node, "ranger", &[])?;
    let full = wait::until("the plugin's answer", wait::PATIENCE, async || {
        let now = readiness(&node).await?;
        Ok(now
            .message
            .contains("the range is exhausted")
            .then_some(now))
    })
    .await?;
    assert!(!full.status && full.message.contains("ranger"), "{full:?}");
    std::fs::remove_file(&flag)?;
    plugin::only(&node, "ranger", &[])?;
    until_ready(&node, true).await?;
    node.finish().await
}

#[tokio::test]
async fn status_does_not_wait_for_a_plugin() -> Test {
    let node = TestNode::builder()
        .config("[network]\nplugin_timeout_seconds = 3")
        .start()
        .await?;
    until_ready(&node, true).await?;
    let asked = node.files().dir.join("asked");
    plugin::install(
        &node,
        "sleeper",
        &format!(
            "[ $CNI_COMMAND != STATUS ] || {{ touch {}; sleep 1000; }}; echo $result",
            asked.display()
        ),
    )?;
    plugin::only(&node, "sleeper", &[])?;
    wait::until_true("the plugin to be asked", wait::PATIENCE, || asked.exists()).await?;
    let begin = Instant::now();
    readiness(&node).await?;
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "Status waited {:?}",
        begin.elapsed()
    );
    let late = until_ready(&node, false).await?;
    assert!(late.message.contains("STATUS"), "{late:?}");
    node.finish().await
}

#[tokio::test]
async fn the_nodes_range_fills_the_template() -> Test {
    let dir = tempfile::tempdir()?;
    let template = dir.path().join("10-test.conflist");
    let node = TestNode::builder()
        .no_cni()
        .config(&format!(
            "[network]\nconf_template = \"{}\"",
            template.display()
        ))
        .allow_log("UpdateRuntimeConfig")
        .start()
        .await?;
    let text = json!({
        "cniVersion": "1.0.0", "name": node.slot().name(),
        "plugins": [{
            "type": "bridge", "bridge": node.slot().name(), "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": node.files().dir.join("ipam"),
                "ranges": [[{ "subnet": "${podCIDRv4}" }]],
            },
        }],
    });
    std::fs::write(&template, text.to_string())?;
    let update = async |cidr: &str| {
        let network_config = Some(NetworkConfig {
            pod_cidr: cidr.to_owned(),
        });
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig { network_config }),
        };
        node.cri().runtime().update_runtime_config(request).await
    };
    // As the kubelet does before the cluster has given a range.
    update("").await?;
    assert!(!readiness(&node).await?.status);
    let wrong = update("10.0.0.0/33").await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    assert!(wrong.message().contains("pod_cidr"), "{wrong:?}");
    update(&node.slot().subnet()).await?;
    until_ready(&node, true).await?;
    let pod = node.pod("p").await?;
    let prefix = node.slot().subnet().replace("0/24", "");
    assert!(pod.ip().await?.starts_with(&prefix));
    node.finish().await
}

#[tokio::test]
async fn a_plugin_is_told_what_it_asks_for() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let input = node.files().dir.join("input");
    plugin::install(
        &node,
        "reader",
        &format!(
            "[ $CNI_COMMAND = ADD ] && cat > {}; echo $result",
            input.display()
        ),
    )?;
    plugin::chain(
        &node,
        json!({
            "type": "reader",
            "capabilities": { "bandwidth": true, "ips": true, "dns": true, "cgroupPath": true },
        }),
    )?;
    let mut config = node.pod_config("p")?;
    for (key, value) in [
        ("kubernetes.io/ingress-bandwidth", "10M"),
        ("kubernetes.io/egress-bandwidth", "1.5Mi"),
        ("zcri.io/ips", "192.0.2.9, 2001:db8::9"),
    ] {
        config.annotations.insert(key.to_owned(), value.to_owned());
    }
    node.run_pod(config.clone()).await?;
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&input)?)?;
    let told = &told["runtimeConfig"];
    assert_eq!(told["bandwidth"]["ingressRate"], 10_000_000);
    assert_eq!(told["bandwidth"]["egressRate"], 1_572_864);
    assert_eq!(told["ips"], json!(["192.0.2.9", "2001:db8::9"]));

    config.metadata.get_or_insert_default().name = "q".into();
    let key = "kubernetes.io/egress-bandwidth";
    config.annotations.insert(key.into(), "fast".into());
    let status = node.cri().run_pod(&config).await.err();
    let status = status.context("a pod with no sense")?;
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status.message().contains(key) && status.message().contains("fast"),
        "{status:?}"
    );
    node.finish().await
}
