//! The plugin is killed at every system call that it makes.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::json;

use crate::lab::{DVIPA, Lab, Ns, Said};

/// A system call: its name, and which one of that name it is.
type Call = (String, usize);

/// The system calls that an operation makes, by strace.
fn calls(lab: &Lab, verb: &str, id: &str, pod: &Ns) -> Vec<Call> {
    let file = lab.dir.path().join("trace");
    let before = ["strace", "-f", "-o", file.to_str().unwrap()];
    let child = lab.start(lab.command(&before, verb, id, &pod.path), &lab.config);
    let said = Said::from(child.wait_with_output().unwrap());
    said.ok();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let text = fs::read_to_string(file).unwrap();
    // PID NAME(ARGUMENTS) = RESULT
    let names = text.lines().filter_map(|line| {
        let (_, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        Some(name.to_owned())
    });
    names
        .map(|name| {
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            (name, *count)
        })
        .collect()
}

/// Runs an operation that is killed as it enters a call; whether it was.
fn killed(lab: &Lab, verb: &str, id: &str, pod: &Ns, (name, at): &Call) -> bool {
    let inject = format!("inject={name}:signal=SIGKILL:when={at}");
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

/// After an ADD was killed: the next ADD, DEL or GC finds everything.
fn recover(lab: &Lab, pod: &Ns, way: usize, call: &Call) {
    let when = format!("killed at {call:?}");
    assert!(lab.active().is_subset(&lab.leases()), "{when}");
    match way % 3 {
        0 => {
            let result = lab.add("p", pod).ok();
            lab.check("p", pod, &result).ok();
            assert_eq!(lab.leases(), lab.active(), "{when}");
            assert_eq!(lab.leases(), lab.masqueraded(), "{when}");
            lab.del("p", pod).ok();
        }
        1 => drop(lab.gc(&[]).ok()),
        _ => drop(lab.del("p", pod).ok()),
    }
    lab.assert_clean(&when);
}

#[test]
fn an_add_killed_anywhere_is_undone_or_completed() {
    strace_is_there();
    let lab = lab();
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    lab.del("p", &pod).ok();
    let calls = calls(&lab, "ADD", "p", &pod);
    lab.del("p", &pod).ok();
    let mut kills = 0;
    for (way, call) in calls.iter().enumerate() {
        kills += usize::from(killed(&lab, "ADD", "p", &pod, call));
        recover(&lab, &pod, way, call);
    }
    // All but the last, exit_group: by then the answer is written.
    assert!(kills + 1 >= calls.len(), "{kills} of {}", calls.len());
}

/// It makes the store, switches forwarding on and makes the rules of masquerading.
#[test]
fn the_very_first_add_killed_anywhere_is_undone_or_completed() {
    strace_is_there();
    let first = lab();
    let pod = first.pod("pod");
    let calls = calls(&first, "ADD", "p", &pod);
    let mut kills = 0;
    for (way, call) in calls.iter().enumerate() {
        let lab = lab();
        let pod = lab.pod("pod");
        kills += usize::from(killed(&lab, "ADD", "p", &pod, call));
        recover(&lab, &pod, way, call);
    }
    assert!(kills + 1 >= calls.len(), "{kills} of {}", calls.len());
}

#[test]
fn a_del_killed_anywhere_is_completed_by_the_next() {
    strace_is_there();
    let lab = lab();
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    let calls = calls(&lab, "DEL", "p", &pod);
    lab.assert_clean("before");
    let mut kills = 0;
    for (at, call) in calls.iter().enumerate() {
        lab.add("p", &pod).ok();
        kills += usize::from(killed(&lab, "DEL", "p", &pod, call));
        let active = lab.active();
        assert!(
            active.is_subset(&lab.leases()),
            "killed at {call:?}: {active:?} without a lease"
        );
        match at % 2 {
            0 => drop(lab.gc(&[]).ok()),
            _ => drop(lab.del("p", &pod).ok()),
        }
        lab.assert_clean(&format!("killed at {call:?}"));
    }
    assert!(kills + 1 >= calls.len(), "{kills} of {}", calls.len());
}
