//! Calls about the runtime itself.

use std::collections::HashMap;
use std::sync::Arc;

use zcri_proto::v1 as api;
use zcri_sys::cgroup::Version;

use crate::error::Result;
use crate::health;
use crate::node::{CgroupDriver, Node};
use crate::pod::Pods;
use crate::runtime::Handler;

/// The interface's version, which is also what Version has to answer for the runtime's API.
const API_VERSION: &str = "v1";

pub(super) async fn version(_: &Arc<Pods>, _: api::VersionRequest) -> Result<api::VersionResponse> {
    Ok(api::VersionResponse {
        // kubelet's own version of the answer, fixed since the first CRI.
        version: "0.1.0".into(),
        runtime_name: "zcri".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: API_VERSION.into(),
    })
}

pub(super) async fn runtime_config(
    pods: &Arc<Pods>,
    _: api::RuntimeConfigRequest,
) -> Result<api::RuntimeConfigResponse> {
    let driver = match pods.node().cgroup_driver {
        CgroupDriver::Cgroupfs => api::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => api::CgroupDriver::Systemd,
    };
    Ok(api::RuntimeConfigResponse {
        linux: Some(api::LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    })
}

pub(super) async fn update_config(
    pods: &Arc<Pods>,
    request: api::UpdateRuntimeConfigRequest,
) -> Result<api::UpdateRuntimeConfigResponse> {
    let network = request
        .runtime_config
        .and_then(|config| config.network_config)
        .unwrap_or_default();
    pods.node().network.set_pod_cidr(&network.pod_cidr).await?;
    Ok(api::UpdateRuntimeConfigResponse {})
}

pub(super) async fn status(
    pods: &Arc<Pods>,
    request: api::StatusRequest,
) -> Result<api::StatusResponse> {
    let node = pods.node();
    let runtime = condition(
        "RuntimeReady",
        "RuntimeNotReady",
        health::problem(node).await,
    );
    let network = condition(
        "NetworkReady",
        "NetworkPluginNotReady",
        node.network.problem().await,
    );
    let info = if request.verbose {
        verbose(pods).await
    } else {
        HashMap::new()
    };
    // The empty name is the default handler's too (api.proto, RuntimeHandler).
    let mut runtime_handlers = Vec::new();
    if let Some(default) = node.handlers.default_handler() {
        runtime_handlers.push(runtime_handler(node, "", default).await);
    }
    for handler in node.handlers.iter() {
        runtime_handlers.push(runtime_handler(node, &handler.name, handler).await);
    }
    Ok(api::StatusResponse {
        status: Some(api::RuntimeStatus {
            conditions: vec![runtime, network, deprecations(node)],
        }),
        info,
        runtime_handlers,
        features: Some(api::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: true,
            mount_options: true,
        }),
    })
}

/// What works with a handler from end to end, and nothing else.
async fn runtime_handler(node: &Node, name: &str, handler: &Handler) -> api::RuntimeHandler {
    let features = node.handlers.features(handler).await;
    api::RuntimeHandler {
        name: name.to_owned(),
        features: Some(api::RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only(),
            user_namespaces: node.facts.user_namespaces && features.user_namespaces(),
        }),
    }
}

fn condition(kind: &str, reason: &str, problem: Option<String>) -> api::RuntimeCondition {
    api::RuntimeCondition {
        r#type: kind.into(),
        status: problem.is_none(),
        reason: if problem.is_some() {
            reason.into()
        } else {
            String::new()
        },
        message: problem.unwrap_or_default(),
    }
}

/// True as long as nobody uses what is going away; the message is JSON, names and what to use instead.
fn deprecations(node: &Node) -> api::RuntimeCondition {
    let used = node.deprecations.all();
    let problem = (!used.is_empty()).then(|| serde_json::json!(used).to_string());
    condition(
        "ZcriHasNoDeprecationWarnings",
        "ZcriHasDeprecationWarnings",
        problem,
    )
}

/// The running configuration and the state of what the node stands on, each as JSON.
async fn verbose(pods: &Pods) -> HashMap<String, String> {
    let node = pods.node();
    let mut handlers = serde_json::Map::new();
    for handler in node.handlers.iter() {
        let answer = match node.handlers.answer(handler).await {
            Ok(features) => serde_json::json!({
                "path": handler.path,
                "mountOptions": features.mount_options,
                "namespaces": features.namespaces,
                "ociVersionMax": features.newest_specification,
            }),
            Err(problem) => serde_json::json!({ "path": handler.path, "problem": problem }),
        };
        handlers.insert(handler.name.clone(), answer);
    }
    let views = pods.views();
    let state = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "pods": views.len(),
        "containers": views.iter().map(|view| view.containers.len()).sum::<usize>(),
        "cgroupVersion": match node.cgroups.version() {
            Version::V1 => 1,
            Version::V2 => 2,
        },
        "deprecated": node.deprecations.all(),
    });
    let network = serde_json::to_string(&node.network.report().await).unwrap_or_default();
    // As the peers name it, for who looks there for what is wrong with CNI.
    let load = node.network.problem().await.unwrap_or_else(|| "OK".into());
    HashMap::from([
        ("config".to_owned(), node.config.to_string()),
        (
            "handlers".to_owned(),
            serde_json::Value::Object(handlers).to_string(),
        ),
        ("state".to_owned(), state.to_string()),
        ("network".to_owned(), network),
        (
            "lastCNILoadStatus".to_owned(),
            serde_json::Value::String(load).to_string(),
        ),
    ])
}
