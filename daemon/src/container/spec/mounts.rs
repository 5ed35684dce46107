//! Mounts of a container: those that every container has, the pod's files, and the request's.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;

use super::{SpecError, SpecInput};
use crate::container::config::{Mount, MountAccess, Propagation};
use crate::pod::config::PodScope;

/// A mount of the request with its source as it is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedMount {
    /// The request.
    pub mount: Mount,
    /// The source: symbolic links followed, an image's file system mounted, owners mapped.
    pub source: PathBuf,
    /// How the mount that holds the source propagates.
    pub peers: Peers,
    /// Options of the mount that holds the source which a remount would take away: `nosuid`, `nodev`, `noexec`.
    pub kept: Vec<&'static str>,
}

/// Propagation of a mount of the node (mount_namespaces(7)), as `mountinfo` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Peers {
    /// Neither `shared:` nor `master:`.
    #[default]
    Private,
    /// `master:`
    Slave,
    /// `shared:`
    Shared,
}

/// How the mount that holds `path` propagates, by the text of `/proc/self/mountinfo` (proc(5)).
#[must_use]
pub fn peers_of(mountinfo: &str, path: &Path) -> Peers {
    let entry = |line: &str| {
        let (left, _) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let point = PathBuf::from(unescaped(fields.nth(4)?));
        let peers = fields
            .skip(1)
            .fold(Peers::Private, |peers, tag| match peers {
                _ if tag.starts_with("shared:") => Peers::Shared,
                Peers::Private if tag.starts_with("master:") => Peers::Slave,
                peers => peers,
            });
        path.starts_with(&point)
            .then_some((point.components().count(), peers))
    };
    // Of several at one place the last is on top.
    mountinfo
        .lines()
        .filter_map(entry)
        .max_by_key(|(depth, _)| *depth)
        .map_or(Peers::Private, |(_, peers)| peers)
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescaped(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// All mounts in the order in which the runtime makes them.
///
/// First what every container has, without what the request covers; then the pod's files and the request's mounts
/// together, parents before children, so that none hides another by accident.
pub(super) fn mounts(input: &SpecInput<'_>) -> Result<Vec<OciMount>, SpecError> {
    let mut files = pod_files(input);
    files.push(shm(input));
    let mounts = assemble(input, defaults(input), files)?;
    Ok(with_label(mounts, input))
}

/// The same with other mounts that every container has, and without what only Linux knows: the request's binds are
/// plain ones.
pub(super) fn portable(
    input: &SpecInput<'_>,
    defaults: Vec<OciMount>,
) -> Result<Vec<OciMount>, SpecError> {
    let mut mounts = assemble(input, defaults, pod_files(input))?;
    for mount in &mut mounts {
        let plain = |option: &String| !option.starts_with("rpriv");
        let options = mount.options().iter().flatten();
        mount.set_options(Some(options.filter(|o| plain(o)).cloned().collect()));
    }
    Ok(mounts)
}

fn assemble(
    input: &SpecInput<'_>,
    defaults: Vec<OciMount>,
    files: Vec<OciMount>,
) -> Result<Vec<OciMount>, SpecError> {
    let mut wanted = Vec::new();
    for prepared in &input.host.mounts {
        wanted.push(bind(prepared)?);
    }
    let taken = |target: &Path| wanted.iter().any(|mount| mount.destination() == target);
    let hidden = |target: &Path| {
        wanted
            .iter()
            .any(|mount| target.starts_with(mount.destination()))
    };
    let mut mounts: Vec<_> = defaults
        .into_iter()
        .filter(|mount| !hidden(mount.destination()))
        .collect();
    let mut bound: Vec<_> = files
        .into_iter()
        .filter(|mount| !taken(mount.destination()))
        .collect();
    bound.append(&mut wanted);
    // Stable: of two mounts at one place the later one of the request is on top.
    bound.sort_by_key(|mount| mount.destination().components().count());
    mounts.append(&mut bound);
    Ok(mounts)
}

/// The mounts of containerd's default specification, which images have come to rely on.
fn defaults(input: &SpecInput<'_>) -> Vec<OciMount> {
    let privileged = input.container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let user = input.pod.namespaces.user.as_ref();
    let mut pts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    // The group `tty` of the field, if the pod has it at all.
    if user.is_none_or(|user| user.maps_group(TTY)) {
        pts.push("gid=5");
    }
    vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("devpts", "devpts", "/dev/pts", &pts),
        mount(
            "mqueue",
            "mqueue",
            "/dev/mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        sys(input, access),
        mount(
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ]
}

const TTY: u32 = 5;

/// The kernel mounts sysfs only for the owner of the network namespace, which a pod's user namespace is not where the pod
/// has the node's.
fn sys(input: &SpecInput<'_>, access: &str) -> OciMount {
    let pod = &input.pod.namespaces;
    let nodes_network = pod.network == PodScope::Node || input.namespaces.on_stack;
    if pod.user.is_some() && nodes_network {
        return mount(
            "bind",
            "/sys",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", access],
        );
    }
    mount(
        "sysfs",
        "sysfs",
        "/sys",
        &["nosuid", "noexec", "nodev", access],
    )
}

/// `/etc/hosts` is not among them: the kubelet brings it as a mount.
fn pod_files(input: &SpecInput<'_>) -> Vec<OciMount> {
    let access = if input.container.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    let file = |source: &Path, target| {
        let mut bound = mount(
            "bind",
            "",
            target,
            &["bind", "rprivate", "nosuid", "noexec", "nodev", access],
        );
        bound.set_source(Some(source.to_owned()));
        bound
    };
    vec![
        file(&input.paths.resolv_conf, "/etc/resolv.conf"),
        file(&input.paths.hostname, "/etc/hostname"),
    ]
}

fn shm(input: &SpecInput<'_>) -> OciMount {
    let shm = match input.pod.namespaces.ipc {
        PodScope::Pod => input.paths.shm.as_path(),
        PodScope::Node => Path::new("/dev/shm"),
    };
    let mut mount = mount(
        "bind",
        "",
        "/dev/shm",
        &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
    );
    mount.set_source(Some(shm.to_owned()));
    mount
}

pub(super) fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_destination(PathBuf::from(target))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

fn bind(prepared: &PreparedMount) -> Result<OciMount, SpecError> {
    let request = &prepared.mount;
    let refuse = |asked, needed| {
        Err(SpecError::Propagation {
            path: prepared.source.clone(),
            asked,
            needed,
        })
    };
    let propagation = match (request.propagation, prepared.peers) {
        (Propagation::Private, _) => "rprivate",
        (Propagation::HostToContainer, Peers::Shared | Peers::Slave) => "rslave",
        (Propagation::HostToContainer, Peers::Private) => {
            return refuse("HostToContainer", "shared or slave");
        }
        (Propagation::Bidirectional, Peers::Shared) => "rshared",
        (Propagation::Bidirectional, _) => return refuse("Bidirectional", "shared"),
    };
    // Not "rw": that is a remount which takes all options away, also the `ro` of a source that is read-only.
    let access = match request.access {
        MountAccess::ReadWrite => None,
        MountAccess::ReadOnly => Some("ro"),
        MountAccess::RecursiveReadOnly => Some("rro"),
    };
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    options.extend(access.map(str::to_owned));
    options.extend(request.options.iter().cloned());
    for kept in &prepared.kept {
        if !options.iter().any(|option| option == kept) {
            options.push((*kept).to_owned());
        }
    }
    let mut mount = OciMount::default();
    mount
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(prepared.source.clone()))
        .set_destination(clean(&request.container_path))
        .set_options(Some(options));
    // Its id mappings are not for the runtime: the source has them already, so that any runtime will do.
    Ok(mount)
}

/// SELinux label that the runtime gives to the file systems it mounts. In a user namespace runc would also set it on the
/// file system of POSIX queues, which nobody may there; see [`with_label`].
pub(super) fn label<'a>(input: &SpecInput<'a>) -> Option<&'a str> {
    let label = input.confined.selinux.mount.as_deref();
    label.filter(|_| input.pod.namespaces.user.is_none())
}

