//! What keeps the networks of pods apart: a namespace for each, or addresses of their own on the node's stack.
//!
//! On the stack a pod is confined by what its plugin attaches to its control group (see docs/networking.md), so that
//! everything of the pod must be in that group from its first instruction: the group is made before the network is,
//! and the pod's shim is moved there before it starts anything. What an OCI runtime then puts into a group of its own
//! is below, for the groups of the pod's containers are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::PodId;
use crate::node::{CgroupDriver, Node, blocking};
use crate::pod::config::PodConfig;

/// Beginning of the name of the group of a sandbox's own processes, below the pod's: on cgroup v2 a group with controllers
/// for its children may have no processes itself (cgroups(7), "no internal processes"). The sandbox's id follows: with
/// systemd's names all sandboxes of a pod share its slice.
const SHIM_GROUP: &str = "shim";

/// How long the processes of a pod may take to be gone once they are killed.
const END_MAX: Duration = Duration::from_secs(5);

/// What keeps the networks of pods apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A network namespace each.
    Namespace,
    /// Addresses of their own on the node's stack.
    Stack,
}

/// Where a pod's network is.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In the namespace that this file pins.
    Namespace(&'a Path),
    /// On the node's stack, in this control group.
    Stack(&'a str),
}

/// The control group of a pod on the node's stack: below the one that the kubelet gave, or the node's.
///
/// With systemd's names there is no group to be made below a slice: the kubelet gives each pod a slice.
///
/// # Errors
/// There is no slice, and what confines one pod would confine all.
pub(crate) fn pod_cgroup(node: &Node, config: &PodConfig, id: &PodId) -> Result<String> {
    let parent = match config.cgroup_parent.as_str() {
        "" => node.cgroup_parent.as_str(),
        given => given,
    };
    match node.cgroup_driver {
        CgroupDriver::Cgroupfs => Ok(format!("{}/zcri-{id}", parent.trim_end_matches('/'))),
        CgroupDriver::Systemd if config.cgroup_parent.is_empty() => Err(Error::Invalid {
            field: "config.linux.cgroup_parent",
            value: String::new(),
            reason: "a pod on the node's stack needs a slice of its own".into(),
        }),
        CgroupDriver::Systemd => Ok(parent.to_owned()),
    }
}

/// Makes the group, which what confines the pod is attached to.
///
/// # Errors
/// The unified hierarchy is not mounted: then nothing could be confined.
pub(crate) async fn make(node: &Node, cgroup: &str, id: &PodId) -> Result<()> {
    let Some(tree) = node.stack_groups.clone() else {
        return Ok(());
    };
    let path = shim_group(cgroup, id);
    blocking(move || {
        tree.make_unified(&path)
            .map(drop)
            .map_err(|e| failed("make", e))
    })
    .await
}

/// Moves a pod's shim into the group; what it starts is there too.
pub(crate) async fn adopt(node: &Node, cgroup: &str, id: &PodId, shim: u32) -> Result<()> {
    let Some(tree) = node.stack_groups.clone() else {
        return Ok(());
    };
    let path = shim_group(cgroup, id);
    blocking(move || {
        tree.join_unified(&path, shim)
            .map_err(|e| failed("enter", e))
    })
    .await
}

/// Removes the group in every hierarchy, with the processes that are still there.
pub(crate) async fn remove(node: &Node, cgroup: &str, id: &PodId) -> Result<()> {
    let Some(tree) = node.stack_groups.clone() else {
        return Ok(());
    };
    let (path, own) = (cgroup.to_owned(), shim_group(cgroup, id));
    let shared = node.cgroup_driver == CgroupDriver::Systemd;
    blocking(move || {
        // A slice is not ours to kill.
        let mine = if shared { &own } else { &path };
        tree.end_unified(mine, END_MAX)
            .map_err(|e| failed("end the processes of", e))?;
        tree.remove(&own).map_err(|e| failed("remove", e))?;
        if shared {
            return Ok(());
        }
        tree.remove(&path).map_err(|e| failed("remove", e))
    })
    .await
}

fn shim_group(cgroup: &str, id: &PodId) -> String {
    format!("{cgroup}/{SHIM_GROUP}-{id}")
}

fn failed(action: &str, source: zcri_sys::Error) -> Error {
    Error::node(format!("{action} the control group of a pod"), source)
}

/// What stands for the path of a network namespace (`CNI_NETNS`).
pub(super) fn netns(place: Place<'_>, token: &str, id: &PodId) -> PathBuf {
    match place {
        Place::Namespace(path) => path.to_owned(),
        Place::Stack(_) => token.replace("{id}", id.as_str()).into(),
    }
}
