//! Making a container, and unmaking it.
//!
//! As with pods the record comes first, and one function that finds nothing to do when called twice undoes
//! whatever was done.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use zcri_codepage::Rule;
use zcri_image::Image;
use zcri_sys::cgroup;
use zcri_sys::mount::{IdMap, Overlay, Writable};

use super::config::{ContainerConfig, PidMode, Resources};
use super::confine::confine;
use super::host;
use super::output;
use super::prepared::{self, Workshop};
use super::record_view::view_with;
use super::spec::{self, CgroupsPath, HostPaths, ImageDefaults, NamespacePaths, SpecInput};
use super::state::ContainerView;
use super::user_files::read_beneath;
use super::volumes::ImageVolumes;
use crate::confinement::{Confined, label_file};
use crate::error::{Chain, Error, Result};
use crate::id::ContainerId;
use crate::node::{CgroupDriver, Node, blocking};
use crate::pod::config::UserNamespace;
use crate::pod::{Owned, PodFiles, PodView};
use crate::runtime::HandlerFeatures;
use crate::state::{ContainerPhase, ContainerRecord};

/// What a container is made of, beside its configuration.
struct Parts {
    image: Arc<Image>,
    /// Directories of the image's layers, the top one first.
    lower: Vec<PathBuf>,
    /// The same of images that are mounted, by the number of the mount.
    volumes: BTreeMap<usize, Vec<PathBuf>>,
    features: HandlerFeatures,
    /// What its output is converted from.
    output: Option<Rule>,
    /// What the kernel's security modules make of it.
    confined: Confined,
}

/// Makes a container in a pod that is ready. On failure nothing is left.
pub(crate) async fn prepare(
    node: &Arc<Node>,
    pod: &Arc<PodView>,
    config: ContainerConfig,
    wire: Vec<u8>,
) -> Result<Owned> {
    let config = node.platform.adopt(&pod.config, config)?;
    let image = find_image(node, &config)?;
    let volumes = ImageVolumes::find(&node.images, &config)?;
    let handler = node.handlers.get(&pod.handler)?;
    let output = output::rule(&pod.config, &config, &image.config.labels, handler.output)?;
    let features = node.handlers.features(handler).await;
    let (confined, config) = confine(node, pod, config, &features).await?;
    let id = ContainerId::random();
    let record = first_record(node, pod, &id, &config, &image, &volumes, wire);
    let making = {
        let (node, pod, id) = (node.clone(), pod.clone(), id.clone());
        move || {
            let parts = Parts {
                lower: node.images.lease(id.as_str(), &image)?,
                volumes: volumes.lease(&node.images, &id)?,
                confined,
                image,
                features,
                output,
            };
            make(&node, &pod, &id, config, &parts, record)
        }
    };
    let made = blocking(making).await;
    if made.is_err()
        && let Err(undo) = unmake(node, &id).await
    {
        tracing::error!(container = %id, error = %Chain(&undo), "a failed container is only partly undone");
    }
    made
}

/// What blocks of [`prepare`].
fn make(
    node: &Node,
    pod: &PodView,
    id: &ContainerId,
    config: ContainerConfig,
    parts: &Parts,
    mut record: ContainerRecord,
) -> Result<Owned> {
    let put = |record: &ContainerRecord| {
        let written = node.records.put_container(record);
        written.map_err(|e| Error::node("record a container", e))
    };
    put(&record)?;
    make_root(node, pod, id, parts)?;
    record.user = write_spec(node, pod, id, &config, parts, &record)?;
    record.phase = ContainerPhase::Created;
    put(&record)?;
    let log_directory = pod.config.log_directory.as_deref();
    let view = view_with(
        node,
        &record,
        id.clone(),
        pod.id.clone(),
        config,
        log_directory,
    )?;
    let view = Arc::new(view);
    Ok(Owned { record, view })
}

