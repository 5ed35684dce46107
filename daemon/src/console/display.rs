//! The answers to DISPLAY.

use super::Answer;
use crate::container::ContainerState;
use crate::health;
use crate::messages;
use crate::pod::{PodState, PodView, Pods};

/// Digits of an id that are shown: those that crictl shows.
const ID_DIGITS: usize = 13;

pub(super) fn pods(pods: &Pods) -> Answer {
    let views = pods.views();
    let mut answer = Answer::message(true, messages::DISPLAY_PODS, &views.len().to_string());
    answer.lines.extend(views.iter().map(|view| pod(view)));
    answer
}

fn pod(view: &PodView) -> String {
    let state = match view.state {
        PodState::Ready => "READY",
        PodState::NotReady => "NOTREADY",
    };
    let address = view.addresses.first().map_or("-", String::as_str);
    let running = running(view);
    let config = &view.config;
    let id: String = view.id.as_str().chars().take(ID_DIGITS).collect();
    format!(
        "  {id} {state:8} {address} {running}/{} RUNNING {}/{}",
        view.containers.len(),
        config.namespace,
        config.name
    )
}

fn running(view: &PodView) -> usize {
    let all = view.containers.values();
    all.filter(|c| matches!(c.state, ContainerState::Running { .. }))
        .count()
}

pub(super) async fn network(pods: &Pods) -> Answer {
    let report = pods.node().network.report().await;
    let state = &report.state;
    let name = state.name.as_deref().unwrap_or("-");
    let mut answer = Answer::message(true, messages::DISPLAY_NETWORK, name);
    let mut line = |name: &str, value: String| answer.lines.push(format!("  {name:10} {value}"));
    line(
        "STATE",
        state.problem.clone().unwrap_or_else(|| "READY".into()),
    );
    if let Some(file) = &state.file {
        line("FILE", file.display().to_string());
    }
    line("PLUGINS", state.plugins.join(" "));
    line("ATTACHED", report.attachments.to_string());
    for pending in &report.pending {
        line("PENDING", format!("{}: {}", pending.pod, pending.error));
    }
    answer
}

pub(super) async fn status(pods: &Pods) -> Answer {
    let node = pods.node();
    let mut answer = Answer::message(true, messages::DISPLAY_STATUS, env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: String| answer.lines.push(format!("  {name:10} {value}"));
    line("PROCESS", std::process::id().to_string());
    let ready = |problem: Option<String>| problem.unwrap_or_else(|| "READY".into());
    line("RUNTIME", ready(health::problem(node).await));
    line("NETWORK", ready(node.network.problem().await));
    let views = pods.views();
    let containers: usize = views.iter().map(|view| view.containers.len()).sum();
    let running: usize = views.iter().map(|view| running(view)).sum();
    line("PODS", views.len().to_string());
    line("CONTAINERS", format!("{containers}, {running} RUNNING"));
    let usage = node.images.usage();
    line(
        "IMAGES",
        format!("{}, {} MIB", node.images.list().len(), usage.bytes >> 20),
    );
    for dir in [&node.root, &node.state] {
        let free = rustix::fs::statvfs(dir).map_or_else(
            |error| error.to_string(),
            |fs| format!("{} MIB FREE", fs.f_bavail.saturating_mul(fs.f_frsize) >> 20),
        );
        line("STORAGE", format!("{} {free}", dir.display()));
    }
    answer
}
