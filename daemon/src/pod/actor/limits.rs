//! Changes of limits: of a container, all or nothing; of a pod.

use std::sync::Arc;

use zcri_sys::cgroup::SavedLimits;

use super::{Actor, Owned};
use crate::container::config::Resources;
use crate::container::{self, ContainerState, ContainerView, spec};
use crate::error::{Chain, Error, Result};
use crate::id::ContainerId;
use crate::node::Node;
use crate::runtime::Shim;

impl Actor {
    /// Changes the limits of a container. After a failure they are as they were (UpdateContainerResources in
    /// api.proto), in the kernel, in the record and in the specification.
    pub(super) async fn update_container(
        &mut self,
        id: &ContainerId,
        given: &Resources,
    ) -> Result<()> {
        container::check_unified(&self.node, "linux.unified", given)?;
        let shim = self.parts.shim.clone();
        let owned = self
            .parts
            .containers
            .get_mut(id)
            .ok_or_else(|| Error::no_container(id))?;
        let old = owned.view.resources.clone();
        let merged = spec::merge_resources(&old, given);
        if merged.swap_is_below_memory() {
            return Err(Error::Invalid {
                field: "linux.memory_swap_limit_in_bytes",
                value: format!("{:?}", merged.memory_swap_limit.unwrap_or_default()),
                reason: "would be less than memory_limit_in_bytes, which it includes".into(),
            });
        }
        match owned.view.state {
            ContainerState::Running { .. } => {
                let shim = shim.ok_or_else(|| owned.view.refuse("update"))?;
                let keys = given.unified.keys().map(String::as_str);
                let before = self.node.cgroups.limits(&owned.view.cgroup, keys);
                let changed = spec::changed_resources(&merged, given);
                let done = match change_running(&self.node, &shim, id, &changed).await {
                    Ok(()) => record(&self.node, owned, &merged),
                    Err(error) => Err(error),
                };
                done.inspect_err(|_| put_back(id, &before))?;
            }
            ContainerState::Created => {
                container::rewrite_resources(&self.node, &owned.view, &merged)?;
                let done = record(&self.node, owned, &merged);
                if done.is_err()
                    && let Err(error) = container::rewrite_resources(&self.node, &owned.view, &old)
                {
                    tracing::error!(container = %id, error = %Chain(&error), "the limits before a failed update are lost");
                }
                done?;
            }
            ContainerState::Exited(_) => return Err(owned.view.refuse("update")),
        }
        let mut view = ContainerView::clone(&owned.view);
        view.resources = merged;
        owned.view = Arc::new(view);
        Ok(())
    }

    /// Notes what a pod costs. The pod's control group is its maker's, the kubelet, which has written the limits there
    /// itself, with rules of its own (no quota for exclusive CPUs): to write them again would undo those.
    pub(super) fn update_pod(
        &mut self,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let mut config = self.parts.config.as_ref().clone();
        config.overhead = overhead.or(config.overhead);
        config.resources = resources.or(config.resources);
        let given = (config.overhead.as_ref(), config.resources.as_ref());
        let wire = (self.node.wire.with_pod_resources)(&self.parts.record.config, given)?;
        let before = std::mem::replace(&mut self.parts.record.config, wire);
        if let Err(error) = self.node.records.put_pod(&self.parts.record) {
            self.parts.record.config = before;
            return Err(Error::node("record a pod", error));
        }
        self.parts.config = Arc::new(config);
        Ok(())
    }
}

async fn change_running(
    node: &Node,
    shim: &Shim,
    id: &ContainerId,
    changed: &Resources,
) -> Result<()> {
    let limits = spec::linux_resources(changed, &node.facts);
    let json = serde_json::to_vec(&limits).map_err(|e| Error::node("encode resources", e))?;
    let updated = shim.update(id.as_str(), json).await;
    updated.map_err(|source| Error::Runtime {
        action: "update",
        id: id.to_string(),
        source: Box::new(source),
    })
}

/// Records other limits; on failure the record in memory is as before.
fn record(node: &Node, owned: &mut Owned, resources: &Resources) -> Result<()> {
    let new = (node.wire.encode_resources)(resources);
    let before = std::mem::replace(&mut owned.record.resources, new);
    node.records.put_container(&owned.record).map_err(|error| {
        owned.record.resources = before;
        Error::node("record a container", error)
    })
}

/// A runtime that fails half way leaves what it has written.
fn put_back(id: &ContainerId, before: &SavedLimits) {
    if let Err(error) = before.restore() {
        tracing::error!(container = %id, error = %Chain(&error), "limits of a failed update could not be put back");
    }
}
