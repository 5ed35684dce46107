//! Records on disk: what they look like, and how they are written so that each is there whole or not at all.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageConfig, LayerInfo};
use crate::layer::DiskUse;

const IMAGE_MAGIC: &str = "zcri-image";
const LAYER_MAGIC: &str = "zcri-layer";
const VERSION: u32 = 1;
/// Bytes of a record that are read; the configuration is the largest part of one.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// What every record is wrapped in. The checksum is of the text of `content`.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    magic: String,
    version: u32,
    checksum: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// An image as it is stored, version 1.
#[derive(Serialize, Deserialize)]
struct StoredImage {
    /// Grows with every record that is written: of two that claim a tag, the later one has it.
    generation: u64,
    id: String,
    manifest_digest: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    layers: Vec<StoredLayer>,
    /// The bytes of the configuration, whose digest is the id.
    config: String,
}

#[derive(Serialize, Deserialize)]
struct StoredLayer {
    diff_id: String,
    digest: String,
    compressed_size: u64,
    bytes: u64,
    inodes: u64,
}

/// The figures of a layer, version 1.
#[derive(Serialize, Deserialize)]
struct StoredFigures {
    bytes: u64,
    inodes: u64,
}

/// Writes the record of an image. It is on disk when this returns.
pub(super) fn write_image(path: &Path, image: &Image, generation: u64) -> Result<(), ImageError> {
    let stored = StoredImage {
        generation,
        id: image.id.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        layers: image.layers.iter().map(StoredLayer::from).collect(),
        config: image.raw_config.to_string(),
    };
    write(path, IMAGE_MAGIC, &stored, true)
}

/// Reads the record of an image, with its generation. `pinned` is left to the caller.
pub(super) fn read_image(path: &Path) -> Result<(Image, u64), ImageError> {
    let stored: StoredImage = read(path, IMAGE_MAGIC)?;
    let generation = stored.generation;
    let image = stored
        .into_image()
        .map_err(|reason| ImageError::BrokenRecord {
            path: path.to_owned(),
            reason,
        })?;
    Ok((image, generation))
}

/// Writes the figures of a layer. They may be lost with the power, and are then not there or broken.
pub(super) fn write_figures(path: &Path, disk: DiskUse) -> Result<(), ImageError> {
    let stored = StoredFigures {
        bytes: disk.bytes,
        inodes: disk.inodes,
    };
    write(path, LAYER_MAGIC, &stored, false)
}

pub(super) fn read_figures(path: &Path) -> Result<DiskUse, ImageError> {
    let stored: StoredFigures = read(path, LAYER_MAGIC)?;
    Ok(DiskUse {
        bytes: stored.bytes,
        inodes: stored.inodes,
    })
}

impl From<&LayerInfo> for StoredLayer {
    fn from(layer: &LayerInfo) -> Self {
        Self {
            diff_id: layer.diff_id.to_string(),
            digest: layer.digest.to_string(),
            compressed_size: layer.compressed_size,
            bytes: layer.bytes,
            inodes: layer.inodes,
        }
    }
}

impl StoredImage {
    fn into_image(self) -> Result<Image, String> {
        let digest = |text: &str| text.parse::<Digest>().map_err(|error| error.to_string());
        let id = digest(&self.id)?;
        if id.of_same_kind(self.config.as_bytes()) != id {
            return Err("the configuration is not the one of the image".to_owned());
        }
        let config = ImageConfig::parse(&self.config).map_err(|error| error.to_string())?;
        let layers = self.layers.into_iter().map(|layer| {
            Ok(LayerInfo {
                diff_id: digest(&layer.diff_id)?,
                digest: digest(&layer.digest)?,
                compressed_size: layer.compressed_size,
                bytes: layer.bytes,
                inodes: layer.inodes,
            })
        });
        let layers: Vec<LayerInfo> = layers.collect::<Result<_, String>>()?;
        let named = layers.iter().map(|layer| layer.diff_id.as_str());
        if !named.eq(config.diff_ids.iter().map(String::as_str)) {
            return Err("the layers are not those of the configuration".to_owned());
        }
        Ok(Image {
            id,
            manifest_digest: digest(&self.manifest_digest)?,
            repo_tags: self.repo_tags,
            repo_digests: self.repo_digests,
            size: size_on_disk(&layers),
            pinned: false,
            config,
            raw_config: self.config.into(),
            layers,
        })
    }
}

