//! Pods without a network namespace, confined by eBPF.

mod interrupted;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use crate::lab::{DVIPA, Lab, Said, ips};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The unified hierarchy of this machine.
fn unified() -> PathBuf {
    let tree = zcri_sys::cgroup::Tree::detect().unwrap();
    tree.unified().expect("this test needs cgroup2").to_owned()
}

/// A lab whose pods are in the host's stack.
struct Host {
    lab: Lab,
    /// The parent of the pods' control groups.
    group: String,
}

impl Host {
    fn new(ranges: &[&str]) -> Self {
        let mut lab = Lab::new();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        lab.config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "dvipa", "backend": "stack",
            "vipaRanges": ranges, "dataDir": lab.dir.path().join("data"),
            "capabilities": {"cgroupPath": true},
        });
        let group = format!("/dvipa-test-{}-{number}", std::process::id());
        Self { lab, group }
    }

    fn dual() -> Self {
        Self::new(&["192.0.2.248/29", "2001:db8::/120"])
    }

    fn config(&self, id: &str) -> Value {
        let mut config = self.lab.config.clone();
        config["runtimeConfig"] = json!({"cgroupPath": format!("{}/{id}", self.group)});
        config
    }

    fn dir(&self, id: &str) -> PathBuf {
        unified().join(format!("{}/{id}", &self.group[1..]))
    }

    fn run(&self, verb: &str, id: &str) -> Said {
        let config = self.config(id);
        self.lab.run_with(verb, id, Path::new("host"), &config)
    }

    /// A pod with a program in it.
    fn pod(&self, id: &str) -> Pod {
        let said = self.run("ADD", id);
        let result = said.ok();
        Pod {
            program: Program::start(&self.lab, Some(&self.dir(id))),
            result,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let dir = unified().join(&self.group[1..]);
        for pod in fs::read_dir(&dir).into_iter().flatten().flatten() {
            drop(fs::remove_dir(pod.path()));
        }
        drop(fs::remove_dir(dir));
    }
}

