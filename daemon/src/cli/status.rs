//! `zcrid status`: what the running daemon says of itself, over its own socket.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;
use zcri_proto::v1::runtime_service_client::RuntimeServiceClient;
use zcri_proto::v1::{StatusRequest, StatusResponse};

/// What to tell more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Subject {
    /// The configuration in use, what is attached, and what could not be detached yet.
    Network,
}

/// Asks the daemon behind `socket`; gives the text to print.
pub(super) fn ask(socket: &Path, subject: Option<Subject>) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let answer = runtime.block_on(fetch(socket))?;
    match subject {
        None => Ok(conditions(&answer)),
        Some(Subject::Network) => {
            let report = answer.info.get("network");
            let report = report.context("the daemon says nothing of its network")?;
            let report = serde_json::from_str(report).context("the daemon's report")?;
            Ok(conditions(&answer) + &network(&report))
        }
    }
}

async fn fetch(socket: &Path) -> anyhow::Result<StatusResponse> {
    let address = format!("unix://{}", socket.display());
    let mut client = RuntimeServiceClient::connect(address)
        .await
        .with_context(|| format!("no zcrid answers on {}", socket.display()))?;
    let answer = client.status(StatusRequest { verbose: true }).await;
    Ok(answer.context("Status")?.into_inner())
}

fn conditions(answer: &StatusResponse) -> String {
    let mut text = String::new();
    let all = answer.status.iter().flat_map(|status| &status.conditions);
    for condition in all {
        let word = if condition.status { "yes" } else { "NO" };
        line(&mut text, &condition.r#type, word);
        for detail in [&condition.reason, &condition.message] {
            if !detail.is_empty() {
                line(&mut text, "", detail);
            }
        }
    }
    text
}

fn network(report: &Value) -> String {
    let mut text = String::new();
    let state = &report["state"];
    line(&mut text, "network", state["name"].as_str().unwrap_or("-"));
    line(&mut text, "file", state["file"].as_str().unwrap_or("-"));
    let plugins: Vec<_> = strings(&state["plugins"]).collect();
    line(&mut text, "plugins", &plugins.join(", "));
    for skipped in strings(&state["skipped"]) {
        line(&mut text, "not valid", skipped);
    }
    line(
        &mut text,
        "attached pods",
        &report["attachments"].to_string(),
    );
    for pending in report["pending"].as_array().into_iter().flatten() {
        let pod = pending["pod"].as_str().unwrap_or_default();
        let error = pending["error"].as_str().unwrap_or_default();
        let what = format!("{pod}: {error} (failed {} times)", pending["failures"]);
        line(&mut text, "to be detached", &what);
    }
    text
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn line(text: &mut String, name: &str, value: &str) {
    // As wide as the longest name, that of a condition. Writing to a string does not fail.
    writeln!(text, "{name:<30}{value}").unwrap_or_default();
}
