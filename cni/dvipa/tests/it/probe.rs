//! Addresses that somebody in the network has.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    lab::{Lab, Said, ips},
    netns::outside,
};

/// The longest patience that can be set.
const LONG: u64 = 5_000;

#[test]
fn an_address_that_answers_is_skipped() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["192.0.2.248/29", "2001:db8::/120"]));
    lab.set("probeMilliseconds", json!(500));
    let other = outside(&lab, 1500);
    for number in 249..=253 {
        other.add_address("lo", &format!("192.0.2.{number}"), 32);
    }
    let pod = lab.pod("pod");
    let said = lab.add("p", &pod);
    let skipped = "192.0.2.253 is skipped: on another stack";
    assert!(said.log.contains(skipped), "{}", said.log);
    let all: Vec<_> = ips(&said.ok());
    assert_eq!(all[0].to_string(), "192.0.2.254");
    assert_eq!(lab.leases(), all.into_iter().collect());
    let second = lab.pod("second");
    let (code, text) = lab.add("p2", &second).err();
    assert_eq!((code, text.contains("5 in use")), (100, true), "{text}");
    lab.set("capabilities", json!({"ips": true}));
    lab.set("runtimeConfig", json!({"ips": ["192.0.2.250"]}));
    let (code, text) = lab.add("p2", &second).err();
    assert_eq!((code, text.contains("192.0.2.250")), (102, true), "{text}");
    assert_eq!(lab.leases().len(), 2);
    lab.del("p", &pod).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn nobody_waits_while_a_silent_address_is_asked_for() {
    let mut lab = Lab::new();
    let other = outside(&lab, 1500);
    other.set_sysctl("ipv4/ip_forward", "0");
    lab.set("vipaRanges", json!(["192.0.2.248/29"]));
    let (slow, quick) = (lab.pod("slow"), lab.pod("quick"));
    let mut asking = lab.config.clone();
    asking["probeMilliseconds"] = json!(LONG);
    let mut child = lab.start(lab.command(&[], "ADD", "slow", &slow.path), &asking);
    // SYN_SENT is state 2.
    let connections = format!("/proc/{}/net/tcp", child.id());
    let end = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&connections).is_ok_and(|text| text.contains(" 02 ")) {
        assert!(Instant::now() < end, "it does not ask");
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = lab.add("quick", &quick).ok();
    let asks = child.try_wait().unwrap().is_none();
    let first = Said::from(child.wait_with_output().unwrap()).ok();
    assert!(asks, "the second one waited for the first");
    assert_ne!(ips(&first), ips(&second));
    assert_eq!(lab.active(), lab.leases());
    lab.gc(&[]).ok();
    lab.assert_clean("after GC");
}
