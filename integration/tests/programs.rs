//! The programs of this package as a user calls them: the demo and the benchmark.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;
use zcri_integration::{Test, TestNode, wait};

async fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(wait::PATIENCE * 2, command.output())
        .await
        .context("it does not end")?
        .context("start")
}

fn text(output: &Output) -> String {
    let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// Runs a demo, which shows these steps in their order.
async fn shows(program: &str, steps: &[&str]) -> Test {
    let output = run(&mut Command::new(program)).await?;
    let shown = text(&output);
    ensure!(output.status.success(), "{shown}");
    let mut rest = shown.as_str();
    for step in steps {
        let at = rest
            .find(step)
            .with_context(|| format!("{step:?} is missing, or not in its place: {shown}"))?;
        rest = &rest[at..];
    }
    Ok(())
}

#[tokio::test]
async fn the_demo_shows_every_step_and_leaves_nothing() -> Test {
    let steps = [
        "zos/s390x",
        "PullImage",
        "MiB/s",
        "RunPodSandbox",
        "10.77.",
        "CreateContainer",
        "StartContainer",
        "stdout F hello from demo-pod",
        "ExecSync",
        "hello from exec",
        "StopContainer",
        "RemovePodSandbox",
        "leak check",
    ];
    shows(env!("CARGO_BIN_EXE_cri-demo"), &steps).await
}

#[tokio::test]
async fn the_demo_of_two_lpars_shows_every_step_and_leaves_nothing() -> Test {
    let steps = [
        "VIPARANGE 10.91.1.248/29 ZCONTAINER",
        "VIPARANGE 10.91.2.248/29 ZCONTAINER",
        "pod-1a",
        "pod-2b",
        "no linux object: true",
        "4 pods asked each other",
        "LPAR 1 fails",
        "LPAR 2",
        "LPAR 1, IPL",
        "pod-1a-again",
        "4 pods asked each other",
        "LPAR 1 ends",
        "LPAR 2 ends",
    ];
    shows(env!("CARGO_BIN_EXE_lpar-demo"), &steps).await
}

#[tokio::test]
async fn a_demo_without_its_daemon_fails_in_one_line() -> Test {
    let empty = tempfile::tempdir()?;
    let output =
        run(Command::new(env!("CARGO_BIN_EXE_cri-demo")).env("ZCRI_BIN_DIR", empty.path())).await?;
    ensure!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.trim().lines().count() == 1 && said.contains("prerequisite") && said.contains("zcrid"),
        "{said}"
    );
    Ok(())
}

/// A benchmark of two nodes that does a little of everything, and writes its reports to the files `b.*`.
async fn small_benchmark(
    nodes: [(&str, &TestNode); 2],
    path: impl Fn(&str) -> PathBuf,
) -> Result<Command> {
    let image = nodes[0].1.busybox().await?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_cri-bench"));
    for (name, node) in nodes {
        command
            .arg("--endpoint")
            .arg(format!("{name}=unix://{}", node.files().socket().display()));
    }
    command.args([
        "--iterations",
        "2",
        "--pods",
        "3",
        "--parallel",
        "2",
        "--idle",
        "1",
        "--pulls",
        "1",
        "--transfers",
        "1",
        "--transfer-mib",
        "32",
        "--log-mib",
        "20",
        "--sessions",
        "40",
    ]);
    command.args(["--pull-image", &image]);
    command
        .arg("--json")
        .arg(path("b.json"))
        .arg("--svg")
        .arg(path("b.svg"))
        .arg("--markdown")
        .arg(path("b.md"));
    Ok(command)
}

#[tokio::test]
async fn the_benchmark_measures_two_sockets_and_cleans_up() -> Test {
    let (one, two) = (TestNode::start().await?, TestNode::start().await?);
    let out = tempfile::tempdir()?;
    let path = |name: &str| out.path().join(name);
    let output =
        run(&mut small_benchmark([("first", &one), ("second", &two)], &path).await?).await?;
    ensure!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path("b.json"))?)?;
    let rows = report["rows"].as_array().context("rows")?;
    for name in [
        "RunPodSandbox",
        "pod ready",
        "pods per second",
        "monitors per pod",
        "CPU, full and idle",
        "pull: given images",
        "exec session",
        "exec cat",
        "exec cat, WebSocket, CPU",
        "exec, terminal output",
        "200 exec sessions at once",
        "left: file descriptors",
        "container log",
        "container log, CPU",
        "container log, IBM-1047",
        "container log, IBM-1047, CPU",
    ] {
        let row = rows
            .iter()
            .find(|row| row["name"] == name)
            .with_context(|| name.to_owned())?;
        for value in row["values"].as_array().context("values")? {
            ensure!(
                value["median"].as_f64().is_some_and(|median| median >= 0.0),
                "{row}"
            );
        }
    }
    ensure!(rows.iter().any(|row| row["ratio"].is_number()), "no ratio");
    ensure!(text(&output).contains("first") && text(&output).contains("ratio"));
    ensure!(std::fs::read_to_string(path("b.svg"))?.ends_with("</svg>\n"));
    ensure!(std::fs::read_to_string(path("b.md"))?.contains("| pod ready | ms |"));
    for node in [&one, &two] {
        ensure!(
            node.cri().list_pods(Default::default()).await?.is_empty(),
            "pods are left"
        );
    }
    one.finish().await?;
    two.finish().await
}

#[tokio::test]
async fn a_benchmark_of_nothing_fails_with_the_sockets_name() -> Test {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cri-bench"));
    let output = run(command.args(["--endpoint", "none=/no/such/socket"])).await?;
    ensure!(
        !output.status.success() && text(&output).contains("/no/such/socket"),
        "{}",
        text(&output)
    );
    let output =
        run(Command::new(env!("CARGO_BIN_EXE_cri-bench")).args(["--endpoint", "no-socket"]))
            .await?;
    ensure!(
        !output.status.success() && text(&output).contains("NAME=SOCKET"),
        "{}",
        text(&output)
    );
    Ok(())
}