/// What is known of a container before anything of it is made.
fn first_record(
    node: &Node,
    pod: &PodView,
    id: &ContainerId,
    config: &ContainerConfig,
    image: &Image,
    volumes: &ImageVolumes,
    wire: Vec<u8>,
) -> ContainerRecord {
    ContainerRecord {
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
            .chain(volumes.layers())
            .collect(),
        stop_signal: config
            .stop_signal
            .clone()
            .unwrap_or_else(|| image.config.stop_signal.clone()),
        cgroup: cgroup_path(node, pod, id),
        user: (0, 0, Vec::new()),
        created_at_ns: crate::time::now_ns(),
        phase: ContainerPhase::Creating,
        resources: Vec::new(),
    }
}

/// Removes all that a container has outside its pod's task: mount, directories, lease, record.
pub(crate) async fn unmake(node: &Arc<Node>, id: &ContainerId) -> Result<()> {
    let (owner, id) = (node.clone(), id.clone());
    blocking(move || {
        let bundle = owner.container_bundle(id.as_str());
        prepared::release(&bundle)?;
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
fn make_root(node: &Node, pod: &PodView, id: &ContainerId, parts: &Parts) -> Result<()> {
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
    let label = parts.confined.selinux.mount.as_deref();
    if let Some(label) = label {
        // What is made in it, such as FIFOs for the container's processes, inherits the type.
        label_file(&bundle, label)
            .map_err(|e| Error::node(format!("label {}", bundle.display()), e))?;
    }
    make(&rootfs, 0o755)?;
    let user = pod.config.namespaces.user.as_ref();
    if let Some((uid, gid)) = user.and_then(UserNamespace::root) {
        // The top of the writable layer is the container's `/`.
        std::os::unix::fs::chown(&upper, Some(uid), Some(gid))
            .map_err(|e| Error::node(format!("change the owner of {}", upper.display()), e))?;
    }
    let scratch = bundle.join("layers");
    let namespace = match user {
        Some(_) => Some(open_user_namespace(pod)?),
        None => None,
    };
    let overlay = Overlay {
        lower: &parts.lower,
        writable: Some(Writable {
            upper: &upper,
            work: &work,
        }),
        id_map: namespace.as_ref().map(|namespace| IdMap {
            user_namespace: namespace.as_fd(),
            scratch: &scratch,
        }),
        label,
    };
    zcri_sys::mount::overlay(&overlay, &rootfs)
        .map_err(|e| Error::node("mount a container's root", e))
}

fn open_user_namespace(pod: &PodView) -> Result<std::fs::File> {
    let path = PodFiles::new(pod.bundle.clone()).namespace("user");
    std::fs::File::open(&path).map_err(|e| Error::node(format!("open {}", path.display()), e))
}

/// Builds `config.json`; gives the user that the container's first process runs as.
fn write_spec(
    node: &Node,
    pod: &PodView,
    id: &ContainerId,
    config: &ContainerConfig,
    parts: &Parts,
    record: &ContainerRecord,
) -> Result<(u32, u32, Vec<u32>)> {
    let image = &parts.image;
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
    check_user_namespace(pod, config, &user)?;
    check_unified(node, "config.linux.resources.unified", &config.resources)?;
    let files = PodFiles::new(pod.bundle.clone());
    let of_pod = pod.config.namespaces.user.as_ref();
    let label = parts.confined.selinux.mount.as_deref();
    let user_namespace = of_pod.map(|user| (user, files.namespace("user")));
    let workshop = Workshop::new(&bundle, user_namespace, label)?;
    let host = host::gather(&host::Wanted {
        pod: &pod.config,
        config,
        volumes: &parts.volumes,
        features: &parts.features,
        workshop: &workshop,
    })?;
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
        namespaces: namespace_paths(node, pod, &files, config, &workshop)?,
        rootfs: &rootfs,
        cgroups: &cgroups_path(node, pod, id),
        paths: HostPaths {
            resolv_conf: files.resolv_conf(),
            hostname: files.hostname(),
            shm: files.shm(),
        },
        facts: &node.facts,
        host: &host,
        confined: &parts.confined,
        pids_limit: node.pids_limit,
        ids: spec::Ids {
            pod: pod.id.as_str(),
            container: &record.id,
        },
    };
    let wlm = node.platform.classify(&pod.config, config, &pod.handler);
    let mut spec = node.platform.spec(&input, wlm.as_ref())?;
    output::annotate(&mut spec, parts.output);
    if node.platform.has_limits() {
        spec::set_rlimits(&mut spec, &node.rlimits);
    }
    super::cdi::apply(&node.cdi_spec_dirs, config, &mut spec)?;
    save_spec(&bundle, &spec)?;
    if config.stdin {
        let stdin = bundle.join("stdin");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &stdin, rustix::fs::FileType::Fifo, mode, 0).map_err(
            |e| Error::node(format!("make {}", stdin.display()), std::io::Error::from(e)),
        )?;
        if let Some((uid, gid)) = of_pod.and_then(UserNamespace::root) {
            std::os::unix::fs::chown(&stdin, Some(uid), Some(gid))
                .map_err(|e| Error::node(format!("change the owner of {}", stdin.display()), e))?;
        }
    }
    Ok((user.uid, user.gid, user.additional_gids.clone()))
}

/// The files of `unified` are those of version 2.
pub(crate) fn check_unified(node: &Node, what: &'static str, given: &Resources) -> Result<()> {
    match given.unified.keys().next() {
        Some(key) if node.facts.cgroup_version == cgroup::Version::V1 => Err(Error::Unsupported {
            what,
            reason: format!("the controllers of this node are of cgroup version 1 (got {key:?})"),
        }),
        _ => Ok(()),
    }
}

/// What the pod's user namespace demands of a container.
fn check_user_namespace(
    pod: &PodView,
    config: &ContainerConfig,
    user: &spec::ResolvedUser,
) -> Result<()> {
    let of_pod = pod.config.namespaces.user.as_ref();
    let refused = |field, value: String, reason: &str| {
        Err(Error::Invalid {
            field,
            value,
            reason: reason.into(),
        })
    };
    if let Some(own) = &config.security.user_namespace
        && Some(own) != of_pod
    {
        let field = "config.linux.security_context.namespace_options.userns_options";
        return refused(field, format!("{own:?}"), "must be that of the pod");
    }
    let Some(of_pod) = of_pod else { return Ok(()) };
    if !of_pod.maps_user(user.uid) {
        let field = "config.linux.security_context.run_as_user";
        let value = user.uid.to_string();
        return refused(field, value, "is not mapped by the pod's user namespace");
    }
    let groups = std::iter::once(&user.gid).chain(&user.additional_gids);
    match groups.into_iter().find(|gid| !of_pod.maps_group(**gid)) {
        Some(gid) => refused(
            "config.linux.security_context.supplemental_groups",
            gid.to_string(),
            "is not mapped by the pod's user namespace",
        ),
        None => Ok(()),
    }
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
    node: &Node,
    pod: &PodView,
    files: &PodFiles,
    config: &ContainerConfig,
    workshop: &Workshop<'_>,
) -> Result<NamespacePaths> {
    let own = |kind: &str| Some(files.namespace(kind)).filter(|path| path.exists());
    let pid = match &config.security.pid {
        PidMode::Pod => own("pid"),
        PidMode::Container | PidMode::Node => None,
        PidMode::Target(target) => Some(workshop.pid_namespace(target_pid(node, pod, target)?)?),
    };
    Ok(NamespacePaths {
        on_stack: pod.stack_cgroup.is_some(),
        network: own("net"),
        ipc: own("ipc"),
        uts: own("uts"),
        user: own("user"),
        pid,
    })
}

/// The first process of the container of the pod whose PID namespace is to be shared.
fn target_pid(node: &Node, pod: &PodView, target: &str) -> Result<u32> {
    const FIELD: &str = "config.linux.security_context.namespace_options.target_id";
    let mut found = pod
        .containers
        .values()
        .filter(|container| container.id.as_str().starts_with(target));
    let refused = |reason: &str| Error::Invalid {
        field: FIELD,
        value: target.to_owned(),
        reason: reason.to_owned(),
    };
    let container = found
        .next()
        .ok_or_else(|| refused("names no container of the pod"))?;
    if found.next().is_some() {
        return Err(refused("is the beginning of several containers' ids"));
    }
    let pid = container.require_running("share its PID namespace")?;
    // The number may be another process's by now.
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if !node.platform.has_limits() || groups.contains(container.id.as_str()) {
        Ok(pid)
    } else {
        Err(container.refuse("share its PID namespace"))
    }
}
