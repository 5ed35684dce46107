//! Which address a pod gets, and that nobody else has it.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    thread,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::lab::{Lab, Ns, ips, visible};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn only_v4(lab: &mut Lab) {
    lab.set("vipaRanges", json!(["192.0.2.248/29"]));
}

#[test]
fn a_second_add_gives_the_same_and_disturbs_nothing() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let first = lab.add("p", &pod).ok();
    let before = pod.link("eth0").unwrap().index;
    let second = lab.add("p", &pod).ok();
    assert_eq!(first, second);
    assert_eq!(pod.link("eth0").unwrap().index, before, "it was made anew");
    assert_eq!(lab.leases().len(), 2);
    lab.del("p", &pod).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn many_adds_of_one_pod_at_once_give_one_address() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let run = || lab.start(lab.command(&[], "ADD", "p", &pod.path), &lab.config);
    let children: Vec<_> = (0..8).map(|_| run()).collect();
    let results: BTreeSet<String> = children
        .into_iter()
        .map(|child| {
            let said = crate::lab::Said::from(child.wait_with_output().unwrap());
            said.ok().to_string()
        })
        .collect();
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!(lab.leases().len(), 2);
    assert_eq!(lab.leases(), lab.active());
    lab.del("p", &pod).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn add_and_del_of_one_pod_at_once_end_in_all_or_nothing() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    for _ in 0..10 {
        thread::scope(|scope| {
            scope.spawn(|| lab.add("p", &pod));
            scope.spawn(|| lab.del("p", &pod).ok());
        });
        let eth0 = pod.link("eth0").is_some();
        assert_eq!(lab.leases(), lab.active());
        assert_eq!(lab.leases().len(), if eth0 { 2 } else { 0 });
        lab.del("p", &pod).ok();
        lab.assert_clean("after DEL");
    }
}

#[test]
fn an_address_is_not_given_again_at_once() {
    let mut lab = Lab::new();
    only_v4(&mut lab);
    let pod = lab.pod("pod");
    let mut given = Vec::new();
    for i in 0..7 {
        let id = format!("p{i}");
        given.push(ips(&lab.add(&id, &pod).ok())[0].to_string());
        lab.del(&id, &pod).ok();
    }
    let all = [249, 250, 251, 252, 253, 254, 249].map(|n| format!("192.0.2.{n}"));
    assert_eq!(given, all);
}

#[test]
fn an_exhausted_range_is_an_error_and_a_status() {
    let mut lab = Lab::new();
    only_v4(&mut lab);
    lab.set("exclude", json!(["192.0.2.251-192.0.2.254"]));
    lab.status().ok();
    let pods = [lab.pod("a"), lab.pod("b"), lab.pod("c")];
    lab.add("a", &pods[0]).ok();
    lab.add("b", &pods[1]).ok();
    let (code, text) = lab.add("c", &pods[2]).err();
    assert_eq!(code, 100);
    assert!(text.contains("192.0.2.248/29: 2 leased"), "{text}");
    assert!(pods[2].link("eth0").is_none());
    let (code, text) = lab.status().err();
    assert_eq!(code, 50, "{text}");
    lab.del("a", &pods[0]).ok();
    lab.status().ok();
    assert_eq!(ips(&lab.add("c", &pods[2]).ok()), [ip("192.0.2.249")]);
}

#[test]
fn one_family_exhausted_leaves_nothing_of_the_other() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["192.0.2.248/29", "2001:db8::7/128"]));
    let pods = [lab.pod("a"), lab.pod("b")];
    lab.add("a", &pods[0]).ok();
    let (code, text) = lab.add("b", &pods[1]).err();
    assert_eq!(code, 100);
    assert!(text.contains("IPv6"), "{text}");
    assert_eq!(lab.leases(), [ip("192.0.2.249"), ip("2001:db8::7")].into());
}

#[test]
fn the_limit_of_the_stack_counts_all_its_networks() {
    let mut lab = Lab::new();
    lab.set("maxVipas", json!(3));
    let pods = [lab.pod("a"), lab.pod("b")];
    lab.add("a", &pods[0]).ok();
    let mut other = lab.config.clone();
    other["name"] = json!("other");
    let (code, text) = lab.run_with("ADD", "b", &pods[1].path, &other).err();
    assert_eq!(code, 101);
    assert!(text.contains("has 2 of at most 3"), "{text}");
    other["vipaRanges"] = json!(["198.18.0.0/24"]);
    lab.run_with("ADD", "b", &pods[1].path, &other).ok();
    let (code, _) = lab.status().err();
    assert_eq!(code, 50);
    // Another stack has its own.
    other["stack"] = json!("TCPIPB");
    other["name"] = json!("third");
    let third = lab.pod("c");
    lab.run_with("ADD", "c", &third.path, &other).ok();
}

