//! The plugin is killed at every system call that it makes.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use serde_json::json;

use crate::lab::{DVIPA, Lab, Ns, Said};

/// A system call: its name, and which one of that name it is.
type Call = (String, usize);

/// The system calls of an operation.
struct Calls {
    all: Vec<Call>,
    /// How many of them, the first, are of the process that the runtime started, and not of the one that waits for
    /// the kernel in its place.
    own: usize,
}

/// The system calls that an operation makes, by strace.
fn calls(lab: &Lab, verb: &str, id: &str, pod: &Ns) -> Calls {
    let file = lab.dir.path().join("trace");
    let before = ["strace", "-f", "-o", file.to_str().unwrap()];
    let child = lab.start(lab.command(&before, verb, id, &pod.path), &lab.config);
    let said = Said::from(child.wait_with_output().unwrap());
    said.ok();
    let text = fs::read_to_string(file).unwrap();
    // PID NAME(ARGUMENTS) = RESULT
    let named: Vec<(&str, &str)> = text
        .lines()
        // The kernel begins anew what waits for a lock of its own (of sysctls, for instance): as often as it takes.
        .filter(|line| !line.contains("ERESTARTNOINTR"))
        .filter_map(|line| {
            let (process, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_')
                .then_some((process, name))
        })
        .collect();
    let first = named[0].0;
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for (process, name) in named {
        let count = counts.entry((process, name)).or_default();
        *count += 1;
        let list = if process == first {
            &mut own
        } else {
            &mut others
        };
        list.push((name.to_owned(), *count));
    }
    // What both do is done by the first one first.
    others.retain(|call| !own.contains(call));
    let count = own.len();
    own.extend(others);
    Calls {
        all: own,
        own: count,
    }
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
            if lab.config["backend"] == "netns" {
                assert_eq!(lab.leases(), lab.masqueraded(), "{when}");
            }
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
    for (way, call) in calls.all.iter().enumerate() {
        kills += usize::from(killed(&lab, "ADD", "p", &pod, call));
        recover(&lab, &pod, way, call);
    }
    // All but the last, exit_group: by then the answer is written.
    assert!(kills + 1 >= calls.own, "{kills} of {}", calls.own);
}

/// It makes the store, switches forwarding on and makes the rules of masquerading.
#[test]
fn the_very_first_add_killed_anywhere_is_undone_or_completed() {
    strace_is_there();
    let first = lab();
    let pod = first.pod("pod");
    let calls = calls(&first, "ADD", "p", &pod);
    let mut kills = 0;
    let mut missed = Vec::new();
    for (way, call) in calls.all.iter().enumerate() {
        let lab = lab();
        let pod = lab.pod("pod");
        if killed(&lab, "ADD", "p", &pod, call) {
            kills += 1;
        } else {
            missed.push(call);
        }
        recover(&lab, &pod, way, call);
    }
    assert!(
        kills + 1 >= calls.own,
        "{kills} of {}, without {missed:?}",
        calls.own
    );
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
    for (at, call) in calls.all.iter().enumerate() {
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
    assert!(kills + 1 >= calls.own, "{kills} of {}", calls.own);
}

/// A lab of the stack backend, and the directory of the pod's control group.
fn stack(number: usize) -> (Lab, PathBuf) {
    let mut lab = Lab::new();
    let group = format!("dvipa-kill-{}-{number}", std::process::id());
    lab.config = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "dvipa", "backend": "stack",
        "vipaRanges": ["192.0.2.248/29", "2001:db8::/120"],
        "dataDir": lab.dir.path().join("data"),
        "capabilities": {"cgroupPath": true},
        "runtimeConfig": {"cgroupPath": format!("/{group}/pod")},
    });
    let tree = zcri_sys::cgroup::Tree::detect().unwrap();
    let unified = tree.unified().expect("this test needs cgroup2");
    (lab, unified.join(group))
}

#[test]
fn an_add_to_the_stack_killed_anywhere_leaves_no_address_and_no_group() {
    strace_is_there();
    let (lab, group) = stack(1);
    let pod = lab.pod("pod");
    let calls = calls(&lab, "ADD", "p", &pod);
    lab.del("p", &pod).ok();
    let mut kills = 0;
    for (way, call) in calls.all.iter().enumerate() {
        kills += usize::from(killed(&lab, "ADD", "p", &pod, call));
        recover(&lab, &pod, way, call);
        assert!(!group.exists(), "killed at {call:?}");
    }
    assert!(kills * 10 > calls.own * 9, "{kills} of {}", calls.own);
}

#[test]
fn a_del_from_the_stack_killed_anywhere_is_completed_by_the_next() {
    strace_is_there();
    let (lab, group) = stack(2);
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    let calls = calls(&lab, "DEL", "p", &pod);
    for (at, call) in calls.all.iter().enumerate() {
        lab.add("p", &pod).ok();
        killed(&lab, "DEL", "p", &pod, call);
        assert!(lab.active().is_subset(&lab.leases()), "killed at {call:?}");
        match at % 2 {
            0 => drop(lab.gc(&[]).ok()),
            _ => drop(lab.del("p", &pod).ok()),
        }
        lab.assert_clean(&format!("killed at {call:?}"));
        assert!(!group.exists(), "killed at {call:?}");
    }
}
