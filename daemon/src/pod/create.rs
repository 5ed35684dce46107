//! Making a pod, step by step.
//!
//! The record is written first, and says before each step with an effect outside the bundle that the effect may
//! exist. A failure therefore is undone by the same function that clears up after a crash.

use std::sync::Arc;

use super::actor::{self, PodParts};
use super::config::{PodConfig, PodPid, PodScope};
use super::files::{PodFiles, host_name};
use super::handle::PodHandle;
use super::teardown;
use crate::error::{Chain, Error, Result};
use crate::id::PodId;
use crate::node::{Node, blocking};
use crate::runtime::{CreateRequest, Shim, ShimNamespaces};
use crate::state::{PodPhase, PodRecord};

/// A pod that could not be made.
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: Error,
    /// What is left of it, if not all could be undone.
    pub(crate) remains: Option<PodHandle>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            remains: None,
        }
    }
}

/// Makes a pod and starts its task.
pub(crate) async fn create(
    node: Arc<Node>,
    id: PodId,
    config: PodConfig,
    wire: Vec<u8>,
    handler: String,
) -> Result<PodHandle, Failed> {
    let handler = node.handlers.get(&handler)?.name.clone();
    if config.namespaces.user.is_some() {
        let reason = "user namespaces come with a later version".into();
        return Err(Error::Unsupported {
            what: "linux.security_context.namespace_options.userns_options",
            reason,
        }
        .into());
    }
    node.platform.check_pod(&config)?;
    let own_network = config.namespaces.network == PodScope::Pod;
    let mut record = PodRecord {
        id: id.to_string(),
        boot_id: node.boot_id.clone(),
        config: wire,
        handler,
        created_at_ns: crate::time::now_ns(),
        phase: PodPhase::Creating,
        addresses: Vec::new(),
        network_attached: own_network,
        init_pid: None,
    };
    node.records
        .put_pod(&record)
        .map_err(|e| Error::node("record a pod", e))?;
    let config = Arc::new(config);
    match build(&node, &id, &config, &mut record).await {
        Ok(shim) => {
            let parts = PodParts {
                id,
                config,
                record,
                shim: Some(shim),
                containers: Default::default(),
            };
            Ok(actor::spawn(node, parts))
        }
        Err(error) => {
            let Err(undo) = teardown::unmake(&node, &id, &mut record, None).await else {
                return Err(error.into());
            };
            tracing::error!(pod = %id, error = %Chain(&undo), "what was made of a failed pod is not all undone");
            record.phase = PodPhase::Stopped;
            let parts = PodParts {
                id,
                config,
                record,
                shim: None,
                containers: Default::default(),
            };
            let remains = Some(actor::spawn(node, parts));
            Err(Failed { error, remains })
        }
    }
}

async fn build(
    node: &Node,
    id: &PodId,
    config: &Arc<PodConfig>,
    record: &mut PodRecord,
) -> Result<Shim> {
    let files = PodFiles::new(node.pod_bundle(id.as_str()));
    make_bundle(node, &files, config).await?;
    // The shim needs nothing of the network and the network nothing of the shim.
    let shim = async {
        let own = own_namespaces(node, config)?;
        let started = node.launcher.start(id.as_str(), &files.bundle, &own).await;
        let failed = |source| runtime_error("start the shim", id, source);
        started.map_err(|e| node.platform.explain(failed(e)))
    };
    let network = async {
        match config.namespaces.network {
            PodScope::Node => Ok(Vec::new()),
            PodScope::Pod => {
                node.network
                    .attach(id, config, &files.namespace("net"))
                    .await
            }
        }
    };
    // Both to their end, so that a failure of one leaves nothing half made of the other.
    let (shim, addresses) = tokio::join!(shim, network);
    let (shim, addresses) = (shim?, addresses?);
    record.addresses = addresses;
    if config.namespaces.pid == PodPid::Pod {
        record.init_pid = Some(start_init(node, &shim, id, &files, config).await?);
    }
    record.phase = PodPhase::Ready;
    node.records
        .put_pod(record)
        .map_err(|e| Error::node("record a pod", e))?;
    Ok(shim)
}