#[test]
fn the_limit_is_exact_when_many_come_at_once() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["198.18.0.0/24"]));
    lab.set("maxVipas", json!(5));
    let pods: Vec<Ns> = (0..12).map(|i| lab.pod(&format!("p{i}"))).collect();
    let children: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| {
            let command = lab.command(&[], "ADD", &format!("p{i}"), &pod.path);
            lab.start(command, &lab.config)
        })
        .collect();
    let said = children
        .into_iter()
        .map(|child| crate::lab::Said::from(child.wait_with_output().unwrap()));
    let (given, refused): (Vec<_>, Vec<_>) = said.partition(|said| said.success);
    assert_eq!((given.len(), refused.len()), (5, 7));
    assert!(refused.into_iter().all(|said| said.err().0 == 101));
    assert_eq!(lab.leases().len(), 5);
    assert_eq!(lab.active(), lab.leases());
}

#[test]
fn an_address_that_is_asked_for_is_had_or_refused() {
    let mut lab = Lab::new();
    lab.set("exclude", json!(["192.0.2.254"]));
    lab.set("capabilities", json!({"ips": true}));
    let ask = |lab: &mut Lab, ips: &[&str]| lab.set("runtimeConfig", json!({"ips": ips}));
    let pods = [lab.pod("a"), lab.pod("b")];
    ask(&mut lab, &["192.0.2.252/29", "2001:db8::77"]);
    let result = lab.add("a", &pods[0]).ok();
    assert_eq!(ips(&result), [ip("192.0.2.252"), ip("2001:db8::77")]);
    lab.host.add_address("lo", "192.0.2.250", 32);
    for (wanted, why) in [
        ("192.0.2.252", "belongs to pod ns/a"),
        ("192.0.2.254", "excluded"),
        ("192.0.2.255", "broadcast"),
        ("198.51.100.7", "in none of vipaRanges"),
        ("192.0.2.250", "active on this host"),
        ("2001:db8::", "anycast"),
    ] {
        ask(&mut lab, &[wanted]);
        let (code, text) = lab.add("b", &pods[1]).err();
        assert_eq!(code, 102, "{text}");
        assert!(text.contains(wanted) && text.contains(why), "{text}");
    }
    // The pod that is there is not touched by an ADD that asks for something else.
    ask(&mut lab, &["192.0.2.253"]);
    let (code, text) = lab.add("a", &pods[0]).err();
    assert_eq!(
        (code, text.contains("has 192.0.2.252 already")),
        (102, true),
        "{text}"
    );
    ask(&mut lab, &[]);
    assert_eq!(lab.add("a", &pods[0]).ok(), result);
    assert_eq!(lab.leases().len(), 2);
}

#[test]
fn an_address_that_is_active_without_a_lease_is_skipped_and_logged() {
    let mut lab = Lab::new();
    only_v4(&mut lab);
    lab.host.add_address("lo", "192.0.2.249", 32);
    let other = lab.pod("other");
    lab.add("other", &other).ok();
    let taken = lab.host.routes();
    let taken = taken.iter().find(|r| r.to == ip("192.0.2.250")).unwrap();
    // Somebody routes an address through the same interface.
    let foreign = zcri_sys::netlink::route::Route {
        to: ip("192.0.2.251"),
        protocol: 4,
        ..taken.clone()
    };
    lab.host.netlink().send_one("route", foreign.add()).unwrap();
    let pod = lab.pod("pod");
    let said = lab.add("p", &pod);
    assert!(
        said.log
            .contains("192.0.2.251 is skipped: it is active behind a route"),
        "{}",
        said.log
    );
    assert_eq!(ips(&said.ok()), [ip("192.0.2.252")]);
    // And 192.0.2.249, which the first pod did not get.
    assert!(!lab.leases().contains(&ip("192.0.2.249")));
    lab.del("p", &pod).ok();
    assert!(lab.host.routes().contains(&foreign), "it was taken away");
    assert!(
        lab.host
            .addresses()
            .iter()
            .any(|a| a.ip == ip("192.0.2.249"))
    );
}

#[test]
fn a_lost_lease_gives_its_address_to_nobody_and_leaves_nothing() {
    let mut lab = Lab::new();
    only_v4(&mut lab);
    let pods = [lab.pod("a"), lab.pod("b")];
    let result = lab.add("a", &pods[0]).ok();
    fs::remove_file(lab.lease("192.0.2.249")).unwrap();
    let (code, text) = lab.check("a", &pods[0], &result).err();
    assert_eq!(code, 3, "{text}");
    // Once around, so that it would be its turn.
    for i in 0..6 {
        let id = format!("b{i}");
        assert_ne!(ips(&lab.add(&id, &pods[1]).ok())[0], ip("192.0.2.249"));
        lab.del(&id, &pods[1]).ok();
    }
    lab.del("a", &pods[0]).ok();
    lab.assert_clean("after DEL without a lease");

    // With its owner's file lost, too.
    lab.add("a", &pods[0]).ok();
    fs::remove_dir_all(lab.data()).unwrap();
    lab.del("a", &pods[0]).ok();
    lab.assert_clean("after DEL without anything");

    lab.add("a", &pods[0]).ok();
    fs::remove_dir_all(lab.data()).unwrap();
    lab.gc(&[]).ok();
    lab.assert_clean("after GC without anything");
}

