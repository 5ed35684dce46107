//! The directories that a check works in, and their removal, whatever was mounted or pinned there.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::runtime::Shim;

/// Beginning of the names of scratch directories.
const PREFIX: &str = "check-";
/// Bundle of the shim that a check starts, below the scratch directory for state.
const POD: &str = "pod";
/// Held while a check works there: one that nobody holds was left by a check that was killed.
const LOCK: &str = "lock";

/// Two directories, one below `[storage] root` and one below `[storage] state`.
#[derive(Debug)]
pub(super) struct Scratch {
    root: Option<Place>,
    state: Option<Place>,
    name: String,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    _lock: File,
    /// Whether the parent was not there before.
    parent_made: bool,
}

impl Scratch {
    /// No directory yet.
    pub(super) fn new() -> Self {
        Self {
            root: None,
            state: None,
            name: format!("{PREFIX}{}", std::process::id()),
        }
    }

    /// Name of this check, which no other on this machine has now.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Directory for what needs a disk, if it could be made.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_ref().map(|place| place.dir.as_path())
    }

    /// Directory for what ends with the boot, if it could be made.
    pub(super) fn state(&self) -> Option<&Path> {
        self.state.as_ref().map(|place| place.dir.as_path())
    }

    /// Bundle for the shim, if the directory could be made.
    pub(super) fn pod_bundle(&self) -> Option<PathBuf> {
        self.state().map(|dir| dir.join(POD))
    }

    /// Makes the directory below `[storage] root`.
    ///
    /// # Errors
    /// The file system refused.
    pub(super) async fn make_root(&mut self, under: &Path) -> std::io::Result<PathBuf> {
        let place = Place::make(under, &self.name).await?;
        Ok(self.root.insert(place).dir.clone())
    }

    /// Makes the directory below `[storage] state`.
    ///
    /// # Errors
    /// The file system refused.
    pub(super) async fn make_state(&mut self, under: &Path) -> std::io::Result<PathBuf> {
        let place = Place::make(under, &self.name).await?;
        Ok(self.state.insert(place).dir.clone())
    }

    /// Removes both, with the shim, the mounts and the namespaces in them; says what is left.
    pub(super) async fn remove(self) -> Result<(), String> {
        let mut left = Vec::new();
        // The mounts below the state have layers below the root.
        for place in [self.state, self.root].into_iter().flatten() {
            if let Err(error) = clear(&place.dir).await {
                left.push(format!("{}: {error}", place.dir.display()));
            }
            if place.parent_made
                && let Some(parent) = place.dir.parent()
            {
                // It stays if somebody else has begun to use it.
                std::fs::remove_dir(parent).ok();
            }
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("; "))
        }
    }
}

impl Place {
    async fn make(under: &Path, name: &str) -> std::io::Result<Self> {
        let parent_made = !under.exists();
        std::fs::create_dir_all(under)?;
        remove_stale(under).await?;
        let dir = under.join(name);
        std::fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            dir,
            _lock: lock,
            parent_made,
        })
    }
}

/// Removes what checks left that were killed.
async fn remove_stale(under: &Path) -> std::io::Result<()> {
    for dir in stale(under)? {
        clear(&dir).await?;
    }
    Ok(())
}

/// Directories of checks that were killed.
pub(super) fn stale(under: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(under)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dir = entry.path();
        let free = match File::open(dir.join(LOCK)) {
            Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // Killed before it had a lock, or while it was removed. A check that is just being begun is not harmed:
            // an empty directory is made again.
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if free {
            found.push(dir);
        }
    }
    Ok(found)
}

async fn clear(dir: &Path) -> std::io::Result<()> {
    if let Some(shim) = Shim::find(&dir.join(POD)).await {
        shim.shutdown().await;
        Shim::gone(&dir.join(POD)).await;
    }
    let mut mounts = zcri_sys::mount::below(dir).map_err(std::io::Error::other)?;
    // The deepest first.
    mounts.reverse();
    for mount in mounts {
        zcri_sys::mount::unmount(&mount).map_err(std::io::Error::other)?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_killed_check_left_is_removed_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let under = dir.path().join("root");
        let mut scratch = Scratch::new();
        let own = scratch.make_root(&under).await.unwrap();
        std::fs::write(own.join("file"), "x").unwrap();
        let dead = under.join("check-0");
        std::fs::create_dir_all(dead.join("sub")).unwrap();
        std::fs::write(dead.join(LOCK), "").unwrap();
        remove_stale(&under).await.unwrap();
        assert!(!dead.exists());
        // Locks of flock(2) belong to the open file: even for this process the second open finds it held.
        assert!(own.join("file").exists());
        scratch.remove().await.unwrap();
        assert!(!under.exists(), "the parent was made by the check");
    }
}
