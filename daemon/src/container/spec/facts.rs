//! What the node can do, as far as it decides about containers.

use zcri_sys::cgroup;

/// Facts of the node, found once at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeFacts {
    /// Kind of the control groups.
    pub cgroup_version: cgroup::Version,
    /// Bit n for capability n: no container can have more than the daemon has.
    pub bounding_capabilities: u64,
    /// No container can get an `oom_score_adj` below this.
    pub lowest_oom_score_adj: i32,
    /// Whether the kernel has seccomp filters.
    pub seccomp: bool,
    /// Whether pods can have user namespaces, with the owners of files in the image store mapped for them.
    pub user_namespaces: bool,
    /// Whether the memory controller accounts for swap.
    pub swap: bool,
    /// Whether there is a controller for huge pages in the tree of `cgroup_version`.
    pub hugetlb: bool,
}
