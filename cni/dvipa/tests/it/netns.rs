//! Traffic of pods that have a network namespace.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use zcri_sys::netlink::route::{self, VethEnd};

use crate::lab::{Lab, Ns, Said, ips};

const PATIENCE: Duration = Duration::from_secs(5);

/// A TCP connection with a byte in each direction; who the server saw.
fn tcp(server: &Ns, ip: IpAddr, client: &Ns) -> IpAddr {
    let listener = server.within(|| TcpListener::bind(SocketAddr::new(ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
            peer.ip()
        });
        let connected = client.within(|| TcpStream::connect_timeout(&address, PATIENCE));
        let mut stream = connected.unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&[7]).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
        accepted.join().unwrap()
    })
}

/// A datagram and its answer; who the server saw.
fn udp(server: &Ns, ip: IpAddr, client: &Ns) -> IpAddr {
    let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .unwrap();
    let server = server.within(|| UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap());
    let client = client.within(|| UdpSocket::bind(any).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(&[9], server.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 10];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&[8], from).unwrap();
    client.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[0], 8);
    from.ip()
}

/// A machine on the other side of the node's uplink.
pub(crate) fn outside(lab: &Lab, mtu: u32) -> Ns {
    let other = lab.pod("outside");
    let mac = |last| [0x02, 0, 0, 0, 0, last];
    let ends = |name, last| VethEnd {
        name,
        mac: mac(last),
    };
    let pair = route::new_veth(ends("uplink", 1), ends("wire", 2), mtu, other.ns.as_fd());
    lab.host.netlink().send_one("veth", pair).unwrap();
    for (ns, link, v4, v6) in [
        (&lab.host, "uplink", "10.50.0.1", "fd00:50::1"),
        (&other, "wire", "10.50.0.2", "fd00:50::2"),
    ] {
        ns.netlink().send_one("up", route::set_up(link)).unwrap();
        for (ip, prefix) in [(v4, 24), (v6, 64)] {
            let address = route::Address {
                index: ns.link(link).unwrap().index,
                ip: ip.parse().unwrap(),
                prefix,
                protocol: 0,
                deprecated: false,
            };
            ns.netlink().send_one("address", address.add()).unwrap();
        }
    }
    lab.host.add_route("0.0.0.0", 0, "10.50.0.2", "uplink");
    lab.host.add_route("::", 0, "fd00:50::2", "uplink");
    other
}

#[test]
fn pods_and_host_reach_each_other() {
    let lab = Lab::new();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let of_a = ips(&lab.add("a", &a).ok());
    let of_b = ips(&lab.add("b", &b).ok());
    let host: [IpAddr; 2] = ["10.99.0.1".parse().unwrap(), "fd00:99::1".parse().unwrap()];
    for family in 0..2 {
        assert_eq!(tcp(&b, of_b[family], &a), of_a[family], "pod to pod");
        assert_eq!(udp(&b, of_b[family], &a), of_a[family], "pod to pod");
        assert_eq!(
            tcp(&a, of_a[family], &lab.host),
            host[family],
            "host to pod"
        );
        assert_eq!(
            udp(&a, of_a[family], &lab.host),
            host[family],
            "host to pod"
        );
        assert_eq!(
            tcp(&lab.host, host[family], &a),
            of_a[family],
            "pod to host"
        );
        assert_eq!(
            udp(&lab.host, host[family], &a),
            of_a[family],
            "pod to host"
        );
        assert_eq!(tcp(&a, of_a[family], &a), of_a[family], "pod to itself");
    }
}

#[test]
fn pods_reach_the_outside_with_their_own_address() {
    let lab = Lab::new();
    let outside = outside(&lab, 1500);
    let pod = lab.pod("pod");
    let own = ips(&lab.add("p", &pod).ok());
    outside.add_route("192.0.2.248", 29, "10.50.0.1", "wire");
    outside.add_route("2001:db8::", 120, "fd00:50::1", "wire");
    for (own, far) in own.iter().zip(["10.50.0.2", "fd00:50::2"]) {
        let far = far.parse().unwrap();
        assert_eq!(tcp(&outside, far, &pod), *own);
        assert_eq!(udp(&outside, far, &pod), *own);
        assert_eq!(tcp(&pod, *own, &outside), far, "and are reached from there");
    }
    assert!(lab.masqueraded().is_empty());
}

