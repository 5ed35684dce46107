//! What only metrics need of a group, beyond [`Usage`](super::Usage).

use super::files::{Files, keyed};
use super::usage::limit_v1;
use super::{Tree, Version};

/// Counters and limits of a group. Times in ns, sizes in bytes. What the kernel does not say is `None` or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// CPU time in user mode.
    pub cpu_user_ns: Option<u64>,
    /// CPU time in the kernel.
    pub cpu_system_ns: Option<u64>,
    /// Periods of the CPU quota that passed.
    pub periods: Option<u64>,
    /// Of these, the ones in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// Time waited for the next period.
    pub throttled_ns: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Memory of the kernel.
    pub kernel: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// The most memory that was ever used.
    pub max_usage: Option<u64>,
    /// How often the memory limit was hit.
    pub failcnt: Option<u64>,
    /// Page faults of the group alone, without those below it (version 1 only).
    pub own_page_faults: Option<u64>,
    /// Major page faults of the group alone (version 1 only).
    pub own_major_page_faults: Option<u64>,
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub threads: Option<u64>,
    /// Limit of processes and threads; 0 for none.
    pub threads_max: Option<u64>,
    /// Huge pages by size.
    pub hugepages: Vec<Hugepages>,
    /// Block I/O by device.
    pub io: Vec<DeviceIo>,
    /// What limits the group.
    pub limits: Limits,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hugepages {
    /// Size as the kernel's files name it: `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// The most that was ever in use (version 1 only).
    pub max_usage: Option<u64>,
}

/// What was read from and written to one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// Limits and shares as the kernel has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Period of the CPU quota in microseconds.
    pub cpu_period: Option<u64>,
    /// CPU time per period in microseconds; `None` when there is no quota.
    pub cpu_quota: Option<u64>,
    /// CPU shares; on version 2 computed from the weight.
    pub cpu_shares: Option<u64>,
    /// Memory limit; 0 for none, as cAdvisor says it.
    pub memory: Option<u64>,
    /// What is kept for the group when memory is short; 0 for nothing.
    pub memory_reservation: Option<u64>,
    /// Version 1: memory and swap together; version 2: swap. 0 for no limit.
    pub swap: Option<u64>,
}

impl Tree {
    /// Counters and limits of a group; nothing of one that is not there.
    pub fn detail(&self, path: &str) -> Detail {
        let mut files = Files::new(self, path);
        let mut detail = match self.version() {
            Version::V1 => detail_v1(&mut files),
            Version::V2 => detail_v2(&mut files),
        };
        detail.hugepages = hugepages(&mut files);
        detail
    }
}

fn detail_v1(files: &mut Files<'_>) -> Detail {
    let mut detail = Detail {
        cpu_user_ns: files.number("cpuacct", "cpuacct.usage_user"),
        cpu_system_ns: files.number("cpuacct", "cpuacct.usage_sys"),
        kernel: files.number("memory", "memory.kmem.usage_in_bytes"),
        max_usage: files.number("memory", "memory.max_usage_in_bytes"),
        failcnt: files.number("memory", "memory.failcnt"),
        oom_kills: files
            .text("memory", "memory.oom_control")
            .and_then(|text| keyed(text, "oom_kill")),
        threads: files.number("pids", "pids.current"),
        threads_max: none_as_zero(files.text("pids", "pids.max")),
        limits: Limits {
            cpu_period: files.number("cpu", "cpu.cfs_period_us"),
            cpu_quota: files.number("cpu", "cpu.cfs_quota_us"),
            cpu_shares: files.number("cpu", "cpu.shares"),
            memory: known_v1(files, "memory.limit_in_bytes"),
            memory_reservation: known_v1(files, "memory.soft_limit_in_bytes"),
            swap: known_v1(files, "memory.memsw.limit_in_bytes"),
        },
        ..Detail::default()
    };
    if let Some(stat) = files.text("cpu", "cpu.stat") {
        detail.periods = keyed(stat, "nr_periods");
        detail.throttled_periods = keyed(stat, "nr_throttled");
        detail.throttled_ns = keyed(stat, "throttled_time");
    }
    if let Some(stat) = files.text("memory", "memory.stat") {
        detail.cache = keyed(stat, "total_cache");
        detail.mapped_file = keyed(stat, "total_mapped_file");
        detail.own_page_faults = keyed(stat, "pgfault");
        detail.own_major_page_faults = keyed(stat, "pgmajfault");
    }
    if let Some(text) = files.text("blkio", "blkio.throttle.io_service_bytes_recursive") {
        add_io_v1(&mut detail.io, text, |device| {
            (&mut device.read_bytes, &mut device.written_bytes)
        });
    }
    if let Some(text) = files.text("blkio", "blkio.throttle.io_serviced_recursive") {
        add_io_v1(&mut detail.io, text, |device| {
            (&mut device.reads, &mut device.writes)
        });
    }
    detail
}

