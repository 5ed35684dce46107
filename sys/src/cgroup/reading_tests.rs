//! Usage and detail of groups, read from trees of files as kernels write them: version 2 as on a 6.x kernel with
//! every controller (this is what a container with a quota, limits and some I/O looks like), version 1 as on this
//! machine.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

const V2: &[(&str, &str)] = &[
    (
        "cpu.stat",
        "usage_usec 8731254\nuser_usec 6120001\nsystem_usec 2611253\nnice_usec 0\ncore_sched.force_idle_usec 0\n\
         nr_periods 412\nnr_throttled 37\nthrottled_usec 1900123\nnr_bursts 0\nburst_usec 0\n",
    ),
    (
        "cpu.pressure",
        "some avg10=12.50 avg60=4.27 avg300=1.03 total=2900417\nfull avg10=11.25 avg60=3.99 avg300=0.98 total=2877001\n",
    ),
    ("cpu.max", "20000 100000\n"),
    ("cpu.weight", "39\n"),
    ("memory.current", "52428800\n"),
    ("memory.max", "67108864\n"),
    ("memory.low", "0\n"),
    ("memory.peak", "60000000\n"),
    ("memory.swap.current", "4096\n"),
    ("memory.swap.max", "max\n"),
    (
        "memory.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.10 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
    ),
    (
        "memory.events",
        "low 0\nhigh 0\nmax 17\noom 2\noom_kill 1\noom_group_kill 0\n",
    ),
    (
        "memory.stat",
        "anon 20971520\nfile 31457280\nkernel 1234567\nkernel_stack 49152\npagetables 131072\nsock 0\nshmem 0\n\
         file_mapped 8192\nfile_dirty 0\nfile_writeback 0\nswapcached 0\ninactive_anon 20971520\nactive_anon 0\n\
         inactive_file 10485760\nactive_file 20971520\nunevictable 0\nworkingset_refault_anon 0\n\
         pgfault 54321\npgmajfault 12\npgrefill 0\n",
    ),
    (
        "io.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=70\n",
    ),
    (
        "io.stat",
        "259:0 rbytes=1048576 wbytes=4096 rios=16 wios=1 dbytes=0 dios=0\n8:16 rbytes=0 wbytes=512 rios=0 wios=1 dbytes=0 dios=0\n",
    ),
    ("pids.current", "9\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.current", "4194304\n"),
    ("hugetlb.2MB.rsvd.current", "0\n"),
    ("hugetlb.2MB.max", "max\n"),
    ("cgroup.procs", "10\n11\n"),
];