#[test]
fn masquerading_gives_the_outside_the_nodes_address_and_pods_their_own() {
    let mut lab = Lab::new();
    lab.set("ipMasq", json!(true));
    let outside = outside(&lab, 1500);
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let first = lab.add("a", &a).ok();
    let (of_a, of_b) = (ips(&first), ips(&lab.add("b", &b).ok()));
    assert_eq!(lab.masqueraded(), lab.leases());
    for (i, (near, far)) in [("10.50.0.1", "10.50.0.2"), ("fd00:50::1", "fd00:50::2")]
        .into_iter()
        .enumerate()
    {
        let (near, far): (IpAddr, IpAddr) = (near.parse().unwrap(), far.parse().unwrap());
        assert_eq!(tcp(&outside, far, &a), near);
        assert_eq!(udp(&outside, far, &a), near);
        assert_eq!(tcp(&b, of_b[i], &a), of_a[i], "pods see each other");
    }
    lab.check("a", &a, &first).ok();
    lab.del("a", &a).ok();
    assert_eq!(lab.masqueraded(), lab.leases());
    // A new configuration of the network makes its rules anew.
    lab.set("vipaRanges", json!(["192.0.2.240/28", "2001:db8::/120"]));
    lab.add("a", &a).ok();
    assert_eq!(lab.masqueraded(), lab.leases());
    lab.del("a", &a).ok();
    lab.del("b", &b).ok();
    lab.assert_clean("after DEL");
}

#[test]
fn the_mtu_is_the_uplinks_or_the_configurations() {
    let mut lab = Lab::new();
    let pod = lab.pod("pod");
    let mtu = |result: &Value| result["interfaces"][1]["mtu"].as_u64().unwrap();
    assert_eq!(mtu(&lab.add("p", &pod).ok()), 1500, "there is no uplink");
    lab.del("p", &pod).ok();
    let _outside = outside(&lab, 1420);
    assert_eq!(mtu(&lab.add("p", &pod).ok()), 1420);
    assert_eq!(pod.link("eth0").unwrap().mtu, 1420);
    lab.del("p", &pod).ok();
    lab.set("uplink", json!("lo"));
    assert_eq!(
        mtu(&lab.add("p", &pod).ok()),
        65535,
        "as much as veth takes"
    );
    lab.del("p", &pod).ok();
    lab.set("mtu", json!(9000));
    assert_eq!(mtu(&lab.add("p", &pod).ok()), 9000);
    lab.del("p", &pod).ok();
    lab.set("mtu", json!(1000));
    let (code, text) = lab.add("p", &pod).err();
    assert_eq!(code, 103, "IPv6 needs 1280: {text}");
    lab.assert_clean("after failure");
}

#[test]
fn forwarding_is_switched_on_and_router_advertisements_are_kept() {
    let lab = Lab::new();
    let _outside = outside(&lab, 1500);
    lab.host.set_sysctl("ipv6/conf/all/forwarding", "0");
    lab.host.set_sysctl("ipv6/conf/uplink/accept_ra", "1");
    let pod = lab.pod("pod");
    let said = lab.add("p", &pod);
    assert!(
        said.log.contains("switched IPv4 forwarding on"),
        "{}",
        said.log
    );
    assert!(
        said.log.contains("switched IPv6 forwarding on"),
        "{}",
        said.log
    );
    assert_eq!(lab.host.sysctl("ipv4/ip_forward"), "1");
    assert_eq!(lab.host.sysctl("ipv6/conf/all/forwarding"), "1");
    assert_eq!(lab.host.sysctl("ipv6/conf/uplink/accept_ra"), "2");
}