fn detail_v2(files: &mut Files<'_>) -> Detail {
    let us = |us: u64| us.saturating_mul(1000);
    let mut detail = Detail {
        max_usage: files.number("", "memory.peak"),
        threads: files.number("", "pids.current"),
        threads_max: none_as_zero(files.text("", "pids.max")),
        limits: limits_v2(files),
        ..Detail::default()
    };
    if let Some(stat) = files.text("", "cpu.stat") {
        detail.cpu_user_ns = keyed(stat, "user_usec").map(us);
        detail.cpu_system_ns = keyed(stat, "system_usec").map(us);
        detail.periods = keyed(stat, "nr_periods");
        detail.throttled_periods = keyed(stat, "nr_throttled");
        detail.throttled_ns = keyed(stat, "throttled_usec").map(us);
    }
    if let Some(stat) = files.text("", "memory.stat") {
        detail.cache = keyed(stat, "file");
        detail.kernel = keyed(stat, "kernel");
        detail.mapped_file = keyed(stat, "file_mapped");
    }
    if let Some(events) = files.text("", "memory.events") {
        detail.failcnt = keyed(events, "max");
        detail.oom_kills = keyed(events, "oom_kill");
    }
    if let Some(text) = files.text("", "io.stat") {
        detail.io = text.lines().filter_map(io_v2).collect();
    }
    detail
}

fn limits_v2(files: &mut Files<'_>) -> Limits {
    let mut limits = Limits {
        cpu_shares: files.number("", "cpu.weight").map(shares),
        memory: none_as_zero(files.text("", "memory.max")),
        memory_reservation: none_as_zero(files.text("", "memory.low")),
        swap: none_as_zero(files.text("", "memory.swap.max")),
        ..Limits::default()
    };
    if let Some((quota, period)) = files
        .text("", "cpu.max")
        .and_then(|text| text.trim().split_once(' '))
    {
        limits.cpu_quota = quota.parse().ok();
        limits.cpu_period = period.parse().ok();
    }
    limits
}

/// The shares whose weight this is: the inverse of what OCI runtimes compute, `1 + (shares - 2) * 9999 / 262142`.
fn shares(weight: u64) -> u64 {
    2 + (weight.saturating_sub(1) * 262_142).div_ceil(9999)
}

/// A limit that says "max" is 0.
fn none_as_zero(text: Option<&str>) -> Option<u64> {
    match text?.trim() {
        "max" => Some(0),
        number => number.parse().ok(),
    }
}

/// A v1 limit; 0 when there is none, `None` when the file is not there.
fn known_v1(files: &mut Files<'_>, file: &str) -> Option<u64> {
    files.number("memory", file)?;
    Some(limit_v1(files, file).unwrap_or(0))
}

/// Lines `8:0 Read 4096`; others (`Sync`, `Total`) are sums of the same.
fn add_io_v1(
    devices: &mut Vec<DeviceIo>,
    text: &str,
    fields: impl Fn(&mut DeviceIo) -> (&mut u64, &mut u64),
) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(operation), Some(value)) = (
            words.next().and_then(numbers),
            words.next(),
            words.next().and_then(|value| value.parse::<u64>().ok()),
        ) else {
            continue;
        };
        let known = devices
            .iter()
            .position(|one| (one.major, one.minor) == device);
        let at = known.unwrap_or_else(|| {
            devices.push(DeviceIo {
                major: device.0,
                minor: device.1,
                ..DeviceIo::default()
            });
            devices.len() - 1
        });
        let Some(device) = devices.get_mut(at) else {
            continue;
        };
        let (read, written) = fields(device);
        match operation {
            "Read" => *read = value,
            "Write" => *written = value,
            _ => {}
        }
    }
}

/// A line `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io_v2(line: &str) -> Option<DeviceIo> {
    let mut words = line.split(' ');
    let (major, minor) = numbers(words.next()?)?;
    let value = |key: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
    };
    Some(DeviceIo {
        major,
        minor,
        read_bytes: value("rbytes")?,
        written_bytes: value("wbytes")?,
        reads: value("rios")?,
        writes: value("wios")?,
    })
}

fn numbers(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `hugetlb.2MB.usage_in_bytes` (version 1), `hugetlb.2MB.current` (version 2).
fn hugepages(files: &mut Files<'_>) -> Vec<Hugepages> {
    let mut names = files.hugetlb_names();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let size = name.strip_prefix("hugetlb.").and_then(|rest| {
            rest.strip_suffix(".usage_in_bytes")
                .or_else(|| rest.strip_suffix(".current"))
        });
        // `hugetlb.2MB.rsvd.current` counts what is only promised.
        let Some(size) = size.filter(|size| !size.contains('.')) else {
            continue;
        };
        if let Some(usage) = files.hugetlb_number(&name) {
            found.push(Hugepages {
                size: size.to_owned(),
                usage,
                max_usage: files.hugetlb_number(&format!("hugetlb.{size}.max_usage_in_bytes")),
            });
        }
    }
    found
}
