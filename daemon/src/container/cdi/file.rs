//! The form of a description of devices. What is not known is refused: a device without a part of what it needs would
//! fail later and in the dark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A file, checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SpecFile {
    cdi_version: String,
    /// `vendor/class`
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// What every device of the file needs.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What is to be changed in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
    pub(super) additional_gids: Vec<u32>,
    /// Known, and refused where it stands.
    pub(super) intel_rdt: Option<serde_json::Value>,
    /// Known, and refused where it stands.
    pub(super) net_devices: Option<serde_json::Value>,
}

/// A device node. What is not said is taken from the node on the host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    pub(super) r#type: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    pub(super) r#type: Option<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// A program that the OCI runtime calls.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) timeout: Option<i64>,
}

/// How a file is written, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
}

/// SPEC.md: files end in `.json` or `.yaml`; others are none.
pub(super) fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "json" => Some(Format::Json),
        "yaml" => Some(Format::Yaml),
        _ => None,
    }
}

pub(super) fn parse(path: &Path, text: &str) -> Result<SpecFile, String> {
    let file: SpecFile = match format_of(path) {
        Some(Format::Json) => serde_json::from_str(text).map_err(|e| e.to_string())?,
        Some(Format::Yaml) => serde_norway::from_str(text).map_err(|e| e.to_string())?,
        None => return Err("is neither .json nor .yaml".into()),
    };
    let major = file.cdi_version.split('.').next();
    if !matches!(major, Some("0" | "1")) {
        return Err(format!("cdiVersion {:?} is not known", file.cdi_version));
    }
    let kind = file.kind.split_once('/');
    if !kind.is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty()) {
        return Err(format!("kind {:?} is not vendor/class", file.kind));
    }
    Ok(file)
}
