//! What the runtime sees: versions, errors, forms of results.

use std::path::Path;

use serde_json::{Value, json};

use crate::lab::{Lab, ips};

#[test]
fn version_lists_what_is_spoken_in_the_version_asked_in() {
    let lab = Lab::new();
    for (asked, answered) in [("0.4.0", "0.4.0"), ("1.1.0", "1.1.0"), ("9.0.0", "1.1.0")] {
        let config = json!({"cniVersion": asked});
        let said = lab.run_with("VERSION", "", Path::new(""), &config).ok();
        assert_eq!(said["cniVersion"], answered);
        let all = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(said["supportedVersions"], all);
    }
}

#[test]
fn what_is_wrong_has_its_code_and_name() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let mut cases = vec![
        (lab.run("PAUSE", "p", &pod.path), 4, "PAUSE"),
        (lab.run("ADD", "", &pod.path), 4, "CNI_CONTAINERID"),
        (lab.run("ADD", "../p", &pod.path), 4, "CNI_CONTAINERID"),
        (lab.run("ADD", "p", Path::new("")), 4, "CNI_NETNS"),
        (lab.run("ADD", "p", Path::new("/nowhere")), 103, "/nowhere"),
        (
            lab.run("ADD", "p", Path::new("/proc/version")),
            103,
            "/proc/version",
        ),
    ];
    for (key, value, code, names) in [
        ("vipaRangs", json!([]), 7, "vipaRangs"),
        ("cniVersion", json!("0.2.0"), 1, "0.2.0"),
        ("backend", json!("bridge"), 7, "bridge"),
        ("backend", json!("zos"), 7, "backend"),
        ("vipaRanges", json!(["192.0.2.0/31"]), 7, "too small"),
        (
            "vipaRanges",
            json!(["192.0.2.0/29", "192.0.2.4/30"]),
            7,
            "overlaps",
        ),
        ("uplink", json!("nosuch0"), 7, "nosuch0"),
        ("dataDir", json!("/proc/dvipa"), 5, "/proc/dvipa"),
        ("capabilities", json!({"bandwidth": true}), 7, "bandwidth"),
    ] {
        let mut config = lab.config.clone();
        config[key] = value;
        cases.push((lab.run_with("ADD", "p", &pod.path, &config), code, names));
    }
    for (said, code, names) in cases {
        let version = said.json["cniVersion"].clone();
        let (found, text) = said.err();
        assert_eq!(found, code, "{text}");
        assert!(text.contains(names), "{names}: {text}");
        assert_eq!(version, "1.1.0");
    }
    lab.assert_clean("after failures");
}

#[test]
fn results_have_the_form_of_their_version() {
    let mut lab = Lab::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = lab.pod("pod");
        lab.set("cniVersion", json!(version));
        let result = lab.add("p", &pod).ok();
        assert_eq!(result["cniVersion"], version);
        let old = version < "1.0.0";
        assert_eq!(result["ips"][0].get("version").is_some(), old, "{result}");
        let mtu = result["interfaces"][1].get("mtu").is_some();
        assert_eq!(mtu, version == "1.1.0", "{result}");
        assert_eq!(result["interfaces"][1]["sandbox"], json!(pod.path));
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fe80::1"}));
        lab.check("p", &pod, &result).ok();
        assert_eq!(lab.del("p", &pod).ok(), Value::Null);
    }
    lab.assert_clean("at the end");
}

#[test]
fn what_came_before_in_the_chain_stays_in_the_result() {
    let mut lab = Lab::new();
    let pod = lab.pod("pod");
    lab.set(
        "prevResult",
        json!({
            "cniVersion": "1.1.0", "interfaces": [{"name": "lo", "sandbox": pod.path}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}], "dns": {"domain": "a.example"},
        }),
    );
    let result = lab.add("p", &pod).ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["dns"]["domain"], "a.example");
    lab.del("p", &pod).ok();
}

#[test]
fn dns_is_passed_on_from_the_configuration_or_the_runtime() {
    let mut lab = Lab::new();
    let pod = lab.pod("pod");
    lab.set("dns", json!({"nameservers": ["10.0.0.1"]}));
    let result = lab.add("p", &pod).ok();
    assert_eq!(result["dns"], json!({"nameservers": ["10.0.0.1"]}));
    lab.del("p", &pod).ok();
    lab.set("capabilities", json!({"dns": true}));
    let runtime = json!({"dns": {"servers": ["10.0.0.2"], "searches": ["b.example"]}});
    lab.set("runtimeConfig", runtime);
    let result = lab.add("p", &pod).ok();
    assert_eq!(result["dns"]["nameservers"], json!(["10.0.0.2"]));
    assert_eq!(result["dns"]["search"], json!(["b.example"]));
    lab.del("p", &pod).ok();
}

#[test]
fn every_step_is_one_line_with_the_pod_in_it_in_the_log_file_too() {
    let mut lab = Lab::new();
    let file = lab.dir.path().join("dvipa.log");
    lab.set("logFile", json!(file));
    let pod = lab.pod("pod");
    let said = lab.add("p", &pod);
    let first = ips(&said.json)[0];
    let lines: Vec<&str> = said.log.lines().collect();
    assert!(
        lines
            .iter()
            .all(|l| l.starts_with("dvipa ADD ns/p (p eth0): "))
    );
    assert!(lines[0].contains(&first.to_string()), "{}", said.log);
    let failed = lab.run("ADD", "q", Path::new("/nowhere"));
    assert!(failed.log.contains("failed: "), "{}", failed.log);
    let del = lab.del("p", &pod);
    assert!(del.log.contains("freed 192.0.2.249"), "{}", del.log);
    let log = std::fs::read_to_string(file).unwrap();
    assert_eq!(
        log.lines().count(),
        lines.len() + failed.log.lines().count() + del.log.lines().count()
    );
    assert!(
        log.contains("T") && log.contains("Z dvipa ADD ns/p"),
        "{log}"
    );
}
