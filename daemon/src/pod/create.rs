//! Making a pod, step by step.
//!
//! The record is written first, and says before each step with an effect outside the bundle that the effect may
//! exist. A failure therefore is undone by the same function that clears up after a crash.

use std::sync::Arc;

use zcri_sys::namespace::PodUserNamespace;
use zcri_sys::namespace::user::IdMaps;

use super::actor::{self, PodParts};
use super::config::{PodConfig, PodPid, PodScope, SysctlNamespace, sysctl_namespace};
use super::files::{PodFiles, host_name};
use super::handle::PodHandle;
use super::teardown;
use crate::confinement::PodLabel;
use crate::error::{Chain, Error, Result};
use crate::id::PodId;
use crate::messages;
use crate::network::{Isolation, Place, isolation};
use crate::node::{Node, blocking};
use crate::runtime::{CreateRequest, Handler, Shim, ShimNamespaces};
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
    let handler = node.handlers.get(&handler)?.clone();
    if config.namespaces.user.is_some() {
        check_user_namespace(&node, &handler, &config).await?;
    }
    node.platform.check_pod(&config)?;
    let features = node.handlers.features(&handler).await;
    node.platform.check_runtime(&handler.name, &features)?;
    let handler = handler.name;
    let own_network = config.namespaces.network == PodScope::Pod;
    let on_stack = own_network && node.isolation == Isolation::Stack;
    if on_stack {
        refuse_network_sysctls(&config)?;
    }
    let stack_cgroup = on_stack
        .then(|| isolation::pod_cgroup(&node, &config, &id))
        .transpose()?;
    let (label, config) = label(&node, config).await?;
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
        stack_cgroup,
        selinux_label: label.as_deref().map(PodLabel::recorded),
    };
    node.record_pod(record.clone()).await?;
    let config = Arc::new(config);
    match build(&node, &id, &config, label.as_deref(), &mut record).await {
        Ok(shim) => {
            let parts = PodParts {
                id,
                config,
                record,
                label,
                shim: Some(shim),
                containers: Default::default(),
            };
            Ok(actor::spawn(node, parts))
        }
        Err(error) => {
            let Err(undo) = teardown::unmake(&node, &id, &mut record, None).await else {
                return Err(error.into());
            };
            tracing::error!(zcr = messages::HALF_UNDONE, pod = %id, error = %Chain(&undo), "what was made of a failed pod is not all undone");
            record.phase = PodPhase::Stopped;
            let parts = PodParts {
                id,
                config,
                record,
                label,
                shim: None,
                containers: Default::default(),
            };
            let remains = Some(actor::spawn(node, parts));
            Err(Failed { error, remains })
        }
    }
}

/// Its SELinux label. Gives the configuration back.
async fn label(node: &Arc<Node>, config: PodConfig) -> Result<(Option<Arc<PodLabel>>, PodConfig)> {
    let node = node.clone();
    blocking(move || {
        let shares_processes =
            config.namespaces.pid == PodPid::Node || config.namespaces.ipc == PodScope::Node;
        let asked = config.security.selinux.as_ref();
        let label = node.confinement.pod_label(asked, shares_processes)?;
        Ok((label.map(Arc::new), config))
    })
    .await
}

/// Without a network namespace they would be the node's.
fn refuse_network_sysctls(config: &PodConfig) -> Result<()> {
    let mut names = config.sysctls.keys();
    match names.find(|name| sysctl_namespace(name) == Some(SysctlNamespace::Network)) {
        None => Ok(()),
        Some(name) => Err(Error::Invalid {
            field: "linux.sysctls",
            value: name.clone(),
            reason: "cannot be set: pods of this node share its TCP/IP stack".into(),
        }),
    }
}

/// Whether this node, the handler's runtime and the pod's other namespaces let it have a user namespace.
async fn check_user_namespace(node: &Node, handler: &Handler, config: &PodConfig) -> Result<()> {
    const OPTIONS: &str = "config.linux.security_context.namespace_options";
    let refused = |reason: String| {
        Err(Error::Unsupported {
            what: "config.linux.security_context.namespace_options.userns_options",
            reason,
        })
    };
    if !node.facts.user_namespaces {
        let reason = "this node has no user namespaces or no id-mapped mounts";
        return refused(reason.into());
    }
    if !node.handlers.features(handler).await.user_namespaces() {
        let reason = format!(
            "the runtime of handler {:?} does not report user namespaces",
            handler.name
        );
        return refused(reason);
    }
    // A namespace of the node gives no rights to a user of the pod's: neither proc nor mqueue could be mounted.
    let namespaces = &config.namespaces;
    if namespaces.pid == PodPid::Node {
        return refused(format!("{OPTIONS}.pid is NODE"));
    }
    if namespaces.ipc == PodScope::Node {
        return refused(format!("{OPTIONS}.ipc is NODE"));
    }
    Ok(())
}

