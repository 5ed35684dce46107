//! Additional stores: images that another program keeps, used where they are and never changed.
//!
//! The layout is that of github.com/containers/storage, which Podman and its family have: on z/OS the administrator's
//! store, bind-mounted read-only at `/var/share/containers/storage`.
//!
//! ```text
//! <root>/<driver>-images/images.json            [{ id, digest, names, layer }]: id is the digest of the configuration
//! <root>/<driver>-images/<id>/=<base64 of key>  the configuration; its key is "sha256:<id>"
//! <root>/<driver>-layers/layers.json            [{ id, parent, diff-digest, diff-size, compressed-* }]
//! <root>/<driver>/<layer>/diff                  the files of a layer alone, as overlayfs has them
//! ```
//!
//! The driver is `overlay` on Linux and `ufs` on z/OS (UNVERIFIED: that a layer's files are in `diff` there too); one
//! whose layers are whole trees (`vfs`) cannot be used. The writer replaces its files as a whole, so that no lock is
//! needed to read them; what does not fit together at that moment is left out until the next change.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::catalog::Catalog;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageConfig, LayerInfo};
use crate::platform::Platform;
use crate::reference::ImageReference;

/// Layers of one image at most: a chain that is longer leads round.
const MAX_LAYERS: usize = 500;

/// Read-only stores, the earlier ones first.
#[derive(Debug)]
pub struct AdditionalStores {
    stores: Vec<Store>,
    platform: Platform,
}

#[derive(Debug)]
struct Store {
    root: PathBuf,
    content: Mutex<Content>,
}

/// What was read, and of which version of the file.
#[derive(Debug, Default)]
struct Content {
    version: Option<Version>,
    catalog: Catalog,
    /// By the image's id.
    layers: HashMap<Digest, Directories>,
}

/// The diff ids of an image's layers with their directories, the lowest first.
type Directories = Vec<(Digest, PathBuf)>;

/// Inode, size and time of change: another file, or another content.
type Version = (u64, u64, i64, i64);

#[derive(Deserialize)]
struct StoredImage {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StoredLayer {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default)]
    compressed_diff_digest: String,
    #[serde(default)]
    compressed_size: u64,
    #[serde(default)]
    diff_digest: String,
    #[serde(default)]
    diff_size: u64,
}

