//! The pod's init, containers that share its PID namespace, and what a container must not inherit.

use std::fs;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::exec::{Exec, idle};
use crate::pod::{Container, Pod, code, eventually, is_alive};

/// The sandbox of a pod with a shared PID namespace, in network, IPC and UTS namespaces of its own.
fn sandbox(pod: &Pod) -> (Container<'_>, u32) {
    let mut c = pod.container("sandbox", "");
    c.spec = json!({
        "ociVersion": "1.0.2", "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "uts", "path": "/proc/self/ns/uts"},
            {"type": "ipc", "path": "/proc/self/ns/ipc"}, {"type": "network", "path": "/proc/self/ns/net"}]},
    });
    c.request.stdout = String::new();
    c.request.stderr = String::new();
    c.create().unwrap();
    let pid = c.start().unwrap();
    (c, pid)
}

fn status_line(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn the_pods_init_is_small_powerless_and_readable() {
    let pod = Pod::new();
    let (c, pid) = sandbox(&pod);
    assert_eq!(
        fs::read_to_string(c.bundle.join("init.pid")).unwrap(),
        pid.to_string()
    );
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .trim_end_matches('\0'),
        "zcri-init"
    );
    assert_eq!(status_line(pid, "Name:"), "zcri-init");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status_line(pid, set), "0000000000000000");
    }
    assert_eq!(status_line(pid, "NoNewPrivs:"), "1");
    assert_eq!(
        status_line(pid, "NSpid:").split_whitespace().nth(1),
        Some("1")
    );
    assert_eq!(
        fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(),
        0
    );
    // The pipe on which it said so is closed after the word.
    eventually("descriptors 0, 1 and 2", || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (open == 3).then_some(())
    });
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert!(
        mounts.lines().count() == 1 && mounts.contains("ro,"),
        "{mounts}"
    );
    c.kill(15, false).unwrap();
    assert_eq!(c.wait(), 0);
    assert_eq!(c.exit_record().unwrap()["exit_code"], json!(0));
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn containers_share_its_pid_namespace_and_it_reaps() {
    let pod = Pod::new();
    let (sandbox, init) = sandbox(&pod);
    let share = json!({"type": "pid", "path": format!("/proc/{init}/ns/pid")});
    let mut c = pod.container("c1", "ps; (sh -c 'sleep 0.05' &); echo; until test -e /tmp/go; do sleep 0.01; done; sleep 1000 & exit 6");
    c.spec["linux"]["namespaces"][0] = share.clone();
    let pid = c.run();
    c.wait_for_text("zcri-init");
    // The orphan is reaped: no zombie is left below the init.
    eventually("reaping", || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        children.trim().is_empty().then_some(())
    });
    let mut d = pod.container("c2", "echo here; sleep 1000");
    d.spec["linux"]["namespaces"][0] = share;
    let other = d.run();
    let mut e = Exec::new(&d, "e1", "ps");
    e.run();
    let seen = e.output();
    assert!(
        seen.contains("zcri-init") && seen.contains("/tmp/go"),
        "{seen}"
    );
    e.wait();
    // The first container ends, and with it what it left running with its output open.
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    assert_eq!(c.wait(), 6);
    c.delete().unwrap();
    assert!(pod.cgroups("c1").is_empty());
    assert!(is_alive(other) && is_alive(init));
    d.kill(9, true).unwrap();
    d.wait();
    d.delete().unwrap();
    sandbox.kill(9, false).unwrap();
    assert_eq!(sandbox.wait(), 137);
    sandbox.delete().unwrap();
    pod.finish();
}

#[test]
fn an_init_that_cannot_start_says_why() {
    let pod = Pod::new();
    let mut c = pod.container("sandbox", "");
    c.spec = json!({
        "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "uts", "path": "/nonexistent/uts"}]},
    });
    (c.request.stdout, c.request.stderr) = (String::new(), String::new());
    c.create().unwrap();
    let (status, message) = code(c.start());
    assert_eq!(status, Code::INTERNAL);
    assert!(message.contains("/nonexistent/uts"), "{message}");
    assert_eq!(c.wait(), 1);
    c.delete().unwrap();
    c.spec["linux"]["namespaces"] = json!([{"type": "time", "path": "/x"}]);
    assert_eq!(code(c.create()).0, Code::UNIMPLEMENTED);
    pod.finish();
}

#[test]
fn nothing_of_the_monitor_reaches_a_container() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let d = pod.container("c2", "ls /proc/self/fd; env");
    d.run();
    d.wait();
    // 3 is the directory that ls reads.
    let mut seen: Vec<String> = d.text().lines().map(str::to_owned).collect();
    seen.sort();
    let only = [
        "0",
        "1",
        "2",
        "3",
        "HOME=/",
        "PATH=/bin",
        "PWD=/",
        "SHLVL=1",
    ];
    assert_eq!(seen, only);
    d.delete().unwrap();
    let mut e = Exec::new(&c, "e1", "ls /proc/self/fd; env");
    e.run();
    let mut seen: Vec<String> = e.output().lines().map(str::to_owned).collect();
    seen.sort();
    assert_eq!(seen, only);
    e.wait();
    crate::exec::end(pod, "c1");
}

#[test]
fn crun_runs_everything_too() {
    let Some(pod) = Pod::with_crun() else { return };
    let c = pod.container("c1", "echo out; exit 42");
    c.run();
    assert_eq!(c.wait(), 42);
    assert_eq!(c.text(), "out\n");
    c.delete().unwrap();
    let mut c = pod.container("c2", "");
    c.spec["process"]["args"] = json!(["/bin/nonexistent"]);
    c.create().unwrap();
    let (_, message) = code(c.start());
    assert!(
        message.contains("/bin/nonexistent") && message.contains("No such file"),
        "{message}"
    );
    c.delete().unwrap();
    let mut c = pod.container("c3", "test -t 0 && echo terminal; sleep 1000");
    c.spec["process"]["terminal"] = true.into();
    c.request.terminal = true;
    c.run();
    c.wait_for_text("terminal\r\n");
    let mut e = Exec::new(&c, "e1", "sleep 1000 & echo ready; sleep 1001");
    e.run();
    eventually("the tree", || e.first_bytes(&mut [0; 6]).then_some(()));
    e.kill_all().unwrap();
    assert_eq!(e.output(), "");
    assert_eq!(e.wait(), 137);
    e.delete().unwrap();
    c.kill(9, true).unwrap();
    assert_eq!(c.wait(), 137);
    assert_eq!(
        c.state().unwrap().status.enum_value(),
        Ok(api::Status::STOPPED)
    );
    c.delete().unwrap();
    pod.finish();
}
