//! Console commands by the admin socket, operator messages, and reloading.
#![forbid(unsafe_code)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use zcri_integration::registry::Fault;
use zcri_integration::{Test, TestNode, binaries, images, plugin, wait};

/// A node whose operator messages go to the file [`console`].
fn builder() -> zcri_integration::Builder {
    TestNode::builder()
}

/// Begins the daemon with a console, in a file beside the node's others.
async fn start(builder: zcri_integration::Builder) -> Result<TestNode> {
    let mut node = builder.prepare().await?;
    use_console(&node)?;
    node.start_daemon().await?;
    Ok(node)
}

/// The next daemon's console is a file.
fn use_console(node: &TestNode) -> Test {
    let text = format!("[console]\noutput = {:?}\n", console(node));
    drop_in(node, "80-console", &text)
}

fn console(node: &TestNode) -> PathBuf {
    node.files().dir.join("console")
}

fn drop_in(node: &TestNode, name: &str, text: &str) -> Test {
    let path = node
        .files()
        .dir
        .join(format!("etc/zcri.toml.d/{name}.toml"));
    Ok(std::fs::write(path, text)?)
}

fn modify(node: &TestNode, command: &[&str]) -> Result<Output> {
    let mut zcrid = Command::new(binaries::ours("zcrid")?);
    zcrid
        .arg("--config")
        .arg(&node.files().config)
        .arg("modify")
        .args(command);
    Ok(zcrid.output()?)
}

