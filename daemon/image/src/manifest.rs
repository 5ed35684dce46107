//! Manifests and indexes: which content an image is made of. The types and media types are oci-client's.

use std::collections::BTreeSet;

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
    OciImageIndex, OciImageManifest,
};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::platform::{Platform, describe};

/// What a registry is asked to answer with.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Layers of any of these are tar archives, however compressed: the first bytes tell.
const LAYER_MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_SUFFIXES: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];

/// A document that a reference led to.
#[derive(Debug)]
pub(crate) enum Document {
    Index(OciImageIndex),
    Image(ImageManifest),
}

/// Content by digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The manifest of an image for one platform, checked.
#[derive(Debug)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// The fields by which a document tells its kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. Its own media type counts, then the one of the HTTP answer, then its shape.
    pub(crate) fn parse(
        bytes: &[u8],
        content_type: Option<&str>,
        digest: &Digest,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let invalid = |reason: String| ImageError::InvalidManifest {
            what: format!("manifest {digest}"),
            reason,
        };
        let kind: Kind = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        // A document with both could be read as an image by one tool and as an index by another.
        if kind.manifests.is_some() && kind.layers.is_some() {
            return Err(invalid("it has both `manifests` and `layers`".to_owned()));
        }
        let named = kind.media_type.as_deref().or(content_type);
        let is_index = match named {
            Some(OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE) => true,
            Some(OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE) => false,
            // Static file servers say what they like; only the document's own word is binding.
            _ if kind.media_type.is_none() && kind.schema_version == Some(2) => {
                kind.manifests.is_some()
            }
            _ => {
                return Err(ImageError::UnsupportedMediaType {
                    what: format!("manifest {digest}"),
                    media_type: named.unwrap_or("none (schema 1)").to_owned(),
                });
            }
        };
        if is_index {
            let index = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
            return Ok(Self::Index(index));
        }
        let manifest: OciImageManifest =
            serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        ImageManifest::check(&manifest, digest, limits).map(Self::Image)
    }
}

impl ImageManifest {
    fn check(
        manifest: &OciImageManifest,
        digest: &Digest,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let config_type = manifest.config.media_type.as_str();
        if ![IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE].contains(&config_type) {
            return Err(ImageError::UnsupportedMediaType {
                what: format!("configuration {}", manifest.config.digest),
                media_type: config_type.to_owned(),
            });
        }
        if manifest.layers.len() > limits.layers {
            return Err(ImageError::LimitExceeded {
                what: format!("manifest {digest} with {} layers", manifest.layers.len()),
                limit: format!("{} layers", limits.layers),
            });
        }
        for layer in &manifest.layers {
            if !is_layer(&layer.media_type) {
                return Err(ImageError::UnsupportedMediaType {
                    what: format!("layer {}", layer.digest),
                    media_type: layer.media_type.clone(),
                });
            }
        }
        let config = descriptor(&manifest.config, digest)?;
        if config.size > limits.config_bytes {
            return Err(ImageError::LimitExceeded {
                what: format!("configuration {} of {} bytes", config.digest, config.size),
                limit: format!("{} bytes", limits.config_bytes),
            });
        }
        let layers = manifest
            .layers
            .iter()
            .map(|layer| descriptor(layer, digest));
        Ok(Self {
            config,
            layers: layers.collect::<Result<_, _>>()?,
        })
    }
}

fn is_layer(media_type: &str) -> bool {
    LAYER_MEDIA_TYPES.iter().any(|base| {
        media_type
            .strip_prefix(base)
            .is_some_and(|suffix| LAYER_SUFFIXES.contains(&suffix))
    })
}

fn descriptor(from: &OciDescriptor, manifest: &Digest) -> Result<Descriptor, ImageError> {
    checked(&from.digest, from.size, manifest)
}

fn checked(digest: &str, size: i64, manifest: &Digest) -> Result<Descriptor, ImageError> {
    let invalid = |reason: String| ImageError::InvalidManifest {
        what: format!("manifest {manifest}"),
        reason,
    };
    Ok(Descriptor {
        digest: digest
            .parse()
            .map_err(|error: crate::digest::DigestError| invalid(error.to_string()))?,
        size: u64::try_from(size).map_err(|_| invalid(format!("size {size} of {digest}")))?,
    })
}

