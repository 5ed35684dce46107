//! The store: images and layers on disk, and what is known of them in memory.
//!
//! ```text
//! <root>/layers/<diff id>/diff/       a layer, unpacked on its own, a lower directory of overlayfs
//! <root>/layers/<diff id>/layer.json  its figures; written when its files are known to be on disk
//! <root>/records/<image id>.json      an image: names, configuration, layers
//! <root>/tmp/                         layers that are being unpacked
//! <trash>/image-*                     what is being removed
//! ```
//!
//! Invariants:
//! - A record is written after `syncfs` of everything it names, and read back only with its checksum: an image is
//!   whole, or it is known to be broken and can be pulled again.
//! - A layer directory appears by a rename when it is complete, and goes by a rename into the trash: neither needs
//!   free space worth the name.
//! - A layer stays while an image, a lease or a pull refers to it, and goes with the last of them. Layers found at
//!   [`ImageStore::open`] without an image stay until [`ImageStore::collect_garbage`], for their leases to be taken
//!   again.
//! - One process owns a store.

mod additional;
mod catalog;
mod commit;
mod layers;
mod open;
mod record;
mod trash;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::limits::Limits;
use crate::platform::Platform;
use crate::pull::{Flights, PullRequest};
use crate::registry::{HttpClients, RegistryHosts, Timeouts};

pub use additional::AdditionalStores;
use catalog::Catalog;
pub(crate) use commit::Pulled;
use layers::LayerTable;
pub(crate) use layers::{LayerHold, TempLayer};
use trash::Trash;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The directory that the store owns; made when missing.
    pub root: PathBuf,
    /// Where removed things go first, on the same file system; shared with the rest of the daemon.
    pub trash: PathBuf,
    /// Which images run here.
    pub platform: Platform,
    /// Where registries are.
    pub hosts: Arc<dyn RegistryHosts>,
    /// How long registries may take.
    pub timeouts: Timeouts,
    /// Limits of images.
    pub limits: Limits,
    /// References whose images are pinned; `*` at the end (or the start) stands for anything.
    pub pinned: Vec<String>,
}

/// A record that was dropped because it or a layer of it is damaged. Pulling the image again repairs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRecord {
    /// The record, or the directory that is no layer.
    pub path: PathBuf,
    /// The image's names as far as they are known.
    pub names: Vec<String>,
    /// What is wrong.
    pub reason: String,
}

/// What layers take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A handle to a store; clones are the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore")
            .field("root", &self.inner.config.root)
            .finish_non_exhaustive()
    }
}

/// What the handles share.
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    /// For `syncfs`.
    root: OwnedFd,
    trash: Arc<Trash>,
    /// Replaced as a whole, so that readers never wait for a disk.
    catalog: RwLock<Arc<Catalog>>,
    layers: Mutex<LayerTable>,
    /// Held while records are written; the number of the last one.
    writer: Mutex<u64>,
    /// One pull at a time unpacks a layer; the others wait for it.
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) layer_permits: Arc<Semaphore>,
    pub(crate) clients: Arc<HttpClients>,
    flights: Flights,
    temporary: AtomicU64,
    broken: Vec<BrokenRecord>,
}

impl ImageStore {
    /// Opens the store: reads the records, drops damaged ones, removes what a killed process left.
    ///
    /// # Errors
    /// When a directory cannot be made or read. Damaged content is no error, see
    /// [`broken_at_open`](Self::broken_at_open).
    pub async fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let root = config.root.clone();
        let inner = tokio::task::spawn_blocking(move || open::open(config))
            .await
            .map_err(|error| ImageError::io("open", root, std::io::Error::other(error)))??;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What was damaged when the store was opened, and is gone now.
    pub fn broken_at_open(&self) -> &[BrokenRecord] {
        &self.inner.broken
    }

