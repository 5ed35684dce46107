//! Status, Version and RuntimeConfig: what the node says of itself is so, also when it is not well.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde_json::Value;
use zcri_integration::v1::{
    RuntimeCondition, RuntimeConfigRequest, RuntimeHandlerFeatures, StatusRequest, StatusResponse,
};
use zcri_integration::{Test, TestNode, pod, wait};

async fn status(node: &TestNode) -> Result<StatusResponse> {
    let request = StatusRequest { verbose: false };
    Ok(node.cri().runtime().status(request).await?.into_inner())
}

async fn condition(node: &TestNode, kind: &str) -> Result<RuntimeCondition> {
    let conditions = status(node)
        .await?
        .status
        .context("no conditions")?
        .conditions;
    conditions
        .into_iter()
        .find(|one| one.r#type == kind)
        .context(kind.to_owned())
}

/// RuntimeReady is false, for a reason with these words.
async fn not_ready(node: &TestNode, words: &str) -> Test {
    let found = condition(node, "RuntimeReady").await?;
    ensure!(!found.status, "it says that it is ready");
    assert_eq!(found.reason, "RuntimeNotReady");
    ensure!(
        found.message.contains(words),
        "{:?} does not tell {words:?}",
        found.message
    );
    Ok(())
}

async fn ready(node: &TestNode) -> Test {
    let found = condition(node, "RuntimeReady").await?;
    ensure!(found.status && found.message.is_empty(), "{found:?}");
    Ok(())
}

/// The verbose part, each value as JSON.
async fn verbose(node: &TestNode) -> Result<HashMap<String, Value>> {
    let info = node.cri().node_status().await?.info;
    info.into_iter()
        .map(|(key, text)| Ok((key, serde_json::from_str(&text).context(text)?)))
        .collect()
}

fn install(program: &Path, script: &str) -> Test {
    let new = program.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    Ok(std::fs::rename(&new, program)?)
}

#[tokio::test]
async fn storage_that_cannot_be_written_is_not_ready_and_a_full_one_is() -> Test {
    let node = TestNode::builder().root_size("16m").start().await?;
    let root = node.files().root.clone();
    ready(&node).await?;
    // A mount with open files cannot be made read-only, as a failing disk is by its file system: this one can.
    let probe = root.join("zcrid.health");
    mount_bind(&probe, &probe)?;
    mount_remount(&probe, MountFlags::BIND | MountFlags::RDONLY, "")?;
    let told = not_ready(&node, &format!("{} cannot be written", root.display())).await;
    unmount(&probe, UnmountFlags::empty())?;
    told?;
    ready(&node).await?;
    // On a full disk things can be removed, which is how it becomes less full.
    let filler = root.join("filler");
    let full = std::fs::write(&filler, vec![0u8; 32 << 20]);
    ensure!(full.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    ready(&node).await?;
    std::fs::remove_file(filler)?;
    node.finish().await
}

/// A node whose default handler is a script of ours: its node, the script and the file in which it counts its runs.
async fn scripted() -> Result<(TestNode, PathBuf, PathBuf)> {
    let dir = tempfile::tempdir()?.keep();
    let (program, runs) = (dir.join("runtime"), dir.join("runs"));
    install(&program, &counting(&runs))?;
    let config = format!(
        "[runtime]\ndefault_handler = \"mine\"\n[runtime.handlers.mine]\npath = {program:?}\n"
    );
    let node = TestNode::builder().config(&config).start().await?;
    Ok((node, program, runs))
}

/// A runtime that is runc and writes down how it was called.
fn counting(runs: &Path) -> String {
    format!("echo \"$@\" >> {}; exec runc \"$@\"", runs.display())
}

#[tokio::test]
async fn a_runtime_is_asked_once_and_again_when_it_is_replaced() -> Test {
    let (node, program, runs) = scripted().await?;
    for _ in 0..20 {
        ready(&node).await?;
    }
    let asked = std::fs::read_to_string(&runs)?;
    assert_eq!(
        asked.lines().collect::<Vec<_>>(),
        ["features"],
        "a status starts no process"
    );

    install(&program, "echo cannot open shared object >&2; exit 127")?;
    not_ready(&node, "cannot open shared object").await?;
    std::fs::remove_file(&program)?;
    not_ready(&node, "is missing").await?;
    install(&program, &counting(&runs))?;
    ready(&node).await?;
    assert_eq!(std::fs::read_to_string(&runs)?.lines().count(), 2);
    std::fs::remove_dir_all(program.parent().context("no directory")?)?;
    node.finish().await
}

#[tokio::test]
async fn a_missing_shim_is_told() -> Test {
    let dir = tempfile::tempdir()?;
    let shim = dir.path().join("zcri-shim");
    std::fs::copy(zcri_integration::binaries::ours("zcri-shim")?, &shim)?;
    let node = TestNode::builder()
        .config(&format!("[runtime]\nshim = {shim:?}\n"))
        .start()
        .await?;
    ready(&node).await?;
    std::fs::rename(&shim, dir.path().join("away"))?;
    not_ready(&node, "zcri-shim cannot be run").await?;
    std::fs::rename(dir.path().join("away"), &shim)?;
    ready(&node).await?;
    node.finish().await
}

#[tokio::test]
async fn a_daemon_that_can_start_no_process_says_so() -> Test {
    let node = TestNode::start().await?;
    ready(&node).await?;
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let base = if v1.is_dir() {
        v1
    } else {
        Path::new("/sys/fs/cgroup")
    };
    let group = base.join(format!("{}-daemon", node.slot().name()));
    std::fs::create_dir(&group)?;
    let pid = node.daemon_pid()?.as_raw_nonzero().to_string();
    std::fs::write(group.join("cgroup.procs"), &pid)?;
    std::fs::write(group.join("pids.max"), "1")?;
    let told = not_ready(&node, "no process can be started").await;
    std::fs::write(group.join("pids.max"), "max")?;
    let well = ready(&node).await;
    std::fs::write(base.join("cgroup.procs"), &pid)?;
    std::fs::remove_dir(&group)?;
    told?;
    well?;
    node.finish().await
}

#[tokio::test]
async fn no_network_is_told_and_does_not_make_the_runtime_unready() -> Test {
    let node = TestNode::builder().no_cni().start().await?;
    let network = condition(&node, "NetworkReady").await?;
    ensure!(
        !network.status && network.reason == "NetworkPluginNotReady",
        "{network:?}"
    );
    ensure!(!network.message.is_empty());
    ready(&node).await?;
    let load = verbose(&node).await?["lastCNILoadStatus"].clone();
    assert_eq!(load, Value::String(network.message));
    node.finish().await
}

/// What runc itself says.
fn runc_says() -> Result<Value> {
    let output = std::process::Command::new("runc")
        .arg("features")
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn handlers_have_the_features_of_their_runtimes() -> Test {
    // As crun before 1.9: it tells its version and no features.
    let dir = tempfile::tempdir()?;
    let old = dir.path().join("old");
    install(&old, "[ \"$1\" = --version ] && echo old version 1")?;
    let config = format!("[runtime.handlers.old]\npath = {old:?}\n");
    let node = TestNode::builder().config(&config).start().await?;
    let found = status(&node).await?;
    let features = |name: &str| -> Result<RuntimeHandlerFeatures> {
        let handler = found.runtime_handlers.iter().find(|one| one.name == name);
        handler
            .and_then(|one| one.features)
            .with_context(|| format!("no handler {name:?}"))
    };
    let says = runc_says()?;
    let options = says["mountOptions"].as_array().context("no mountOptions")?;
    assert_eq!(
        features("runc")?.recursive_read_only_mounts,
        options.contains(&"rro".into())
    );
    assert_eq!(
        features("")?,
        features("runc")?,
        "the empty name is that of the default handler"
    );
    assert_eq!(features("old")?, RuntimeHandlerFeatures::default());
    let names: std::collections::BTreeSet<_> =
        found.runtime_handlers.iter().map(|one| &one.name).collect();
    assert_eq!(
        names.len(),
        found.runtime_handlers.len(),
        "names are unique"
    );
    ensure!(
        found
            .features
            .context("no features")?
            .supplemental_groups_policy
    );
    node.finish().await
}

#[tokio::test]
async fn the_verbose_status_has_the_running_configuration() -> Test {
    let node = TestNode::builder()
        .config("[image]\nmax_parallel_layers = 5\n")
        .start()
        .await?;
    ensure!(
        status(&node).await?.info.is_empty(),
        "only who asks gets it"
    );
    let pod = node.pod("p").await?;
    pod.sleeper("c").await?;
    let info = verbose(&node).await?;
    let config = &info["config"];
    assert_eq!(
        config["storage"]["root"],
        Value::String(node.files().root.display().to_string())
    );
    assert_eq!(
        config["image"]["max_parallel_layers"], 5,
        "as merged from the drop-ins"
    );
    assert_eq!(config["log"]["format"], "text", "defaults too");
    let state = &info["state"];
    assert_eq!(
        (&state["pods"], &state["containers"]),
        (&1.into(), &1.into())
    );
    assert_eq!(state["pid"], node.daemon_pid()?.as_raw_nonzero().get());
    ensure!(
        info["handlers"]["runc"]["mountOptions"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    assert_eq!(info["lastCNILoadStatus"], "OK");
    node.finish().await
}

#[tokio::test]
#[expect(deprecated, reason = "it is what is tested")]
async fn the_use_of_deprecated_fields_is_a_condition() -> Test {
    let node = TestNode::start().await?;
    let kind = "ZcriHasNoDeprecationWarnings";
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    pod.create(&config).await?;
    ensure!(condition(&node, kind).await?.status);
    config.metadata.get_or_insert_default().name = "d".into();
    pod::security(&mut config).seccomp_profile_path = "unconfined".into();
    pod.create(&config).await?;
    let found = condition(&node, kind).await?;
    ensure!(
        !found.status && found.reason == "ZcriHasDeprecationWarnings",
        "{found:?}"
    );
    let used: HashMap<String, String> = serde_json::from_str(&found.message)?;
    let instead = &used["ContainerConfig.linux.security_context.seccomp_profile_path"];
    ensure!(instead.ends_with("security_context.seccomp"), "{used:?}");
    ready(&node).await?;
    node.finish().await
}

#[tokio::test]
async fn the_cgroup_driver_is_the_configured_one() -> Test {
    let node = TestNode::builder()
        .config("[runtime]\ncgroup_manager = \"systemd\"\ncgroup_parent = \"zcri.slice\"\n")
        .start()
        .await?;
    let answer = node
        .cri()
        .runtime()
        .runtime_config(RuntimeConfigRequest {})
        .await?
        .into_inner();
    assert_eq!(
        answer
            .linux
            .context("no linux")?
            .cgroup_driver()
            .as_str_name(),
        "SYSTEMD"
    );
    node.finish().await
}

/// Number of system calls that a daemon makes for a call, counted by strace.
#[tokio::test]
async fn lists_cost_no_system_call_per_container() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    let mut calls = Vec::new();
    for (from, to) in [(0, 3), (3, 33)] {
        for index in from..to {
            config.metadata.get_or_insert_default().name = format!("c{index}");
            pod.create(&config).await?;
        }
        calls.push(traced(&node).await?);
    }
    // What they have in common is the traffic on the socket, which is longer with more to tell.
    ensure!(
        calls[1] < calls[0] + 20 * LISTS,
        "{calls:?} calls with 3 and 33 containers"
    );
    node.finish().await
}

/// Lists in one count.
const LISTS: usize = 10;

async fn traced(node: &TestNode) -> Result<usize> {
    let pid = node.daemon_pid()?.as_raw_nonzero().to_string();
    let output = node.scratch("strace")?.join("calls");
    let mut strace = tokio::process::Command::new("strace")
        .args(["-f", "-q", "-p", &pid, "-o"])
        .arg(&output)
        .kill_on_drop(true)
        .spawn()?;
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    wait::until_true("strace to be there", wait::PATIENCE, traced).await?;
    for _ in 0..LISTS {
        node.cri().list_containers(Default::default()).await?;
        node.cri().list_pods(Default::default()).await?;
    }
    let id = i32::try_from(strace.id().context("strace has ended")?)?;
    let id = rustix::process::Pid::from_raw(id).context("no process")?;
    rustix::process::kill_process(id, rustix::process::Signal::INT)?;
    strace.wait().await?;
    Ok(std::fs::read_to_string(&output)?.lines().count())
}
