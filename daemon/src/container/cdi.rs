//! Devices by the Container Device Interface (cncf-tags/container-device-interface, SPEC.md): descriptions in JSON or
//! YAML that say what a container needs for a device, by the name `vendor/class=device`.
//!
//! The directories are read when a container asks for a device, and never watched: they hold a few small files.

mod edits;
mod file;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::config::ContainerConfig;
use crate::error::{Error, Result};
use edits::ApplyError;
use file::{Edits, SpecFile};

/// More than this is no description of devices.
const LIMIT_BYTES: u64 = 4 << 20;
/// Annotations of kubelets before 1.29, with names of devices, divided by commas.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";
const FIELD: &str = "config.CDI_devices";

/// Applies the devices that a container asks for to its specification.
///
/// # Errors
/// A device that no file, or more than one of equal rank, describes; a description that cannot be applied.
pub(super) fn apply(dirs: &[PathBuf], config: &ContainerConfig, spec: &mut Spec) -> Result<()> {
    let names = names(config);
    if names.is_empty() {
        return Ok(());
    }
    let known = Known::read(dirs);
    // What all devices of a kind need is needed once.
    let mut kinds_seen = BTreeSet::new();
    for name in names {
        let refused = |reason: String| Error::Invalid {
            field: FIELD,
            value: name.to_owned(),
            reason,
        };
        let (kind, device) = name
            .split_once('=')
            .ok_or_else(|| refused("must have the form vendor/class=name".into()))?;
        let (file, own) = known.find(kind, device).map_err(&refused)?;
        let failed = |error: ApplyError| refused(format!("{}: {error}", file.path.display()));
        if kinds_seen.insert(file.path.clone()) {
            edits::apply(&file.spec.container_edits, spec).map_err(failed)?;
        }
        edits::apply(own, spec).map_err(failed)?;
    }
    Ok(())
}

/// The names of the field, then those of annotations, each once.
fn names(config: &ContainerConfig) -> Vec<&str> {
    let annotated = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX))
        .flat_map(|(_, value)| value.split(','))
        .map(str::trim);
    let mut seen = BTreeSet::new();
    let fields = config.cdi_devices.iter().map(String::as_str);
    fields
        .chain(annotated)
        .filter(|name| seen.insert(*name))
        .collect()
}

/// A description that was read.
struct Described {
    path: PathBuf,
    /// Number of its directory: the greater wins.
    rank: usize,
    spec: SpecFile,
}

/// What the directories hold.
struct Known {
    files: Vec<Described>,
    /// Files that cannot be used, with the reason.
    broken: Vec<String>,
}

impl Known {
    fn read(dirs: &[PathBuf]) -> Self {
        let mut known = Self {
            files: Vec::new(),
            broken: Vec::new(),
        };
        for (rank, dir) in dirs.iter().enumerate() {
            let mut paths: Vec<_> = std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| file::format_of(path).is_some())
                .collect();
            paths.sort();
            for path in paths {
                match read(&path) {
                    Ok(spec) => known.files.push(Described { path, rank, spec }),
                    Err(reason) => known.broken.push(format!("{}: {reason}", path.display())),
                }
            }
        }
        known
    }

    /// The file that describes a device, and the device's own part.
    fn find(&self, kind: &str, device: &str) -> Result<(&Described, &Edits), String> {
        let of_kind = self.files.iter().filter(|file| file.spec.kind == kind);
        let mut best: Option<(&Described, &Edits)> = None;
        let mut rival = None;
        for file in of_kind {
            let Some(found) = file.spec.devices.iter().find(|d| d.name == device) else {
                continue;
            };
            match best {
                Some((other, _)) if other.rank == file.rank => rival = Some(&file.path),
                _ => (best, rival) = (Some((file, &found.container_edits)), None),
            }
        }
        match (best, rival) {
            (Some((file, _)), Some(rival)) => Err(format!(
                "is described by {} and by {}",
                file.path.display(),
                rival.display()
            )),
            (Some(found), None) => Ok(found),
            (None, _) if self.broken.is_empty() => Err("no such device is described".into()),
            (None, _) => Err(format!(
                "no such device is described; not understood: {}",
                self.broken.join("; ")
            )),
        }
    }
}

fn read(path: &Path) -> Result<SpecFile, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(LIMIT_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    file::parse(path, &text)
}

#[cfg(test)]
mod tests;
