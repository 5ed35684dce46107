//! How attachments are made and unmade: once, whole, and without taking what is another's.

use std::fs;

use serde_json::json;

use super::{FOREIGN, Host, Program};
use crate::lab::ips;

#[test]
fn an_attachment_is_made_once_and_unmade_whole() {
    let host = Host::dual();
    let first = host.run("ADD", "p").ok();
    assert_eq!(host.run("ADD", "p").ok(), first);
    assert_eq!(host.lab.active(), host.lab.leases());
    assert_eq!(first["interfaces"][0]["name"], "lo");
    assert!(first["ips"][0].get("interface").is_none());
    let lo = host.lab.host.addresses();
    let v6 = lo
        .iter()
        .find(|a| a.protocol == 122 && a.ip.is_ipv6())
        .unwrap();
    assert!(v6.deprecated, "the host would use it");
    let mut config = host.config("p");
    config["prevResult"] = first.clone();
    let check = || host.run_with("CHECK", "p", &config);
    check().ok();
    host.run("STATUS", "").ok();
    let v4 = lo
        .iter()
        .find(|a| a.protocol == 122 && a.ip.is_ipv4())
        .unwrap();
    host.lab.host.netlink().send_one("x", v4.remove()).unwrap();
    let (code, text) = check().err();
    assert_eq!(
        (code, text.contains("lo has not 192.0.2.249")),
        (105, true),
        "{text}"
    );
    assert_eq!(host.run("ADD", "p").ok(), first);
    check().ok();
    host.run("DEL", "p").ok();
    host.run("DEL", "p").ok();
    host.lab.assert_clean("after DEL");
    assert!(!host.dir("p").exists(), "the control group is left");
    assert!(!host.dir("").exists(), "its parent is left");
}

#[test]
fn a_group_that_was_there_stays_and_is_free_again() {
    let host = Host::dual();
    fs::create_dir_all(host.dir("p")).unwrap();
    let mut pod = host.pod("p");
    assert_eq!(pod.tell("bind tcp 10.99.0.1:80"), FOREIGN);
    // Another sandbox of the same pod: another address, the same group.
    let said = host.run_with("ADD", "p2", &host.config("p"));
    let second = ips(&said.ok())[0];
    assert_eq!(pod.tell("bind tcp 0.0.0.0:80"), format!("ok {second}:80"));
    host.run("DEL", "p").ok();
    // A process is left: it is still confined.
    assert_eq!(pod.tell("bind tcp 10.99.0.1:80"), FOREIGN);
    pod.program.end();
    // A repeated DEL of the first one, now that nobody is there, does not free the second.
    let del = host.run("DEL", "p");
    del.ok();
    let mut program = Program::start(&host.lab, Some(&host.dir("p")));
    assert_eq!(program.tell("bind tcp 10.99.0.1:80"), FOREIGN);
    program.end();
    host.run_with("DEL", "p2", &host.config("p")).ok();
    assert!(host.dir("p").exists());
    let mut program = Program::start(&host.lab, Some(&host.dir("p")));
    assert_eq!(program.tell("bind tcp 10.99.0.1:80"), "ok 10.99.0.1:80");
    host.lab.assert_clean("after DEL");
}

#[test]
fn an_old_sandbox_that_is_deleted_late_does_not_free_the_new_one() {
    let host = Host::dual();
    host.run("ADD", "p").ok();
    let new = host.run_with("ADD", "p2", &host.config("p"));
    let second = ips(&new.ok())[0];
    // No process has been started yet.
    let said = host.run("DEL", "p");
    assert!(
        said.log.contains("belongs to another attachment"),
        "{}",
        said.log
    );
    said.ok();
    let mut program = Program::start(&host.lab, Some(&host.dir("p")));
    assert_eq!(program.tell("bind tcp 10.99.0.1:80"), FOREIGN);
    assert_eq!(
        program.tell("bind tcp 0.0.0.0:80"),
        format!("ok {second}:80")
    );
}

#[test]
fn a_process_that_outlives_its_pod_is_still_confined() {
    let host = Host::dual();
    let mut pod = host.pod("p");
    let said = host.run("DEL", "p");
    assert!(said.log.contains("still has processes"), "{}", said.log);
    said.ok();
    assert_eq!(pod.tell("bind tcp 10.99.0.1:80"), FOREIGN);
    assert_eq!(
        pod.tell("bind tcp 0.0.0.0:80"),
        FOREIGN,
        "its address is gone"
    );
    host.lab.assert_clean("after DEL");
}

#[test]
fn without_confinement_add_fails_unless_it_is_off() {
    let mut host = Host::dual();
    let said = host.run_with("ADD", "p", &host.lab.config);
    let (code, text) = said.err();
    assert_eq!((code, text.contains("cgroupPath")), (104, true), "{text}");
    for path in ["/../escape", "/"] {
        let mut config = host.lab.config.clone();
        config["runtimeConfig"] = json!({"cgroupPath": path});
        let (code, text) = host.run_with("ADD", "p", &config).err();
        assert_eq!((code, text.contains("cgroupPath")), (7, true), "{text}");
    }
    host.lab.assert_clean("after failures");
    host.lab.set("confine", json!("off"));
    let config = host.lab.config.clone();
    let said = host.run_with("ADD", "p", &config);
    assert!(said.log.contains("is not confined"), "{}", said.log);
    said.ok();
    assert_eq!(host.lab.active(), host.lab.leases());
    host.run_with("DEL", "p", &config).ok();
    host.lab.assert_clean("after DEL");
}

#[test]
fn an_interface_that_is_missing_is_an_error_and_a_status() {
    let mut host = Host::dual();
    host.lab.set("interface", json!("vipa0"));
    let (code, text) = host.run("ADD", "p").err();
    assert_eq!((code, text.contains("vipa0")), (7, true), "{text}");
    let (code, text) = host.run("STATUS", "").err();
    assert_eq!((code, text.contains("vipa0")), (51, true), "{text}");
    host.run("DEL", "p").ok();
    host.lab.assert_clean("after failure");
    assert!(!host.dir("p").exists());
}

#[test]
fn an_address_that_the_host_has_is_skipped() {
    let host = Host::new(&["192.0.2.248/29"]);
    host.lab.host.add_address("lo", "192.0.2.249", 32);
    let said = host.run("ADD", "p");
    assert!(
        said.log
            .contains("192.0.2.249 is skipped: it is active on this host"),
        "{}",
        said.log
    );
    assert_eq!(ips(&said.ok())[0].to_string(), "192.0.2.250");
    host.run("DEL", "p").ok();
    assert!(
        host.lab
            .host
            .addresses()
            .iter()
            .any(|a| a.ip.to_string() == "192.0.2.249")
    );
}

#[test]
fn a_lost_lease_leaves_an_address_that_del_or_gc_removes() {
    let host = Host::dual();
    let result = host.run("ADD", "p").ok();
    fs::remove_dir_all(host.lab.data()).unwrap();
    let mut config = host.config("p");
    config["prevResult"] = result;
    host.run_with("DEL", "p", &config).ok();
    host.lab.assert_clean("after DEL");

    host.run("ADD", "p").ok();
    fs::remove_dir_all(host.lab.data()).unwrap();
    host.lab.gc(&[]).ok();
    host.lab.assert_clean("after GC");
}
