//! The verbose part of statuses: JSON for people and their templates, with the keys that `crictl inspect` and
//! `crictl inspectp` show of containerd.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};
use zcri_proto::v1 as api;

use super::convert;
use crate::container::ContainerView;
use crate::container::config::Resources;
use crate::node::{Node, blocking};
use crate::pod::config::PodScope;
use crate::pod::{PodFiles, PodState, PodView};

/// What `crictl inspectp` shows beside the status.
pub(super) async fn pod(node: &Arc<Node>, view: Arc<PodView>) -> HashMap<String, String> {
    let node = node.clone();
    // Files are read.
    let read = blocking(move || Ok(pod_info(&node, &view))).await;
    in_reply(read.unwrap_or_default())
}

fn pod_info(node: &Node, view: &PodView) -> Value {
    let files = PodFiles::new(view.bundle.clone());
    let own_network = view.config.namespaces.network == PodScope::Pod;
    let namespace = own_network.then(|| files.namespace("net"));
    let record = node.records.pod(view.id.as_str());
    json!({
        "pid": view.init_pid.unwrap_or(0),
        "processStatus": match view.state {
            PodState::Ready => "running",
            PodState::NotReady => "deleted",
        },
        "netNamespace": namespace,
        "netNamespaceClosed": own_network && view.state == PodState::NotReady,
        "runtimeHandler": view.handler,
        "runtimeType": RUNTIME_TYPE,
        "runtimeOptions": options(node, &view.handler),
        "cgroupParent": view.config.cgroup_parent,
        "bundle": view.bundle,
        "addresses": view.addresses,
        "overhead": resources(view.config.overhead.as_ref()),
        "resources": resources(view.config.resources.as_ref()),
        "containers": view.containers.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "config": record.ok().and_then(|record| asked::<api::PodSandboxConfig>(&record.config)),
    })
}

/// What `crictl inspect` shows beside the status.
pub(super) async fn container(
    node: &Arc<Node>,
    view: Arc<ContainerView>,
    handler: String,
) -> HashMap<String, String> {
    let node = node.clone();
    let read = blocking(move || Ok(container_info(&node, &view, &handler))).await;
    in_reply(read.unwrap_or_default())
}

fn container_info(node: &Node, view: &ContainerView, handler: &str) -> Value {
    let spec = std::fs::read(view.bundle.join("config.json")).unwrap_or_default();
    let spec: Value = serde_json::from_slice(&spec).unwrap_or_default();
    let record = node.records.container(view.id.as_str());
    json!({
        "sandboxID": view.pod_id.to_string(),
        "pid": view.state.pid().unwrap_or(0),
        "removing": false,
        "snapshotter": "overlayfs",
        "snapshotKey": view.id.to_string(),
        "runtimeHandler": handler,
        "runtimeType": RUNTIME_TYPE,
        "runtimeOptions": options(node, handler),
        "bundle": view.bundle,
        "writableLayer": view.upper,
        "cgroup": view.cgroup,
        "config": record.ok().and_then(|record| asked::<api::ContainerConfig>(&record.config)),
        "runtimeSpec": spec,
    })
}

/// As the configuration names the type of a handler.
const RUNTIME_TYPE: &str = "oci";

fn options(node: &Node, handler: &str) -> Value {
    match node.handlers.get(handler) {
        Ok(handler) => json!({
            "binary_name": handler.path,
            "root": handler.root,
            "systemd_cgroup": handler.systemd_cgroup,
        }),
        Err(_) => Value::Null,
    }
}

/// A configuration as it was asked for.
fn asked<M: Message + Default + Serialize>(wire: &[u8]) -> Option<Value> {
    let message = M::decode(wire).ok()?;
    Some(without_empty(serde_json::to_value(message).ok()?))
}

/// Resources with the names of api.proto; null when the pod has none.
fn resources(given: Option<&Resources>) -> Value {
    given
        .map(convert::resources_to_proto)
        .and_then(|given| serde_json::to_value(given).ok())
        .unwrap_or_default()
}

/// Leaves out what is not set, as clients know it of runtimes in Go.
fn without_empty(value: Value) -> Value {
    let keep = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(_) => true,
    };
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| keep(value))
            .filter(|(_, value)| value.as_object().is_none_or(|fields| !fields.is_empty()))
            .map(|(name, value)| (name, without_empty(value)))
            .collect(),
        Value::Array(all) => all.into_iter().map(without_empty).collect(),
        other => other,
    }
}

fn in_reply(info: Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_names_of_the_interface_and_nothing_unset() {
        let config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            envs: vec![api::KeyValue {
                key: "K".into(),
                value: b"v".to_vec(),
            }],
            log_path: "c/0.log".into(),
            ..Default::default()
        };
        let shown = asked::<api::ContainerConfig>(&config.encode_to_vec());
        let expected = json!({
            "metadata": { "name": "c" },
            "envs": [{ "key": "K", "value": "v" }],
            "log_path": "c/0.log",
        });
        assert_eq!(shown, Some(expected));
    }
}
