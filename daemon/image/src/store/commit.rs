//! Making a pulled image one of the store's, and removing one: the only writers of records.

use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::syncfs;
use tracing::warn;

use super::layers::FIGURES;
use super::record::{self, size_on_disk};
use super::{Inner, LayerHold, record_path};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageConfig, LayerInfo};
use crate::layer::DiskUse;
use crate::reference::ImageReference;

/// An image whose layers are all there.
pub(crate) struct Pulled {
    pub(crate) reference: ImageReference,
    pub(crate) id: Digest,
    pub(crate) manifest_digest: Digest,
    /// Of the manifest or index that the reference led to.
    pub(crate) asked_digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) raw_config: Arc<str>,
    /// Lowest first.
    pub(crate) layers: Vec<LayerInfo>,
    /// Keep the layers until the image does.
    pub(crate) holds: Vec<LayerHold>,
}

impl Inner {
    /// Records a pulled image. When this returns it survives the loss of power. Blocks.
    pub(crate) fn commit(&self, pulled: Pulled) -> Result<Arc<Image>, ImageError> {
        // Not under the lock: it takes as long as the disk does.
        self.sync_new(&pulled.layers)?;
        let mut generation = self.writer();
        self.write_figures(&pulled.layers)?;
        let mut catalog = (*self.catalog()).clone();
        let known = catalog.get(&pulled.id).cloned();
        let image = Arc::new(self.described(&pulled, known.as_deref()));
        let tag = pulled.reference.tagged_name();
        let loser = tag
            .as_ref()
            .and_then(|tag| catalog.owner_of(tag))
            .filter(|owner| owner.id != image.id)
            .cloned();
        if let Some(known) = known.as_ref().filter(|known| **known == image) {
            return Ok(Arc::clone(known));
        }
        *generation += 1;
        let path = record_path(&self.config.root, &image.id);
        record::write_image(&path, &image, *generation)?;
        if let (Some(loser), Some(tag)) = (loser, &tag) {
            catalog.insert(self.untagged(&loser, tag, *generation - 1));
        }
        catalog.insert(Arc::clone(&image));
        self.set_catalog(catalog);
        if known.is_none() {
            let mut layers = self.layers();
            for diff_id in distinct(&image) {
                layers.add_reference(&diff_id);
            }
        }
        // Before the lock is given up, so that a removal finds the references of the image, not of the pull.
        drop(pulled.holds);
        Ok(image)
    }

    /// Removes an image. Its record goes first: without layers it would be broken, they without it are garbage.
    pub(super) fn remove(&self, id: &Digest) -> Result<Option<Arc<Image>>, ImageError> {
        let writer = self.writer();
        let mut catalog = (*self.catalog()).clone();
        let Some(image) = catalog.remove(id) else {
            return Ok(None);
        };
        let path = record_path(&self.config.root, id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", path, error));
            }
            _ => {}
        }
        self.set_catalog(catalog);
        self.drop_references(&distinct(&image));
        drop(writer);
        Ok(Some(image))
    }

    fn writer(&self) -> MutexGuard<'_, u64> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_layers<'a>(&self, layers: &'a [LayerInfo]) -> Vec<&'a LayerInfo> {
        let table = self.layers();
        let is_new = |layer: &&LayerInfo| !table.is_durable(&layer.diff_id);
        layers.iter().filter(is_new).collect()
    }

    /// One `syncfs` for all new layers; none when there are none.
    fn sync_new(&self, layers: &[LayerInfo]) -> Result<(), ImageError> {
        if self.new_layers(layers).is_empty() {
            return Ok(());
        }
        syncfs(&self.root).map_err(|error| ImageError::io("sync", &self.config.root, error.into()))
    }

    /// Marks layers as being on disk, which they are. The caller is the only writer: pulls of images that share a
    /// layer come here at the same time.
    fn write_figures(&self, layers: &[LayerInfo]) -> Result<(), ImageError> {
        for layer in self.new_layers(layers) {
            let disk = DiskUse {
                bytes: layer.bytes,
                inodes: layer.inodes,
            };
            record::write_figures(&self.layer_dir(&layer.diff_id).join(FIGURES), disk)?;
            self.layers().set_durable(&layer.diff_id);
        }
        Ok(())
    }

    /// The image under its old names and the new ones.
    fn described(&self, pulled: &Pulled, known: Option<&Image>) -> Image {
        let mut repo_tags = known.map_or_else(Vec::new, |image| image.repo_tags.clone());
        let mut repo_digests = known.map_or_else(Vec::new, |image| image.repo_digests.clone());
        add_name(&mut repo_tags, pulled.reference.tagged_name());
        let by_digest = pulled.reference.with_digest(&pulled.asked_digest);
        add_name(&mut repo_digests, Some(by_digest));
        let mut image = Image {
            id: pulled.id.clone(),
            manifest_digest: pulled.manifest_digest.clone(),
            repo_tags,
            repo_digests,
            size: size_on_disk(&pulled.layers),
            pinned: false,
            config: pulled.config.clone(),
            raw_config: Arc::clone(&pulled.raw_config),
            layers: pulled.layers.clone(),
        };
        image.pinned = is_pinned(&self.config.pinned, &image);
        image
    }

    /// `image` without `tag`, on disk as well. If that cannot be written, its record keeps the tag with an older
    /// generation, and loses it at the next start.
    fn untagged(&self, image: &Image, tag: &str, generation: u64) -> Arc<Image> {
        let mut image = image.clone();
        image.repo_tags.retain(|known| known != tag);
        image.pinned = is_pinned(&self.config.pinned, &image);
        let path = record_path(&self.config.root, &image.id);
        if let Err(error) = record::write_image(&path, &image, generation) {
            warn!(image = %image.id, tag, %error, "cannot write that a tag has moved");
        }
        Arc::new(image)
    }
}

fn add_name(names: &mut Vec<String>, name: Option<String>) {
    if let Some(name) = name
        && let Err(at) = names.binary_search(&name)
    {
        names.insert(at, name);
    }
}

/// Its layers, each once.
pub(super) fn distinct(image: &Image) -> Vec<Digest> {
    let mut diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
    diff_ids.sort_unstable();
    diff_ids.dedup();
    diff_ids
}

/// Whether a pattern fits a name of the image: equal, or equal but for a `*` at an end.
pub(super) fn is_pinned(patterns: &[String], image: &Image) -> bool {
    let fits = |pattern: &String, name: &String| match (
        pattern.strip_prefix('*'),
        pattern.strip_suffix('*'),
    ) {
        (Some(rest), None) => name.ends_with(rest),
        (None, Some(rest)) => name.starts_with(rest),
        (Some(_), Some(_)) => name.contains(pattern.trim_matches('*')),
        (None, None) => name == pattern,
    };
    image
        .repo_tags
        .iter()
        .chain(&image.repo_digests)
        .any(|name| patterns.iter().any(|pattern| fits(pattern, name)))
}
