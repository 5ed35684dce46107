//! The image store as the daemon uses it: set up from the configuration, with short names expanded.

mod gate;
mod hosts;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use zcri_config::Config;
use zcri_image::{
    AdditionalStores, Credentials, Image, ImageError, ImageStore, Limits, Platform, PullRequest,
    StoreConfig, Timeouts, Usage,
};

use crate::error::{Error, Result};
use crate::messages;
use gate::Gate;
use hosts::ConfiguredHosts;

pub use hosts::{Files, FilesError};

/// Images by the names that people and the kubelet use.
pub struct Images {
    store: ImageStore,
    hosts: Arc<ConfiguredHosts>,
    gate: Gate,
    additional: AdditionalStores,
}

impl Images {
    /// Opens the store below `[storage] root`.
    ///
    /// # Errors
    /// A file that the configuration names is bad, or the store cannot be read.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let files = Files::load(&config.image)?;
        let hosts = Arc::new(ConfiguredHosts::new(files, config.image.hosts_dir.clone()));
        let platform = config.platform.image.resolve();
        let platform = Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
        };
        let store = ImageStore::open(StoreConfig {
            root: config.storage.root.join("images"),
            trash: config.storage.root.join("trash"),
            platform: platform.clone(),
            hosts: hosts.clone(),
            timeouts: Timeouts::default(),
            limits: Limits {
                layers_per_pull: config.image.max_parallel_layers,
                layer_bytes: config.image.max_layer_bytes,
                entries: config.image.max_layer_entries,
                ..Limits::default()
            },
            pinned: config.image.pinned.clone(),
        })
        .await
        .context("open the image store")?;
        for broken in store.broken_at_open() {
            tracing::error!(zcr = messages::IMAGE_DAMAGED, path = %broken.path.display(), names = ?broken.names, reason = broken.reason,
                "an image is damaged and was dropped; pulling it again repairs it");
        }
        let gate = Gate::new(config);
        let additional = AdditionalStores::new(config.image.additional_stores.clone(), platform);
        Ok(Self {
            store,
            hosts,
            gate,
            additional,
        })
    }

    /// Puts other files of the administrator in force, for pulls that begin from now on.
    pub fn set_files(&self, files: Files) {
        self.hosts.set_files(files);
    }

    /// Pulls an image. For a short name the places that it may be in are tried in order.
    ///
    /// # Cancel safety
    /// A pull whose last waiter is gone ends and leaves nothing.
    ///
    /// # Errors
    /// Of the last place tried.
    pub async fn pull(&self, name: &str, credentials: Option<Credentials>) -> Result<Arc<Image>> {
        let mut names = self.expand(name)?.into_iter().peekable();
        while let Some(full) = names.next() {
            let reference = full.parse().map_err(|e| failed(name, e))?;
            self.gate
                .admit(&reference)
                .await
                .map_err(|e| failed(name, e))?;
            let request = PullRequest {
                reference,
                credentials: credentials.clone(),
                progress: None,
            };
            match self.store.pull(request).await {
                Err(ImageError::NotFound { .. }) if names.peek().is_some() => {}
                pulled => return pulled.map_err(|e| failed(name, e)),
            }
        }
        Err(Error::NotFound {
            what: "image",
            id: name.into(),
        })
    }

    /// The image of that name, id or beginning of an id; what is no name of an image names none.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        // An id first: it looks like a short name. Our own first: it may be newer.
        let find = |name: &str| {
            let own = self.store.resolve(name).ok().flatten();
            own.or_else(|| self.additional.resolve(name).ok().flatten())
        };
        if let Some(image) = find(name) {
            return Some(image);
        }
        let names = self.hosts.files().registries.expand(name).ok()?;
        names.iter().find_map(|name| find(name))
    }

    /// All images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut all = self.store.list();
        for image in self.additional.list() {
            if !all.iter().any(|known| known.id == image.id) {
                all.push(image);
            }
        }
        all
    }

    /// Removes an image with all its names; none of that name is removed already. Layers that a container stands on
    /// stay until it is gone.
    ///
    /// # Errors
    /// The name is none, or the file system refused.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let Some(image) = self.find(name) else {
            // A name that no image can have, or several, is a mistake and no removal.
            return match self.store.resolve(name) {
                Err(error) => Err(failed(name, error)),
                Ok(_) => Ok(()),
            };
        };
        let removed = self.store.remove(image.id.as_str()).await;
        match removed.map_err(|e| failed(name, e))? {
            Some(_) => Ok(()),
            None if self.additional.directories(&image.id).is_some() => {
                let image = image.id.to_string();
                Err(failed(name, ImageError::ReadOnly { image }))
            }
            None => Ok(()),
        }
    }

    /// What layers take on disk.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// Keeps the layers of an image for a container; gives their directories, the top one first.
    ///
    /// # Errors
    /// The image is gone.
    pub fn lease(&self, owner: &str, image: &Image) -> Result<Vec<PathBuf>> {
        match self.store.lease(owner, image.id.as_str()) {
            Err(ImageError::UnknownImage { image: id }) => {
                let other = self.additional.directories(&image.id);
                other.ok_or(ImageError::UnknownImage { image: id })
            }
            leased => leased,
        }
        .map_err(|e| failed(image.id.as_str(), e))
    }

    /// Keeps layers by their diff ids, whether or not an image still names them.
    ///
    /// # Errors
    /// One is gone.
    pub fn lease_layers(&self, owner: &str, diff_ids: &[String]) -> Result<()> {
        let parse = |id: &String| {
            id.parse().map_err(|_| {
                Error::node("read a record", format!("{id:?} is no digest of a layer"))
            })
        };
        let mut diff_ids = diff_ids.iter().map(parse).collect::<Result<Vec<_>>>()?;
        loop {
            match self.store.lease_layers(owner, &diff_ids) {
                // Not ours to keep.
                Err(ImageError::UnknownLayer { diff_id })
                    if self.additional.has_layer(diff_id.as_str()) =>
                {
                    diff_ids.retain(|known| *known != diff_id);
                }
                leased => return leased.map(drop).map_err(|e| failed(owner, e)),
            }
        }
    }

    /// Ends what [`Images::lease`] began.
    pub fn release(&self, owner: &str) {
        self.store.release(owner);
    }

    /// Removes layers that nothing refers to, after all leases were taken again.
    pub async fn collect_garbage(&self) {
        let layers = self.store.collect_garbage().await;
        if layers > 0 {
            tracing::info!(layers, "removed layers that nothing refers to");
        }
    }

    fn expand(&self, name: &str) -> Result<Vec<String>> {
        self.hosts
            .files()
            .registries
            .expand(name)
            .map_err(|error| Error::Invalid {
                field: "image.image",
                value: name.into(),
                reason: error.to_string(),
            })
    }
}

fn failed(reference: &str, source: ImageError) -> Error {
    Error::Image {
        reference: reference.into(),
        source: Box::new(source),
    }
}
