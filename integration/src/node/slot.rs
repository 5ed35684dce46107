//! A slot: the names that one node has for itself while others run beside it, in this process and in others.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock, statfs};

/// Nodes that can run at the same time: one subnet each.
const SLOTS: u8 = 250;
const LOCKS: &str = "/run/zcri-tests";
/// `f_type` of tmpfs (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Names and directories of one node. The lock file keeps them ours until the slot is dropped or the process dies.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: File,
}

impl Slot {
    /// Takes the first free slot.
    ///
    /// # Errors
    /// All are taken, or the lock files cannot be made.
    pub fn take() -> Result<Self> {
        std::fs::create_dir_all(LOCKS).with_context(|| format!("making {LOCKS}"))?;
        for number in 1..=SLOTS {
            let path = Path::new(LOCKS).join(number.to_string());
            let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("all {SLOTS} slots below {LOCKS} are taken")
    }

    /// The name of the bridge, the CNI network and the cgroup parent.
    pub fn name(&self) -> String {
        format!("zt{}", self.number)
    }

    /// The pods' subnet.
    pub fn subnet(&self) -> String {
        format!("10.77.{}.0/24", self.number)
    }

    /// The pods' subnet of IPv6.
    pub fn subnet_v6(&self) -> String {
        format!("fd77:{:x}::/120", self.number)
    }

    /// Directory of everything but the daemon's state: in memory, where the machine has such a place.
    pub fn dir(&self) -> PathBuf {
        let memory = Path::new("/dev/shm");
        let base = match statfs(memory) {
            Ok(found) if found.f_type == TMPFS_MAGIC => memory,
            _ => Path::new("/tmp"),
        };
        base.join(self.name())
    }

    /// The daemon's state directory: short, for the socket paths in it.
    pub fn state(&self) -> PathBuf {
        Path::new("/run").join(self.name())
    }

    /// The cgroup parent, below which each pod has one.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name())
    }
}
