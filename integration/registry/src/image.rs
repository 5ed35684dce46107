//! Images and indexes: configuration, manifest, media types.

use serde_json::{Map, Value, json};

use crate::layer::{Blob, Compression, Layer};

/// Which family of media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestKind {
    /// OCI image specification 1.1.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl ManifestKind {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Self::Docker, Compression::Zstd) => {
                "application/vnd.docker.image.rootfs.diff.tar.zstd"
            }
        }
    }
}

/// What can be pushed under a name: an image or an index of images.
#[derive(Debug, Clone)]
pub struct Content {
    /// The manifest or index that a tag points to.
    pub(crate) top: Manifest,
    /// Manifests of the images in an index.
    pub(crate) manifests: Vec<Manifest>,
    /// Configurations and layers.
    pub(crate) blobs: Vec<Blob>,
}

/// A manifest or index with its media type.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) blob: Blob,
}

/// An image: manifest, configuration, layers.
#[derive(Debug, Clone)]
pub struct Image {
    platform: Platform,
    manifest: Manifest,
    config: Blob,
    layers: Vec<Layer>,
}

impl Image {
    /// Starts an image for `platform`, which is `os/architecture` or `os/architecture/variant`.
    pub fn builder(platform: &str) -> ImageBuilder {
        ImageBuilder {
            platform: Platform::parse(platform),
            kind: ManifestKind::Oci,
            layers: Vec::new(),
            config: Map::new(),
            layer_media_type: None,
            config_platform: None,
        }
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> &str {
        &self.manifest.blob.digest
    }

    /// Digest of the configuration: the image id of CRI.
    pub fn config_digest(&self) -> &str {
        &self.config.digest
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn blobs(&self) -> impl Iterator<Item = Blob> + '_ {
        std::iter::once(self.config.clone())
            .chain(self.layers.iter().map(|layer| layer.blob.clone()))
    }
}

impl From<Image> for Content {
    fn from(image: Image) -> Self {
        Self {
            blobs: image.blobs().collect(),
            manifests: Vec::new(),
            top: image.manifest,
        }
    }
}

/// Builds an [`Image`].
#[derive(Debug)]
pub struct ImageBuilder {
    platform: Platform,
    kind: ManifestKind,
    layers: Vec<Layer>,
    config: Map<String, Value>,
    layer_media_type: Option<String>,
    config_platform: Option<Platform>,
}

impl ImageBuilder {
    /// The family of media types; OCI unless told.
    #[must_use]
    pub fn kind(mut self, kind: ManifestKind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// `Entrypoint` of the configuration.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.list("Entrypoint", words)
    }

    /// `Cmd` of the configuration.
    #[must_use]
    pub fn cmd<S: Into<String>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.list("Cmd", words)
    }

    /// `Env` of the configuration: `NAME=value` each.
    #[must_use]
    pub fn env<S: Into<String>>(self, variables: impl IntoIterator<Item = S>) -> Self {
        self.list("Env", variables)
    }

