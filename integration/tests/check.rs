//! `zcrid check`: what it finds on a node that is fit and on nodes that are not, and that it leaves nothing.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use zcri_integration::plugin::{self, leases};
use zcri_integration::{Test, TestNode, binaries, leaks, wait};

fn command(node: &TestNode, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binaries::ours("zcrid")?);
    command
        .arg("--config")
        .arg(&node.files().config)
        .arg("check")
        .args(arguments);
    Ok(command)
}

fn check(node: &TestNode, arguments: &[&str]) -> Result<Output> {
    Ok(command(node, arguments)?.output()?)
}

/// The exit code and the JSON report.
fn report(node: &TestNode) -> Result<(Option<i32>, Value)> {
    let output = check(node, &["--json"])?;
    let report = serde_json::from_slice(&output.stdout);
    Ok((
        output.status.code(),
        report.with_context(|| format!("{output:?}"))?,
    ))
}

/// The finding on `what` in `area`.
fn finding<'a>(report: &'a Value, area: &str, what: &str) -> Result<&'a Value> {
    let findings = report["findings"].as_array().context("findings")?;
    let mut all = findings.iter();
    all.find(|f| f["area"] == area && f["what"].as_str().is_some_and(|w| w.ends_with(what)))
        .with_context(|| format!("nothing on {what} in {area}: {report:#}"))
}

/// The check says that the node is not fit, for this reason alone.
fn only_failure(node: &TestNode, area: &str, what: &str, found: &str) -> Test {
    let (code, report) = report(node)?;
    assert_eq!(code, Some(1), "{report:#}");
    let finding = finding(&report, area, what)?;
    assert_eq!(finding["outcome"], "fail", "{finding}");
    let text = finding["found"].as_str().context("found")?;
    ensure!(text.contains(found), "{text}");
    ensure!(
        finding["advice"].as_str().is_some_and(|a| !a.is_empty()),
        "{finding}"
    );
    assert_eq!(report["failed"], 1, "{report:#}");
    nothing_is_left(node)
}

fn nothing_is_left(node: &TestNode) -> Test {
    let mut left = scratch(node);
    left.extend(leaks::audit(node.slot()));
    // The daemon's own processes are no leak while it serves.
    left.retain(|line| !line.starts_with("process") || line.contains("zcri-shim"));
    // The disk of a node that was given a small one.
    let disk = format!("mount {}", node.files().root.display());
    left.retain(|line| *line != disk);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(leases(node) == 0, "an address is still taken");
    Ok(())
}

fn scratch(node: &TestNode) -> Vec<String> {
    let dirs = [&node.files().root, &node.files().state];
    let entries = dirs
        .into_iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok());
    let names = entries.flatten().flatten().map(|entry| entry.path());
    names
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("check-"))
        })
        .map(|path| path.display().to_string())
        .collect()
}

#[tokio::test]
async fn a_fit_node_passes_before_its_first_start() -> Test {
    let node = TestNode::builder().prepare().await?;
    let (code, report) = report(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(
        (&report["fit"], &report["failed"]),
        (&json!(true), &json!(0))
    );
    for (area, what) in [
        ("clock", "year"),
        ("storage", "overlay"),
        ("namespaces", "net"),
        ("network", "address"),
        ("network", "address back"),
        ("images", "policy.json"),
        ("runtime", "runc"),
        ("runtime", "zcri-shim"),
        ("hello", "runc"),
        ("cleaning", "what the check made"),
    ] {
        assert_eq!(
            finding(&report, area, what)?["outcome"],
            "pass",
            "{area} {what}"
        );
    }
    let prefix = node.slot().subnet().replace("0/24", "");
    let address = finding(&report, "network", "address")?["found"].clone();
    ensure!(
        address.as_str().is_some_and(|a| a.starts_with(&prefix)),
        "{address}"
    );
    nothing_is_left(&node)?;
    let cgroup = node.slot().name();
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        let group = entry?.path().join(&cgroup);
        ensure!(!group.exists(), "{} is left", group.display());
    }
    let table = check(&node, &[])?;
    let text = String::from_utf8(table.stdout)?;
    ensure!(
        table.status.success() && text.contains("this node is fit"),
        "{text}"
    );
    ensure!(text.contains("hello from a zcri container"), "{text}");
    node.finish().await
}