/// Directory, files, namespaces and `/dev/shm`.
async fn make_bundle(node: &Node, files: &PodFiles, config: &Arc<PodConfig>) -> Result<()> {
    let (files, config) = (files.clone(), config.clone());
    let pins = node.platform.pins_namespaces();
    blocking(move || {
        files
            .write(&config)
            .map_err(|e| Error::node("write the files of a pod", e))?;
        if !pins {
            return Ok(());
        }
        let scoped = |scope, kind| (scope == PodScope::Pod).then(|| files.namespace(kind));
        // A pod on the host's network has the host's name too, as everywhere in the field.
        let wanted = zcri_sys::namespace::PodNamespaces {
            net: scoped(config.namespaces.network, "net"),
            ipc: scoped(config.namespaces.ipc, "ipc"),
            uts: scoped(config.namespaces.network, "uts"),
            hostname: Some(host_name(&config).map_err(|e| Error::node("read the host's name", e))?),
            sysctls: config
                .sysctls
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        };
        if wanted.net.is_some() || wanted.ipc.is_some() {
            zcri_sys::namespace::create(&wanted)
                .map_err(|e| Error::node("make the namespaces of a pod", e))?;
        }
        files
            .mount_shm(&config)
            .map_err(|e| Error::node("mount /dev/shm of a pod", e))
    })
    .await
}

/// The namespaces that the pod's shim has for the pod, where zcrid pins none.
fn own_namespaces(node: &Node, config: &PodConfig) -> Result<ShimNamespaces> {
    if node.platform.pins_namespaces() {
        return Ok(ShimNamespaces::default());
    }
    let uts = config.namespaces.network == PodScope::Pod;
    let hostname = host_name(config).map_err(|e| Error::node("read the host's name", e))?;
    Ok(ShimNamespaces {
        ipc: config.namespaces.ipc == PodScope::Pod,
        hostname: uts.then_some(hostname),
    })
}

/// Starts the init of the pod's shared PID namespace and pins that namespace.
async fn start_init(
    node: &Node,
    shim: &Shim,
    id: &PodId,
    files: &PodFiles,
    config: &PodConfig,
) -> Result<u32> {
    let namespace = |kind: &str, scope| {
        (scope == PodScope::Pod)
            .then(|| serde_json::json!({ "type": oci_name(kind), "path": files.namespace(kind) }))
    };
    // Where the shim itself is in the pod's namespaces, its child has them anyway.
    let pins = |_: &serde_json::Value| node.platform.pins_namespaces();
    let joined: Vec<_> = [
        namespace("net", config.namespaces.network),
        namespace("uts", config.namespaces.network),
        namespace("ipc", config.namespaces.ipc),
    ]
    .into_iter()
    .flatten()
    .filter(pins)
    .collect();
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "annotations": { "io.kubernetes.cri.container-type": "sandbox" },
        "linux": { "namespaces": joined },
    });
    tokio::fs::write(files.bundle.join("config.json"), spec.to_string())
        .await
        .map_err(|e| Error::node("write config.json of a pod", e))?;
    let request = CreateRequest {
        id: id.as_str(),
        bundle: &files.bundle,
        handler: None,
        terminal: false,
        stdin: None,
        log: None,
    };
    let failed = |source| runtime_error("start the init", id, source);
    shim.create(request).await.map_err(failed)?;
    let pid = shim.start(id.as_str(), "").await.map_err(failed)?;
    zcri_sys::namespace::pin_of_process(pid, "pid", &files.namespace("pid"))
        .map_err(|e| Error::node("pin the PID namespace of a pod", e))?;
    Ok(pid)
}

fn oci_name(kind: &str) -> &str {
    if kind == "net" { "network" } else { kind }
}

fn runtime_error(action: &'static str, id: &PodId, source: crate::runtime::ShimError) -> Error {
    Error::Runtime {
        action,
        id: id.to_string(),
        source: Box::new(source),
    }
}
