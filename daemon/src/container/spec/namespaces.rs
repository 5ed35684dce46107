//! Which namespaces a container gets.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use zcri_sys::cgroup;

use super::{SpecError, SpecInput};
use crate::container::config::PidMode;
use crate::pod::config::{PodPid, PodScope};

/// Files of namespaces that exist. `None` where the pod has none of its own.
#[derive(Debug, Clone, Default)]
pub struct NamespacePaths {
    /// Whether the pod has its network on the node's stack, without a namespace.
    pub on_stack: bool,
    /// Network namespace of the pod.
    pub network: Option<PathBuf>,
    /// IPC namespace of the pod.
    pub ipc: Option<PathBuf>,
    /// UTS namespace of the pod.
    pub uts: Option<PathBuf>,
    /// PID namespace to join: the pod's, or that of the target container.
    pub pid: Option<PathBuf>,
    /// User namespace of the pod.
    pub user: Option<PathBuf>,
}

/// A namespace that is missing although it should be the pod's is an error: leaving it out would put the container
/// into the node's.
pub(super) fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let pod = &input.pod.namespaces;
    let paths = &input.namespaces;
    let mut namespaces = vec![namespace(LinuxNamespaceType::Mount, None)];
    let mut join = |kind, name, scope, path: &Option<PathBuf>| match (path, scope) {
        (_, PodScope::Node) => Ok(()),
        (Some(path), PodScope::Pod) => {
            namespaces.push(namespace(kind, Some(path.clone())));
            Ok(())
        }
        (None, PodScope::Pod) => Err(SpecError::NamespaceMissing { kind: name }),
    };
    if !paths.on_stack {
        join(
            LinuxNamespaceType::Network,
            "network",
            pod.network,
            &paths.network,
        )?;
    }
    join(LinuxNamespaceType::Ipc, "IPC", pod.ipc, &paths.ipc)?;
    // The host name belongs to the network identity: with the node's network comes the node's name.
    join(LinuxNamespaceType::Uts, "UTS", pod.network, &paths.uts)?;
    if pod.user.is_some() {
        join(LinuxNamespaceType::User, "user", PodScope::Pod, &paths.user)?;
    }
    namespaces.extend(pid(input)?);
    // As containerd: a privileged container sees the node's control groups, and on v1 nobody has the namespace,
    // because the named hierarchies there cannot be hidden consistently.
    if input.facts.cgroup_version == cgroup::Version::V2 && !input.container.security.privileged {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(namespaces)
}

fn pid(input: &SpecInput<'_>) -> Result<Option<LinuxNamespace>, SpecError> {
    let joined = || match &input.namespaces.pid {
        Some(path) => Ok(Some(namespace(LinuxNamespaceType::Pid, Some(path.clone())))),
        None => Err(SpecError::NamespaceMissing { kind: "PID" }),
    };
    let own = Ok(Some(namespace(LinuxNamespaceType::Pid, None)));
    match (&input.container.security.pid, input.pod.namespaces.pid) {
        (PidMode::Target(_), _) | (PidMode::Pod, PodPid::Pod) => joined(),
        // A container that says nothing (CRI's default is POD) in a pod where each has its own.
        (PidMode::Container, _) | (PidMode::Pod, PodPid::Container) => own,
        (PidMode::Node, _) | (PidMode::Pod, PodPid::Node) => Ok(None),
    }
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}