async fn build(
    node: &Arc<Node>,
    id: &PodId,
    config: &Arc<PodConfig>,
    label: Option<&PodLabel>,
    record: &mut PodRecord,
) -> Result<Shim> {
    let files = PodFiles::new(node.pod_bundle(id.as_str()));
    let stack = record.stack_cgroup.as_deref();
    let labels = FileLabels {
        shared: node.confinement.shared_files(label),
        own: node.confinement.files_of(label),
    };
    make_bundle(node, &files, config, stack.is_some(), labels).await?;
    if let Some(cgroup) = stack {
        isolation::make(node, cgroup, id).await?;
    }
    // The shim needs nothing of the network and the network nothing of the shim.
    let shim = async {
        let own = own_namespaces(node, config)?;
        let started = node.launcher.start(id.as_str(), &files.bundle, &own).await;
        let failed = |source| runtime_error("start the shim", id, source);
        let shim = started.map_err(failed)?;
        if let Some(cgroup) = stack {
            let pid = shim.pid().await;
            let pid = pid.map_err(|source| runtime_error("ask the shim", id, source))?;
            isolation::adopt(node, cgroup, id, pid).await?;
        }
        Ok::<_, Error>(shim)
    };
    let network = async {
        match config.namespaces.network {
            PodScope::Node => Ok(Vec::new()),
            PodScope::Pod => {
                let netns = files.namespace("net");
                let place = stack.map_or(Place::Namespace(&netns), Place::Stack);
                node.network.attach(id, config, place).await
            }
        }
    };
    // Both to their end, so that a failure of one leaves nothing half made of the other.
    let (shim, addresses) = tokio::join!(shim, network);
    let (shim, addresses) = (shim?, addresses?);
    record.addresses = addresses;
    if config.namespaces.pid == PodPid::Pod {
        record.init_pid = Some(start_init(node, &shim, id, &files, config, label).await?);
    }
    record.phase = PodPhase::Ready;
    node.record_pod(record.clone()).await?;
    Ok(shim)
}

/// SELinux labels of what a pod's containers share.
struct FileLabels {
    /// Of files that they read, whatever level one asks for.
    shared: Option<String>,
    /// Of `/dev/shm`.
    own: Option<String>,
}

/// Directory, files, namespaces and `/dev/shm`.
async fn make_bundle(
    node: &Node,
    files: &PodFiles,
    config: &Arc<PodConfig>,
    on_stack: bool,
    labels: FileLabels,
) -> Result<()> {
    let (files, config) = (files.clone(), config.clone());
    let pins = node.platform.pins_namespaces();
    blocking(move || {
        files
            .write(&config, labels.shared.as_deref())
            .map_err(|e| Error::node("write the files of a pod", e))?;
        if !pins {
            return Ok(());
        }
        let scoped = |scope, kind| (scope == PodScope::Pod).then(|| files.namespace(kind));
        // A pod on the host's network has the host's name too, as everywhere in the field.
        let wanted = zcri_sys::namespace::PodNamespaces {
            net: scoped(config.namespaces.network, "net").filter(|_| !on_stack),
            ipc: scoped(config.namespaces.ipc, "ipc"),
            uts: scoped(config.namespaces.network, "uts"),
            user: config
                .namespaces
                .user
                .as_ref()
                .map(|user| PodUserNamespace {
                    path: files.namespace("user"),
                    maps: IdMaps {
                        users: crate::container::id_ranges(&user.uids),
                        groups: crate::container::id_ranges(&user.gids),
                    },
                }),
            hostname: Some(host_name(&config).map_err(|e| Error::node("read the host's name", e))?),
            sysctls: config
                .sysctls
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        };
        if wanted.net.is_some()
            || wanted.ipc.is_some()
            || wanted.uts.is_some()
            || wanted.user.is_some()
        {
            zcri_sys::namespace::create(&wanted).map_err(namespace_error)?;
        }
        files
            .mount_shm(&config, labels.own.as_deref())
            .map_err(|e| Error::node("mount /dev/shm of a pod", e))
    })
    .await
}

/// The namespaces that the pod's shim has for the pod, where zcrid pins none.
fn own_namespaces(node: &Node, config: &PodConfig) -> Result<ShimNamespaces> {
    let stack = node.network.stack_name().map(str::to_owned);
    if node.platform.pins_namespaces() {
        return Ok(ShimNamespaces {
            stack,
            ..ShimNamespaces::default()
        });
    }
    let uts = config.namespaces.network == PodScope::Pod;
    let hostname = host_name(config).map_err(|e| Error::node("read the host's name", e))?;
    Ok(ShimNamespaces {
        ipc: config.namespaces.ipc == PodScope::Pod,
        hostname: uts.then_some(hostname),
        stack,
    })
}

/// A sysctl that the kernel does not have, or whose value it does not take, is the request's mistake.
fn namespace_error(error: zcri_sys::Error) -> Error {
    match error {
        zcri_sys::Error::Sysctl {
            name,
            value,
            source,
        } => Error::Invalid {
            field: "config.linux.sysctls",
            value: format!("{name}={value}"),
            reason: source.to_string(),
        },
        other => Error::node("make the namespaces of a pod", other),
    }
}

/// Starts the init of the pod's shared PID namespace and pins that namespace.
async fn start_init(
    node: &Node,
    shim: &Shim,
    id: &PodId,
    files: &PodFiles,
    config: &PodConfig,
    label: Option<&PodLabel>,
) -> Result<u32> {
    let namespace = |kind: &str, scope| {
        (scope == PodScope::Pod)
            .then(|| serde_json::json!({ "type": oci_name(kind), "path": files.namespace(kind) }))
    };
    // Where the shim itself is in the pod's namespaces, its child has them anyway.
    let pins = |_: &serde_json::Value| node.platform.pins_namespaces();
    let user = match config.namespaces.user {
        Some(_) => PodScope::Pod,
        None => PodScope::Node,
    };
    let joined: Vec<_> = [
        namespace("user", user),
        namespace("net", config.namespaces.network).filter(|_| files.namespace("net").exists()),
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
        "process": { "selinuxLabel": label.map(PodLabel::recorded) },
        "linux": { "namespaces": joined, "mountLabel": node.confinement.files_of(label) },
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
    let place = files.namespace("pid");
    blocking(move || {
        zcri_sys::namespace::pin_of_process(pid, "pid", &place)
            .map_err(|e| Error::node("pin the PID namespace of a pod", e))
    })
    .await?;
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
