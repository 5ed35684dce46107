//! What the sockets of confined pods may do: which addresses are theirs, and which they leave from.

use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use super::{FOREIGN, Host, Pod, Program};

/// ECONNREFUSED
const REFUSED: &str = "err 111";
/// ENETUNREACH: where the pod has no address to leave from.
const UNREACHABLE: &str = "err 101";
/// EAGAIN: nothing has come in.
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

/// Addresses of a family that the pod has none of: neither to be bound to nor to be reached.
fn assert_unusable(pod: &mut Pod, addresses: &[&str]) {
    for address in addresses {
        for (verb, refusal) in [
            ("bind tcp", FOREIGN),
            ("connect tcp", UNREACHABLE),
            ("send", UNREACHABLE),
        ] {
            let said = pod.tell(&format!("{verb} {address}"));
            assert_eq!(said, refusal, "{verb} {address}");
        }
    }
}

#[test]
fn a_pod_of_one_family_has_nothing_of_the_other() {
    let host = Host::new(&["2001:db8::/120"]);
    let mut pod = host.pod("pod");
    assert_unusable(
        &mut pod,
        &["0.0.0.0:80", "10.99.0.1:80", "[::ffff:0.0.0.0]:80"],
    );
    assert_eq!(
        pod.tell("bind tcp [::]:80"),
        format!("ok [{}]:80", pod.ip(0))
    );

    let host = Host::new(&["192.0.2.248/29"]);
    let mut pod = host.pod("pod");
    assert_unusable(&mut pod, &["[fd00:99::1]:80", "[2001:db8::1]:80"]);
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