#[test]
fn forwarding_that_may_not_be_switched_on_is_a_status() {
    let mut lab = Lab::new();
    lab.set("forwarding", json!(false));
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    assert_eq!(lab.host.sysctl("ipv4/ip_forward"), "0");
    let (code, text) = lab.status().err();
    assert_eq!((code, text.contains("ip_forward")), (51, true), "{text}");
}

#[test]
fn ipv6_works_where_new_interfaces_have_none() {
    let lab = Lab::new();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for ns in [&lab.host, &a, &b] {
        ns.set_sysctl("ipv6/conf/default/disable_ipv6", "1");
    }
    let own = ips(&lab.add("a", &a).ok());
    let other = ips(&lab.add("b", &b).ok());
    assert_eq!(tcp(&b, other[1], &a), own[1]);
}

#[test]
fn check_finds_what_was_changed() {
    let mut lab = Lab::new();
    lab.set("ipMasq", json!(true));
    let pod = lab.pod("pod");
    type Change = fn(&Lab, &Ns);
    let changes: [(&str, Change); 6] = [
        ("has not 192.0.2.", |_, pod| {
            let all = pod.addresses();
            let address = all.iter().find(|a| a.prefix == 32).unwrap();
            pod.netlink().send_one("x", address.remove()).unwrap();
        }),
        ("no default route by fe80::1", |_, pod| {
            let all = pod.routes();
            let route = all
                .iter()
                .find(|r| r.prefix == 0 && r.to.is_ipv6())
                .unwrap();
            pod.netlink().send_one("x", route.remove()).unwrap();
        }),
        ("the host has no route to 2001:db8::", |lab, _| {
            let all = lab.host.routes();
            let route = all
                .iter()
                .find(|r| r.to.is_ipv6() && r.prefix == 128 && r.protocol == 122);
            lab.host
                .netlink()
                .send_one("x", route.unwrap().remove())
                .unwrap();
        }),
        ("no interface \"eth0\"", |_, pod| {
            // Within the pod, so that the host's end goes too; then a stranger takes the host's name.
            pod.netlink()
                .send_one("x", route::del_link("eth0"))
                .unwrap();
        }),
        ("is not masqueraded", |lab, _| {
            let mut socket = lab
                .host
                .within(|| zcri_sys::netlink::Socket::netfilter().unwrap());
            let all: Vec<_> = lab.masqueraded().into_iter().collect();
            let names = zcri_sys::netlink::nft::Names {
                table: "zcri_dvipa",
                chain: "",
            };
            zcri_sys::netlink::nft::del_elements(&mut socket, names, &all).unwrap();
        }),
        ("of the host is missing", |lab, _| {
            let pair = lab.pairs().remove(0);
            lab.host
                .netlink()
                .send_one("x", route::del_link(&pair))
                .unwrap();
        }),
    ];
    for (says, change) in changes {
        let result = lab.add("p", &pod).ok();
        lab.check("p", &pod, &result).ok();
        change(&lab, &pod);
        let (code, text) = lab.check("p", &pod, &result).err();
        assert_eq!(code, 105, "{text}");
        let whole_pair = says.contains("eth0");
        assert!(
            text.contains(says) || (whole_pair && text.contains("is missing")),
            "{text}"
        );
        // The next ADD of the same pod repairs it.
        assert_eq!(lab.add("p", &pod).ok(), result);
        lab.check("p", &pod, &result).ok();
        lab.del("p", &pod).ok();
        lab.assert_clean(says);
    }
}

#[test]
fn a_result_with_another_address_is_not_what_was_made() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let mut result = lab.add("p", &pod).ok();
    result["ips"][0]["address"] = json!("192.0.2.254/32");
    let (code, text) = lab.check("p", &pod, &result).err();
    assert_eq!(code, 105, "{text}");
    std::fs::remove_file(lab.lease("192.0.2.249")).unwrap();
    result["ips"][0]["address"] = json!("192.0.2.249/32");
    let (code, text) = lab.check("p", &pod, &result).err();
    assert_eq!(
        (code, text.contains("lost its lease")),
        (105, true),
        "{text}"
    );
}