/// What a command that is obeyed answers.
fn obeyed(node: &TestNode, command: &[&str]) -> Result<String> {
    let output = modify(node, command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Lines on the console with that id.
fn told(node: &TestNode, id: &str) -> Vec<String> {
    let text = std::fs::read_to_string(console(node)).unwrap_or_default();
    let with_id = |line: &&str| {
        line.strip_prefix(id)
            .is_some_and(|rest| rest.starts_with(' '))
    };
    text.lines().filter(with_id).map(str::to_owned).collect()
}

async fn until_told(node: &TestNode, id: &str) -> Result<String> {
    wait::until(
        &format!("{id} on the console"),
        wait::PATIENCE,
        async || Ok(told(node, id).pop()),
    )
    .await
}

#[tokio::test]
async fn display_shows_pods_network_and_status() -> Test {
    let node = start(builder()).await?;
    ensure!(obeyed(&node, &["DISPLAY PODS"])?.starts_with("ZCR050I 0 PODS\n"));
    let pod = node.pod("shown").await?;
    pod.sleeper("c").await?;
    let pods = obeyed(&node, &["display", "pods"])?;
    let mut lines = pods.lines();
    assert_eq!(lines.next(), Some("ZCR050I 1 PODS"));
    let line = lines.next().context("the pod's line")?;
    for part in [
        &pod.id[..13],
        "READY",
        &pod.ip().await?,
        "1/1 RUNNING",
        "/shown",
    ] {
        ensure!(line.contains(part), "{part} is not in {line}");
    }
    let network = obeyed(&node, &["D N"])?;
    ensure!(
        network.starts_with(&format!("ZCR051I NETWORK {}\n", node.slot().name())),
        "{network}"
    );
    ensure!(
        network.contains("STATE      READY") && network.contains("ATTACHED   1"),
        "{network}"
    );
    let status = obeyed(&node, &["D S"])?;
    ensure!(status.starts_with("ZCR052I ZCRID "), "{status}");
    for part in [
        "RUNTIME    READY",
        "NETWORK    READY",
        "PODS       1",
        "CONTAINERS 1, 1 RUNNING",
    ] {
        ensure!(status.contains(part), "{part} is not in {status}");
    }
    node.finish().await
}

#[tokio::test]
async fn only_the_owner_commands_and_what_is_no_command_is_refused() -> Test {
    let mut node = start(builder()).await?;
    let socket = node.files().state.join("admin.sock");
    assert_eq!(std::fs::metadata(&socket)?.mode() & 0o777, 0o600);
    let output = modify(&node, &["DISPLAY NONSENSE"])?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(text, "ZCR012E COMMAND NOT UNDERSTOOD: DISPLAY NONSENSE\n");
    // More than any command has is not waited for.
    let long = modify(&node, &["D".repeat(5000).as_str()])?;
    assert_eq!(long.status.code(), Some(1));
    assert_eq!(modify(&node, &[])?.status.code(), Some(2));
    node.stop_daemon().await?;
    ensure!(!socket.exists(), "the admin socket is left");
    let nobody = modify(&node, &["D P"])?;
    assert_eq!(nobody.status.code(), Some(1));
    let text = String::from_utf8(nobody.stderr)?;
    ensure!(text.contains("no zcrid answers on"), "{text}");
    node.finish().await
}

#[tokio::test]
async fn stop_ends_the_daemon_in_order_and_pods_go_on() -> Test {
    let mut node = start(builder()).await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let pod_id = pod.id.clone();
    drop(pod);
    let answer = obeyed(&node, &["STOP"])?;
    assert_eq!(answer, "ZCR013I COMMAND ACCEPTED: STOP\n");
    until_told(&node, "ZCR004I").await?;
    assert_eq!(told(&node, "ZCR003I"), ["ZCR003I ZCRID IS STOPPING"]);
    // It has ended: this only takes its status.
    ensure!(node.stop_daemon().await?.success());
    node.start_daemon().await?;
    assert_eq!(
        told(&node, "ZCR010I").pop().as_deref(),
        Some("ZCR010I RECOVERED 1 PODS")
    );
    let status = node.cri().status(&id).await?;
    assert_eq!(
        status.state(),
        zcri_integration::v1::ContainerState::ContainerRunning
    );
    assert_eq!(node.cri().pod_status(&pod_id).await?.id, pod_id);
    let serving = told(&node, "ZCR002I");
    ensure!(serving.len() == 2, "{serving:?}");
    ensure!(
        serving[0].ends_with(&node.files().socket().display().to_string()),
        "{serving:?}"
    );
    node.finish().await
}

#[tokio::test]
async fn stop_during_a_pull_cuts_it_short_and_leaves_nothing() -> Test {
    let mut node = start(builder().allow_log("PullImage")).await?;
    node.registry
        .push("library/slow", "1", images::busybox()?.build());
    node.registry.set_fault(
        "library/slow",
        Fault::SlowBlobs {
            bytes_per_second: 1000,
        },
    );
    let reference = node.registry.reference("library/slow", "1");
    let cri = node.cri().clone();
    let pulled = reference.clone();
    let pull = tokio::spawn(async move { cri.pull(&pulled).await });
    wait::until_true("the pull to be at work", wait::PATIENCE, || {
        node.registry.requests("/blobs/") > 0
    })
    .await?;
    let begin = Instant::now();
    obeyed(&node, &["STOP"])?;
    ensure!(node.stop_daemon().await?.success());
    ensure!(
        begin.elapsed() < Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
    ensure!(pull.await?.is_err(), "the pull says that it is done");
    assert_eq!(told(&node, "ZCR009W").len(), 1);
    node.registry.clear_faults("library/slow");
    node.start_daemon().await?;
    assert_eq!(node.cri().list_images().await?.len(), 0);
    node.cri().pull(&reference).await?;
    node.finish().await
}

#[tokio::test]
async fn refresh_and_sighup_put_in_force_what_can_be() -> Test {
    let node = start(
        builder()
            .allow_log("configuration not reloaded")
            .allow_log("blocked"),
    )
    .await?;
    let busybox = node.busybox().await?;
    // registries.conf, and a key that is only read at the start.
    let registries = node.files().dir.join("etc/registries.conf");
    let host = node.registry.addr().to_string();
    std::fs::write(
        &registries,
        format!("[[registry]]\nlocation = {host:?}\nblocked = true\n"),
    )?;
    drop_in(
        &node,
        "90-new",
        "[api]\nsocket_mode = \"0600\"\n[log]\nlevel = \"debug\"\n",
    )?;
    ensure!(!node.log().contains("DEBUG"), "the level is info at first");
    let answer = obeyed(&node, &["REFRESH"])?;
    let want = "ZCR006I CONFIGURATION RELOADED: registries.conf, log.level\n\
                ZCR007W RESTART ZCRID FOR CHANGES OF api.socket_mode\n";
    assert_eq!(answer, want);
    let status = node
        .cri()
        .pull(&busybox)
        .await
        .err()
        .context("it is blocked")?;
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
    until_told(&node, "ZCR303W").await?;
    ensure!(node.log().contains("DEBUG"), "the level is debug now");
    // What is not valid changes nothing.
    drop_in(&node, "90-new", "[api]\nsocket_mod = 1\n")?;
    node.signal_daemon(Signal::HUP)?;
    let line = until_told(&node, "ZCR008E").await?;
    ensure!(line.contains("socket_mod"), "{line}");
    std::fs::write(&registries, "[[registry]\n")?;
    drop_in(&node, "90-new", "")?;
    let output = modify(&node, &["REFRESH"])?;
    ensure!(String::from_utf8(output.stdout)?.contains("registries_conf"));
    assert_eq!(
        node.cri().pull(&busybox).await.err().map(|s| s.code()),
        Some(tonic::Code::PermissionDenied)
    );
    // The same by signal.
    std::fs::write(&registries, "")?;
    let before = told(&node, "ZCR006I").len();
    node.signal_daemon(Signal::HUP)?;
    wait::until_true("SIGHUP to be obeyed", wait::PATIENCE, || {
        told(&node, "ZCR006I").len() > before
    })
    .await?;
    node.cri().pull(&busybox).await?;
    node.finish().await
}

#[tokio::test]
async fn the_network_lost_and_back_is_told() -> Test {
    let node = start(builder().allow_log("RunPodSandbox")).await?;
    until_told(&node, "ZCR101I").await?;
    let list = node.files().cni.join("10-test.conflist");
    let aside = node.files().dir.join("aside");
    std::fs::rename(&list, &aside)?;
    until_told(&node, "ZCR102W").await?;
    std::fs::rename(&aside, &list)?;
    wait::until_true("the network to be back", wait::PATIENCE, || {
        obeyed(&node, &["D N"]).is_ok_and(|n| n.contains("READY"))
    })
    .await?;
    plugin::install(
        &node,
        "full",
        "[ $CNI_COMMAND != ADD ] || fail 100 'no IPv4 address is free in 192.0.2.0/29'; echo $result",
    )?;
    plugin::chain(&node, json!({ "type": "full" }))?;
    ensure!(node.cri().run_pod(&node.pod_config("p")?).await.is_err());
    let line = until_told(&node, "ZCR105A").await?;
    ensure!(line.contains("192.0.2.0/29"), "{line}");
    node.finish().await
}

/// The shim of a pod: its process has the pod's id on its command line.
fn shim_of(pod: &str) -> Result<Pid> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let Some(pid) = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        if command.contains("zcri-shim") && command.contains(pod) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no shim of {pod}")
}

#[tokio::test]
async fn a_lost_shim_is_told() -> Test {
    let node = start(builder().allow_log("shim")).await?;
    let pod = node.pod("p").await?;
    kill_process(shim_of(&pod.id)?, Signal::KILL)?;
    let line = until_told(&node, "ZCR201E").await?;
    assert_eq!(line, format!("ZCR201E THE SHIM OF POD {} IS GONE", pod.id));
    node.finish().await
}

#[tokio::test]
async fn a_lost_runtime_is_told_and_its_return_too() -> Test {
    let mut node = builder().prepare().await?;
    let wrapper = node.files().dir.join("runc");
    let real = binaries::system("runc", "runc")?;
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", real.display());
    std::fs::write(&wrapper, script)?;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    drop_in(
        &node,
        "70-runc",
        &format!("[runtime.handlers.runc]\npath = {wrapper:?}\n"),
    )?;
    use_console(&node)?;
    node.start_daemon().await?;
    let status = async || node.cri().node_status().await.map(drop);
    status().await?;
    ensure!(
        told(&node, "ZCR202E").is_empty(),
        "{:?}",
        told(&node, "ZCR202E")
    );
    let aside = node.files().dir.join("runc-aside");
    std::fs::rename(&wrapper, &aside)?;
    status().await?;
    let line = until_told(&node, "ZCR202E").await?;
    ensure!(line.contains(&wrapper.display().to_string()), "{line}");
    std::fs::rename(&aside, &wrapper)?;
    status().await?;
    until_told(&node, "ZCR203I").await?;
    node.finish().await
}

#[tokio::test]
async fn a_start_that_fails_is_told() -> Test {
    let node = start(builder()).await?;
    let (status, _) = node.run_second_daemon().await?;
    ensure!(!status.success());
    let line = until_told(&node, "ZCR005E").await?;
    ensure!(line.contains("another zcrid is running"), "{line}");
    node.allow_log("another zcrid is running");
    node.finish().await
}
