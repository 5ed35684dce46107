//! Changes of limits: of a container, all or nothing; of a pod.

use std::sync::Arc;

use zcri_sys::cgroup::SavedLimits;

use super::Actor;
use super::containers::change_view;
use crate::container::config::Resources;
use crate::container::{self, ContainerState, ContainerView, spec};
use crate::error::{Chain, Error, Result};
use crate::id::ContainerId;
use crate::node::{Node, blocking};
use crate::runtime::Shim;

impl Actor {
    /// Changes the limits of a container. After a failure they are as they were (UpdateContainerResources in
    /// api.proto), in the kernel, in the record and in the specification.
    pub(super) async fn update_container(&self, id: &ContainerId, given: &Resources) -> Result<()> {
        container::check_unified(&self.node, "linux.unified", given)?;
        let view = self.container(id).ok_or_else(|| Error::no_container(id))?;
        let merged = spec::merge_resources(&view.resources, given);
        if merged.swap_is_below_memory() {
            return Err(Error::Invalid {
                field: "linux.memory_swap_limit_in_bytes",
                value: format!("{:?}", merged.memory_swap_limit.unwrap_or_default()),
                reason: "would be less than memory_limit_in_bytes, which it includes".into(),
            });
        }
        match view.state {
            ContainerState::Exited(_) => return Err(view.refuse("update")),
            _ if !self.node.platform.has_limits() => self.record_limits(id, &merged).await?,
            ContainerState::Running { .. } => self.limit_running(&view, given, &merged).await?,
            ContainerState::Created => self.limit_created(&view, &merged).await?,
        }
        if let Some(owned) = self.held().parts.containers.get_mut(id) {
            change_view(owned, |view| view.resources = merged);
        }
        Ok(())
    }

    /// In the kernel and in the record.
    async fn limit_running(
        &self,
        view: &Arc<ContainerView>,
        given: &Resources,
        merged: &Resources,
    ) -> Result<()> {
        let shim = self.shim().ok_or_else(|| view.refuse("update"))?;
        let (node, group) = (self.node.clone(), self.node.group_of(view));
        let files: Vec<String> = given.unified.keys().cloned().collect();
        let before = blocking(move || {
            let files = files.iter().map(String::as_str);
            Ok(node.cgroups.limits(&group, files))
        })
        .await?;
        let changed = spec::changed_resources(merged, given);
        let done = match change_running(&self.node, &shim, &view.id, &changed).await {
            Ok(()) => self.record_limits(&view.id, merged).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            let id = view.id.clone();
            blocking(move || {
                put_back(&id, &before);
                Ok(())
            })
            .await?;
        }
        done
    }

    /// In the specification and in the record.
    async fn limit_created(&self, view: &Arc<ContainerView>, merged: &Resources) -> Result<()> {
        self.rewrite(view, merged.clone()).await?;
        let done = self.record_limits(&view.id, merged).await;
        if done.is_err()
            && let Err(error) = self.rewrite(view, view.resources.clone()).await
        {
            tracing::error!(container = %view.id, error = %Chain(&error), "the limits before a failed update are lost");
        }
        done
    }

    async fn rewrite(&self, view: &Arc<ContainerView>, resources: Resources) -> Result<()> {
        let (node, view) = (self.node.clone(), view.clone());
        blocking(move || container::rewrite_resources(&node, &view, &resources)).await
    }

    async fn record_limits(&self, id: &ContainerId, resources: &Resources) -> Result<()> {
        let new = (self.node.wire.encode_resources)(resources);
        self.record_container(id, |record| record.resources = new)
            .await
    }

    /// Notes what a pod costs. The pod's control group is its maker's, the kubelet, which has written the limits there
    /// itself, with rules of its own (no quota for exclusive CPUs): to write them again would undo those.
    pub(super) async fn update_pod(
        &self,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let (mut config, wire) = {
            let held = self.held();
            let config = held.parts.config.as_ref().clone();
            (config, held.parts.record.config.clone())
        };
        config.overhead = overhead.or(config.overhead);
        config.resources = resources.or(config.resources);
        let given = (config.overhead.as_ref(), config.resources.as_ref());
        let wire = (self.node.wire.with_pod_resources)(&wire, given)?;
        self.record(|record| record.config = wire).await?;
        self.held().parts.config = Arc::new(config);
        Ok(())
    }
}

async fn change_running(
    node: &Node,
    shim: &Shim,
    id: &ContainerId,
    changed: &Resources,
) -> Result<()> {
    let mut limits = spec::linux_resources(changed, &node.facts);
    if let Some(memory) = limits.memory_mut() {
        // Version 1 of control groups refuses less than is in use; version 2 kills what uses it.
        memory.set_check_before_update(Some(true));
    }
    let json = serde_json::to_vec(&limits).map_err(|e| Error::node("encode resources", e))?;
    let updated = shim.update(id.as_str(), json).await;
    updated.map_err(|source| Error::Runtime {
        action: "update",
        id: id.to_string(),
        source: Box::new(source),
    })
}

/// A runtime that fails half way leaves what it has written.
fn put_back(id: &ContainerId, before: &SavedLimits) {
    if let Err(error) = before.restore() {
        tracing::error!(container = %id, error = %Chain(&error), "limits of a failed update could not be put back");
    }
}