/// In a user namespace the mounts themselves have the label, where their file systems take one.
fn with_label(mut mounts: Vec<OciMount>, input: &SpecInput<'_>) -> Vec<OciMount> {
    let Some(label) = &input.confined.selinux.mount else {
        return mounts;
    };
    let takes_one = |mount: &OciMount| matches!(mount.typ().as_deref(), Some("tmpfs" | "devpts"));
    if input.pod.namespaces.user.is_some() {
        for mount in mounts.iter_mut().filter(|mount| takes_one(mount)) {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push(format!("context=\"{label}\""));
            mount.set_options(Some(options));
        }
    }
    mounts
}

/// Propagation of the container's root: mounts can travel no further than it lets them. Unset it is the runtime's
/// default, which lets nothing out. The words are those of the specification (config-linux.md), which has no recursive
/// ones; runc and crun know these too, youki no others.
pub(super) fn rootfs_propagation(mounts: &[PreparedMount]) -> Option<String> {
    let widest = mounts
        .iter()
        .map(|prepared| match prepared.mount.propagation {
            Propagation::Private => (0, None),
            Propagation::HostToContainer => (1, Some("slave")),
            Propagation::Bidirectional => (2, Some("shared")),
        });
    widest
        .max()
        .and_then(|(_, option)| option)
        .map(str::to_owned)
}

/// Without `.`, `..` and doubled slashes, by the text alone: paths are compared, and the runtime resolves links.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            // At the root this does nothing, as in the kernel.
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}
