//! Images that a container mounts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use zcri_image::Image;

use super::config::{ContainerConfig, ImageRef, MountSource};
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::images::Images;

/// The images of a container's mounts, by the number of the mount.
pub(super) struct ImageVolumes(Vec<(usize, Arc<Image>)>);

impl ImageVolumes {
    /// Finds them.
    ///
    /// # Errors
    /// One was not pulled.
    pub(super) fn find(images: &Images, config: &ContainerConfig) -> Result<Self> {
        let mut volumes = Vec::new();
        for (number, mount) in config.mounts.iter().enumerate() {
            if let MountSource::Image { image, .. } = &mount.source {
                volumes.push((number, find(images, image)?));
            }
        }
        Ok(Self(volumes))
    }

    /// Diff ids of all their layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = String> {
        let layers = self.0.iter().flat_map(|(_, image)| &image.layers);
        layers.map(|layer| layer.diff_id.to_string())
    }

    /// Keeps them for a container; gives the directories of their layers, the top one first.
    ///
    /// # Errors
    /// One was removed meanwhile.
    pub(super) fn lease(
        &self,
        images: &Images,
        id: &ContainerId,
    ) -> Result<BTreeMap<usize, Vec<PathBuf>>> {
        let one = |(number, image): &(usize, Arc<Image>)| {
            Ok((*number, images.lease(id.as_str(), image)?))
        };
        self.0.iter().map(one).collect()
    }
}

/// By the id that the edge found, or by what the request says.
fn find(images: &Images, name: &ImageRef) -> Result<Arc<Image>> {
    let known = [&name.image_ref, &name.image]
        .into_iter()
        .filter(|name| !name.is_empty())
        .find_map(|name| images.find(name));
    known.ok_or_else(|| Error::NotFound {
        what: "image",
        id: name.image.clone(),
    })
}