const V1: &[(&str, &str)] = &[
    ("cpuacct.usage", "8731254000\n"),
    ("cpuacct.usage_user", "6120001000\n"),
    ("cpuacct.usage_sys", "2611253000\n"),
    (
        "cpu.stat",
        "nr_periods 412\nnr_throttled 37\nthrottled_time 1900123000\nnr_bursts 0\nburst_time 0\n",
    ),
    ("cpu.cfs_period_us", "100000\n"),
    ("cpu.cfs_quota_us", "-1\n"),
    ("cpu.shares", "1024\n"),
    ("memory.usage_in_bytes", "52428800\n"),
    ("memory.limit_in_bytes", "67108864\n"),
    ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
    ("memory.memsw.limit_in_bytes", "134217728\n"),
    ("memory.max_usage_in_bytes", "60000000\n"),
    ("memory.kmem.usage_in_bytes", "1234567\n"),
    ("memory.failcnt", "17\n"),
    (
        "memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    ),
    (
        "memory.stat",
        "cache 1\nrss 2\nmapped_file 3\nswap 4\npgfault 50000\npgmajfault 10\ninactive_file 5\n\
         hierarchical_memory_limit 67108864\ntotal_cache 31457280\ntotal_rss 20971520\ntotal_mapped_file 8192\n\
         total_swap 4096\ntotal_pgfault 54321\ntotal_pgmajfault 12\ntotal_inactive_file 10485760\n",
    ),
    (
        "blkio.throttle.io_service_bytes_recursive",
        "259:0 Read 1048576\n259:0 Write 4096\n259:0 Sync 1052672\n259:0 Async 0\n259:0 Discard 0\n259:0 Total 1052672\nTotal 1052672\n",
    ),
    (
        "blkio.throttle.io_serviced_recursive",
        "259:0 Read 16\n259:0 Write 1\n259:0 Sync 17\n259:0 Async 0\n259:0 Discard 0\n259:0 Total 17\nTotal 17\n",
    ),
    ("pids.current", "9\n"),
    ("pids.max", "4096\n"),
    ("hugetlb.2MB.usage_in_bytes", "4194304\n"),
    ("hugetlb.2MB.max_usage_in_bytes", "6291456\n"),
];

fn write(dir: &Path, files: &[(&str, &str)]) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

fn v2(root: &Path) -> Tree {
    Tree {
        controllers: BTreeMap::new(),
        named: Vec::new(),
        unified: Some(root.to_owned()),
    }
}

/// All controllers of version 1 on one mount point, which is legal.
fn v1(root: &Path) -> Tree {
    let names = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"];
    Tree {
        controllers: names.map(|name| (name.to_owned(), root.to_owned())).into(),
        named: Vec::new(),
        unified: None,
    }
}

fn stall(avg10: f64, avg60: f64, avg300: f64, total_us: u64) -> Option<Stall> {
    Some(Stall {
        avg10,
        avg60,
        avg300,
        total_ns: total_us * 1000,
    })
}

#[test]
fn usage_of_a_v2_group() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("pod/c"), V2);
    let expected = Usage {
        cpu_ns: Some(8_731_254_000),
        cpu_pressure: Some(Pressure {
            some: stall(12.5, 4.27, 1.03, 2_900_417),
            full: stall(11.25, 3.99, 0.98, 2_877_001),
        }),
        memory_usage: Some(52_428_800),
        memory_limit: Some(67_108_864),
        working_set: Some(41_943_040),
        rss: Some(20_971_520),
        page_faults: Some(54_321),
        major_page_faults: Some(12),
        memory_pressure: Some(Pressure {
            some: stall(0.0, 0.0, 0.1, 5),
            full: stall(0.0, 0.0, 0.0, 3),
        }),
        swap_usage: Some(4096),
        swap_limit: None,
        io_pressure: Some(Pressure {
            some: stall(0.0, 0.0, 0.0, 77),
            full: stall(0.0, 0.0, 0.0, 70),
        }),
    };
    assert_eq!(v2(root.path()).usage("/pod/c"), expected);
}

#[test]
fn usage_of_a_v1_group() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("pod/c"), V1);
    let expected = Usage {
        cpu_ns: Some(8_731_254_000),
        memory_usage: Some(52_428_800),
        memory_limit: Some(67_108_864),
        working_set: Some(41_943_040),
        rss: Some(20_971_520),
        page_faults: Some(54_321),
        major_page_faults: Some(12),
        swap_usage: Some(4096),
        swap_limit: Some(67_108_864),
        ..Usage::default()
    };
    assert_eq!(v1(root.path()).usage("pod/c"), expected);
}