    /// Pulls an image. Pulls of the same reference with the same credentials are one; it goes on while anybody
    /// waits for it and is cancelled, without a trace, when nobody does.
    ///
    /// # Errors
    /// See [`ImageError`]; all who wait for one pull get the same.
    ///
    /// # Cancel safety
    /// Dropping the future gives up waiting.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, ImageError> {
        Flights::join(&self.inner, request).await
    }

    /// The image called `name`: an id (with or without `sha256:`), a reference, or the start of an id. None: there
    /// is none.
    ///
    /// # Errors
    /// When `name` is neither a reference nor part of an id, or is the start of several ids.
    pub fn resolve(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        self.inner.catalog().resolve(name)
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.catalog().list()
    }

    /// Removes the image called `name` with all of its tags, as containerd does. Layers in use stay until they
    /// are released. Gives the image; none if there was none.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), and when the record cannot be removed: then the image is still there.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let Some(image) = self.resolve(name)? else {
            return Ok(None);
        };
        let inner = Arc::clone(&self.inner);
        let id = image.id.clone();
        tokio::task::spawn_blocking(move || inner.remove(&id))
            .await
            .map_err(|error| {
                ImageError::io("remove", image.id.as_str(), std::io::Error::other(error))
            })?
    }

    /// What all layers take on disk. Nothing is walked.
    pub fn usage(&self) -> Usage {
        self.inner.layers().usage()
    }

    /// Keeps the layers of image `id` on disk until `owner` releases them, and gives their directories, top layer
    /// first and each once, as overlayfs wants them. An owner may hold several leases.
    ///
    /// # Errors
    /// [`ImageError::UnknownImage`].
    pub fn lease(&self, owner: &str, id: &str) -> Result<Vec<PathBuf>, ImageError> {
        let unknown = || ImageError::UnknownImage {
            image: id.to_owned(),
        };
        let image = self.resolve(id).ok().flatten().ok_or_else(unknown)?;
        let diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
        // Between the two steps the image may have been removed, its layers with it.
        self.lease_layers(owner, &diff_ids).map_err(|_| unknown())
    }

    /// As [`lease`](Self::lease), for layers by their diff ids, lowest first: for containers whose image was
    /// removed, after the daemon was started again.
    ///
    /// # Errors
    /// [`ImageError::UnknownLayer`]; then nothing new is held.
    pub fn lease_layers(
        &self,
        owner: &str,
        diff_ids: &[Digest],
    ) -> Result<Vec<PathBuf>, ImageError> {
        self.inner.layers().lease(owner, diff_ids)?;
        let mut paths = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids.iter().rev() {
            let path = self.inner.layer_dir(diff_id).join(layers::DIFF);
            // The topmost of equal layers covers the others; overlayfs refuses a directory twice.
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// Ends the leases of `owner`; without any, nothing happens.
    pub fn release(&self, owner: &str) {
        let freed = self.inner.layers().release_owner(owner);
        self.inner.drop_references(&freed);
    }

    /// Removes the layers that nothing refers to: once, after the daemon has taken its leases again. (Later on
    /// layers go by themselves.) Gives how many.
    pub async fn collect_garbage(&self) -> usize {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.collect_garbage())
            .await
            .unwrap_or_default()
    }
}

impl Inner {
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_catalog(&self, catalog: Catalog) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
    }

    fn layers(&self) -> MutexGuard<'_, LayerTable> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.config.root.join(LAYERS).join(diff_id.hex())
    }

    /// A path in `tmp/` that nothing else has.
    fn temporary_path(&self, diff_id: &Digest) -> PathBuf {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let name = format!("{number}-{}", diff_id.hex());
        self.config.root.join(TEMPORARY).join(name)
    }

    pub(crate) fn flights(&self) -> &Flights {
        &self.flights
    }

    /// Whoever unpacks the layer `diff_id` holds this.
    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .layer_locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(diff_id.clone(), Arc::downgrade(&lock));
        lock
    }
}

const LAYERS: &str = "layers";
const RECORDS: &str = "records";
const TEMPORARY: &str = "tmp";

/// Where the record of an image is.
fn record_path(root: &Path, id: &Digest) -> PathBuf {
    root.join(RECORDS).join(format!("{}.json", id.hex()))
}
