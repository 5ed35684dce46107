//! The size of a writable layer: its own tree is walked, never that of the image below it.
//!
//! A walk costs a system call per file, so that its result holds for a while: for fifty times as long as the walk
//! took, within bounds. However large layers are, and whoever asks how often, walks take two percent of one CPU at
//! the most. The result says when it was had.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::time::now_ns;

/// Unit of `st_blocks`, whatever the file system's own (stat(2)).
const BLOCK_BYTES: u64 = 512;
/// How much longer than the walk its result holds.
const FRESH_PER_WALK: u32 = 50;
/// The least time that a result holds.
const FRESH_AT_LEAST: Duration = Duration::from_secs(1);
/// The most time that a result holds.
const FRESH_AT_MOST: Duration = Duration::from_secs(60);

/// What a directory tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was looked at, in ns since 1970.
    pub at_ns: i64,
    /// Allocated bytes.
    pub bytes: u64,
    /// Files and directories, that of the layer itself included.
    pub inodes: u64,
}

/// The last walk of one layer.
#[derive(Debug, Default)]
pub struct Layer {
    /// Held by the one who walks.
    walking: Mutex<()>,
    last: Mutex<Option<Walk>>,
}

#[derive(Debug, Clone, Copy)]
struct Walk {
    usage: LayerUsage,
    fresh_until: Instant,
}

impl Layer {
    /// What the layer in `dir` holds; `None` if it is not there. Requests at the same time share one walk: while it
    /// goes on they get the result before, or wait for it if there is none.
    pub(crate) fn usage(&self, dir: &Path) -> Option<LayerUsage> {
        self.usage_with(dir, walk)
    }

    fn usage_with(
        &self,
        dir: &Path,
        walk: impl FnOnce(&Path) -> Option<LayerUsage>,
    ) -> Option<LayerUsage> {
        if let Some(fresh) = self.fresh() {
            return Some(fresh);
        }
        let _walking = match self.walking.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if let Some(last) = self.last() {
                    return Some(last.usage);
                }
                self.walking.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        // Somebody may have come first.
        if let Some(fresh) = self.fresh() {
            return Some(fresh);
        }
        let begin = Instant::now();
        let usage = walk(dir)?;
        let fresh = (begin.elapsed() * FRESH_PER_WALK).clamp(FRESH_AT_LEAST, FRESH_AT_MOST);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Walk {
            usage,
            fresh_until: Instant::now() + fresh,
        });
        Some(usage)
    }

    fn fresh(&self) -> Option<LayerUsage> {
        let last = self.last()?;
        (Instant::now() < last.fresh_until).then_some(last.usage)
    }

    fn last(&self) -> Option<Walk> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sums a tree up as du(1) does: a file with several names counts once, what vanishes meanwhile counts nothing.
fn walk(dir: &Path) -> Option<LayerUsage> {
    let top = std::fs::symlink_metadata(dir).ok()?;
    let mut usage = LayerUsage {
        at_ns: now_ns(),
        bytes: top.blocks() * BLOCK_BYTES,
        inodes: 1,
    };
    let mut linked = HashSet::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            usage.bytes += metadata.blocks() * BLOCK_BYTES;
            usage.inodes += 1;
        }
    }
    Some(usage)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_tree_is_summed_up_as_du_does() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("d/f"), dir.path().join("same")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let usage = walk(dir.path()).unwrap();
        let du = |option: &str| -> u64 {
            let output = std::process::Command::new("du")
                .args(["-s", option])
                .arg(dir.path())
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert_eq!(usage.bytes, du("--block-size=1"));
        assert_eq!(usage.inodes, du("--inodes"));
        assert_eq!(walk(&dir.path().join("missing")), None);
    }

    #[test]
    fn a_fresh_result_is_not_walked_for_again() {
        let (layer, walks) = (Layer::default(), AtomicU32::new(0));
        let ask = || {
            layer.usage_with(Path::new("/"), |_| {
                walks.fetch_add(1, Ordering::Relaxed);
                Some(LayerUsage::default())
            })
        };
        for _ in 0..10 {
            assert!(ask().is_some());
        }
        assert_eq!(walks.load(Ordering::Relaxed), 1);
        layer.last.lock().unwrap().as_mut().unwrap().fresh_until = Instant::now();
        ask();
        assert_eq!(walks.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn who_comes_during_a_walk_shares_it() {
        let (layer, walks) = (Layer::default(), AtomicU32::new(0));
        let (begun, wait_begun) = mpsc::channel();
        let (finish, wait_finish) = mpsc::channel::<()>();
        let result = LayerUsage {
            bytes: 7,
            ..LayerUsage::default()
        };
        let (layer, walks) = (&layer, &walks);
        std::thread::scope(|scope| {
            let first = scope.spawn(move || {
                layer.usage_with(Path::new("/"), |_| {
                    walks.fetch_add(1, Ordering::Relaxed);
                    begun.send(()).unwrap();
                    wait_finish.recv().unwrap();
                    Some(result)
                })
            });
            wait_begun.recv().unwrap();
            let second =
                scope.spawn(|| layer.usage_with(Path::new("/"), |_| panic!("a second walk")));
            finish.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Some(result));
            assert_eq!(second.join().unwrap(), Some(result));
            // With a result there, nobody waits for the next walk.
            layer.last.lock().unwrap().as_mut().unwrap().fresh_until = Instant::now();
            let _walking = layer.walking.lock().unwrap();
            assert_eq!(
                layer.usage_with(Path::new("/"), |_| panic!("a second walk")),
                Some(result)
            );
        });
        assert_eq!(walks.load(Ordering::Relaxed), 1);
    }
}