#[test]
fn what_a_file_does_not_say_is_absent() {
    let root = tempfile::tempdir().unwrap();
    write(
        &root.path().join("c"),
        &[
            ("memory.current", "100\n"),
            ("memory.stat", "anon 5\ninactive_file 500\n"),
            ("memory.max", "max\n"),
            (
                "cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("memory.pressure", ""),
            ("cpu.stat", "user_usec 5\n"),
        ],
    );
    let usage = v2(root.path()).usage("c");
    assert_eq!(usage.working_set, Some(0), "never below nothing");
    assert_eq!((usage.cpu_ns, usage.memory_limit), (None, None));
    assert_eq!(usage.memory_pressure, None);
    assert_eq!(usage.cpu_pressure.unwrap().full, None);
    for tree in [v1(root.path()), v2(root.path())] {
        assert_eq!(tree.usage("gone"), Usage::default());
        assert_eq!(tree.detail("gone"), Detail::default());
        assert_eq!(tree.process_count("gone"), None);
    }
}

#[test]
fn detail_of_a_v2_group() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("c"), V2);
    write(
        &root.path().join("c/zcri-exec-1"),
        &[("cgroup.procs", "12\n")],
    );
    let tree = v2(root.path());
    let detail = tree.detail("c");
    assert_eq!(
        (detail.cpu_user_ns, detail.cpu_system_ns),
        (Some(6_120_001_000), Some(2_611_253_000))
    );
    assert_eq!(
        (
            detail.periods,
            detail.throttled_periods,
            detail.throttled_ns
        ),
        (Some(412), Some(37), Some(1_900_123_000))
    );
    assert_eq!(
        (
            detail.cache,
            detail.kernel,
            detail.mapped_file,
            detail.max_usage
        ),
        (
            Some(31_457_280),
            Some(1_234_567),
            Some(8192),
            Some(60_000_000)
        )
    );
    assert_eq!((detail.failcnt, detail.oom_kills), (Some(17), Some(1)));
    assert_eq!((detail.threads, detail.threads_max), (Some(9), Some(0)));
    assert_eq!(
        detail.limits,
        Limits {
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            cpu_shares: Some(999),
            memory: Some(67_108_864),
            memory_reservation: Some(0),
            swap: Some(0),
        }
    );
    let io = |major, minor, read_bytes, written_bytes, reads, writes| DeviceIo {
        major,
        minor,
        read_bytes,
        written_bytes,
        reads,
        writes,
    };
    assert_eq!(
        detail.io,
        [io(259, 0, 1_048_576, 4096, 16, 1), io(8, 16, 0, 512, 0, 1)]
    );
    assert_eq!(
        detail.hugepages,
        [Hugepages {
            size: "2MB".into(),
            usage: 4_194_304,
            max_usage: None
        }]
    );
    assert_eq!(tree.process_count("c"), Some(3), "with the group below");
}

#[test]
fn detail_of_a_v1_group() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("c"), V1);
    let detail = v1(root.path()).detail("c");
    assert_eq!(
        (detail.cpu_user_ns, detail.throttled_ns),
        (Some(6_120_001_000), Some(1_900_123_000))
    );
    assert_eq!(
        (detail.cache, detail.kernel),
        (Some(31_457_280), Some(1_234_567))
    );
    assert_eq!(
        (detail.own_page_faults, detail.own_major_page_faults),
        (Some(50_000), Some(10))
    );
    assert_eq!((detail.threads, detail.threads_max), (Some(9), Some(4096)));
    assert_eq!(
        detail.limits,
        Limits {
            cpu_period: Some(100_000),
            cpu_quota: None,
            cpu_shares: Some(1024),
            memory: Some(67_108_864),
            memory_reservation: Some(0),
            swap: Some(134_217_728),
        }
    );
    assert_eq!(
        detail.io,
        [DeviceIo {
            major: 259,
            minor: 0,
            read_bytes: 1_048_576,
            written_bytes: 4096,
            reads: 16,
            writes: 1
        }]
    );
    assert_eq!(
        detail.hugepages,
        [Hugepages {
            size: "2MB".into(),
            usage: 4_194_304,
            max_usage: Some(6_291_456)
        }]
    );
}

#[test]
fn a_file_longer_than_the_buffer_is_read_whole() {
    let root = tempfile::tempdir().unwrap();
    let stat = format!("{}anon 7\n", "filler_line 123456\n".repeat(2000));
    write(&root.path().join("c"), &[("memory.stat", &stat)]);
    assert_eq!(v2(root.path()).usage("c").rss, Some(7));
}
