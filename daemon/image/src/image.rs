//! An image as the rest of the daemon sees it, and the part of its configuration that matters to a container.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;

/// An image in the store. A value is a snapshot: it does not change when tags move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest that was pulled (of one platform).
    pub manifest_digest: Digest,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest` of the manifest or index that was asked for, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes on disk of its layers, shared ones included.
    pub size: u64,
    /// Whether garbage collection is to leave it alone.
    pub pinned: bool,
    /// What the image says about its containers.
    pub config: ImageConfig,
    /// The configuration as it was pulled; its digest is the id.
    pub raw_config: Arc<str>,
    /// Lowest layer first.
    pub layers: Vec<LayerInfo>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the archive, by which layers are stored.
    pub diff_id: Digest,
    /// Digest of the compressed blob.
    pub digest: Digest,
    /// Bytes of the compressed blob.
    pub compressed_size: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes on disk.
    pub inodes: u64,
}

/// The fields of an OCI or Docker image configuration (OCI image specification, config.md) that concern a runtime.
/// Unknown fields are kept in [`Image::raw_config`] only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The command's fixed part.
    pub entrypoint: Vec<String>,
    /// The command's default arguments.
    pub cmd: Vec<String>,
    /// Absolute, or empty.
    pub working_dir: String,
    /// `user[:group]`, names or numbers, or empty.
    pub user: String,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// Name or number of a signal, or empty.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the layers' archives, lowest first.
    pub diff_ids: Vec<String>,
}

/// The JSON as producers write it: absent and `null` are the same everywhere.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RawRuntime>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRuntime {
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    stop_signal: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is not JSON of that shape, or has no `rootfs`.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let raw: RawConfig = serde_json::from_str(json)?;
        let Some(rootfs) = raw.rootfs else {
            return Err(serde::de::Error::missing_field("rootfs"));
        };
        let runtime = raw.config.unwrap_or_default();
        Ok(Self {
            os: raw.os.unwrap_or_default(),
            architecture: raw.architecture.unwrap_or_default(),
            variant: raw.variant.filter(|text| !text.is_empty()),
            env: runtime.env.unwrap_or_default(),
            entrypoint: runtime.entrypoint.unwrap_or_default(),
            cmd: runtime.cmd.unwrap_or_default(),
            working_dir: runtime.working_dir.unwrap_or_default(),
            user: runtime.user.unwrap_or_default(),
            volumes: runtime.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: runtime.stop_signal.unwrap_or_default(),
            labels: runtime.labels.unwrap_or_default(),
            diff_ids: rootfs.diff_ids.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let config = ImageConfig::parse(
            r#"{"architecture":"s390x","os":"zos","variant":"","created":"2020-01-01T00:00:00Z",
               "config":{"Hostname":"","User":"10:20","ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"Cmd":null,
               "Entrypoint":["/init"],"Volumes":{"/data":{}},"WorkingDir":"/w","StopSignal":"SIGQUIT",
               "Labels":{"k":"v"},"OnBuild":null},"history":[{"empty_layer":true}],
               "rootfs":{"type":"layers","diff_ids":["sha256:00"]}}"#,
        )
        .unwrap();
        assert_eq!(
            (config.os.as_str(), config.architecture.as_str()),
            ("zos", "s390x")
        );
        assert_eq!(config.variant, None);
        assert_eq!(config.user, "10:20");
        assert_eq!(config.entrypoint, ["/init"]);
        assert!(config.cmd.is_empty());
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.stop_signal, "SIGQUIT");
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.diff_ids, ["sha256:00"]);
    }

    #[test]
    fn an_artifact_is_no_image() {
        assert!(ImageConfig::parse("{}").is_err());
        assert!(ImageConfig::parse("[]").is_err());
        let empty = ImageConfig::parse(r#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert_eq!(empty, ImageConfig::default());
    }
}
