//! Limits and shares, for both versions of control groups.

use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources, Spec,
};

use super::NodeFacts;
use crate::container::config::Resources;

/// What the kernel takes as `cpu.shares`; the runtimes' conversion to the weight of v2 needs the same range.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Limits for the runtime, for a new container and (as JSON) for its `update` command. Devices and processes are not
/// in it.
///
/// What this node has no controller for is left out where the kubelet sends it to every node (huge pages, swap).
#[must_use]
pub fn linux_resources(given: &Resources, facts: &NodeFacts) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(cpu(given))
        .set_memory(memory(given, facts))
        .set_hugepage_limits(hugepages(given, facts));
    if !given.unified.is_empty() {
        resources.set_unified(Some(given.unified.clone().into_iter().collect()));
    }
    resources
}

fn cpu(given: &Resources) -> Option<LinuxCpu> {
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(given.cpu_shares.map(in_range))
        .set_quota(given.cpu_quota)
        .set_period(given.cpu_period)
        .set_cpus(text(&given.cpuset_cpus))
        .set_mems(text(&given.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

/// A memory limit without a word about swap allows none, as in containerd and CRI-O: the limit of both together is
/// the same.
fn memory(given: &Resources, facts: &NodeFacts) -> Option<LinuxMemory> {
    let mut memory = LinuxMemory::default();
    memory.set_limit(given.memory_limit);
    if facts.swap {
        memory.set_swap(given.memory_swap_limit.or(given.memory_limit));
    }
    (memory != LinuxMemory::default()).then_some(memory)
}

/// The kubelet sends a limit (0) for every size that the node knows.
fn hugepages(given: &Resources, facts: &NodeFacts) -> Option<Vec<LinuxHugepageLimit>> {
    if !facts.hugetlb || given.hugepages.is_empty() {
        return None;
    }
    let one = |page: &crate::container::config::HugepageLimit| {
        let mut limit = LinuxHugepageLimit::default();
        limit
            .set_page_size(page.page_size.clone())
            .set_limit(i64::try_from(page.limit).unwrap_or(i64::MAX));
        limit
    };
    Some(given.hugepages.iter().map(one).collect())
}

pub(super) fn pids(limit: Option<i64>) -> Option<LinuxPids> {
    let mut pids = LinuxPids::default();
    pids.set_limit(limit?);
    Some(pids)
}

/// The `oom_score_adj` of a container: what was asked for, or the lowest that this node allows.
#[must_use]
pub fn oom_score_adj(given: &Resources, facts: &NodeFacts) -> i32 {
    given.oom_score_adj.max(facts.lowest_oom_score_adj)
}

/// Resources after an update: what the update does not say stays (UpdateContainerResources in api.proto).
///
/// `oom_score_adj` stays in any case: no runtime changes it in a running container.
#[must_use]
pub fn merge_resources(old: &Resources, new: &Resources) -> Resources {
    let text = |new: &String, old: &String| {
        if new.is_empty() {
            old.clone()
        } else {
            new.clone()
        }
    };
    let mut hugepages = old.hugepages.clone();
    hugepages.retain(|page| {
        new.hugepages
            .iter()
            .all(|newer| newer.page_size != page.page_size)
    });
    hugepages.extend(new.hugepages.iter().cloned());
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    Resources {
        cpu_period: new.cpu_period.or(old.cpu_period),
        cpu_quota: new.cpu_quota.or(old.cpu_quota),
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        cpuset_cpus: text(&new.cpuset_cpus, &old.cpuset_cpus),
        cpuset_mems: text(&new.cpuset_mems, &old.cpuset_mems),
        memory_limit: new.memory_limit.or(old.memory_limit),
        memory_swap_limit: new.memory_swap_limit.or(old.memory_swap_limit),
        oom_score_adj: old.oom_score_adj,
        hugepages,
        unified,
    }
}

/// What an update changes, in full: memory and swap are one to the kernel, so that both are said when one changes.
#[must_use]
pub fn changed_resources(merged: &Resources, new: &Resources) -> Resources {
    let memory = new.memory_limit.or(new.memory_swap_limit).is_some();
    let then = |value: Option<i64>| value.filter(|_| memory);
    Resources {
        memory_limit: then(merged.memory_limit),
        memory_swap_limit: then(merged.memory_swap_limit),
        ..new.clone()
    }
}

/// The limits that hold on this node, for statuses: what was asked for, bent to what the kernel and the node allow.
#[must_use]
pub fn effective_resources(given: &Resources, facts: &NodeFacts) -> Resources {
    let swap = given.memory_swap_limit.or(given.memory_limit);
    Resources {
        cpu_shares: given.cpu_shares.map(in_range),
        memory_swap_limit: swap.filter(|_| facts.swap),
        oom_score_adj: oom_score_adj(given, facts),
        hugepages: if facts.hugetlb {
            given.hugepages.clone()
        } else {
            Vec::new()
        },
        ..given.clone()
    }
}

fn in_range(shares: u64) -> u64 {
    shares.clamp(*SHARES.start(), *SHARES.end())
}

/// Puts other limits into a specification that was built before; devices and the limit of processes stay.
pub fn set_resources(spec: &mut Spec, given: &Resources, facts: &NodeFacts) {
    let mut resources = linux_resources(given, facts);
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    if let Some(old) = linux.resources() {
        resources
            .set_devices(old.devices().clone())
            .set_pids(*old.pids());
    }
    linux.set_resources(Some(resources));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::tests::facts;
    use super::*;
    use crate::container::config::HugepageLimit;

    fn full() -> Resources {
        Resources {
            cpu_period: Some(100_000),
            cpu_quota: Some(50_000),
            cpu_shares: Some(512),
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            memory_limit: Some(64 << 20),
            memory_swap_limit: None,
            oom_score_adj: 900,
            hugepages: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            unified: BTreeMap::from([("memory.high".into(), "50M".into())]),
        }
    }

    fn as_json(given: &Resources, facts: &NodeFacts) -> serde_json::Value {
        serde_json::to_value(linux_resources(given, facts)).unwrap()
    }

    #[test]
    fn all_controllers() {
        let facts = NodeFacts {
            swap: true,
            hugetlb: true,
            ..facts()
        };
        assert_eq!(
            as_json(&full(), &facts),
            json!({
                "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"},
                "memory": {"limit": 67_108_864, "swap": 67_108_864},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
                "unified": {"memory.high": "50M"},
            })
        );
    }

    #[test]
    fn what_the_node_has_no_controller_for_is_left_out() {
        let facts = NodeFacts {
            swap: false,
            hugetlb: false,
            ..facts()
        };
        let json = as_json(&full(), &facts);
        assert_eq!(json["memory"], json!({"limit": 67_108_864}));
        assert_eq!(json.get("hugepageLimits"), None);
    }

    #[test]
    fn nothing_given_is_nothing_set() {
        assert_eq!(
            as_json(
                &Resources::default(),
                &NodeFacts {
                    swap: true,
                    hugetlb: true,
                    ..facts()
                }
            ),
            json!({})
        );
    }

    #[test]
    fn shares_stay_in_the_kernels_range() {
        for (given, expected) in [(1, 2), (2, 2), (1024, 1024), (1_000_000, 262_144)] {
            let given = Resources {
                cpu_shares: Some(given),
                ..Resources::default()
            };
            assert_eq!(as_json(&given, &facts())["cpu"]["shares"], expected);
        }
    }

    #[test]
    fn swap_can_be_given_apart_from_memory() {
        let facts = NodeFacts {
            swap: true,
            ..facts()
        };
        let given = Resources {
            memory_limit: Some(100),
            memory_swap_limit: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            as_json(&given, &facts)["memory"],
            json!({"limit": 100, "swap": -1})
        );
        let given = Resources {
            memory_limit: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            as_json(&given, &facts)["memory"],
            json!({"limit": -1, "swap": -1})
        );
    }

    #[test]
    fn memory_and_swap_change_together() {
        let old = Resources {
            memory_swap_limit: Some(80 << 20),
            ..full()
        };
        let new = Resources {
            memory_limit: Some(70 << 20),
            cpu_shares: Some(5),
            ..Resources::default()
        };
        let changed = changed_resources(&merge_resources(&old, &new), &new);
        assert_eq!(
            (changed.memory_limit, changed.memory_swap_limit),
            (Some(70 << 20), Some(80 << 20))
        );
        assert_eq!((changed.cpu_shares, changed.cpu_quota), (Some(5), None));
        let other = Resources {
            cpu_quota: Some(1000),
            ..Resources::default()
        };
        assert_eq!(
            changed_resources(&merge_resources(&old, &other), &other),
            other
        );
    }

    #[test]
    fn statuses_tell_what_holds() {
        let facts = NodeFacts {
            swap: true,
            hugetlb: true,
            lowest_oom_score_adj: 950,
            ..facts()
        };
        let given = Resources {
            cpu_shares: Some(1),
            ..full()
        };
        let effective = effective_resources(&given, &facts);
        assert_eq!(
            (effective.cpu_shares, effective.oom_score_adj),
            (Some(2), 950)
        );
        assert_eq!(effective.memory_swap_limit, given.memory_limit);
        assert_eq!(effective.hugepages, given.hugepages);
        let facts = NodeFacts {
            swap: false,
            hugetlb: false,
            ..facts
        };
        let effective = effective_resources(&given, &facts);
        assert_eq!(
            (effective.memory_swap_limit, effective.hugepages.len()),
            (None, 0)
        );
        let nothing = effective_resources(&Resources::default(), &facts);
        assert_eq!(
            (nothing.memory_swap_limit, nothing.cpu_shares),
            (None, None)
        );
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let old = full();
        assert_eq!(merge_resources(&old, &Resources::default()), old);
        let new = Resources {
            cpu_shares: Some(2),
            memory_limit: Some(1),
            oom_score_adj: -5,
            hugepages: vec![
                HugepageLimit {
                    page_size: "1GB".into(),
                    limit: 5,
                },
                HugepageLimit {
                    page_size: "2MB".into(),
                    limit: 7,
                },
            ],
            unified: BTreeMap::from([("cpu.idle".into(), "1".into())]),
            ..Resources::default()
        };
        let merged = merge_resources(&old, &new);
        assert_eq!(merged.cpu_shares, Some(2));
        assert_eq!(merged.memory_limit, Some(1));
        assert_eq!(merged.cpu_quota, old.cpu_quota);
        assert_eq!(merged.cpuset_cpus, "0-1");
        assert_eq!(merged.oom_score_adj, 900);
        assert_eq!(merged.hugepages.len(), 2);
        assert!(merged.hugepages.contains(&HugepageLimit {
            page_size: "2MB".into(),
            limit: 7
        }));
        assert_eq!(merged.unified.len(), 2);
        assert_eq!(
            merge_resources(&merged, &new),
            merged,
            "the same update again changes nothing"
        );
    }

    #[test]
    fn oom_scores_are_lifted_to_what_the_node_allows() {
        let facts = NodeFacts {
            lowest_oom_score_adj: -100,
            ..facts()
        };
        for (asked, given) in [(-998, -100), (-100, -100), (0, 0), (1000, 1000)] {
            assert_eq!(
                oom_score_adj(
                    &Resources {
                        oom_score_adj: asked,
                        ..Resources::default()
                    },
                    &facts
                ),
                given
            );
        }
    }
}