/// A program that does with sockets what it is told.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(lab: &Lab, group: Option<&Path>) -> Self {
        let path = Path::new(DVIPA).with_file_name("examples/socket-probe");
        let mut command = Command::new(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = lab.host.within(|| command.spawn()).unwrap();
        if let Some(group) = group {
            fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut said = String::new();
        self.output.read_line(&mut said).unwrap();
        said.trim_end().to_owned()
    }

    fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

struct Pod {
    program: Program,
    result: Value,
}

impl Pod {
    fn tell(&mut self, line: &str) -> String {
        self.program.tell(line)
    }

    fn ip(&self, index: usize) -> String {
        ips(&self.result)[index].to_string()
    }
}

const FOREIGN: &str = "err 99";
const REFUSED: &str = "err 111";
const UNREACHABLE: &str = "err 101";
const NOTHING: &str = "err 11";

#[test]
fn two_pods_listen_on_one_port_and_see_their_own_traffic() {
    let host = Host::dual();
    let (mut a, mut b) = (host.pod("a"), host.pod("b"));
    let (of_a, of_b) = (a.ip(0), b.ip(0));
    assert_eq!(a.tell("bind tcp 0.0.0.0:80"), format!("ok {of_a}:80"));
    assert_eq!(b.tell("bind tcp 0.0.0.0:80"), format!("ok {of_b}:80"));
    let connected = b.tell(&format!("connect tcp {of_a}:80"));
    assert!(connected.starts_with(&format!("ok {of_b}:")), "{connected}");
    let peer = a.tell("accept");
    assert!(peer.starts_with(&format!("ok {of_b}:")), "{peer}");
    assert_eq!(b.tell("soon accept"), NOTHING);
    // From the host, which is not confined.
    let address: SocketAddr = format!("{of_b}:80").parse().unwrap();
    host.lab
        .host
        .within(|| TcpStream::connect(address))
        .unwrap();
    assert!(b.tell("accept").starts_with("ok "));
    assert_eq!(a.tell("soon accept"), NOTHING);

    assert_eq!(a.tell("bind udp 0.0.0.0:53"), format!("ok {of_a}:53"));
    assert_eq!(b.tell("bind udp 0.0.0.0:53"), format!("ok {of_b}:53"));
    assert_eq!(a.tell(&format!("send {of_b}:53")), "ok");
    assert!(b.tell("reply").starts_with(&format!("ok {of_a}:")));
    assert_eq!(a.tell("receive"), format!("ok {of_b}:53"));
    assert_eq!(a.tell("soon reply"), NOTHING);
}

#[test]
fn the_same_in_ipv6() {
    let host = Host::new(&["2001:db8::/120", "192.0.2.248/29"]);
    let (mut a, mut b) = (host.pod("a"), host.pod("b"));
    let (of_a, of_b) = (a.ip(0), b.ip(0));
    assert_eq!(a.tell("bind tcp [::]:80"), format!("ok [{of_a}]:80"));
    assert_eq!(b.tell("bind tcp [::]:80"), format!("ok [{of_b}]:80"));
    let connected = b.tell(&format!("connect tcp [{of_a}]:80"));
    assert!(
        connected.starts_with(&format!("ok [{of_b}]:")),
        "{connected}"
    );
    assert!(a.tell("accept").starts_with(&format!("ok [{of_b}]:")));
    assert_eq!(b.tell("soon accept"), NOTHING);
    assert_eq!(b.tell("bind udp [::]:53"), format!("ok [{of_b}]:53"));
    assert_eq!(a.tell(&format!("send [{of_b}]:53")), "ok");
    assert!(b.tell("reply").starts_with(&format!("ok [{of_a}]:")));
    assert_eq!(a.tell("receive"), format!("ok [{of_b}]:53"));
    let connected = a.tell(&format!("connect udp [{of_b}]:53"));
    assert!(
        connected.starts_with(&format!("ok [{of_a}]:")),
        "{connected}"
    );
    assert!(b.tell("reply").starts_with(&format!("ok [{of_a}]:")));
}

#[test]
fn foreign_addresses_are_not_available() {
    let host = Host::dual();
    let mut other = host.pod("other");
    let mut pod = host.pod("pod");
    let foreign = [
        format!("{}:80", other.ip(0)),
        "10.99.0.1:80".to_owned(),
        "192.0.2.254:80".to_owned(),
        "224.0.0.1:80".to_owned(),
        format!("[{}]:80", other.ip(1)),
        "[fd00:99::1]:80".to_owned(),
        "[::ffff:10.99.0.1]:80".to_owned(),
        "[::10.99.0.1]:80".to_owned(),
    ];
    for address in foreign {
        for kind in ["tcp", "udp"] {
            assert_eq!(
                pod.tell(&format!("bind {kind} {address}")),
                FOREIGN,
                "{address}"
            );
        }
    }
    let own = [format!("{}:80", pod.ip(0)), format!("[{}]:80", pod.ip(1))];
    for address in own {
        assert_eq!(
            pod.tell(&format!("bind tcp {address}")),
            format!("ok {address}")
        );
    }
    let port = pod.tell("bind tcp 0.0.0.0:0");
    assert!(
        port.starts_with(&format!("ok {}:", pod.ip(0))) && !port.ends_with(":0"),
        "{port}"
    );
    // The other one may, of course.
    let its_own = format!("bind tcp {}:80", other.ip(0));
    assert!(other.tell(&its_own).starts_with("ok"));
}

#[test]
fn ipv4_in_ipv6_sockets_is_confined_as_ipv4() {
    let host = Host::dual();
    let (mut a, mut b) = (host.pod("a"), host.pod("b"));
    let (of_a, of_b) = (a.ip(0), b.ip(0));
    // The first range is of IPv4: `::` stands for that address, and hears IPv4.
    assert_eq!(a.tell("bind tcp [::]:80"), format!("ok [::ffff:{of_a}]:80"));
    assert_eq!(b.tell("bind tcp [::]:80"), format!("ok [::ffff:{of_b}]:80"));
    assert_eq!(
        a.tell("bind udp [::ffff:0.0.0.0]:53"),
        format!("ok [::ffff:{of_a}]:53")
    );
    let connected = b.tell(&format!("connect tcp [::ffff:{of_a}]:80"));
    assert!(
        connected.starts_with(&format!("ok [::ffff:{of_b}]:")),
        "{connected}"
    );
    assert!(a.tell("accept").starts_with(&format!("ok {of_b}:")));
    assert_eq!(b.tell(&format!("send [::ffff:{of_a}]:53")), "ok");
    assert!(a.tell("reply").starts_with(&format!("ok {of_b}:")));
    assert_eq!(b.tell("receive"), format!("ok {of_a}:53"));
    assert_eq!(b.tell(&format!("bind tcp [::ffff:{of_a}]:81")), FOREIGN);
}

#[test]
fn the_wildcard_of_ipv6_is_the_configurations_choice() {
    let mut host = Host::dual();
    for (choice, v6) in [("primary", false), ("ipv4", false), ("ipv6", true)] {
        host.lab.set("wildcardV6", json!(choice));
        let mut pod = host.pod("pod");
        let expected = if v6 {
            format!("ok [{}]:80", pod.ip(1))
        } else {
            format!("ok [::ffff:{}]:80", pod.ip(0))
        };
        assert_eq!(pod.tell("bind tcp [::]:80"), expected, "{choice}");
        pod.program.end();
        host.run("DEL", "pod").ok();
    }
}

#[test]
fn a_server_of_ipv6_only_has_the_vipa_of_ipv6_beside_one_of_ipv4() {
    let host = Host::dual();
    let (mut a, mut b) = (host.pod("a"), host.pod("b"));
    // As nginx does it: the same port in each family.
    for pod in [&mut a, &mut b] {
        let (v4, v6) = (pod.ip(0), pod.ip(1));
        assert_eq!(pod.tell("v6only [::]:80"), format!("ok [{v6}]:80"));
        assert_eq!(pod.tell("bind tcp 0.0.0.0:80"), format!("ok {v4}:80"));
        assert_eq!(pod.tell("bind tcp [::]:81"), format!("ok [::ffff:{v4}]:81"));
    }
    drop((a, b));
    let other = Host::new(&["192.0.2.248/29"]);
    let mut pod = other.pod("one-family");
    assert_eq!(pod.tell("v6only [::]:80"), FOREIGN);
}

#[test]
fn unbound_sockets_leave_from_the_vipa() {
    let host = Host::dual();
    let mut pod = host.pod("pod");
    let mut outside = Program::start(&host.lab, None);
    assert_eq!(outside.tell("bind tcp 10.99.0.1:80"), "ok 10.99.0.1:80");
    assert_eq!(outside.tell("bind udp 10.99.0.1:53"), "ok 10.99.0.1:53");
    let own = format!("ok {}:", pod.ip(0));
    assert!(pod.tell("connect tcp 10.99.0.1:80").starts_with(&own));
    assert!(outside.tell("accept").starts_with(&own));
    assert!(pod.tell("connect udp 10.99.0.1:53").starts_with(&own));
    assert!(outside.tell("reply").starts_with(&own));
    assert_eq!(pod.tell("receive"), "ok 10.99.0.1:53");
    // Connected again, as resolvers do.
    assert!(pod.tell("again 10.99.0.1:53").starts_with(&own));
    assert!(outside.tell("reply").starts_with(&own));
    assert_eq!(
        outside.tell("bind udp [fd00:99::1]:53"),
        "ok [fd00:99::1]:53"
    );
    let own = format!("ok [{}]:", pod.ip(1));
    assert_eq!(pod.tell("send [fd00:99::1]:53"), "ok");
    assert!(outside.tell("reply").starts_with(&own));
    assert_eq!(pod.tell("receive"), "ok [fd00:99::1]:53");
}

#[test]
fn the_unspecified_destination_is_the_pod_itself() {
    let host = Host::dual();
    let mut pod = host.pod("pod");
    let mut other = host.pod("other");
    assert!(other.tell("bind tcp 0.0.0.0:80").starts_with("ok"));
    assert_eq!(pod.tell("connect tcp 0.0.0.0:80"), REFUSED);
    assert!(pod.tell("bind tcp 0.0.0.0:80").starts_with("ok"));
    let own = pod.ip(0);
    for any in ["0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80"] {
        let said = pod.tell(&format!("connect tcp {any}"));
        assert!(
            said.contains(&own) && said.starts_with("ok"),
            "{any}: {said}"
        );
        assert!(pod.tell("accept").starts_with(&format!("ok {own}:")));
    }
}

#[test]
fn loopback_is_shared_or_refused() {
    let mut host = Host::dual();
    let mut outside = Program::start(&host.lab, None);
    assert!(outside.tell("bind tcp 127.0.0.1:80").starts_with("ok"));
    let mut pod = host.pod("pod");
    assert!(
        pod.tell("connect tcp 127.0.0.1:80")
            .starts_with("ok 127.0.0.1:")
    );
    for bind in [
        "127.0.0.1:81",
        "127.1.2.3:81",
        "[::1]:81",
        "[::ffff:127.0.0.1]:82",
    ] {
        assert_eq!(pod.tell(&format!("bind tcp {bind}")), format!("ok {bind}"));
    }
    pod.program.end();
    host.run("DEL", "pod").ok();

    host.lab.set("loopback", json!("refused"));
    let mut pod = host.pod("pod");
    for connect in ["127.0.0.1:80", "[::ffff:127.0.0.1]:80", "[::1]:80"] {
        assert_eq!(
            pod.tell(&format!("connect tcp {connect}")),
            REFUSED,
            "{connect}"
        );
        assert_eq!(pod.tell(&format!("send {connect}")), REFUSED, "{connect}");
        assert_eq!(
            pod.tell(&format!("bind tcp {connect}")),
            FOREIGN,
            "{connect}"
        );
    }
}

#[test]
fn a_pod_of_one_family_has_nothing_of_the_other() {
    let host = Host::new(&["2001:db8::/120"]);
    let mut pod = host.pod("pod");
    for address in ["0.0.0.0:80", "10.99.0.1:80", "[::ffff:0.0.0.0]:80"] {
        assert_eq!(
            pod.tell(&format!("bind tcp {address}")),
            FOREIGN,
            "{address}"
        );
        assert_eq!(
            pod.tell(&format!("connect tcp {address}")),
            UNREACHABLE,
            "{address}"
        );
        assert_eq!(
            pod.tell(&format!("send {address}")),
            UNREACHABLE,
            "{address}"
        );
    }
    assert_eq!(
        pod.tell("bind tcp [::]:80"),
        format!("ok [{}]:80", pod.ip(0))
    );

    let host = Host::new(&["192.0.2.248/29"]);
    let mut pod = host.pod("pod");
    for address in ["[fd00:99::1]:80", "[2001:db8::1]:80"] {
        assert_eq!(
            pod.tell(&format!("bind tcp {address}")),
            FOREIGN,
            "{address}"
        );
        assert_eq!(
            pod.tell(&format!("connect tcp {address}")),
            UNREACHABLE,
            "{address}"
        );
        assert_eq!(
            pod.tell(&format!("send {address}")),
            UNREACHABLE,
            "{address}"
        );
    }
    assert_eq!(
        pod.tell("bind tcp [::]:80"),
        format!("ok [::ffff:{}]:80", pod.ip(0))
    );
}

#[test]
fn a_socket_that_the_kernel_bound_to_everything_hears_the_pods_own_only() {
    let host = Host::dual();
    let mut pod = host.pod("pod");
    let said = pod.tell("listen4");
    let port = said.rsplit(':').next().unwrap().to_owned();
    assert!(said.starts_with("ok 0.0.0.0:"), "{said}");
    let mut outside = Program::start(&host.lab, None);
    assert_ne!(
        outside.tell(&format!("soon connect tcp 10.99.0.1:{port}"))[..2],
        *"ok"
    );
    assert_eq!(pod.tell("soon accept"), NOTHING);
    let own = format!("connect tcp {}:{port}", pod.ip(0));
    assert!(outside.tell(&own).starts_with("ok"));
    assert!(pod.tell("accept").starts_with("ok"));
}

#[test]
fn who_is_not_in_the_group_is_free() {
    let host = Host::dual();
    let _pod = host.pod("pod");
    let mut outside = Program::start(&host.lab, None);
    for address in ["0.0.0.0:80", "10.99.0.1:81", "[::]:82", "192.0.2.249:83"] {
        assert_eq!(
            outside.tell(&format!("bind tcp {address}")),
            format!("ok {address}")
        );
    }
}

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
    let check = || host.lab.run_with("CHECK", "p", Path::new("host"), &config);
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
    let said = host
        .lab
        .run_with("ADD", "p2", Path::new("host"), &host.config("p"));
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
    host.lab
        .run_with("DEL", "p2", Path::new("host"), &host.config("p"))
        .ok();
    assert!(host.dir("p").exists());
    let mut program = Program::start(&host.lab, Some(&host.dir("p")));
    assert_eq!(program.tell("bind tcp 10.99.0.1:80"), "ok 10.99.0.1:80");
    host.lab.assert_clean("after DEL");
}

