//! What is killed, stopped, refused or crowded in the midst of it.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use zcri_sys::netlink::{first_error, message::Message, route::Address};

use super::{Host, Program};
use crate::lab::{Said, ips};

/// Runs an operation under strace.
fn traced(host: &Host, options: &[&str], verb: &str, config: &Value) -> Child {
    let words: Vec<&str> = ["strace", "-f"]
        .into_iter()
        .chain(options.iter().copied())
        .collect();
    let command = host.lab.command(&words, verb, "p", Path::new("host"));
    host.lab.start(command, config)
}

fn said(child: Child) -> Said {
    child.wait_with_output().unwrap().into()
}

/// Waits until `what` holds, and says what did not.
fn eventually(name: &str, what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < end, "never: {name}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A DEL that has stopped after a request to the kernel, and its process id. The first request looks at the interface,
/// the second lists addresses.
fn stopped(host: &Host, config: &Value, request: usize) -> (Child, Pid) {
    let file = host.lab.dir.path().join("stopped");
    let inject = format!("inject=sendto:signal=SIGSTOP:when={request}");
    let options = ["-o", file.to_str().unwrap(), "-e", &inject];
    let del = traced(host, &options, "DEL", config);
    let pid = || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.contains("--- stopped by SIGSTOP"));
        line.and_then(|line| Pid::from_raw(line.split_whitespace().next()?.parse().ok()?))
    };
    eventually("DEL stops", || pid().is_some());
    (del, pid().unwrap())
}

/// Which bpf(2) of an ADD change what is attached to the group.
fn changes(host: &Host, config: &Value) -> Vec<usize> {
    let file = host.lab.dir.path().join("trace");
    let options = ["-e", "trace=bpf", "-o", file.to_str().unwrap()];
    said(traced(host, &options, "ADD", config)).ok();
    let text = fs::read_to_string(file).unwrap();
    let calls = text.lines().filter(|line| line.contains("bpf(BPF_"));
    let numbered = (1..).zip(calls);
    let changing =
        |line: &str| line.contains("BPF_PROG_ATTACH") || line.contains("BPF_PROG_DETACH");
    numbered
        .filter(|(_, line)| changing(line))
        .map(|(i, _)| i)
        .collect()
}

fn killed(host: &Host, config: &Value, call: usize) {
    let inject = format!("inject=bpf:signal=SIGKILL:when={call}");
    let said = said(traced(
        host,
        &["-o", "/dev/null", "-e", &inject],
        "ADD",
        config,
    ));
    assert!(!said.success, "it has no call {call}");
}

/// bind and setsockopt of an IPv6 socket share a storage.
fn assert_whole(host: &Host, when: &str) {
    let result = host.run("ADD", "p").ok();
    let mut program = Program::start(&host.lab, Some(&host.dir("p")));
    let (v4, v6) = (ips(&result)[0], ips(&result)[1]);
    assert_eq!(
        program.tell("v6only [::]:80"),
        format!("ok [{v6}]:80"),
        "{when}"
    );
    assert_eq!(
        program.tell("bind tcp 0.0.0.0:80"),
        format!("ok {v4}:80"),
        "{when}"
    );
    program.end();
    host.run("DEL", "p").ok();
    assert!(!host.dir("p").exists(), "{when}");
}

#[test]
fn what_a_killed_add_attached_is_not_mixed_with_the_programs_of_the_next() {
    let host = Host::dual();
    let config = host.config("p");
    let first = changes(&host, &config);
    assert_eq!(first.len(), 9, "one of each program");
    host.run("DEL", "p").ok();
    for call in &first {
        killed(&host, &config, *call);
        assert_whole(&host, &format!("killed at {call}"));
    }
    // The next one is killed, too, as it attaches its own or detaches what the first one left.
    let half = first[first.len() / 2];
    killed(&host, &config, half);
    let second = changes(&host, &config);
    assert_eq!(second.len(), 9 + first.len() / 2);
    host.run("DEL", "p").ok();
    for call in &second {
        killed(&host, &config, half);
        killed(&host, &config, *call);
        assert_whole(&host, &format!("killed at {half}, then at {call}"));
    }
}

#[test]
fn a_whole_set_of_programs_stays() {
    let host = Host::dual();
    let config = host.config("p");
    assert_eq!(changes(&host, &config).len(), 9);
    assert_eq!(changes(&host, &config), Vec::<usize>::new());
    host.run("DEL", "p").ok();
    host.lab.assert_clean("after DEL");
}

