//! What a group uses: the numbers of every round of statistics.

use super::files::{Files, keyed};
use super::{Tree, Version, below};

/// A v1 limit at or above this is "none" (the kernel rounds LLONG_MAX down to a page).
pub(super) const UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

/// What a group used. Times in ns, sizes in bytes. What the kernel does not say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all processes since the group was made.
    pub cpu_ns: Option<u64>,
    /// Want of CPU time (version 2 only).
    pub cpu_pressure: Option<Pressure>,
    /// Memory charged now, page cache included.
    pub memory_usage: Option<u64>,
    /// Memory limit; `None` when there is none.
    pub memory_limit: Option<u64>,
    /// Usage less the inactive page cache.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page faults since the group was made.
    pub page_faults: Option<u64>,
    /// Of these, the ones that read from disk.
    pub major_page_faults: Option<u64>,
    /// Want of memory (version 2 only).
    pub memory_pressure: Option<Pressure>,
    /// Swap in use.
    pub swap_usage: Option<u64>,
    /// Limit of swap alone; `None` when there is none.
    pub swap_limit: Option<u64>,
    /// Want of disk throughput (version 2 only).
    pub io_pressure: Option<Pressure>,
}

/// Pressure stall information: how long tasks had to wait for a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: Option<Stall>,
    /// All tasks waited.
    pub full: Option<Stall>,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percentage of the last 10 seconds.
    pub avg10: f64,
    /// Percentage of the last 60 seconds.
    pub avg60: f64,
    /// Percentage of the last 300 seconds.
    pub avg300: f64,
    /// Time since the group was made.
    pub total_ns: u64,
}

impl Tree {
    /// What the group used so far; nothing of a group that is not there.
    pub fn usage(&self, path: &str) -> Usage {
        let mut files = Files::new(self, path);
        match self.version() {
            Version::V1 => usage_v1(&mut files),
            Version::V2 => usage_v2(&mut files),
        }
    }

    /// Number of processes (not threads) in the group and those below it; `None` when it is not there.
    pub fn process_count(&self, path: &str) -> Option<u64> {
        let mut pending = vec![self.of_processes(path)?];
        let mut count = None;
        while let Some(dir) = pending.pop() {
            let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) else {
                continue;
            };
            *count.get_or_insert(0) += text.lines().count() as u64;
            pending.extend(below(&dir));
        }
        count
    }
}

fn usage_v1(files: &mut Files<'_>) -> Usage {
    let memory_usage = files.number("memory", "memory.usage_in_bytes");
    let memory_limit = limit_v1(files, "memory.limit_in_bytes");
    let mut usage = Usage {
        cpu_ns: files.number("cpuacct", "cpuacct.usage"),
        memory_usage,
        memory_limit,
        // Memory and swap together, which is more than nothing only where memory has a limit too.
        swap_limit: memory_limit.and_then(|memory| {
            limit_v1(files, "memory.memsw.limit_in_bytes").map(|both| both.saturating_sub(memory))
        }),
        ..Usage::default()
    };
    let Some(stat) = files.text("memory", "memory.stat") else {
        return usage;
    };
    usage.working_set = working_set(memory_usage, keyed(stat, "total_inactive_file"));
    usage.rss = keyed(stat, "total_rss");
    usage.page_faults = keyed(stat, "total_pgfault");
    usage.major_page_faults = keyed(stat, "total_pgmajfault");
    usage.swap_usage = keyed(stat, "total_swap");
    usage
}

fn usage_v2(files: &mut Files<'_>) -> Usage {
    let memory_usage = files.number("", "memory.current");
    let mut usage = Usage {
        cpu_ns: files
            .text("", "cpu.stat")
            .and_then(|text| keyed(text, "usage_usec"))
            .map(|us| us.saturating_mul(1000)),
        cpu_pressure: pressure(files, "cpu.pressure"),
        memory_usage,
        memory_limit: files.number("", "memory.max"),
        memory_pressure: pressure(files, "memory.pressure"),
        swap_usage: files.number("", "memory.swap.current"),
        swap_limit: files.number("", "memory.swap.max"),
        io_pressure: pressure(files, "io.pressure"),
        ..Usage::default()
    };
    let Some(stat) = files.text("", "memory.stat") else {
        return usage;
    };
    usage.working_set = working_set(memory_usage, keyed(stat, "inactive_file"));
    usage.rss = keyed(stat, "anon");
    usage.page_faults = keyed(stat, "pgfault");
    usage.major_page_faults = keyed(stat, "pgmajfault");
    usage
}

/// cAdvisor's definition: usage without the page cache that could be dropped at once.
fn working_set(usage: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    usage.map(|usage| usage.saturating_sub(inactive_file.unwrap_or(0)))
}

pub(super) fn limit_v1(files: &mut Files<'_>, file: &str) -> Option<u64> {
    files
        .number("memory", file)
        .filter(|limit| *limit < UNLIMITED)
}

/// Reads a pressure file; `None` where the kernel keeps none (boot option `psi=0`).
fn pressure(files: &mut Files<'_>, file: &str) -> Option<Pressure> {
    let text = files.text("", file)?;
    let line = |kind: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))
            .and_then(stall)
    };
    let found = Pressure {
        some: line("some"),
        full: line("full"),
    };
    (found != Pressure::default()).then_some(found)
}

/// `avg10=0.12 avg60=0.34 avg300=0.00 total=123456`, the total in microseconds
/// (Documentation/accounting/psi.rst).
fn stall(line: &str) -> Option<Stall> {
    let value = |key: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    Some(Stall {
        avg10: value("avg10")?.parse().ok()?,
        avg60: value("avg60")?.parse().ok()?,
        avg300: value("avg300")?.parse().ok()?,
        total_ns: value("total")?.parse::<u64>().ok()?.saturating_mul(1000),
    })
}
