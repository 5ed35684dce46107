//! Reboots, and several nodes that share a directory.

use std::{fs, net::IpAddr, path::Path};

use serde_json::json;

use crate::lab::{Lab, ips, visible};

/// As if all had been made in an earlier boot.
fn reboot(lab: &Lab) {
    let now = lab.boot_dir();
    let earlier = now.with_file_name("00000000-0000-4000-8000-000000000000");
    fs::rename(now, earlier).unwrap();
    for pair in lab.pairs() {
        let request = zcri_sys::netlink::route::del_link(&pair);
        lab.host.netlink().send_one("remove", request).unwrap();
    }
}

#[test]
fn leases_of_an_earlier_boot_are_freed() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["192.0.2.248/30"]));
    let pods = [lab.pod("a"), lab.pod("b"), lab.pod("c")];
    lab.add("a", &pods[0]).ok();
    lab.add("b", &pods[1]).ok();
    assert_eq!(lab.add("c", &pods[2]).err().0, 100);
    reboot(&lab);
    let said = lab.add("c", &pods[2]);
    assert!(
        said.log
            .contains("freed 192.0.2.249, 192.0.2.250 leased before the last reboot"),
        "{}",
        said.log
    );
    said.ok();
    assert_eq!(lab.leases().len(), 1);
    // The runtime finds out later that they are gone.
    lab.del("a", &pods[0]).ok();
    assert_eq!(lab.leases().len(), 1);
    lab.del("c", &pods[2]).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn what_a_del_works_on_is_left_to_it() {
    let mut lab = Lab::new();
    lab.set("vipaRanges", json!(["192.0.2.248/30"]));
    let pods = [lab.pod("a"), lab.pod("b"), lab.pod("c")];
    lab.add("a", &pods[0]).ok();
    reboot(&lab);
    let stack = visible(&lab.boot_dir()).pop().unwrap();
    let owner = fs::File::open(visible(&stack).pop().unwrap()).unwrap();
    rustix::fs::flock(&owner, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(
        lab.add("b", &pods[1]).ok()["ips"][0]["address"],
        "192.0.2.250/32"
    );
    assert!(lab.lease("192.0.2.249").exists(), "its lease was freed");
    assert_eq!(lab.add("c", &pods[2]).err().0, 100);
    drop(owner);
    assert_eq!(
        lab.add("c", &pods[2]).ok()["ips"][0]["address"],
        "192.0.2.249/32"
    );
    assert!(!stack.exists(), "the earlier boot is left");
    lab.gc(&[]).ok();
    lab.assert_clean("after GC");
}

#[test]
fn del_status_and_gc_know_what_an_earlier_boot_left() {
    let lab = Lab::new();
    let pods = [lab.pod("a"), lab.pod("b")];
    lab.add("a", &pods[0]).ok();
    lab.add("b", &pods[1]).ok();
    reboot(&lab);
    lab.del("a", &pods[0]).ok();
    assert_eq!(lab.leases().len(), 2);
    lab.status().ok();
    lab.assert_clean("after STATUS");

    lab.add("a", &pods[0]).ok();
    reboot(&lab);
    lab.gc(&["a"]).ok();
    lab.assert_clean("after GC");
}

#[test]
fn nodes_that_share_a_directory_share_no_address() {
    let (mut one, mut two) = (Lab::new(), Lab::new());
    one.set("node", json!("one"));
    two.set("node", json!("two"));
    two.set("dataDir", one.config["dataDir"].clone());
    // To the store two nodes are two boots.
    let pods = [one.pod("a"), two.pod("b")];
    let first = ips(&one.add("a", &pods[0]).ok());
    rename_boot(&one, "one");
    let second = ips(&two.add("b", &pods[1]).ok());
    assert!(first.iter().all(|ip| !second.contains(ip)));

    // Neither frees what the other has, or what it cannot know about.
    fs::write(one.lease("192.0.2.254"), "damaged").unwrap();
    let said = two.gc(&["b"]);
    assert!(said.log.contains("192.0.2.254 not freed"), "{}", said.log);
    said.ok();
    two.del("b", &pods[1]).ok();
    two.gc(&[]).ok();
    let left: Vec<IpAddr> = one.leases().into_iter().collect();
    assert_eq!(left.len(), 3);
    assert!(first.iter().all(|ip| left.contains(ip)));
}

/// Gives a node another boot than this machine's, as another machine would have.
fn rename_boot(lab: &Lab, node: &str) {
    let dir = lab.data().join("owners").join(node);
    let boot = visible(&dir).pop().unwrap();
    fs::rename(boot, dir.join("11111111-0000-4000-8000-000000000000")).unwrap();
}

#[test]
fn a_node_keeps_its_name_while_it_runs() {
    let mut lab = Lab::new();
    lab.set("node", json!("before"));
    let pod = lab.pod("pod");
    let result = lab.add("p", &pod).ok();
    lab.set("node", json!("after"));
    assert_eq!(lab.add("p", &pod).ok(), result);
    lab.run("DEL", "p", Path::new("")).ok();
    lab.assert_clean("after DEL under another name");
}