    /// `User` of the configuration.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.config("User", json!(user))
    }

    /// `WorkingDir` of the configuration.
    #[must_use]
    pub fn working_dir(self, path: &str) -> Self {
        self.config("WorkingDir", json!(path))
    }

    /// `StopSignal` of the configuration.
    #[must_use]
    pub fn stop_signal(self, signal: &str) -> Self {
        self.config("StopSignal", json!(signal))
    }

    /// `Volumes` of the configuration.
    #[must_use]
    pub fn volume(mut self, path: &str) -> Self {
        self.config.entry("Volumes").or_insert_with(|| json!({}))[path] = json!({});
        self
    }

    /// A label of the configuration.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.entry("Labels").or_insert_with(|| json!({}))[key] = json!(value);
        self
    }

    /// Any field of the configuration's `config` object.
    #[must_use]
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Another media type than the layers' own, for instance one that nobody supports.
    #[must_use]
    pub fn layer_media_type(mut self, media_type: &str) -> Self {
        self.layer_media_type = Some(media_type.to_owned());
        self
    }

    /// Another platform in the configuration than the one that an index tells.
    #[must_use]
    pub fn config_platform(mut self, platform: &str) -> Self {
        self.config_platform = Some(Platform::parse(platform));
        self
    }

    /// Writes configuration and manifest.
    pub fn build(self) -> Image {
        let diff_ids: Vec<&str> = self
            .layers
            .iter()
            .map(|layer| layer.diff_id.as_str())
            .collect();
        let mut config = self
            .config_platform
            .as_ref()
            .unwrap_or(&self.platform)
            .to_json();
        config["created"] = json!("2024-01-02T03:04:05Z");
        config["config"] = Value::Object(self.config);
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        config["history"] = diff_ids
            .iter()
            .map(|id| json!({ "created_by": format!("layer {id}") }))
            .collect();
        let config = Blob::new(config.to_string());
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let media_type = self
                    .layer_media_type
                    .as_deref()
                    .unwrap_or(self.kind.layer(layer.compression));
                descriptor(media_type, &layer.blob)
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.kind.manifest(),
            "config": descriptor(self.kind.config(), &config),
            "layers": layers,
        });
        Image {
            platform: self.platform,
            manifest: Manifest {
                media_type: self.kind.manifest().to_owned(),
                blob: Blob::new(manifest.to_string()),
            },
            config,
            layers: self.layers,
        }
    }

    fn list<S: Into<String>>(self, key: &str, values: impl IntoIterator<Item = S>) -> Self {
        let values: Vec<String> = values.into_iter().map(Into::into).collect();
        self.config(key, json!(values))
    }
}

/// Several images under one name: an OCI index or a Docker manifest list.
#[derive(Debug, Clone)]
pub struct Index {
    kind: ManifestKind,
    images: Vec<Image>,
}

impl Index {
    /// An OCI index of `images`, in this order.
    pub fn oci(images: impl IntoIterator<Item = Image>) -> Self {
        Self {
            kind: ManifestKind::Oci,
            images: images.into_iter().collect(),
        }
    }

    /// A Docker manifest list of `images`, in this order.
    pub fn docker(images: impl IntoIterator<Item = Image>) -> Self {
        Self {
            kind: ManifestKind::Docker,
            images: images.into_iter().collect(),
        }
    }
}

impl From<Index> for Content {
    fn from(index: Index) -> Self {
        let entries: Vec<Value> = index
            .images
            .iter()
            .map(|image| {
                let mut entry = descriptor(&image.manifest.media_type, &image.manifest.blob);
                entry["platform"] = image.platform.to_json();
                entry
            })
            .collect();
        let top =
            json!({ "schemaVersion": 2, "mediaType": index.kind.index(), "manifests": entries });
        Self {
            top: Manifest {
                media_type: index.kind.index().to_owned(),
                blob: Blob::new(top.to_string()),
            },
            blobs: index.images.iter().flat_map(Image::blobs).collect(),
            manifests: index
                .images
                .into_iter()
                .map(|image| image.manifest)
                .collect(),
        }
    }
}

impl Content {
    /// Any bytes under any media type: for manifests that no builder makes.
    pub fn raw(
        media_type: &str,
        manifest: impl Into<bytes::Bytes>,
        blobs: impl IntoIterator<Item = Blob>,
    ) -> Self {
        Self {
            top: Manifest {
                media_type: media_type.to_owned(),
                blob: Blob::new(manifest),
            },
            manifests: Vec::new(),
            blobs: blobs.into_iter().collect(),
        }
    }

    /// Digest of the manifest or index itself.
    pub fn digest(&self) -> &str {
        &self.top.blob.digest
    }
}

#[derive(Debug, Clone)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    fn parse(text: &str) -> Self {
        let mut parts = text.split('/').map(str::to_owned);
        Self {
            os: parts.next().unwrap_or_default(),
            architecture: parts
                .next()
                .expect("a platform is os/architecture[/variant]"),
            variant: parts.next(),
        }
    }

    fn to_json(&self) -> Value {
        let mut value = json!({ "architecture": self.architecture, "os": self.os });
        if let Some(variant) = &self.variant {
            value["variant"] = json!(variant);
        }
        value
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.data.len() })
}
