//! Opening a store: from what is on disk to what is known of it.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::catalog::Catalog;
use super::commit::{distinct, is_pinned};
use super::layers::{DIFF, FIGURES, LayerTable};
use super::record::{self, TEMPORARY_PREFIX};
use super::trash::Trash;
use super::{BrokenRecord, Inner, LAYERS, RECORDS, StoreConfig, TEMPORARY, record_path};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::layer::measure;
use crate::pull::Flights;
use crate::registry::HttpClients;

/// What the records say.
struct Found {
    images: Vec<(Image, u64)>,
    broken: Vec<BrokenRecord>,
}

pub(super) fn open(config: StoreConfig) -> Result<Inner, ImageError> {
    for directory in [RECORDS, LAYERS, TEMPORARY] {
        make_directory(&config.root.join(directory))?;
    }
    let trash =
        Trash::open(&config.trash).map_err(|error| ImageError::io("open", &config.trash, error))?;
    remove_leftovers(&config.root, &trash)?;
    let found = read_records(&config.root, &trash)?;
    let generation = found
        .images
        .iter()
        .map(|(_, g)| *g)
        .max()
        .unwrap_or_default();
    let catalog = build_catalog(&config, found.images);
    let layers = read_layers(&config.root, &catalog, &trash)?;
    let root = File::open(&config.root).map_err(|e| ImageError::io("open", &config.root, e))?;
    info!(
        images = catalog.list().len(),
        broken = found.broken.len(),
        root = %config.root.display(),
        "image store opened"
    );
    Ok(Inner {
        root: root.into(),
        trash,
        catalog: RwLock::new(Arc::new(catalog)),
        layers: Mutex::new(layers),
        writer: Mutex::new(generation),
        layer_locks: Mutex::default(),
        layer_permits: Arc::new(Semaphore::new(config.limits.layers_total.max(1))),
        clients: Arc::new(HttpClients::new(config.timeouts.clone())),
        flights: Flights::default(),
        temporary: AtomicU64::new(0),
        broken: found.broken,
        config,
    })
}

/// For root only: layers hold set-user-id files of other systems.
fn make_directory(path: &Path) -> Result<(), ImageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| ImageError::io("make", path, error))
}

fn list(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |error| ImageError::io("read", path, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn discard(trash: &Arc<Trash>, path: &Path) -> Result<(), ImageError> {
    trash
        .discard(path)
        .map_err(|error| ImageError::io("remove", path, error))
}

/// Unfinished layers and records of a killed process.
fn remove_leftovers(root: &Path, trash: &Arc<Trash>) -> Result<(), ImageError> {
    for path in list(&root.join(TEMPORARY))? {
        info!(path = %path.display(), "removing an unfinished layer");
        discard(trash, &path)?;
    }
    for path in list(&root.join(RECORDS))? {
        if file_name(&path).starts_with(TEMPORARY_PREFIX) {
            discard(trash, &path)?;
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn read_records(root: &Path, trash: &Arc<Trash>) -> Result<Found, ImageError> {
    let mut found = Found {
        images: Vec::new(),
        broken: Vec::new(),
    };
    for path in list(&root.join(RECORDS))? {
        let (names, reason) = match record::read_image(&path) {
            Ok((image, generation)) => match check_image(root, &path, &image) {
                None => {
                    found.images.push((image, generation));
                    continue;
                }
                Some(reason) => (image.repo_tags, reason),
            },
            Err(ImageError::BrokenRecord { reason, .. }) => (Vec::new(), reason),
            // A disk that cannot be read is no reason to throw images away.
            Err(error) => return Err(error),
        };
        warn!(path = %path.display(), ?names, reason, "dropping a damaged image; it can be pulled again");
        discard(trash, &path)?;
        found.broken.push(BrokenRecord {
            path,
            names,
            reason,
        });
    }
    Ok(found)
}

/// What is wrong with an image, if anything.
fn check_image(root: &Path, path: &Path, image: &Image) -> Option<String> {
    if record_path(root, &image.id) != path {
        return Some(format!("it is the record of {}", image.id));
    }
    for layer in &image.layers {
        let diff = root.join(LAYERS).join(layer.diff_id.hex()).join(DIFF);
        if !std::fs::symlink_metadata(&diff).is_ok_and(|found| found.is_dir()) {
            return Some(format!("layer {} is missing", layer.diff_id));
        }
    }
    None
}

/// Gives each tag to the image that had it last: a crash may have left it to two.
fn build_catalog(config: &StoreConfig, mut images: Vec<(Image, u64)>) -> Catalog {
    let mut owners: HashMap<String, (u64, Digest)> = HashMap::new();
    for (image, generation) in &images {
        for tag in &image.repo_tags {
            let owner = owners
                .entry(tag.clone())
                .or_insert_with(|| (*generation, image.id.clone()));
            if owner.0 < *generation {
                *owner = (*generation, image.id.clone());
            }
        }
    }
    let mut catalog = Catalog::default();
    for (image, _) in &mut images {
        image
            .repo_tags
            .retain(|tag| owners.get(tag).is_some_and(|(_, id)| *id == image.id));
        image.pinned = is_pinned(&config.pinned, image);
        catalog.insert(Arc::new(image.clone()));
    }
    catalog
}

/// The layers of all images, and those without one, which a lease may still want.
fn read_layers(
    root: &Path,
    catalog: &Catalog,
    trash: &Arc<Trash>,
) -> Result<LayerTable, ImageError> {
    let mut table = LayerTable::default();
    for image in catalog.list() {
        for layer in &image.layers {
            let disk = crate::layer::DiskUse {
                bytes: layer.bytes,
                inodes: layer.inodes,
            };
            if table.disk_use(&layer.diff_id).is_none() {
                table.insert(layer.diff_id.clone(), disk, true);
            }
        }
        for diff_id in distinct(&image) {
            table.add_reference(&diff_id);
        }
    }
    for path in list(&root.join(LAYERS))? {
        let Some(diff_id) = Digest::from_hex(file_name(&path)) else {
            warn!(path = %path.display(), "removing what is no layer");
            discard(trash, &path)?;
            continue;
        };
        if table.disk_use(&diff_id).is_some() {
            continue;
        }
        let (disk, durable) = match record::read_figures(&path.join(FIGURES)) {
            Ok(disk) => (disk, true),
            Err(_) => (measure(&path.join(DIFF)).unwrap_or_default(), false),
        };
        table.insert(diff_id, disk, durable);
    }
    Ok(table)
}
