//! Mounts that are made for the start of one container: images as volumes, volumes with mapped owners, the PID
//! namespace of another container.
//!
//! They are in a directory of the container's bundle and are let go as soon as the OCI runtime has taken what it
//! needs of them: whoever unmounts a volume on the node must not find it held here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use zcri_sys::mount::{DetachedTree, IdMap, Overlay};
use zcri_sys::namespace::user::{IdMaps, IdRange};

use super::config::Mount;
use crate::error::{Error, Result};
use crate::pod::config::{IdMapping, UserNamespace};

/// Their directory in the bundle.
const DIRECTORY: &str = "mounts";

/// Where mounts of a container are prepared.
pub(super) struct Workshop<'a> {
    dir: PathBuf,
    /// The pod's user namespace, and the file that pins it.
    user: Option<(&'a UserNamespace, PathBuf)>,
    /// SELinux label of the container's files.
    label: Option<&'a str>,
}

impl<'a> Workshop<'a> {
    /// Makes the directory, which none but root and the pod's root may enter.
    pub(super) fn new(
        bundle: &Path,
        user: Option<(&'a UserNamespace, PathBuf)>,
        label: Option<&'a str>,
    ) -> Result<Self> {
        let dir = bundle.join(DIRECTORY);
        let mode = if user.is_some() { 0o710 } else { 0o700 };
        let made = std::fs::DirBuilder::new().mode(mode).create(&dir);
        made.and_then(|()| match &user {
            Some((user, _)) => std::os::unix::fs::chown(&dir, None, user.root().map(|root| root.1)),
            None => Ok(()),
        })
        .map_err(|e| Error::node(format!("make {}", dir.display()), e))?;
        Ok(Self { dir, user, label })
    }

    /// Mounts an image, or what is at `sub_path` in it; `layers` are its directories, the top one first. Gives the
    /// place.
    pub(super) fn image(
        &self,
        number: usize,
        layers: &[PathBuf],
        sub_path: &Path,
    ) -> Result<PathBuf> {
        let whole = sub_path.as_os_str().is_empty();
        let place = self.dir.join(number.to_string());
        let root = if whole {
            place.clone()
        } else {
            self.dir.join(format!("{number}-image"))
        };
        let mut lower = layers.to_vec();
        make_dir(&root)?;
        // Without a writable layer overlayfs wants two. It is used for a single layer too, because only it hides
        // what layers say about layers below them.
        while lower.len() < 2 {
            let empty = self.dir.join(format!("{number}-empty-{}", lower.len()));
            make_dir(&empty)?;
            lower.push(empty);
        }
        let pinned = match &self.user {
            Some((_, path)) => Some(open_namespace(path)?),
            None => None,
        };
        let scratch = self.dir.join(format!("{number}-layers"));
        let overlay = Overlay {
            lower: &lower,
            writable: None,
            id_map: pinned.as_ref().map(|namespace| IdMap {
                user_namespace: namespace.as_fd(),
                scratch: &scratch,
            }),
            label: self.label,
        };
        zcri_sys::mount::overlay(&overlay, &root).map_err(|e| Error::node("mount an image", e))?;
        if whole {
            return Ok(place);
        }
        let attached = DetachedTree::copy_beneath(&root, sub_path).and_then(|t| t.attach(&place));
        let refused = |error: zcri_sys::Error| match error.io().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Error::Invalid {
                field: "config.mounts.image_sub_path",
                value: sub_path.display().to_string(),
                reason: "there is no such path in the image".into(),
            },
            _ => Error::node("mount a part of an image", error),
        };
        attached.map_err(refused)?;
        Ok(place)
    }

    /// Mounts `source` with its owners mapped as the mount says. Gives the place, or the source itself when nothing
    /// is to be mapped.
    pub(super) fn mapped(&self, number: usize, source: PathBuf, mount: &Mount) -> Result<PathBuf> {
        if mount.uid_mappings.is_empty() {
            return Ok(source);
        }
        let place = self.dir.join(number.to_string());
        let namespace = self.namespace_of(mount)?;
        let made = DetachedTree::copy_of(&source)
            .and_then(|tree| tree.map_ids(namespace.as_fd()).map(|()| tree))
            .and_then(|tree| tree.attach(&place));
        made.map_err(|error| Error::Unsupported {
            what: "config.mounts.uidMappings",
            reason: format!(
                "the owners of {} cannot be mapped: {}",
                source.display(),
                crate::error::Chain(&error)
            ),
        })?;
        Ok(place)
    }

    /// The pod's namespace if it has the same maps, or else one that is made for the mount.
    fn namespace_of(&self, mount: &Mount) -> Result<OwnedFd> {
        match &self.user {
            Some((user, path))
                if user.uids == mount.uid_mappings && user.gids == mount.gid_mappings =>
            {
                open_namespace(path)
            }
            _ => {
                let maps = IdMaps {
                    users: ranges(&mount.uid_mappings),
                    groups: ranges(&mount.gid_mappings),
                };
                zcri_sys::namespace::user::with_maps(&maps)
                    .map_err(|e| Error::node("make a user namespace for a mount", e))
            }
        }
    }

    /// Pins the PID namespace of a process. Gives the place.
    pub(super) fn pid_namespace(&self, pid: u32) -> Result<PathBuf> {
        let place = self.dir.join("pid");
        zcri_sys::namespace::pin_of_process(pid, "pid", &place)
            .map_err(|e| Error::node("pin the PID namespace of the target", e))?;
        Ok(place)
    }
}

/// Id maps in the words of the kernel.
pub(crate) fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    let one = |mapping: &IdMapping| IdRange {
        inside: mapping.container_id,
        outside: mapping.host_id,
        length: mapping.length,
    };
    mappings.iter().map(one).collect()
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::node("open the pod's user namespace", e))
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).map_err(|e| Error::node(format!("make {}", dir.display()), e))
}

/// Lets go what was prepared in a bundle. None there is no error.
///
/// # Errors
/// A mount could not be detached.
pub(crate) fn release(bundle: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(bundle.join(DIRECTORY)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::node("look for prepared mounts", e)),
    };
    let mut result = Ok(());
    for entry in entries {
        let unmounted = entry
            .map_err(|e| Error::node("look for prepared mounts", e))
            .and_then(|entry| {
                zcri_sys::mount::unmount(&entry.path())
                    .map_err(|e| Error::node("unmount what was prepared for a container", e))
            });
        // All that can go goes.
        result = result.and(unmounted);
    }
    result
}
