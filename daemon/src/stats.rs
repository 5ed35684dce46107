//! Usage of containers, read when somebody asks and never otherwise.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use zcri_sys::cgroup::Usage;

use crate::container::ContainerView;
use crate::error::Result;
use crate::id::ContainerId;
use crate::node::{Node, blocking};
use crate::time::now_ns;

/// Unit of `st_blocks`, whatever the file system's own (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What a container uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContainerUsage {
    /// When it was read, in ns since 1970.
    pub at_ns: i64,
    /// Its control group.
    pub group: Usage,
    /// CPU rate since the reading before, in ns per second; `None` at the first.
    pub nano_cores: Option<u64>,
    /// Its writable layer.
    pub layer: LayerUsage,
}

/// What a directory tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// The last CPU reading of each container, so that a rate can be given without sampling.
#[derive(Debug, Default)]
pub struct LastReadings(Mutex<HashMap<ContainerId, (i64, u64)>>);

impl LastReadings {
    /// Rate in ns per second since the reading before; this one becomes the reading before.
    fn rate(&self, id: &ContainerId, at_ns: i64, cpu_ns: u64) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (before_ns, before) = last.insert(id.clone(), (at_ns, cpu_ns))?;
        let elapsed = u128::try_from(at_ns - before_ns)
            .ok()
            .filter(|elapsed| *elapsed > 0)?;
        let used = u128::from(cpu_ns.checked_sub(before)?);
        u64::try_from(used * 1_000_000_000 / elapsed).ok()
    }

    /// Forgets a container that is gone.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

/// Reads the usage of containers, in their order.
pub(crate) async fn read(
    node: &Arc<Node>,
    views: Vec<Arc<ContainerView>>,
) -> Result<Vec<ContainerUsage>> {
    let node = node.clone();
    blocking(move || Ok(views.iter().map(|view| read_one(&node, view)).collect())).await
}

fn read_one(node: &Node, view: &ContainerView) -> ContainerUsage {
    let at_ns = now_ns();
    let group = node.cgroups.usage(&view.cgroup);
    let nano_cores = group
        .cpu_ns
        .and_then(|cpu_ns| node.last_readings.rate(&view.id, at_ns, cpu_ns));
    ContainerUsage {
        at_ns,
        group,
        nano_cores,
        layer: usage_below(&view.upper),
    }
}

/// All writable layers together.
pub(crate) async fn writable_layers(views: Vec<Arc<ContainerView>>) -> Result<LayerUsage> {
    blocking(move || {
        Ok(views.iter().map(|view| usage_below(&view.upper)).fold(
            LayerUsage::default(),
            |sum, one| LayerUsage {
                bytes: sum.bytes + one.bytes,
                inodes: sum.inodes + one.inodes,
            },
        ))
    })
    .await
}

/// Sums a tree up; what vanishes meanwhile counts nothing. Only a writable layer is walked, never an image.
fn usage_below(dir: &Path) -> LayerUsage {
    let mut usage = LayerUsage::default();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            usage.bytes += metadata.blocks() * BLOCK_BYTES;
            usage.inodes += 1;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_between_two_readings() {
        let (last, id) = (LastReadings::default(), ContainerId::random());
        assert_eq!(last.rate(&id, 1_000_000_000, 500), None);
        assert_eq!(
            last.rate(&id, 3_000_000_000, 1_000_000_500),
            Some(500_000_000)
        );
        assert_eq!(
            last.rate(&id, 3_000_000_000, 1_000_000_500),
            None,
            "no time passed"
        );
        assert_eq!(
            last.rate(&id, 4_000_000_000, 5),
            None,
            "another group of the same id"
        );
        last.forget(&id);
        assert_eq!(last.rate(&id, 5_000_000_000, 6), None);
    }

    #[test]
    fn a_tree_is_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        let usage = usage_below(dir.path());
        assert_eq!(usage.inodes, 2);
        assert!(usage.bytes >= 100_000, "{usage:?}");
        assert_eq!(
            usage_below(&dir.path().join("missing")),
            LayerUsage::default()
        );
    }
}