/// It looks for the interface, lists addresses, and removes that of IPv4, then that of IPv6.
#[test]
fn a_del_goes_on_after_an_error() {
    let host = Host::dual();
    let result = host.run("ADD", "p").ok();
    let inject = ["-o", "/dev/null", "-e", "inject=sendto:error=EPERM:when=3"];
    let (code, text) = said(traced(&host, &inject, "DEL", &host.config("p"))).err();
    assert_eq!(
        (code, text.contains("cannot remove 192.0.2.249")),
        (103, true),
        "{text}"
    );
    assert_eq!(host.lab.active(), [ips(&result)[0]].into());
    assert!(!host.dir("p").exists(), "the control group is left");
    assert_eq!(
        host.lab.leases().len(),
        2,
        "the leases are what is left to do"
    );
    host.run("DEL", "p").ok();
    host.lab.assert_clean("after another DEL");
}

#[test]
fn a_hundred_pods_that_go_at_once_leave_no_address() {
    let mut host = Host::new(&["192.0.2.0/24", "2001:db8::/120"]);
    host.lab.set("confine", json!("off"));
    let config = host.lab.config.clone();
    let all = |verb| {
        let names: Vec<String> = (0..100).map(|i| format!("p{i}")).collect();
        let start = |id: &String| {
            let command = host.lab.command(&[], verb, id, Path::new("host"));
            host.lab.start(command, &config)
        };
        let children: Vec<Child> = names.iter().map(start).collect();
        for child in children {
            said(child).ok();
        }
    };
    all("ADD");
    assert_eq!(
        (host.lab.leases().len(), host.lab.active()),
        (200, host.lab.leases())
    );
    all("DEL");
    host.lab.assert_clean("after DEL");
}

/// The kernel has listed some by then, and all of them are gone when it goes on: its place is behind the end of the list.
#[test]
fn an_address_is_removed_however_its_listing_is_disturbed() {
    let mut host = Host::new(&["192.0.2.248/29"]);
    host.lab.set("confine", json!("off"));
    let index = host.lab.host.link("lo").unwrap().index;
    let other = |i: u16| Address {
        index,
        ip: Ipv4Addr::from(0x0a62_0000 + u32::from(i)).into(),
        prefix: 32,
        protocol: 0,
        deprecated: false,
    };
    let others: Vec<Address> = (1..=1000).map(other).collect();
    let netlink = &mut host.lab.host.netlink();
    let mut all = |change: fn(&Address) -> Message| {
        for some in others.chunks(100) {
            let answers = netlink.send_all(some.iter().map(change).collect());
            first_error("change addresses", answers.unwrap()).unwrap();
        }
    };
    all(Address::add);
    host.run("ADD", "p").ok();
    let (del, pid) = stopped(&host, &host.lab.config, 2);
    all(Address::remove);
    kill_process(pid, Signal::CONT).unwrap();
    said(del).ok();
    host.lab.assert_clean("after DEL");
}

/// After a reboot: the runtime has an old pod deleted, whose address a new one is getting.
#[test]
fn a_late_del_takes_no_address_that_a_new_pod_is_getting() {
    let mut host = Host::new(&["192.0.2.248/29"]);
    host.lab.set("confine", json!("off"));
    let result = host.run("ADD", "p").ok();
    let wanted: BTreeSet<_> = ips(&result).into_iter().collect();
    fs::remove_dir_all(host.lab.data()).unwrap();
    let netlink = &mut host.lab.host.netlink();
    for address in host
        .lab
        .host
        .addresses()
        .iter()
        .filter(|a| a.protocol == 122)
    {
        netlink.send_one("remove", address.remove()).unwrap();
    }
    // By then it has seen that nobody has the address.
    let mut config = host.lab.config.clone();
    config["prevResult"] = result;
    let (del, del_pid) = stopped(&host, &config, 1);
    let add = host.lab.command(&[], "ADD", "new", Path::new("host"));
    let add = host.lab.start(add, &host.lab.config);
    let pid = add.id().to_string();
    // Either it has to wait for a lock, or it runs to its end.
    eventually("ADD waits or ends", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let waits = locks
            .lines()
            .any(|line| line.contains("->") && line.split_whitespace().any(|word| word == pid));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        waits
            || stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('Z'))
    });
    kill_process(del_pid, Signal::CONT).unwrap();
    said(del).ok();
    said(add).ok();
    assert_eq!(host.lab.leases(), wanted);
    assert_eq!(host.lab.active(), wanted, "the new pod has lost it");
    host.lab.gc(&[]).ok();
    host.lab.assert_clean("after GC");
}