impl AdditionalStores {
    /// Those below these directories, of which some may not exist.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = PathBuf>, platform: Platform) -> Self {
        let store = |root| Store {
            root,
            content: Mutex::default(),
        };
        Self {
            stores: roots.into_iter().map(store).collect(),
            platform,
        }
    }

    /// The image called `name`, as [`super::ImageStore::resolve`] takes names.
    ///
    /// # Errors
    /// As there.
    pub fn resolve(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        for store in &self.stores {
            if let Some(image) = store.read(&self.platform).catalog.resolve(name)? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// All images.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        let all = self.stores.iter();
        all.flat_map(|store| store.read(&self.platform).catalog.list())
            .collect()
    }

    /// The directories of an image's layers, the top one first and each once.
    #[must_use]
    pub fn directories(&self, id: &Digest) -> Option<Vec<PathBuf>> {
        let find = |store: &Store| store.read(&self.platform).layers.get(id).cloned();
        let layers = self.stores.iter().find_map(find)?;
        let mut paths = Vec::with_capacity(layers.len());
        for (_, path) in layers.into_iter().rev() {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        Some(paths)
    }

    /// Whether a layer of an image here has this diff id.
    #[must_use]
    pub fn has_layer(&self, diff_id: &str) -> bool {
        self.stores.iter().any(|store| {
            let content = store.read(&self.platform);
            let mut layers = content.layers.values().flatten();
            layers.any(|(known, _)| known.as_str() == diff_id)
        })
    }
}

impl Store {
    /// What is there now: read anew when the list of images has changed.
    fn read(&self, platform: &Platform) -> MutexGuard<'_, Content> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = driver(&self.root);
        let version = driver.as_deref().and_then(|driver| self.version(driver));
        if content.version == version {
            return content;
        }
        *content = Content {
            version,
            ..Content::default()
        };
        let Some(driver) = driver.filter(|_| version.is_some()) else {
            return content;
        };
        if let Err(reason) = self.fill(&driver, platform, &mut content) {
            warn!(root = %self.root.display(), reason, "an additional image store cannot be read");
        }
        content
    }

    fn version(&self, driver: &str) -> Option<Version> {
        let found = std::fs::metadata(self.images(driver).join("images.json")).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    }

    fn images(&self, driver: &str) -> PathBuf {
        self.root.join(format!("{driver}-images"))
    }

    fn fill(&self, driver: &str, platform: &Platform, content: &mut Content) -> Result<(), String> {
        let images: Vec<StoredImage> = read(&self.images(driver).join("images.json"))?;
        let layers = self.root.join(format!("{driver}-layers"));
        let layers: Vec<StoredLayer> = read(&layers.join("layers.json"))?;
        let layers = layers.iter().map(|layer| (layer.id.as_str(), layer));
        let layers: HashMap<_, _> = layers.collect();
        for stored in images {
            match self.image(driver, &stored, &layers, platform) {
                Ok(Some((image, dirs))) => {
                    content.layers.insert(image.id.clone(), dirs);
                    content.catalog.insert(Arc::new(image));
                }
                // For another platform.
                Ok(None) => {}
                Err(reason) => {
                    warn!(root = %self.root.display(), id = stored.id, reason, "an image of an additional store cannot be used");
                }
            }
        }
        Ok(())
    }

    /// An image with its layers; none if it is for another platform.
    fn image(
        &self,
        driver: &str,
        stored: &StoredImage,
        layers: &HashMap<&str, &StoredLayer>,
        platform: &Platform,
    ) -> Result<Option<(Image, Directories)>, String> {
        let id = Digest::from_hex(&stored.id).ok_or("its id is no digest")?;
        let key = format!("={}", STANDARD.encode(id.as_str()));
        let path = self.images(driver).join(&stored.id).join(key);
        let raw = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if Digest::sha256(raw.as_bytes()) != id {
            return Err("the configuration is not the one of the image".to_owned());
        }
        let config = ImageConfig::parse(&raw).map_err(|e| e.to_string())?;
        let variant = config.variant.as_deref();
        let rank = platform.rank(&config.os, &config.architecture, variant);
        if rank.is_none() {
            return Ok(None);
        }
        let chain = chain(&stored.layer, layers)?;
        let dirs = chain.iter().map(|layer| {
            let dir = self.root.join(driver).join(&layer.id).join("diff");
            let diff_id = parse(&layer.diff_digest)?;
            if dir.is_dir() {
                Ok((diff_id, dir))
            } else {
                Err(format!("{} is no directory", dir.display()))
            }
        });
        let dirs = dirs.collect::<Result<Directories, String>>()?;
        let named = dirs.iter().map(|(diff_id, _)| diff_id.as_str());
        if !named.eq(config.diff_ids.iter().map(String::as_str)) {
            return Err("the layers are not those of the configuration".to_owned());
        }
        let layers = chain.iter().zip(&dirs);
        let layers = layers.map(|(layer, (diff_id, _))| LayerInfo {
            diff_id: diff_id.clone(),
            digest: parse(&layer.compressed_diff_digest).unwrap_or_else(|_| diff_id.clone()),
            compressed_size: layer.compressed_size,
            bytes: layer.diff_size,
            inodes: 0,
        });
        let manifest = parse(&stored.digest).unwrap_or_else(|_| id.clone());
        let (repo_tags, repo_digests) = names(stored, &manifest);
        let image = Image {
            id,
            manifest_digest: manifest,
            repo_tags,
            repo_digests,
            size: chain.iter().map(|layer| layer.diff_size).sum(),
            // Nobody here can remove it, so that nobody should try.
            pinned: true,
            config,
            raw_config: raw.into(),
            layers: layers.collect(),
        };
        Ok(Some((image, dirs)))
    }
}

/// The name of the driver that keeps a store, by the directory of its images.
fn driver(root: &Path) -> Option<String> {
    let entries = std::fs::read_dir(root).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix("-images").map(str::to_owned))
        .find(|name| name != "vfs")
}

/// The layers of an image, the lowest first.
fn chain<'a>(
    top: &str,
    layers: &HashMap<&str, &'a StoredLayer>,
) -> Result<Vec<&'a StoredLayer>, String> {
    let (mut found, mut next) = (Vec::new(), top);
    while !next.is_empty() {
        let layer = layers.get(next).ok_or_else(|| format!("no layer {next}"))?;
        // Names become parts of paths.
        if !layer.id.bytes().all(|byte| byte.is_ascii_alphanumeric()) || found.len() > MAX_LAYERS {
            return Err(format!("no sound chain of layers: {:?}", layer.id));
        }
        found.push(*layer);
        next = &layer.parent;
    }
    found.reverse();
    Ok(found)
}

/// Tags, and the digest at each repository.
fn names(stored: &StoredImage, manifest: &Digest) -> (Vec<String>, Vec<String>) {
    let given = stored.names.iter().flatten();
    let references: Vec<ImageReference> = given.filter_map(|name| name.parse().ok()).collect();
    let tags = references.iter().filter_map(ImageReference::tagged_name);
    let digests = references.iter().map(|name| name.with_digest(manifest));
    let (mut tags, mut digests): (Vec<_>, Vec<_>) = (tags.collect(), digests.collect());
    for names in [&mut tags, &mut digests] {
        names.sort();
        names.dedup();
    }
    (tags, digests)
}

fn parse(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|_| format!("{text:?} is no digest"))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))
}
