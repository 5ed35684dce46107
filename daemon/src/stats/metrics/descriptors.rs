//! The metrics that the kubelet passes on where cAdvisor does not run: cAdvisor's names, meanings and labels
//! (cAdvisor's metrics/prometheus.go; the list is that of the validation suite, pkg/validate/pod.go).

/// Labels that every metric has, in this order: those that the kubelet gives to cAdvisor's metrics.
pub const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// What is to be known of a metric before its values.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Its labels beyond [`BASE_LABELS`].
    pub labels: &'static [&'static str],
    /// Whether it only grows.
    pub kind: Kind,
}

macro_rules! descriptors {
    ($($id:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(#[doc = $help] pub static $id: Descriptor =
            Descriptor { name: $name, help: $help, labels: &$labels, kind: Kind::$kind };)*
        /// All of them.
        pub static ALL: &[&Descriptor] = &[$(&$id),*];
    };
}

descriptors! {
    BLKIO_DEVICE_USAGE = Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"],
        "Bytes read from and written to block devices.";
    CPU_CFS_PERIODS = Counter "container_cpu_cfs_periods_total" [], "Periods of the CPU quota that passed.";
    CPU_CFS_THROTTLED_PERIODS = Counter "container_cpu_cfs_throttled_periods_total" [],
        "Periods in which the CPU quota was used up.";
    CPU_CFS_THROTTLED = Counter "container_cpu_cfs_throttled_seconds_total" [],
        "Whole seconds for which processes waited for the next period of the CPU quota.";
    CPU_SYSTEM = Counter "container_cpu_system_seconds_total" [], "CPU time in the kernel, in whole seconds.";
    CPU_USAGE = Counter "container_cpu_usage_seconds_total" ["cpu"], "CPU time, in whole seconds.";
    CPU_USER = Counter "container_cpu_user_seconds_total" [], "CPU time in user mode, in whole seconds.";
    FILE_DESCRIPTORS = Gauge "container_file_descriptors" [], "Open file descriptors.";
    FS_INODES_FREE = Gauge "container_fs_inodes_free" ["device"], "Free inodes of the file system of the writable layer.";
    FS_INODES = Gauge "container_fs_inodes_total" ["device"], "Inodes of the file system of the writable layer.";
    FS_LIMIT = Gauge "container_fs_limit_bytes" ["device"], "Size of the file system of the writable layer, in bytes.";
    FS_READ_BYTES = Counter "container_fs_reads_bytes_total" ["device"], "Bytes read from block devices.";
    FS_READS = Counter "container_fs_reads_total" ["device"], "Read requests to block devices.";
    FS_USAGE = Gauge "container_fs_usage_bytes" ["device"], "Bytes that the writable layer takes.";
    FS_WRITTEN_BYTES = Counter "container_fs_writes_bytes_total" ["device"], "Bytes written to block devices.";
    FS_WRITES = Counter "container_fs_writes_total" ["device"], "Write requests to block devices.";
    HUGETLB_MAX_USAGE = Gauge "container_hugetlb_max_usage_bytes" ["pagesize"],
        "The most bytes of huge pages that were ever in use.";
    HUGETLB_USAGE = Gauge "container_hugetlb_usage_bytes" ["pagesize"], "Bytes of huge pages in use.";
    LAST_SEEN = Gauge "container_last_seen" [], "When the container was last seen, in seconds since 1970.";
    MEMORY_CACHE = Gauge "container_memory_cache" [], "Bytes of page cache.";
    MEMORY_FAILCNT = Counter "container_memory_failcnt" [], "How often the memory limit was hit.";
    MEMORY_FAILURES = Counter "container_memory_failures_total" ["failure_type", "scope"], "Page faults.";
    MEMORY_KERNEL = Gauge "container_memory_kernel_usage" [], "Bytes of kernel memory.";
    MEMORY_MAPPED_FILE = Gauge "container_memory_mapped_file" [], "Bytes of mapped files.";
    MEMORY_MAX_USAGE = Gauge "container_memory_max_usage_bytes" [], "The most bytes of memory that were ever in use.";
    MEMORY_RSS = Gauge "container_memory_rss" [], "Bytes of anonymous memory.";
    MEMORY_SWAP = Gauge "container_memory_swap" [], "Bytes of swap in use.";
    MEMORY_USAGE = Gauge "container_memory_usage_bytes" [], "Bytes of memory in use, page cache included.";
    MEMORY_WORKING_SET = Gauge "container_memory_working_set_bytes" [],
        "Bytes of memory in use, without inactive page cache.";
    NETWORK_RECEIVE_BYTES = Counter "container_network_receive_bytes_total" ["interface"], "Bytes received.";
    NETWORK_RECEIVE_ERRORS = Counter "container_network_receive_errors_total" ["interface"], "Errors while receiving.";
    NETWORK_RECEIVE_DROPPED = Counter "container_network_receive_packets_dropped_total" ["interface"],
        "Packets dropped while receiving.";
    NETWORK_RECEIVE_PACKETS = Counter "container_network_receive_packets_total" ["interface"], "Packets received.";
    NETWORK_TRANSMIT_BYTES = Counter "container_network_transmit_bytes_total" ["interface"], "Bytes sent.";
    NETWORK_TRANSMIT_ERRORS = Counter "container_network_transmit_errors_total" ["interface"], "Errors while sending.";
    NETWORK_TRANSMIT_DROPPED = Counter "container_network_transmit_packets_dropped_total" ["interface"],
        "Packets dropped while sending.";
    NETWORK_TRANSMIT_PACKETS = Counter "container_network_transmit_packets_total" ["interface"], "Packets sent.";
    OOM_EVENTS = Counter "container_oom_events_total" [], "Processes that the kernel ended for want of memory.";
    PRESSURE_CPU_STALLED = Counter "container_pressure_cpu_stalled_seconds_total" [],
        "Whole seconds for which all processes waited for CPU time.";
    PRESSURE_CPU_WAITING = Counter "container_pressure_cpu_waiting_seconds_total" [],
        "Whole seconds for which some process waited for CPU time.";
    PRESSURE_IO_STALLED = Counter "container_pressure_io_stalled_seconds_total" [],
        "Whole seconds for which all processes waited for I/O.";
    PRESSURE_IO_WAITING = Counter "container_pressure_io_waiting_seconds_total" [],
        "Whole seconds for which some process waited for I/O.";
    PRESSURE_MEMORY_STALLED = Counter "container_pressure_memory_stalled_seconds_total" [],
        "Whole seconds for which all processes waited for memory.";
    PRESSURE_MEMORY_WAITING = Counter "container_pressure_memory_waiting_seconds_total" [],
        "Whole seconds for which some process waited for memory.";
    PROCESSES = Gauge "container_processes" [], "Processes.";
    SOCKETS = Gauge "container_sockets" [], "Open sockets.";
    SPEC_CPU_PERIOD = Gauge "container_spec_cpu_period" [], "Period of the CPU quota, in microseconds.";
    SPEC_CPU_QUOTA = Gauge "container_spec_cpu_quota" [], "CPU time per period, in microseconds; absent without a quota.";
    SPEC_CPU_SHARES = Gauge "container_spec_cpu_shares" [], "CPU shares.";
    SPEC_MEMORY_LIMIT = Gauge "container_spec_memory_limit_bytes" [], "Memory limit in bytes; 0 for none.";
    SPEC_MEMORY_RESERVATION = Gauge "container_spec_memory_reservation_limit_bytes" [],
        "Bytes kept for the container when memory is short; 0 for none.";
    SPEC_MEMORY_SWAP_LIMIT = Gauge "container_spec_memory_swap_limit_bytes" [],
        "Limit of swap in bytes (cgroup version 1: of memory and swap); 0 for none.";
    START_TIME = Gauge "container_start_time_seconds" [], "When the container was started, in seconds since 1970.";
    THREADS = Gauge "container_threads" [], "Processes and threads.";
    THREADS_MAX = Gauge "container_threads_max" [], "Limit of processes and threads; 0 for none.";
    ULIMITS_SOFT = Gauge "container_ulimits_soft" ["ulimit"],
        "Soft limits of the container's first process; absent where there is none.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_56_and_their_names_say_what_they_are() {
        let names: BTreeSet<_> = ALL.iter().map(|one| one.name).collect();
        assert_eq!((ALL.len(), names.len()), (56, 56));
        for one in ALL {
            assert!(!one.help.is_empty(), "{}", one.name);
            // A name that looks like a counter's for what is none.
            let counts = one.name != FS_INODES.name
                && (one.name.ends_with("_total") || one.name.ends_with("_failcnt"));
            assert_eq!(counts, one.kind == Kind::Counter, "{}", one.name);
        }
    }
}
