use super::*;

pub(super) fn facts() -> NodeFacts {
    NodeFacts {
        cgroup_version: zcri_sys::cgroup::Version::V2,
        bounding_capabilities: u64::MAX,
        lowest_oom_score_adj: -1000,
        seccomp: true,
        apparmor: false,
        selinux: false,
        swap: true,
        hugetlb: true,
    }
}