#[test]
fn an_interface_that_is_there_is_not_replaced() {
    let lab = Lab::new();
    let pod = lab.pod("pod");
    let ends = |name, last| VethEnd {
        name,
        mac: [2, 0, 0, 0, 1, last],
    };
    let pair = route::new_veth(ends("other", 1), ends("eth0", 2), 1500, pod.ns.as_fd());
    lab.host.netlink().send_one("veth", pair).unwrap();
    let (code, text) = lab.add("p", &pod).err();
    assert_eq!(
        (code, text.contains("in the pod already")),
        (103, true),
        "{text}"
    );
    assert!(pod.link("eth0").is_some());
    lab.assert_clean("after failure");
}

#[test]
fn the_hardware_address_is_the_runtimes_or_the_addresss() {
    let mut lab = Lab::new();
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    assert_eq!(
        pod.link("eth0").unwrap().mac,
        Some([0x0a, 0x58, 192, 0, 2, 249])
    );
    lab.del("p", &pod).ok();
    lab.set("capabilities", json!({"mac": true}));
    lab.set("runtimeConfig", json!({"mac": "02:11:22:33:44:55"}));
    let result = lab.add("p", &pod).ok();
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55");
    assert_eq!(
        pod.link("eth0").unwrap().mac,
        Some([2, 0x11, 0x22, 0x33, 0x44, 0x55])
    );
    let own = ips(&result);
    assert_eq!(tcp(&lab.host, "10.99.0.1".parse().unwrap(), &pod), own[0]);
}

#[test]
fn a_pod_of_one_family_has_nothing_of_the_other() {
    for (range, ip) in [
        ("192.0.2.248/29", "192.0.2.249"),
        ("2001:db8::/120", "2001:db8::1"),
    ] {
        let mut lab = Lab::new();
        lab.set("vipaRanges", json!([range]));
        let pod = lab.pod("pod");
        let result = lab.add("p", &pod).ok();
        assert_eq!(ips(&result), [ip.parse::<IpAddr>().unwrap()]);
        assert_eq!(result["routes"].as_array().unwrap().len(), 1);
        let defaults = pod.routes().into_iter().filter(|r| r.prefix == 0);
        assert_eq!(defaults.count(), 1);
        tcp(&pod, ips(&result)[0], &lab.host);
        lab.del("p", &pod).ok();
        lab.assert_clean("after DEL");
    }
}

#[test]
fn a_name_of_more_than_ascii_is_cut_between_letters() {
    let mut lab = Lab::new();
    // "dvipa " is of even length, and a note has at most 255 bytes.
    lab.set("name", json!("ä".repeat(150)));
    let pod = lab.pod("pod");
    lab.add("p", &pod).ok();
    let pair = lab.pairs().pop().unwrap();
    let alias = lab.host.link(&pair).unwrap().alias.unwrap();
    assert_eq!(alias, format!("dvipa {}", "ä".repeat(124)));
    lab.del("p", &pod).ok();
    lab.assert_clean("after DEL");
}

/// The packet filter is asked first: for the address of IPv4, then for that of IPv6.
#[test]
fn a_del_goes_on_after_an_error() {
    let mut lab = Lab::new();
    lab.set("ipMasq", json!(true));
    let pod = lab.pod("pod");
    let result = lab.add("p", &pod).ok();
    let trace = [
        "strace",
        "-o",
        "/dev/null",
        "-e",
        "inject=sendto:error=EPERM:when=1",
    ];
    let child = lab.start(lab.command(&trace, "DEL", "p", &pod.path), &lab.config);
    let (code, text) = Said::from(child.wait_with_output().unwrap()).err();
    assert_eq!((code, text.contains("masquerading")), (103, true), "{text}");
    assert_eq!(lab.masqueraded(), [ips(&result)[0]].into());
    assert_eq!(lab.pairs(), Vec::<String>::new());
    assert_eq!(lab.leases().len(), 2, "the leases are what is left to do");
    lab.del("p", &pod).ok();
    lab.assert_clean("after another DEL");
}