/// Bytes on disk of different layers.
pub(super) fn size_on_disk(layers: &[LayerInfo]) -> u64 {
    let mut seen = std::collections::HashSet::new();
    layers
        .iter()
        .filter(|layer| seen.insert(&layer.diff_id))
        .map(|layer| layer.bytes)
        .sum()
}

fn write(
    path: &Path,
    magic: &str,
    content: &impl Serialize,
    durable: bool,
) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::io("write", path, error);
    let content = serde_json::value::to_raw_value(content).map_err(|e| failed(e.into()))?;
    let envelope = Envelope {
        magic: magic.to_owned(),
        version: VERSION,
        checksum: Digest::sha256(content.get().as_bytes()).to_string(),
        content: &content,
    };
    let text = serde_json::to_vec(&envelope).map_err(|e| failed(e.into()))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{name}"));
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(&text)?;
            if durable { file.sync_all() } else { Ok(()) }
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // Nothing useful can be done when even this fails; such files are removed at the next start.
        drop(std::fs::remove_file(&temporary));
        return Err(failed(error));
    }
    if durable {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
    }
    Ok(())
}

/// Start of the names of records that are being written.
pub(super) const TEMPORARY_PREFIX: &str = ".new-";

fn read<T: DeserializeOwned>(path: &Path, magic: &str) -> Result<T, ImageError> {
    let broken = |reason: String| ImageError::BrokenRecord {
        path: path.to_owned(),
        reason,
    };
    let length = std::fs::metadata(path)
        .map_err(|e| ImageError::io("read", path, e))?
        .len();
    if length > MAX_RECORD_BYTES {
        return Err(broken(format!("it has {length} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => broken("it is not UTF-8".to_owned()),
        _ => ImageError::io("read", path, error),
    })?;
    let envelope: Envelope<'_> = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
    if envelope.magic != magic {
        return Err(broken(format!("it is a `{}`", envelope.magic)));
    }
    if envelope.version != VERSION {
        return Err(broken(format!(
            "its version is {}, this program reads {VERSION}",
            envelope.version
        )));
    }
    if Digest::sha256(envelope.content.get().as_bytes()).as_str() != envelope.checksum {
        return Err(broken("its checksum is wrong".to_owned()));
    }
    serde_json::from_str(envelope.content.get()).map_err(|e| broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1 as the first release wrote it: must be readable for ever.
    const GOLDEN: &str = include_str!("golden-image-v1.json");

    fn image() -> Image {
        let layer: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let raw = format!(
            r#"{{"os":"zos","architecture":"s390x","config":{{"Env":["A=\"b\"\n"]}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let id = Digest::sha256(raw.as_bytes());
        Image {
            repo_tags: vec!["registry.example/a:1".to_owned()],
            repo_digests: vec![format!("registry.example/a@{id}")],
            size: 4096,
            pinned: false,
            config: ImageConfig::parse(&raw).unwrap(),
            raw_config: raw.into(),
            layers: vec![LayerInfo {
                diff_id: layer.clone(),
                digest: layer,
                compressed_size: 10,
                bytes: 4096,
                inodes: 2,
            }],
            manifest_digest: id.clone(),
            id,
        }
    }

    #[test]
    fn round_trip_and_golden_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_image(&path, &image(), 7).unwrap();
        assert_eq!(read_image(&path).unwrap(), (image(), 7));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), GOLDEN.trim_end());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(&path, GOLDEN).unwrap();
        assert_eq!(read_image(&path).unwrap(), (image(), 7));
    }

    #[test]
    fn flipped_bytes_and_cuts_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let good = GOLDEN.trim_end().as_bytes();
        for at in (0..good.len()).step_by(5) {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(read_image(&path).is_err(), "flip at {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(read_image(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn other_versions_and_kinds_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let later = GOLDEN.replacen("\"version\":1", "\"version\":9", 1);
        std::fs::write(&path, later).unwrap();
        assert!(
            read_image(&path)
                .unwrap_err()
                .to_string()
                .contains("version is 9")
        );
        write_figures(
            &path,
            DiskUse {
                bytes: 1,
                inodes: 2,
            },
        )
        .unwrap();
        assert!(
            read_image(&path)
                .unwrap_err()
                .to_string()
                .contains("zcri-layer")
        );
        assert_eq!(
            read_figures(&path).unwrap(),
            DiskUse {
                bytes: 1,
                inodes: 2
            }
        );
    }
}
