//! Making a container, and unmaking it.
//!
//! As with pods the record comes first, and one function that finds nothing to do when called twice undoes
//! whatever was done.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use zcri_image::Image;

use super::config::{ContainerConfig, PidMode, Resources};
use super::host;
use super::spec::{self, CgroupsPath, HostPaths, ImageDefaults, NamespacePaths, SpecInput};
use super::state::{ContainerState, ContainerView, Exited};
use super::user_files::read_beneath;
use crate::error::{Chain, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::node::{CgroupDriver, Node, blocking};
use crate::pod::{Owned, PodFiles, PodView};
use crate::state::{ContainerPhase, ContainerRecord};

/// Makes a container in a pod that is ready. On failure nothing is left.
pub(crate) async fn prepare(
    node: &Arc<Node>,
    pod: &Arc<PodView>,
    config: ContainerConfig,
    wire: Vec<u8>,
) -> Result<Owned> {
    let image = find_image(node, &config)?;
    let id = ContainerId::random();
    let record = ContainerRecord {
        id: id.to_string(),
        pod_id: pod.id.to_string(),
        boot_id: node.boot_id.clone(),
        config: wire,
        image_id: image.id.to_string(),
        image_ref: image
            .repo_digests
            .first()
            .cloned()
            .unwrap_or_else(|| image.id.to_string()),
        layers: image
            .layers
            .iter()
            .map(|layer| layer.diff_id.to_string())
            .collect(),
        stop_signal: config
            .stop_signal
            .clone()
            .unwrap_or_else(|| image.config.stop_signal.clone()),
        cgroup: cgroup_path(node, pod, &id),
        user: (0, 0, Vec::new()),
        created_at_ns: crate::time::now_ns(),
        phase: ContainerPhase::Creating,
        resources: Vec::new(),
    };
    let lower = node.images.lease(id.as_str(), &image)?;
    let made = {
        let (node, pod, config) = (node.clone(), pod.clone(), config.clone());
        let (record, id) = (record.clone(), id.clone());
        blocking(move || {
            node.records
                .put_container(&record)
                .map_err(|e| Error::node("record a container", e))?;
            make_root(&node, &id, &lower)?;
            write_spec(&node, &pod, &id, &config, &image, &record)
        })
        .await
    };
    let finished = made.and_then(|user| {
        let record = ContainerRecord {
            user,
            phase: ContainerPhase::Created,
            ..record
        };
        node.records
            .put_container(&record)
            .map_err(|e| Error::node("record a container", e))?;
        let view = Arc::new(view_with(
            node,
            &record,
            id.clone(),
            pod.id.clone(),
            config,
            pod.config.log_directory.as_deref(),
        )?);
        Ok(Owned { record, view })
    });
    if finished.is_err()
        && let Err(undo) = unmake(node, &id).await
    {
        tracing::error!(container = %id, error = %Chain(&undo), "a failed container is only partly undone");
    }
    finished
}

/// Removes all that a container has outside its pod's task: mount, directories, lease, record.
pub(crate) async fn unmake(node: &Arc<Node>, id: &ContainerId) -> Result<()> {
    let (owner, id) = (node.clone(), id.clone());
    blocking(move || {
        let bundle = owner.container_bundle(id.as_str());
        zcri_sys::mount::unmount(&bundle.join("rootfs"))
            .map_err(|e| Error::node("unmount a container's root", e))?;
        owner.discard(&bundle)?;
        owner.discard(&owner.overlay(id.as_str()))?;
        owner.images.release(id.as_str());
        owner
            .records
            .remove_container(id.as_str())
            .map_err(|e| Error::node("forget a container", e))
    })
    .await
}

fn find_image(node: &Node, config: &ContainerConfig) -> Result<Arc<Image>> {
    // The kubelet puts the id that PullImage gave into `image`; crictl a name.
    let name = &config.image.image;
    node.images.find(name).ok_or_else(|| Error::NotFound {
        what: "image",
        id: name.clone(),
    })
}

/// The control group as statistics find it; what the OCI runtime is told is [`CgroupsPath`].
fn cgroup_path(node: &Node, pod: &PodView, id: &ContainerId) -> String {
    cgroups_path(node, pod, id).in_tree()
}

fn cgroups_path(node: &Node, pod: &PodView, id: &ContainerId) -> CgroupsPath {
    let parent = match (&pod.stack_cgroup, pod.config.cgroup_parent.as_str()) {
        (Some(own), _) => own.clone(),
        (None, "") => node.cgroup_parent.clone(),
        (None, given) => given.to_owned(),
    };
    match node.cgroup_driver {
        CgroupDriver::Cgroupfs => CgroupsPath::Cgroupfs {
            parent,
            id: id.to_string(),
        },
        CgroupDriver::Systemd => CgroupsPath::Systemd {
            slice: parent,
            id: id.to_string(),
        },
    }
}

/// Writable layer, mount point, and the mount.
fn make_root(node: &Node, id: &ContainerId, lower: &[PathBuf]) -> Result<()> {
    let (bundle, overlay) = (
        node.container_bundle(id.as_str()),
        node.overlay(id.as_str()),
    );
    let (rootfs, upper, work) = (
        bundle.join("rootfs"),
        overlay.join("upper"),
        overlay.join("work"),
    );
    let make = |dir: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().mode(mode).create(dir);
        made.map_err(|e| Error::node(format!("make {}", dir.display()), e))
    };
    make(&overlay, 0o700)?;
    make(&upper, 0o755)?;
    make(&work, 0o700)?;
    make(&bundle, 0o711)?;
    make(&rootfs, 0o755)?;
    zcri_sys::mount::overlay(
        &zcri_sys::mount::Overlay {
            lower,
            upper: &upper,
            work: &work,
        },
        &rootfs,
    )
    .map_err(|e| Error::node("mount a container's root", e))
}

