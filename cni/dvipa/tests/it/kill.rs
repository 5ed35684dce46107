//! The plugin is killed at every system call that it makes.

use std::{fs, process::Command};

use serde_json::json;

use crate::lab::{DVIPA, Lab, Said};

/// How many system calls an operation makes, by strace.
fn calls(lab: &Lab, verb: &str, id: &str, pod: &crate::lab::Ns) -> usize {
    let file = lab.dir.path().join("trace");
    let before = ["strace", "-f", "-o", file.to_str().unwrap()];
    let child = lab.start(lab.command(&before, verb, id, &pod.path), &lab.config);
    let said = Said::from(child.wait_with_output().unwrap());
    said.ok();
    fs::read_to_string(file).unwrap().lines().count()
}

/// Runs an operation that is killed as it enters its call number `at`; whether it was.
fn killed(lab: &Lab, verb: &str, id: &str, pod: &crate::lab::Ns, at: usize) -> bool {
    let inject = format!("inject=all:signal=SIGKILL:when={at}");
    let before = ["strace", "-f", "-o", "/dev/null", "-e", &inject];
    let child = lab.start(lab.command(&before, verb, id, &pod.path), &lab.config);
    let said = Said::from(child.wait_with_output().unwrap());
    !said.success
}

fn strace_is_there() {
    let version = Command::new("strace").arg("--version").output();
    assert!(version.is_ok(), "this test needs strace");
    assert!(fs::metadata(DVIPA).is_ok());
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.set("ipMasq", json!(true));
    lab
}

#[test]
fn an_add_killed_anywhere_is_undone_or_completed() {
    strace_is_there();
    let lab = lab();
    let pod = lab.pod("pod");
    let count = calls(&lab, "ADD", "p", &pod);
    lab.del("p", &pod).ok();
    lab.assert_clean("before");
    let mut kills = 0;
    for at in 1..=count {
        kills += usize::from(killed(&lab, "ADD", "p", &pod, at));
        assert_eq!(lab.leases().difference(&lab.leases()).count(), 0);
        match at % 3 {
            0 => {
                let result = lab.add("p", &pod).ok();
                lab.check("p", &pod, &result).ok();
                assert_eq!(lab.leases(), lab.active(), "killed at {at}");
                assert_eq!(lab.leases(), lab.masqueraded(), "killed at {at}");
                lab.del("p", &pod).ok();
            }
            1 => drop(lab.gc(&[]).ok()),
            _ => drop(lab.del("p", &pod).ok()),
        }
        lab.assert_clean(&format!("killed at {at} of {count}"));
    }
    assert!(kills > count / 2, "{kills} of {count}");
}

#[test]
fn a_del_killed_anywhere_is_completed_by_the_next() {
    strace_is_there();
    let lab = lab();
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    let count = calls(&lab, "DEL", "p", &pod);
    lab.assert_clean("before");
    for at in 1..=count {
        lab.add("p", &pod).ok();
        killed(&lab, "DEL", "p", &pod, at);
        let active = lab.active();
        assert!(
            active.is_subset(&lab.leases()),
            "killed at {at}: {active:?} without a lease"
        );
        match at % 2 {
            0 => drop(lab.gc(&[]).ok()),
            _ => drop(lab.del("p", &pod).ok()),
        }
        lab.assert_clean(&format!("killed at {at} of {count}"));
    }
}