/// The entry of an index that fits `wanted` best; the first of equals. Entries that are neither a manifest nor an
/// index, and those without a platform, are passed over: attestations, signatures, artifacts.
pub(crate) fn pick(
    index: &OciImageIndex,
    wanted: &Platform,
    digest: &Digest,
    reference: &str,
) -> Result<Descriptor, ImageError> {
    let usable = |media_type: &str| {
        [
            OCI_IMAGE_MEDIA_TYPE,
            IMAGE_MANIFEST_MEDIA_TYPE,
            OCI_IMAGE_INDEX_MEDIA_TYPE,
            IMAGE_MANIFEST_LIST_MEDIA_TYPE,
        ]
        .contains(&media_type)
    };
    let mut found = BTreeSet::new();
    let mut best: Option<(usize, &oci_client::manifest::ImageIndexEntry)> = None;
    for entry in index.manifests.iter().filter(|e| usable(&e.media_type)) {
        let Some(platform) = &entry.platform else {
            continue;
        };
        let (os, architecture) = (platform.os.to_string(), platform.architecture.to_string());
        let variant = platform.variant.as_deref();
        found.insert(describe(&os, &architecture, variant));
        let Some(rank) = wanted.rank(&os, &architecture, variant) else {
            continue;
        };
        if best.is_none_or(|(other, _)| rank < other) {
            best = Some((rank, entry));
        }
    }
    match best {
        Some((_, entry)) => checked(&entry.digest, entry.size, digest),
        None => Err(ImageError::WrongPlatform {
            reference: reference.to_owned(),
            wanted: wanted.to_string(),
            found: if found.is_empty() {
                "no platform at all".to_owned()
            } else {
                found.into_iter().collect::<Vec<_>>().join(", ")
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(json: &str, content_type: Option<&str>) -> Result<Document, ImageError> {
        let digest = Digest::sha256(json.as_bytes());
        Document::parse(json.as_bytes(), content_type, &digest, &Limits::default())
    }

    fn entry(media_type: &str, digit: char, platform: &str) -> String {
        let digest = digit.to_string().repeat(64);
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":7{platform}}}"#)
    }

    fn platform(os: &str, architecture: &str) -> String {
        format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
    }

    fn mixed_index() -> OciImageIndex {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST_LIST_MEDIA_TYPE}","manifests":[{},{},{},{}]}}"#,
            entry("application/x-other", 'a', &platform("zos", "s390x")),
            entry(OCI_IMAGE_MEDIA_TYPE, 'b', &platform("unknown", "unknown")),
            entry(IMAGE_MANIFEST_MEDIA_TYPE, 'c', &platform("linux", "amd64")),
            entry(OCI_IMAGE_MEDIA_TYPE, 'd', &platform("zos", "s390x")),
        );
        match parse(&json, None).unwrap() {
            Document::Index(index) => index,
            Document::Image(_) => panic!("not an index"),
        }
    }

    #[test]
    fn picks_from_a_docker_list_with_oci_entries() {
        let digest = Digest::sha256(b"");
        let pick = |wanted: &str| pick(&mixed_index(), &wanted.parse().unwrap(), &digest, "ref");
        assert!(pick("zos/s390x").unwrap().digest.hex().starts_with("dd"));
        assert!(pick("linux/amd64").unwrap().digest.hex().starts_with("cc"));
        let error = pick("linux/riscv64").unwrap_err().to_string();
        assert!(
            error.contains("linux/riscv64") && error.contains("zos/s390x"),
            "{error}"
        );
    }

    #[test]
    fn a_type_of_the_answer_is_enough() {
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{IMAGE_CONFIG_MEDIA_TYPE}","digest":"sha256:{HEX}","size":2}},"layers":[]}}"#
        );
        for content_type in [Some(OCI_IMAGE_MEDIA_TYPE), Some("text/plain"), None] {
            assert!(matches!(parse(&json, content_type), Ok(Document::Image(_))));
        }
    }

    #[test]
    fn refuses_what_is_no_image() {
        let manifest = |config: &str, layer: &str| {
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE_MEDIA_TYPE}","config":{{"mediaType":"{config}","digest":"sha256:{HEX}","size":2}},"layers":[{}]}}"#,
                entry(layer, 'a', "")
            )
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert!(parse(&manifest(IMAGE_CONFIG_MEDIA_TYPE, layer), None).is_ok());
        for (json, part) in [
            (
                manifest("application/vnd.oci.empty.v1+json", layer),
                "oci.empty",
            ),
            (
                manifest(IMAGE_CONFIG_MEDIA_TYPE, "application/wasm"),
                "application/wasm",
            ),
            (
                manifest(IMAGE_CONFIG_MEDIA_TYPE, &format!("{layer}+encrypted")),
                "+encrypted",
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                "schema 1",
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/x","layers":[]}"#.to_owned(),
                "application/x",
            ),
            (
                r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(),
                "both",
            ),
            ("nonsense".to_owned(), "expected"),
        ] {
            let error = parse(&json, None).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn counts_layers() {
        let layers = vec![entry("application/vnd.oci.image.layer.v1.tar", 'a', ""); 3].join(",");
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{IMAGE_CONFIG_MEDIA_TYPE}","digest":"sha256:{HEX}","size":2}},"layers":[{layers}]}}"#
        );
        let limits = Limits {
            layers: 2,
            ..Limits::default()
        };
        let digest = Digest::sha256(b"");
        let error = Document::parse(json.as_bytes(), None, &digest, &limits).unwrap_err();
        assert!(matches!(error, ImageError::LimitExceeded { .. }), "{error}");
    }
}