#[test]
fn an_old_sandbox_that_is_deleted_late_does_not_free_the_new_one() {
    let host = Host::dual();
    host.run("ADD", "p").ok();
    let new = host
        .lab
        .run_with("ADD", "p2", Path::new("host"), &host.config("p"));
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
    let said = host
        .lab
        .run_with("ADD", "p", Path::new("host"), &host.lab.config);
    let (code, text) = said.err();
    assert_eq!((code, text.contains("cgroupPath")), (104, true), "{text}");
    for path in ["/../escape", "/"] {
        let mut config = host.lab.config.clone();
        config["runtimeConfig"] = json!({"cgroupPath": path});
        let (code, text) = host
            .lab
            .run_with("ADD", "p", Path::new("host"), &config)
            .err();
        assert_eq!((code, text.contains("cgroupPath")), (7, true), "{text}");
    }
    host.lab.assert_clean("after failures");
    host.lab.set("confine", json!("off"));
    let config = host.lab.config.clone();
    let said = host.lab.run_with("ADD", "p", Path::new("host"), &config);
    assert!(said.log.contains("is not confined"), "{}", said.log);
    said.ok();
    assert_eq!(host.lab.active(), host.lab.leases());
    host.lab
        .run_with("DEL", "p", Path::new("host"), &config)
        .ok();
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
    host.lab
        .run_with("DEL", "p", Path::new("host"), &config)
        .ok();
    host.lab.assert_clean("after DEL");

    host.run("ADD", "p").ok();
    fs::remove_dir_all(host.lab.data()).unwrap();
    host.lab.gc(&[]).ok();
    host.lab.assert_clean("after GC");
}
