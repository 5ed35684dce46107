//! Calls about the runtime itself.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use zcri_proto::v1 as api;

use crate::error::{Chain, Result};
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
    let runtime = condition("RuntimeReady", "RuntimeNotReady", runtime_problem(node));
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
            conditions: vec![runtime, network],
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

/// Why no container could run now, if so: storage that cannot be written, or no default OCI runtime.
fn runtime_problem(node: &Node) -> Option<String> {
    for dir in [&node.root, &node.state] {
        if let Err(error) = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK) {
            return Some(format!("{} cannot be written: {error}", dir.display()));
        }
    }
    let Some(handler) = node.handlers.default_handler() else {
        return Some("the default runtime handler is not configured".into());
    };
    program_problem(&handler.path).or_else(|| program_problem(&node.launcher.program))
}

fn program_problem(path: &Path) -> Option<String> {
    match rustix::fs::access(path, rustix::fs::Access::EXEC_OK) {
        Ok(()) => None,
        Err(error) => Some(format!(
            "{} cannot be run: {}",
            path.display(),
            Chain(&error)
        )),
    }
}

async fn verbose(pods: &Pods) -> HashMap<String, String> {
    let node = pods.node();
    let config = serde_json::json!({
        "root": node.root,
        "state": node.state,
        "shim": node.launcher.program,
        "cgroupParent": node.cgroup_parent,
        "handlers": node.handlers.iter().map(|h| (h.name.clone(), h.path.clone())).collect::<HashMap<_, _>>(),
        "pods": pods.views().len(),
    });
    let network = serde_json::to_string(&node.network.report().await).unwrap_or_default();
    HashMap::from([
        ("config".to_owned(), config.to_string()),
        ("network".to_owned(), network),
    ])
}