#[test]
fn a_half_written_lease_still_has_its_owner() {
    let lab = Lab::new();
    let pods = [lab.pod("a"), lab.pod("b")];
    let result = lab.add("a", &pods[0]).ok();
    fs::write(lab.lease("192.0.2.249"), r#"{"network":"po"#).unwrap();
    lab.check("a", &pods[0], &result).ok();
    assert_eq!(lab.add("a", &pods[0]).ok(), result);
    assert_eq!(ips(&lab.add("b", &pods[1]).ok())[0], ip("192.0.2.250"));
    fs::write(lab.lease("192.0.2.249"), "").unwrap();
    lab.del("a", &pods[0]).ok();
    lab.del("b", &pods[1]).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn a_lease_that_is_nobodys_is_reported_and_freed_by_gc_only() {
    let mut lab = Lab::new();
    only_v4(&mut lab);
    let pod = lab.pod("pod");
    lab.status().ok();
    for garbage in ["192.0.2.249", "192.0.2.250"] {
        fs::write(lab.lease(garbage), b"\0\xff{").unwrap();
    }
    lab.host.add_address("lo", "192.0.2.250", 32);
    assert_eq!(ips(&lab.add("p", &pod).ok()), [ip("192.0.2.251")]);
    let said = lab.status();
    assert!(
        said.log.contains("the lease of 192.0.2.249 is damaged"),
        "{}",
        said.log
    );
    said.ok();
    let said = lab.gc(&["p"]);
    assert!(said.log.contains("192.0.2.249 freed"), "{}", said.log);
    assert!(said.log.contains("192.0.2.250 not freed"), "{}", said.log);
    said.ok();
    assert_eq!(lab.leases(), [ip("192.0.2.250"), ip("192.0.2.251")].into());
}

#[test]
fn gc_frees_what_is_not_listed_and_only_what_is_ours() {
    let lab = Lab::new();
    let pods = [lab.pod("a"), lab.pod("b"), lab.pod("c")];
    let result = lab.add("a", &pods[0]).ok();
    lab.add("b", &pods[1]).ok();
    let mut other = lab.config.clone();
    other["name"] = json!("other");
    lab.run_with("ADD", "c", &pods[2].path, &other).ok();
    lab.gc(&["a"]).ok();
    assert_eq!(lab.leases().len(), 4);
    assert_eq!(lab.leases(), lab.active());
    assert!(pods[1].link("eth0").is_none());
    assert!(pods[2].link("eth0").is_some());
    lab.check("a", &pods[0], &result).ok();
    lab.gc(&[]).ok();
    assert_eq!(lab.leases().len(), 2);
    // As libcni says that there is none.
    lab.run_with("GC", "", &pods[2].path, &other).ok();
    lab.assert_clean("after GC");
}

#[test]
fn del_of_what_is_not_there_is_no_error() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    lab.del("never", &pod).ok();
    lab.add("p", &pod).ok();
    lab.run("DEL", "p", std::path::Path::new("")).ok();
    lab.del("p", &pod).ok();
    lab.assert_clean("after DEL");

    lab.add("p", &pod).ok();
    let path = pod.path.clone();
    drop(pod);
    lab.run("DEL", "p", &path).ok();
    lab.assert_clean("after DEL of a pod whose namespace was gone");
}

#[test]
fn check_of_what_is_not_there_says_so() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let (code, text) = lab.run("CHECK", "p", &pod.path).err();
    assert_eq!((code, text.contains("no lease")), (3, true), "{text}");
}

#[test]
fn clocks_do_not_matter() {
    let lab = Lab::new();
    let pods = [lab.pod("a"), lab.pod("b")];
    let result = lab.add("a", &pods[0]).ok();
    let year = Duration::from_secs(365 * 24 * 3600);
    for time in [SystemTime::UNIX_EPOCH, SystemTime::now() + 100 * year] {
        for stack in visible(&lab.boot_dir()) {
            for owner in visible(&stack) {
                let text = fs::read_to_string(&owner).unwrap();
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
                let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
                json["time"] = json!(since.as_secs());
                fs::write(&owner, json.to_string()).unwrap();
                fs::File::open(&owner).unwrap().set_modified(time).unwrap();
            }
        }
        lab.status().ok();
        lab.gc(&["a"]).ok();
        lab.check("a", &pods[0], &result).ok();
        assert_eq!(lab.add("a", &pods[0]).ok(), result);
        let other = ips(&lab.add("b", &pods[1]).ok());
        assert!(other.iter().all(|ip| !ips(&result).contains(ip)));
        lab.del("b", &pods[1]).ok();
    }
    lab.del("a", &pods[0]).ok();
    lab.assert_clean("after DEL");
}
