//! Removal in the background: a rename at once, the work later. A thread lives while there is work, none otherwise.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::warn;

use crate::tree;

/// Names of ours in the trash, which is shared.
const PREFIX: &str = "image-";
/// Names that [`tree::remove`] gives to directories that were too deep.
const DEEP_PREFIX: &str = "deep-";

#[derive(Debug)]
pub(super) struct Trash {
    path: PathBuf,
    dir: OwnedFd,
    /// Makes names unique across restarts.
    epoch: u128,
    number: AtomicU64,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    queue: VecDeque<OsString>,
    running: bool,
}

impl Trash {
    /// Opens the trash and begins to remove what a previous process left in it.
    pub(super) fn open(path: &Path) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(path)?;
        let epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let trash = Arc::new(Self {
            dir: File::open(path)?.into(),
            path: path.to_owned(),
            epoch,
            number: AtomicU64::new(0),
            work: Mutex::default(),
        });
        let left = trash.names(&[PREFIX, DEEP_PREFIX])?;
        trash.enqueue(left);
        Ok(trash)
    }

    /// Moves `path` into the trash. What does not exist is removed already.
    pub(super) fn discard(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", self.epoch);
        match std::fs::rename(path, self.path.join(&name)) {
            Ok(()) => {
                self.enqueue([OsString::from(name)]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn names(&self, prefixes: &[&str]) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if prefixes
                .iter()
                .any(|p| name.as_bytes().starts_with(p.as_bytes()))
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn enqueue(self: &Arc<Self>, names: impl IntoIterator<Item = OsString>) {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.queue.extend(names);
        if work.running || work.queue.is_empty() {
            return;
        }
        let trash = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("zcri-trash".to_owned())
            .spawn(move || trash.run());
        match thread {
            Ok(_detached) => work.running = true,
            // What is queued waits for the next removal, or the next start.
            Err(error) => warn!(%error, "cannot start the thread that empties the trash"),
        }
    }

    fn run(self: Arc<Self>) {
        loop {
            let next = {
                let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
                let next = work.queue.pop_front();
                work.running = next.is_some();
                next
            };
            let Some(name) = next else { return };
            self.remove(&name);
        }
    }

    fn remove(&self, name: &OsString) {
        let mut names = vec![name.clone()];
        while let Some(name) = names.pop() {
            match tree::remove(self.dir.as_fd(), name.as_bytes(), Some(self.dir.as_fd())) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => {
                    warn!(path = %self.path.join(&name).display(), %error, "cannot empty the trash");
                    return;
                }
            }
            if names.is_empty() {
                names = self.names(&[DEEP_PREFIX]).unwrap_or_default();
            }
        }
    }
}