/// Builds `config.json`; gives the user that the container's first process runs as.
fn write_spec(
    node: &Node,
    pod: &PodView,
    id: &ContainerId,
    config: &ContainerConfig,
    image: &Image,
    record: &ContainerRecord,
) -> Result<(u32, u32, Vec<u32>)> {
    let bundle = node.container_bundle(id.as_str());
    let rootfs = bundle.join("rootfs");
    let text = |path: &str| {
        read_beneath(&rootfs, path)
            .map_err(|e| Error::node(format!("read /{path} of the image"), e))
    };
    let user = spec::resolve_user(
        &image.config.user,
        &config.security,
        &text("etc/passwd")?,
        &text("etc/group")?,
    )?;
    let files = PodFiles::new(pod.bundle.clone());
    let host = host::gather(&pod.config, config)?;
    let defaults = ImageDefaults {
        env: image.config.env.clone(),
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        working_dir: image.config.working_dir.clone(),
    };
    let input = SpecInput {
        pod: &pod.config,
        container: config,
        image: &defaults,
        user: &user,
        namespaces: namespace_paths(pod, &files, config)?,
        rootfs: &rootfs,
        cgroups: &cgroups_path(node, pod, id),
        paths: HostPaths {
            resolv_conf: files.resolv_conf(),
            hostname: files.hostname(),
            shm: files.shm(),
        },
        facts: &node.facts,
        host: &host,
        pids_limit: node.pids_limit,
        ids: spec::Ids {
            pod: pod.id.as_str(),
            container: &record.id,
        },
    };
    let spec = spec::build(&input)?;
    save_spec(&bundle, &spec)?;
    if config.stdin {
        let stdin = bundle.join("stdin");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &stdin, rustix::fs::FileType::Fifo, mode, 0).map_err(
            |e| Error::node(format!("make {}", stdin.display()), std::io::Error::from(e)),
        )?;
    }
    Ok((user.uid, user.gid, user.additional_gids.clone()))
}

fn save_spec(bundle: &Path, spec: &Spec) -> Result<()> {
    let file = bundle.join("config.json");
    let json =
        serde_json::to_vec(spec).map_err(|e| Error::node("encode an OCI specification", e))?;
    // A full disk must not leave half of it in the place of a whole one.
    let temporary = bundle.join("config.json.tmp");
    std::fs::write(&temporary, json)
        .and_then(|()| std::fs::rename(&temporary, &file))
        .map_err(|e| Error::node(format!("write {}", file.display()), e))
}

