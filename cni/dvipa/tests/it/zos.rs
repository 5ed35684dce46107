//! Backend `zos`, against a stand-in for the TCP/IP stack (`zcri-sys`, feature `zos-stub`): its state is a directory, its
//! answers those of IBM's table of conflicts.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::{Value, json};

use crate::lab::{DVIPA, Lab, Said, ips};

/// Names the plugin for s390x, statically linked, which is then run by QEMU (integration/big-endian.sh).
const BIG_ENDIAN: &str = "ZCRI_BIG_ENDIAN_DVIPA";
const AFFINITY: &str = "_BPXK_SETIBMOPT_TRANSPORT";

/// A stack with one VIPARANGE of six addresses.
struct Stack {
    lab: Lab,
    dir: PathBuf,
    affinity: &'static str,
}

impl Stack {
    fn new() -> Self {
        let mut lab = Lab::new();
        let dir = lab.dir.path().join("stack");
        fs::create_dir_all(dir.join("active")).unwrap();
        fs::write(dir.join("ranges"), "192.0.2.\n2001:db8:").unwrap();
        lab.set("backend", json!("zos"));
        lab.set("vipaRanges", json!(["192.0.2.248/29"]));
        // The stand-in is on no network.
        lab.set("probeMilliseconds", json!(0));
        Self {
            lab,
            dir,
            affinity: "",
        }
    }

    fn run(&self, verb: &str, id: &str) -> Said {
        self.run_with(verb, id, &self.lab.config)
    }

    fn run_with(&self, verb: &str, id: &str, config: &Value) -> Said {
        // A token in place of a path: there is no network namespace.
        let netns = PathBuf::from(format!("zcri-{id}"));
        let emulated = std::env::var(BIG_ENDIAN).ok();
        let words = match &emulated {
            Some(program) => vec!["qemu-s390x-static", program],
            None => vec![DVIPA],
        };
        let mut command = self.lab.command_of(&words, verb, id, &netns);
        command.env("ZCRI_ZOS_STACK", &self.dir);
        if !self.affinity.is_empty() {
            command.env(AFFINITY, self.affinity);
        }
        let child = self.lab.start(command, config);
        child.wait_with_output().unwrap().into()
    }

    fn active(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.join("active")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

fn texts(result: &Value) -> Vec<String> {
    ips(result).iter().map(ToString::to_string).collect()
}

fn set<const N: usize>(all: [&str; N]) -> BTreeSet<String> {
    all.map(str::to_owned).into()
}

#[test]
fn a_vipa_is_defined_checked_and_deleted() {
    let stack = Stack::new();
    let result = stack.run("ADD", "p").ok();
    assert_eq!(texts(&result), ["192.0.2.249"]);
    assert_eq!(stack.active(), set(["192.0.2.249"]));
    let mut config = stack.lab.config.clone();
    config["prevResult"] = result.clone();
    stack.run_with("CHECK", "p", &config).ok();
    // The same pod again has the same.
    assert_eq!(texts(&stack.run("ADD", "p").ok()), ["192.0.2.249"]);
    fs::remove_file(stack.dir.join("active/192.0.2.249")).unwrap();
    let (code, text) = stack.run_with("CHECK", "p", &config).err();
    assert_eq!(code, 105, "{text}");
    stack.run("DEL", "p").ok();
    stack.run("DEL", "p").ok();
    assert_eq!(stack.active(), set([]));
    stack.lab.assert_clean("after DEL");
}

#[test]
fn both_families() {
    let mut stack = Stack::new();
    let ranges = json!(["192.0.2.248/29", "2001:db8::/120"]);
    stack.lab.set("vipaRanges", ranges);
    stack.run("ADD", "p").ok();
    assert_eq!(stack.active(), set(["192.0.2.249", "2001:db8::1"]));
    stack.run("DEL", "p").ok();
    assert_eq!(stack.active(), set([]));
}

#[test]
fn a_del_goes_on_after_an_error() {
    let mut stack = Stack::new();
    let ranges = json!(["192.0.2.248/29", "2001:db8::/120"]);
    stack.lab.set("vipaRanges", ranges);
    stack.run("ADD", "p").ok();
    let file = stack.dir.join("active/192.0.2.249");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let (code, text) = stack.run("DEL", "p").err();
    assert_eq!((code, text.contains("192.0.2.249")), (103, true), "{text}");
    assert_eq!(stack.active(), set(["192.0.2.249"]));
    fs::remove_dir(&file).unwrap();
    stack.run("DEL", "p").ok();
    stack.lab.assert_clean("after another DEL");
}

/// Podman shares the range. The stack says that an address is there already, and whose it is nobody knows.
#[test]
fn what_another_application_made_is_skipped_and_stays() {
    let stack = Stack::new();
    let foreign = stack.dir.join("active/192.0.2.249");
    fs::write(&foreign, "PODMAN").unwrap();
    let said = stack.run("ADD", "p");
    assert!(said.log.contains("192.0.2.249 is skipped"), "{}", said.log);
    assert_eq!(texts(&said.ok()), ["192.0.2.250"]);
    stack.run("DEL", "p").ok();
    stack.run("GC", "").ok();
    assert_eq!(stack.active(), set(["192.0.2.249"]));
    assert_eq!(fs::read_to_string(foreign).unwrap(), "PODMAN");
}

#[test]
fn a_refusal_by_saf_leaves_nothing_and_names_the_call() {
    let stack = Stack::new();
    fs::write(stack.dir.join("refused"), "").unwrap();
    let (code, text) = stack.run("ADD", "p").err();
    assert_eq!(code, 103);
    for word in ["SIOCSVIPA", "192.0.2.249", "not permitted"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    fs::remove_file(stack.dir.join("refused")).unwrap();
    stack.run("DEL", "p").ok();
    stack.lab.assert_clean("after a refusal");
    assert_eq!(stack.active(), set([]));
}

#[test]
fn ranges_that_the_stack_does_not_have_are_a_mistake_of_the_configuration() {
    let mut stack = Stack::new();
    stack.lab.set("vipaRanges", json!(["198.51.100.0/24"]));
    let (code, text) = stack.run("ADD", "p").err();
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("VIPARANGE"), "{text}");
    stack.lab.assert_clean("after a mistake");
}

#[test]
fn the_range_is_exhausted() {
    let stack = Stack::new();
    for number in 1..=6 {
        stack.run("ADD", &format!("p{number}")).ok();
    }
    let (_, text) = stack.run("ADD", "p7").err();
    assert!(text.contains("192.0.2.248/29"), "{text}");
    assert_eq!(stack.active().len(), 6);
    let (code, _) = stack.run("STATUS", "").err();
    assert!([50, 51].contains(&code), "{code}");
}

#[test]
fn the_stack_must_be_the_one_that_the_process_belongs_to() {
    let mut stack = Stack::new();
    stack.lab.set("stack", json!("TCPIPB"));
    let (code, text) = stack.run("ADD", "p").err();
    assert_eq!(code, 7, "{text}");
    assert!(text.contains(AFFINITY), "{text}");
    stack.affinity = "TCPIPB";
    stack.run("ADD", "p").ok();
    stack.run("DEL", "p").ok();
}
