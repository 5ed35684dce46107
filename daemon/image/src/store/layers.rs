//! Layers: which are there, what they take, and who needs them.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::error;

use super::{Inner, Usage};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::DiskUse;

/// The directory of a layer's files within its own.
pub(super) const DIFF: &str = "diff";
/// The figures of a layer within its directory.
pub(super) const FIGURES: &str = "layer.json";

#[derive(Debug, Default)]
pub(super) struct LayerTable {
    layers: HashMap<Digest, Layer>,
    leases: HashMap<String, BTreeSet<Digest>>,
    usage: Usage,
}

#[derive(Debug)]
struct Layer {
    disk: DiskUse,
    /// Images, leases and pulls.
    references: usize,
    /// Its files were synced. One that was not and that nobody needs may be the half of what a crash left.
    durable: bool,
}

impl LayerTable {
    pub(super) const fn usage(&self) -> Usage {
        self.usage
    }

    pub(super) fn disk_use(&self, diff_id: &Digest) -> Option<DiskUse> {
        self.layers.get(diff_id).map(|layer| layer.disk)
    }

    /// Enters a layer that is on disk, without a reference.
    pub(super) fn insert(&mut self, diff_id: Digest, disk: DiskUse, durable: bool) {
        let layer = Layer {
            disk,
            references: 0,
            durable,
        };
        if self.layers.insert(diff_id, layer).is_none() {
            self.usage.bytes += disk.bytes;
            self.usage.inodes += disk.inodes;
        }
    }

    pub(super) fn add_reference(&mut self, diff_id: &Digest) {
        if let Some(layer) = self.layers.get_mut(diff_id) {
            layer.references += 1;
        }
    }

    pub(super) fn is_durable(&self, diff_id: &Digest) -> bool {
        self.layers.get(diff_id).is_some_and(|layer| layer.durable)
    }

    pub(super) fn set_durable(&mut self, diff_id: &Digest) {
        if let Some(layer) = self.layers.get_mut(diff_id) {
            layer.durable = true;
        }
    }

    pub(super) fn lease(&mut self, owner: &str, diff_ids: &[Digest]) -> Result<(), ImageError> {
        for diff_id in diff_ids {
            if !self.layers.contains_key(diff_id) {
                return Err(ImageError::UnknownLayer {
                    diff_id: diff_id.clone(),
                });
            }
        }
        let held = self.leases.entry(owner.to_owned()).or_default();
        for diff_id in diff_ids {
            if held.insert(diff_id.clone())
                && let Some(layer) = self.layers.get_mut(diff_id)
            {
                layer.references += 1;
            }
        }
        Ok(())
    }

    /// The layers that `owner` held; their references are still counted.
    pub(super) fn release_owner(&mut self, owner: &str) -> Vec<Digest> {
        let held = self.leases.remove(owner).unwrap_or_default();
        held.into_iter().collect()
    }

    fn forget(&mut self, diff_id: &Digest) {
        if let Some(layer) = self.layers.remove(diff_id) {
            self.usage.bytes -= layer.disk.bytes;
            self.usage.inodes -= layer.disk.inodes;
        }
    }
}

impl Inner {
    /// Takes a reference to a layer that is there.
    pub(crate) fn hold(self: &Arc<Self>, diff_id: &Digest) -> Option<LayerHold> {
        let mut layers = self.layers();
        let layer = layers.layers.get_mut(diff_id)?;
        if layer.references == 0 && !layer.durable {
            self.discard_layer(&mut layers, diff_id);
            return None;
        }
        layer.references += 1;
        Some(LayerHold {
            store: Arc::clone(self),
            diff_id: diff_id.clone(),
        })
    }

    /// Gives up references; layers without any go to the trash.
    pub(super) fn drop_references(&self, diff_ids: &[Digest]) {
        let mut layers = self.layers();
        for diff_id in diff_ids {
            let Some(layer) = layers.layers.get_mut(diff_id) else {
                continue;
            };
            layer.references = layer.references.saturating_sub(1);
            if layer.references == 0 {
                self.discard_layer(&mut layers, diff_id);
            }
        }
    }

    pub(super) fn collect_garbage(&self) -> usize {
        let mut layers = self.layers();
        let unused: Vec<Digest> = layers
            .layers
            .iter()
            .filter(|(_, layer)| layer.references == 0)
            .map(|(diff_id, _)| diff_id.clone())
            .collect();
        for diff_id in &unused {
            self.discard_layer(&mut layers, diff_id);
        }
        unused.len()
    }

    /// A rename, with the table locked so that no pull can find the layer meanwhile.
    fn discard_layer(&self, layers: &mut LayerTable, diff_id: &Digest) {
        let path = self.layer_dir(diff_id);
        match self.trash.discard(&path) {
            Ok(()) => layers.forget(diff_id),
            // It stays known, so that it is counted, can be used, and is tried again at the next start.
            Err(error) => error!(path = %path.display(), %error, "cannot remove a layer"),
        }
    }
}

/// A reference to a layer for the time of a pull.
pub(crate) struct LayerHold {
    store: Arc<Inner>,
    diff_id: Digest,
}

impl LayerHold {
    pub(crate) fn disk_use(&self) -> DiskUse {
        self.store
            .layers()
            .disk_use(&self.diff_id)
            .unwrap_or_default()
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        self.store
            .drop_references(std::slice::from_ref(&self.diff_id));
    }
}

/// A layer that is being unpacked. Goes to the trash unless it is installed.
pub(crate) struct TempLayer {
    store: Arc<Inner>,
    diff_id: Digest,
    path: PathBuf,
}

impl TempLayer {
    pub(crate) fn create(store: &Arc<Inner>, diff_id: &Digest) -> Result<Self, ImageError> {
        let layer = Self {
            path: store.temporary_path(diff_id),
            diff_id: diff_id.clone(),
            store: Arc::clone(store),
        };
        let diff = layer.path.join(DIFF);
        std::fs::create_dir_all(&diff).map_err(|error| ImageError::io("make", &diff, error))?;
        Ok(layer)
    }

    /// The empty directory for the layer's files.
    pub(crate) fn open(&self) -> Result<OwnedFd, ImageError> {
        let diff = self.path.join(DIFF);
        let dir = File::open(&diff).map_err(|error| ImageError::io("open", &diff, error))?;
        Ok(dir.into())
    }

    /// Makes the layer one of the store's. The caller holds its [`Inner::layer_lock`].
    pub(crate) fn install(self, disk: DiskUse) -> Result<LayerHold, ImageError> {
        let path = self.store.layer_dir(&self.diff_id);
        let mut layers = self.store.layers();
        std::fs::rename(&self.path, &path).map_err(|error| ImageError::io("make", &path, error))?;
        layers.insert(self.diff_id.clone(), disk, false);
        layers.add_reference(&self.diff_id);
        drop(layers);
        Ok(LayerHold {
            store: Arc::clone(&self.store),
            diff_id: self.diff_id.clone(),
        })
    }
}

impl Drop for TempLayer {
    fn drop(&mut self) {
        // After an installation there is nothing at this path.
        if let Err(error) = self.store.trash.discard(&self.path) {
            error!(path = %self.path.display(), %error, "cannot remove an unfinished layer");
        }
    }
}
