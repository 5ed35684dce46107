//! Limits and shares of a container or pod.

use std::collections::BTreeMap;

/// The domain form of CRI's `LinuxContainerResources`. `None` or empty means: not limited here, or not changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// CPU period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPU time per period in microseconds; negative for no limit.
    pub cpu_quota: Option<i64>,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPUs in list form (`0-2,7`); empty for all.
    pub cpuset_cpus: String,
    /// Memory nodes in list form; empty for all.
    pub cpuset_mems: String,
    /// Memory limit in bytes; -1 for no limit.
    pub memory_limit: Option<i64>,
    /// Limit of memory and swap together in bytes; -1 for no limit.
    pub memory_swap_limit: Option<i64>,
    /// The kernel's `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Limits per huge page size.
    pub hugepages: Vec<HugepageLimit>,
    /// Files of cgroup v2 with their contents.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Whether the limit of memory and swap together is lower than that of memory.
    #[must_use]
    pub fn swap_is_below_memory(&self) -> bool {
        match (self.memory_limit, self.memory_swap_limit) {
            (Some(memory), Some(swap)) => swap >= 0 && (memory < 0 || swap < memory),
            _ => false,
        }
    }
}

/// Limit of one size of huge pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// Size in the form of the cgroup files, for instance `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
