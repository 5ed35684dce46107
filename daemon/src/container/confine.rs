//! What confines a container beyond its namespaces, made ready before anything of the container is.

use std::sync::Arc;

use super::config::{ContainerConfig, MountSource};
use super::host;
use crate::confinement::{Confined, Relabelling};
use crate::error::Result;
use crate::node::{Node, blocking};
use crate::pod::PodView;
use crate::runtime::HandlerFeatures;

/// What the kernel's security modules make of the container, with what that needs: a profile in the kernel, the label
/// of its volumes. However long that takes: a request that the kubelet has given up goes on, and the next one waits for
/// it. Gives the configuration back.
pub(super) async fn confine(
    node: &Arc<Node>,
    pod: &Arc<PodView>,
    config: ContainerConfig,
    features: &HandlerFeatures,
) -> Result<(Confined, ContainerConfig)> {
    let (owner, view, features) = (node.clone(), pod.clone(), features.clone());
    let (confined, volumes, config) = blocking(move || {
        let confinement = &owner.confinement;
        let confined = confinement.confine(view.label.as_deref(), &config.security, &features)?;
        let relabelled = config
            .mounts
            .iter()
            .filter_map(|mount| match &mount.source {
                MountSource::Host(path) if mount.selinux_relabel => Some(host::real_source(path)),
                _ => None,
            });
        let volumes = match confined.selinux.mount {
            Some(_) => relabelled.collect::<Result<Vec<_>>>()?,
            None => Vec::new(),
        };
        Ok((confined, volumes, config))
    })
    .await?;
    if let (Some(label), false) = (&confined.selinux.mount, volumes.is_empty()) {
        let wanted = Relabelling {
            volumes,
            others: vec![node.root.clone(), node.state.clone()],
            label: label.clone(),
            pod: pod.id.clone(),
            stopping: pod.stopping.clone(),
        };
        node.confinement.relabel(wanted).await?;
    }
    Ok((confined, config))
}