#[tokio::test]
async fn a_serving_daemon_is_not_disturbed() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let before = pod.ip().await?;
    let (code, report) = report(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    let socket = finding(&report, "socket", "zcrid")?;
    assert_eq!(
        (&socket["outcome"], &socket["found"]),
        (&json!("pass"), &json!("answers"))
    );
    let files = finding(&report, "limits", "open files")?["found"].clone();
    let pid = node.daemon_pid()?.as_raw_nonzero().get();
    ensure!(
        files
            .as_str()
            .is_some_and(|f| f.contains(&format!("process {pid}"))),
        "{files}"
    );
    ensure!(scratch(&node).is_empty(), "{:?}", scratch(&node));
    assert_eq!(leases(&node), 1, "the pod's own");
    assert_eq!(pod.ip().await?, before);
    node.pod("q").await?;
    node.finish().await
}

#[tokio::test]
async fn usage_errors_have_a_code_of_their_own() -> Test {
    let node = TestNode::builder().prepare().await?;
    assert_eq!(check(&node, &["--xml"])?.status.code(), Some(2));
    node.finish().await
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_a_finding() -> Test {
    let node = TestNode::builder().prepare().await?;
    let drop_in = node.files().dir.join("etc/zcri.toml.d/99-bad.toml");
    std::fs::write(&drop_in, "[storage]\nrooot = 1\n")?;
    let (code, report) = report(&node)?;
    assert_eq!(code, Some(1));
    let found = finding(&report, "configuration", "zcri.toml")?;
    ensure!(
        found["found"].as_str().is_some_and(|f| f.contains("rooot")),
        "{found}"
    );
    std::fs::remove_file(drop_in)?;
    node.finish().await
}

#[tokio::test]
async fn no_runtime() -> Test {
    let node = TestNode::builder().prepare().await?;
    let drop_in = node.files().dir.join("etc/zcri.toml.d/99-bad.toml");
    std::fs::write(
        &drop_in,
        "[runtime.handlers.runc]\npath = \"/no/such/runc\"\n",
    )?;
    only_failure(&node, "runtime", "runc", "/no/such/runc")?;
    std::fs::remove_file(drop_in)?;
    node.finish().await
}

#[tokio::test]
async fn a_runtime_that_cannot_run() -> Test {
    let node = TestNode::builder().prepare().await?;
    let fake = node.files().dir.join("fake-runc");
    std::fs::write(
        &fake,
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'fake version 1' && exit 0\necho 'no can do' >&2\nexit 1\n",
    )?;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;
    let drop_in = node.files().dir.join("etc/zcri.toml.d/99-bad.toml");
    let text = format!("[runtime.handlers.runc]\npath = \"{}\"\n", fake.display());
    std::fs::write(&drop_in, text)?;
    only_failure(&node, "hello", "runc", "no can do")?;
    std::fs::remove_file(drop_in)?;
    node.finish().await
}

#[tokio::test]
async fn no_network_configuration() -> Test {
    let node = TestNode::builder().no_cni().prepare().await?;
    only_failure(&node, "network", "configuration", "net.d")?;
    node.finish().await
}

#[tokio::test]
async fn a_missing_plugin() -> Test {
    let node = TestNode::builder()
        .allow_log("collected no garbage")
        .prepare()
        .await?;
    plugin::only(&node, "no-such-plugin", &[])?;
    only_failure(&node, "network", "plugins", "no-such-plugin")?;
    node.finish().await
}

#[tokio::test]
async fn plugins_that_refuse() -> Test {
    let node = TestNode::builder().prepare().await?;
    plugin::install(
        &node,
        "full",
        "[ $CNI_COMMAND != ADD ] || fail 11 'range exhausted'; echo $result",
    )?;
    plugin::only(&node, "full", &[])?;
    only_failure(&node, "network", "address", "range exhausted")?;
    plugin::install(
        &node,
        "full",
        "[ $CNI_COMMAND != STATUS ] || fail 50 'no more addresses'; echo $result",
    )?;
    only_failure(&node, "network", "STATUS", "no more addresses")?;
    plugin::install(
        &node,
        "full",
        "[ $CNI_COMMAND != DEL ] || fail 11 'not given back'; echo $result",
    )?;
    only_failure(&node, "network", "address back", "not given back")?;
    node.finish().await
}

/// Plugins of a node whose pods are on its stack are told what they would be for a pod.
#[tokio::test]
async fn an_address_on_the_stack_is_asked_for_as_for_a_pod() -> Test {
    let setting =
        "[network]\nisolation = \"stack\"\nnetns_token = \"stack:{id}\"\nstack_name = \"TCPIPB\"";
    let node = TestNode::builder().config(setting).prepare().await?;
    let told = node.files().dir.join("told");
    let note = format!(
        "{{ echo $CNI_COMMAND $CNI_NETNS $_BPXK_SETIBMOPT_TRANSPORT; cat; echo; }} >> {}",
        told.display()
    );
    let script = format!("case $CNI_COMMAND in ADD|DEL) {note};; esac; echo $result");
    plugin::install(&node, "reader", &script)?;
    plugin::only(&node, "reader", &["cgroupPath"])?;
    let (code, report) = report(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    // One that gives no address is a warning.
    assert_eq!(finding(&report, "network", "address")?["outcome"], "warn");
    let told = std::fs::read_to_string(told)?;
    for command in ["ADD", "DEL"] {
        let start = format!("{command} stack:zcrid-check-");
        let mut lines = told.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines
            .next()
            .with_context(|| format!("no {command}: {told}"))?;
        ensure!(line.ends_with(" TCPIPB"), "{line}");
        let input: Value = serde_json::from_str(lines.next().context("its input")?)?;
        let group = &input["runtimeConfig"]["cgroupPath"];
        let parent = format!("{}/check-", node.slot().cgroup());
        ensure!(
            group
                .as_str()
                .is_some_and(|g| g.starts_with(&parent) && g.ends_with("-net")),
            "{input}"
        );
    }
    nothing_is_left(&node)?;
    node.finish().await
}

#[tokio::test]
async fn a_policy_that_cannot_be_read() -> Test {
    let node = TestNode::builder().prepare().await?;
    let policy = node.files().dir.join("etc/policy.json");
    let good = std::fs::read(&policy)?;
    std::fs::write(&policy, "{\"default\":[{\"type\":\"perhaps\"}]}")?;
    only_failure(&node, "images", "policy.json", "perhaps")?;
    std::fs::remove_file(&policy)?;
    std::fs::create_dir(&policy)?;
    only_failure(&node, "images", "policy.json", "directory")?;
    std::fs::remove_dir(&policy)?;
    std::fs::write(&policy, good)?;
    node.finish().await
}

#[tokio::test]
async fn a_disk_without_room() -> Test {
    let node = TestNode::builder().root_size("32m").prepare().await?;
    only_failure(&node, "storage", "(room)", "32 MiB")?;
    node.finish().await
}

/// A check whose plugin hangs in ADD, which the plugin has reached.
async fn hanging(node: &TestNode) -> Result<std::process::Child> {
    let reached = node.files().dir.join("reached");
    let calls = node.files().dir.join("calls");
    plugin::install(
        node,
        "sleeper",
        &format!(
            "echo $CNI_COMMAND >> {}; [ $CNI_COMMAND != ADD ] || {{ touch {}; exec sleep 1000; }}; echo $result",
            calls.display(),
            reached.display()
        ),
    )?;
    plugin::only(node, "sleeper", &[])?;
    let child = command(node, &[])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait::until_true("the plugin to be at work", wait::PATIENCE, || {
        reached.exists()
    })
    .await?;
    Ok(child)
}

/// Processes that a plugin of the check became.
fn plugins_at_work(node: &TestNode) -> Vec<String> {
    let dir = format!("CNI_PATH={}", node.files().plugins.display());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let env = |path: std::path::PathBuf| std::fs::read(path.join("environ")).unwrap_or_default();
    entries
        .filter(|entry| String::from_utf8_lossy(&env(entry.path())).contains(&dir))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

fn signal(child: &std::process::Child, signal: Signal) -> Test {
    let pid = Pid::from_raw(child.id().cast_signed()).context("a process id")?;
    Ok(kill_process(pid, signal)?)
}

#[tokio::test]
async fn an_interrupted_check_leaves_nothing() -> Test {
    let node = TestNode::builder().prepare().await?;
    let mut child = hanging(&node).await?;
    signal(&child, Signal::INT)?;
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    assert_eq!(status.code(), Some(1));
    let calls = std::fs::read_to_string(node.files().dir.join("calls"))?;
    ensure!(
        calls.ends_with("DEL\n"),
        "the address is given back: {calls}"
    );
    nothing_is_left(&node)?;
    node.finish().await
}

#[tokio::test]
async fn what_a_killed_check_left_the_next_one_removes() -> Test {
    let node = TestNode::builder().prepare().await?;
    let mut child = hanging(&node).await?;
    signal(&child, Signal::KILL)?;
    tokio::task::spawn_blocking(move || child.wait()).await??;
    assert_eq!(
        scratch(&node).len(),
        2,
        "the test is none if nothing was left"
    );
    plugin::install(&node, "sleeper", "echo $result")?;
    let (code, report) = report(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    ensure!(scratch(&node).is_empty(), "{:?}", scratch(&node));
    let still = plugins_at_work(&node);
    ensure!(still.is_empty(), "a plugin outlived the check: {still:?}");
    nothing_is_left(&node)?;
    node.finish().await
}
