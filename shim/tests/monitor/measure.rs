//! Figures, printed: run with `cargo test --release -p zcri-shim -- --ignored --nocapture measure`.

use std::fs;
use std::time::Instant;

use crate::exec::{Exec, idle};
use crate::pod::{Pod, eventually};

fn smaps(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let wanted = [
        "Rss:",
        "Pss:",
        "Pss_Dirty:",
        "Private_Clean:",
        "Private_Dirty:",
        "Shared_Clean:",
    ];
    let line = |name: &&str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name))
            .map(|v| format!("{name}{}", v.trim()))
    };
    wanted.iter().filter_map(line).collect::<Vec<_>>().join(" ")
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

#[test]
#[ignore = "a measurement"]
fn measure_memory() {
    let pods: Vec<Pod> = (0..10).map(|_| Pod::new()).collect();
    let first = idle(&pods[0], "c1");
    std::thread::sleep(std::time::Duration::from_secs(1));
    println!(
        "after one container, 10 monitors: {}",
        smaps(pods[0].shim_pid)
    );
    let others: Vec<_> = pods.iter().skip(1).map(|pod| idle(pod, "c1")).collect();
    std::thread::sleep(std::time::Duration::from_secs(1));
    for pod in pods.iter().take(3) {
        println!("10 pods with one container: {}", smaps(pod.shim_pid));
    }
    for c in others.iter().chain([&first]) {
        c.kill(9, true).unwrap();
        c.wait();
        c.delete().unwrap();
    }
}

#[test]
#[ignore = "a measurement"]
fn measure_memory_of_one() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    std::thread::sleep(std::time::Duration::from_secs(1));
    println!("one pod alone: {}", smaps(pod.shim_pid));
    println!(
        "{}",
        fs::read_to_string(format!("/proc/{}/smaps", pod.shim_pid)).unwrap()
    );
    c.kill(9, true).unwrap();
    c.wait();
    c.delete().unwrap();
    pod.finish();
}

/// The container whose output is converted.
const CONVERTED: &str = "converted";

#[test]
#[ignore = "a measurement"]
fn measure_log_throughput() {
    let pod = Pod::new();
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/tr")).unwrap();
    let line = "yes $(head -c 99 /dev/zero | tr '\\0' y)";
    let dd = "dd bs=64k count=3052 iflag=fullblock";
    // Lines in IBM-1047, of which every tenth character takes two bytes in UTF-8. From a file, as no filter that
    // makes them is fast enough.
    let lines = [&[0xa8; 9][..], &[0x43]].concat().repeat(10)[..99].to_vec();
    let lines = [&lines[..], &[0x15]].concat().repeat(100_000);
    fs::write(pod.path().join("root/ebcdic"), lines).unwrap();
    let files = "/ebcdic ".repeat(20);
    for (name, script) in [
        ("yes", format!("{line} | head -c 200000000")),
        ("dd", format!("{line} | {dd}")),
        ("cat", format!("cat {files}")),
        (CONVERTED, format!("cat {files}")),
    ] {
        let mut c = pod.container(name, &script);
        if name == CONVERTED {
            c.spec["annotations"]["zcri.io/output-code-page"] = "IBM-1047".into();
        }
        c.create().unwrap();
        let (before, start) = (cpu_seconds(pod.shim_pid), Instant::now());
        c.start().unwrap();
        c.wait();
        let (took, cpu) = (
            start.elapsed().as_secs_f64(),
            cpu_seconds(pod.shim_pid) - before,
        );
        let written = fs::metadata(&c.log).unwrap().len();
        println!(
            "{name}: 200 MB in {took:.2} s = {:.0} MB/s, CPU of the monitor {cpu:.2} s, log {written} bytes",
            200.0 / took
        );
        c.delete().unwrap();
    }
    pod.finish();
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(mut action: impl FnMut(usize)) -> f64 {
    let times = (0..30).map(|round| {
        let start = Instant::now();
        action(round);
        start.elapsed().as_secs_f64() * 1000.0
    });
    median(times.collect())
}

#[test]
#[ignore = "a measurement"]
fn measure_latency() {
    let pod = Pod::new();
    let c = idle(&pod, "c0");
    let exec = timed(|round| {
        let mut e = Exec::new(&c, &format!("e{round}"), "true");
        e.run();
        e.output();
        e.wait();
        e.delete().unwrap();
    });
    let root = pod.path().join("runtime");
    let process = pod.path().join("process.json");
    fs::write(&process, crate::pod::process("true").to_string()).unwrap();
    let bare = timed(|_| {
        let mut runc = std::process::Command::new("/usr/sbin/runc");
        runc.arg("--root").arg(&root).args(["exec", "--process"]);
        assert!(runc.arg(&process).arg("c0").status().unwrap().success());
    });
    let mut number = 0;
    let mut detached = |flags: &[&str]| {
        timed(|_| {
            number += 1;
            let mut runc = std::process::Command::new("/usr/sbin/runc");
            runc.arg("--root")
                .arg(&root)
                .args(["exec", "--detach"])
                .args(flags);
            runc.arg("--process").arg(&process).arg("c0");
            assert!(runc.status().unwrap().success());
        })
    };
    let detached_bare = detached(&[]);
    let freezer = pod
        .cgroups("c0")
        .into_iter()
        .find(|p| p.to_str().unwrap().contains("/freezer/"));
    fs::create_dir(freezer.as_ref().unwrap().join("x")).unwrap();
    let detached_cgroup = detached(&["--cgroup", "freezer:/x"]);
    eventually("an empty cgroup", || {
        fs::remove_dir(freezer.as_ref().unwrap().join("x")).ok()
    });
    println!(
        "exec of true: {exec:.1} ms through the monitor, {bare:.1} ms bare; detached {detached_bare:.1} ms, \
         in a cgroup of its own {detached_cgroup:.1} ms"
    );
    let start = timed(|round| {
        pod.container(&format!("c{}", round + 1), "sleep 1000")
            .run();
    });
    let stop = timed(|round| {
        let c = pod.container(&format!("c{}", round + 1), "");
        c.kill(9, false).unwrap();
        c.wait();
    });
    println!("create and start: {start:.1} ms; kill to the answer of Wait: {stop:.1} ms");
    for round in 0..30 {
        pod.container(&format!("c{}", round + 1), "")
            .delete()
            .unwrap();
    }
    crate::exec::end(pod, "c0");
}