/// Puts new limits into the specification of a container that was not started yet.
pub(crate) fn rewrite_resources(
    node: &Node,
    view: &ContainerView,
    resources: &Resources,
) -> Result<()> {
    let file = view.bundle.join("config.json");
    let read = || -> std::result::Result<Spec, crate::error::Source> {
        Ok(serde_json::from_slice(&std::fs::read(&file)?)?)
    };
    let mut spec = read().map_err(|source| Error::Node {
        action: format!("read {}", file.display()),
        source,
    })?;
    spec::set_resources(&mut spec, resources, &node.facts);
    save_spec(&view.bundle, &spec)
}

fn namespace_paths(
    pod: &PodView,
    files: &PodFiles,
    config: &ContainerConfig,
) -> Result<NamespacePaths> {
    let own = |kind: &str| Some(files.namespace(kind)).filter(|path| path.exists());
    let pid = match &config.security.pid {
        PidMode::Pod => own("pid"),
        PidMode::Container | PidMode::Node => None,
        PidMode::Target(target) => {
            let found = pod
                .containers
                .iter()
                .find(|(id, _)| id.as_str().starts_with(target.as_str()));
            let (_, target) = found.ok_or_else(|| Error::no_container(target))?;
            let pid = target.require_running("share its PID namespace")?;
            Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))
        }
    };
    Ok(NamespacePaths {
        on_stack: pod.stack_cgroup.is_some(),
        network: own("net"),
        ipc: own("ipc"),
        uts: own("uts"),
        user: None,
        pid,
    })
}

/// The view of a container that a record describes.
///
/// # Errors
/// The record's configuration is not understood.
pub(crate) fn view_of(
    node: &Node,
    record: &ContainerRecord,
    log_directory: Option<&Path>,
) -> Result<ContainerView> {
    let broken = |what: &str| {
        Error::node(
            format!("read the record of container {}", record.id),
            what.to_owned(),
        )
    };
    let id = ContainerId::parse(&record.id).ok_or_else(|| broken("bad id"))?;
    let pod_id = PodId::parse(&record.pod_id).ok_or_else(|| broken("bad pod id"))?;
    let config = (node.wire.decode_container)(&record.config)?;
    view_with(node, record, id, pod_id, config, log_directory)
}

fn view_with(
    node: &Node,
    record: &ContainerRecord,
    id: ContainerId,
    pod_id: PodId,
    config: ContainerConfig,
    log_directory: Option<&Path>,
) -> Result<ContainerView> {
    let resources = match record.resources.as_slice() {
        [] => config.resources.clone(),
        updated => (node.wire.decode_resources)(updated)?,
    };
    let state = match &record.phase {
        ContainerPhase::Running { started_at_ns, pid } => ContainerState::Running {
            started_at_ns: *started_at_ns,
            pid: *pid,
        },
        ContainerPhase::Exited {
            started_at_ns,
            finished_at_ns,
            exit_code,
            reason,
            message,
        } => ContainerState::Exited(Exited {
            started_at_ns: *started_at_ns,
            finished_at_ns: *finished_at_ns,
            exit_code: *exit_code,
            reason: reason.clone(),
            message: message.clone(),
        }),
        _ => ContainerState::Created,
    };
    // Without the pod's directory there is nowhere to log to (api.proto, ContainerConfig.log_path).
    let log = log_directory
        .zip(config.log_path.as_deref())
        .map(|(dir, path)| dir.join(path));
    Ok(ContainerView {
        bundle: node.container_bundle(id.as_str()),
        upper: node.overlay(id.as_str()).join("upper"),
        id,
        pod_id,
        config: Arc::new(config),
        resources,
        image_id: record.image_id.clone(),
        image_ref: record.image_ref.clone(),
        stop_signal: record.stop_signal.clone(),
        cgroup: record.cgroup.clone(),
        user: record.user.clone(),
        log,
        created_at_ns: record.created_at_ns,
        state,
        readings: Arc::default(),
    })
}

impl From<&ContainerState> for ContainerPhase {
    fn from(state: &ContainerState) -> Self {
        match state.clone() {
            ContainerState::Created => ContainerPhase::Created,
            ContainerState::Running { started_at_ns, pid } => {
                ContainerPhase::Running { started_at_ns, pid }
            }
            ContainerState::Exited(Exited {
                started_at_ns,
                finished_at_ns,
                exit_code,
                reason,
                message,
            }) => ContainerPhase::Exited {
                started_at_ns,
                finished_at_ns,
                exit_code,
                reason,
                message,
            },
        }
    }
}
