//! Resources in both directions.

use zcri_proto::v1;

use super::{ConvertError, sorted};
use crate::container::config::{HugepageLimit, Resources};

/// Parses `LinuxContainerResources`; `at` is the path of the field in the request. CRI's 0 means "not given".
///
/// # Errors
/// A value outside what the kernel can take.
pub fn resources(at: &str, given: &v1::LinuxContainerResources) -> Result<Resources, ConvertError> {
    let parsed = Resources {
        cpu_period: cpu_period(&format!("{at}.cpu_period"), given.cpu_period)?,
        cpu_quota: cpu_quota(&format!("{at}.cpu_quota"), given.cpu_quota)?,
        cpu_shares: unsigned(&format!("{at}.cpu_shares"), given.cpu_shares)?,
        cpuset_cpus: id_list(&format!("{at}.cpuset_cpus"), &given.cpuset_cpus)?,
        cpuset_mems: id_list(&format!("{at}.cpuset_mems"), &given.cpuset_mems)?,
        memory_limit: limit(
            &format!("{at}.memory_limit_in_bytes"),
            given.memory_limit_in_bytes,
        )?,
        memory_swap_limit: limit(
            &format!("{at}.memory_swap_limit_in_bytes"),
            given.memory_swap_limit_in_bytes,
        )?,
        oom_score_adj: oom_score_adj(&format!("{at}.oom_score_adj"), given.oom_score_adj)?,
        hugepages: hugepages(&format!("{at}.hugepage_limits"), &given.hugepage_limits)?,
        unified: unified(&format!("{at}.unified"), given)?,
    };
    if parsed.swap_is_below_memory() {
        return Err(ConvertError::invalid(
            format!("{at}.memory_swap_limit_in_bytes"),
            given.memory_swap_limit_in_bytes,
            "is less than memory_limit_in_bytes, which it includes",
        ));
    }
    Ok(parsed)
}

/// The kernel's bounds (sched-bwc.rst): a period of 1 ms to 1 s, a quota of at least 1 ms and as much as it can count.
const PERIOD: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
const QUOTA: std::ops::RangeInclusive<i64> = 1_000..=MOST_QUOTA;
/// `MAX_BW` in kernel/sched/sched.h.
const MOST_QUOTA: i64 = (1 << 44) - 1;

fn cpu_period(field: &str, value: i64) -> Result<Option<u64>, ConvertError> {
    match unsigned(field, value)? {
        Some(period) if !PERIOD.contains(&period) => Err(ConvertError::invalid(
            field,
            value,
            "must be between 1000 and 1000000 microseconds",
        )),
        period => Ok(period),
    }
}

fn cpu_quota(field: &str, value: i64) -> Result<Option<i64>, ConvertError> {
    match value {
        0 => Ok(None),
        _ if value == -1 || QUOTA.contains(&value) => Ok(Some(value)),
        _ => Err(ConvertError::invalid(
            field,
            value,
            format!("must be between 1000 and {MOST_QUOTA} microseconds, or -1 for no limit"),
        )),
    }
}

/// The inverse of [`resources`], for statuses.
#[must_use]
pub fn resources_to_proto(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or(0),
        oom_score_adj: i64::from(resources.oom_score_adj),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|page| v1::HugepageLimit {
                page_size: page.page_size.clone(),
                limit: page.limit,
            })
            .collect(),
        unified: resources
            .unified
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or(0),
    }
}

fn signed(value: Option<u64>) -> i64 {
    value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX))
}

fn unsigned(field: &str, value: i64) -> Result<Option<u64>, ConvertError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(ConvertError::invalid(field, value, "must not be negative")),
    }
}

fn limit(field: &str, value: i64) -> Result<Option<i64>, ConvertError> {
    match value {
        0 => Ok(None),
        value if value < -1 => Err(ConvertError::invalid(
            field,
            value,
            "must be a number of bytes, or -1 for no limit",
        )),
        value => Ok(Some(value)),
    }
}

fn oom_score_adj(field: &str, value: i64) -> Result<i32, ConvertError> {
    i32::try_from(value)
        .ok()
        .filter(|value| (-1000..=1000).contains(value))
        .ok_or_else(|| ConvertError::invalid(field, value, "must be between -1000 and 1000"))
}

/// The kernel's list format (cpuset(7)): `0-2,7`.
fn id_list(field: &str, value: &str) -> Result<String, ConvertError> {
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let range = |item: &str| match item.trim().split_once('-') {
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
        None => number(item.trim()).is_some(),
    };
    if value.is_empty() || value.split(',').all(range) {
        return Ok(value.to_owned());
    }
    Err(ConvertError::invalid(
        field,
        value,
        "must be a list of numbers and ranges such as 0-2,7",
    ))
}

fn hugepages(field: &str, given: &[v1::HugepageLimit]) -> Result<Vec<HugepageLimit>, ConvertError> {
    for (at, page) in given.iter().enumerate() {
        let before = given.iter().take(at);
        if before
            .into_iter()
            .any(|other| other.page_size == page.page_size)
        {
            let field = format!("{field}[{at}].page_size");
            return Err(ConvertError::invalid(
                field,
                &page.page_size,
                "is named twice",
            ));
        }
    }
    given
        .iter()
        .enumerate()
        .map(|(at, page)| hugepage(&format!("{field}[{at}].page_size"), page))
        .collect()
}

/// Sizes are named as in the cgroup files: `hugetlb.2MB.max`.
fn hugepage(field: &str, page: &v1::HugepageLimit) -> Result<HugepageLimit, ConvertError> {
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| page.page_size.strip_suffix(unit));
    let good = digits.is_some_and(|digits| {
        !digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
    });
    if !good {
        return Err(ConvertError::invalid(
            field,
            &page.page_size,
            "must be a size such as 2MB",
        ));
    }
    Ok(HugepageLimit {
        page_size: page.page_size.clone(),
        limit: page.limit,
    })
}

/// Keys are file names in a cgroup v2 directory: one that leads elsewhere would write to any file as root.
fn unified(
    field: &str,
    given: &v1::LinuxContainerResources,
) -> Result<std::collections::BTreeMap<String, String>, ConvertError> {
    for (key, value) in &given.unified {
        super::text(&format!("{field}[{}]", key.escape_default()), value)?;
        let good = key.contains('.') && !key.starts_with('.') && !key.contains(['/', '\0']);
        if !good {
            return Err(ConvertError::invalid(
                field,
                key,
                "must be the name of a cgroup v2 file",
            ));
        }
    }
    Ok(sorted(&given.unified))
}
