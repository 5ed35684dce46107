//! In a chain, run by zcri's own CNI runtime: host ports by Debian's portmap, and a plugin behind us that fails.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use zcri_cni::{
    AddResult, Attachment, Cni, CniDirs, PortMapping, Protocol, RuntimeConfig, pod_args,
};

use crate::lab::{DVIPA, Lab, Ns};

const PATIENCE: Duration = Duration::from_secs(5);

/// A node with our runtime, in the lab's network namespace.
struct Node {
    lab: Lab,
    cni: Cni,
}

impl Node {
    /// With the sample configuration of this name, its leases in the lab.
    fn with_sample(name: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../config/cni")
            .join(name);
        let mut list: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let lab = Lab::new();
        list["plugins"][0]["dataDir"] = json!(lab.data());
        Self::new(lab, &list)
    }

    fn new(lab: Lab, list: &Value) -> Self {
        let dir = lab.dir.path();
        fs::create_dir(dir.join("net.d")).unwrap();
        fs::create_dir_all(dir.join("bin")).unwrap();
        std::os::unix::fs::symlink(DVIPA, dir.join("bin/dvipa")).unwrap();
        fs::write(dir.join("net.d/10.conflist"), list.to_string()).unwrap();
        let dirs = CniDirs {
            conf_dir: dir.join("net.d"),
            plugin_dirs: vec![dir.join("bin"), PathBuf::from("/usr/lib/cni")],
            cache_dir: dir.join("cache"),
        };
        let cni = Cni::new(dirs, Duration::from_secs(60));
        Self { lab, cni }
    }

    /// Plugins are started from this thread, which is in the node's namespace.
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        self.lab.host.within(|| runtime.block_on(work))
    }

    fn add(&self, id: &str, netns: &Path, config: RuntimeConfig) -> Result<AddResult, String> {
        let attachment = Attachment {
            container_id: id.to_owned(),
            netns: netns.to_owned(),
            ifname: "eth0".to_owned(),
            args: pod_args("ns", id, "uid", id),
            runtime_config: config,
        };
        let network = self.cni.load().map_err(|e| e.to_string())?;
        let added = self.run(network.add(&attachment));
        added.map_err(|e| e.to_string())
    }

    fn del(&self, id: &str) {
        self.run(self.cni.delete(id)).unwrap();
    }
}

fn mapping(host_port: u16, container_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping {
        host_port,
        container_port,
        protocol,
        host_ip: None,
    }
}

/// What a client of the host's port hears from a pod that says this byte.
fn over_tcp(pod: &Ns, listen: SocketAddr, client: &Ns, to: SocketAddr) -> u8 {
    let listener = pod.within(|| TcpListener::bind(listen)).unwrap();
    let mut stream = client
        .within(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap_or_else(|e| panic!("{to}: {e}"));
    listener.accept().unwrap().0.write_all(&[42]).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

fn over_udp(pod: &Ns, listen: SocketAddr, client: &Ns, to: SocketAddr) -> u8 {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .unwrap();
    let server = pod.within(|| UdpSocket::bind(listen)).unwrap();
    let client = client.within(|| UdpSocket::bind(any)).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(&[1], to).unwrap();
    let (_, peer) = server.recv_from(&mut [0; 9]).unwrap();
    server.send_to(&[43], peer).unwrap();
    let mut buffer = [0; 9];
    let (_, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(from, to, "the answer comes from the host's port");
    buffer[0]
}

#[test]
fn host_ports_by_portmap_behind_the_sample_configuration() {
    let node = Node::with_sample("10-dvipa.conflist");
    let pod = node.lab.pod("pod");
    let other = node.lab.pod("other");
    let ports = vec![
        mapping(8080, 80, Protocol::Tcp),
        mapping(8053, 53, Protocol::Udp),
        mapping(9000, 9000, Protocol::Sctp),
    ];
    let config = RuntimeConfig {
        port_mappings: ports,
        ..RuntimeConfig::default()
    };
    let result = node.add("p", &pod.path, config).unwrap();
    node.add("o", &other.path, RuntimeConfig::default())
        .unwrap();
    let own: Vec<IpAddr> = result.pod_ips().collect();
    let host: [IpAddr; 2] = ["10.99.0.1".parse().unwrap(), "fd00:99::1".parse().unwrap()];
    for (own, host) in own.iter().zip(host) {
        let (web, dns) = (SocketAddr::new(*own, 80), SocketAddr::new(*own, 53));
        for client in [&node.lab.host, &other] {
            assert_eq!(over_tcp(&pod, web, client, SocketAddr::new(host, 8080)), 42);
            assert_eq!(over_udp(&pod, dns, client, SocketAddr::new(host, 8053)), 43);
        }
        // From the pod itself, by way of the host and back.
        assert_eq!(over_tcp(&pod, web, &pod, SocketAddr::new(host, 8080)), 42);
    }
    for (tool, own) in ["iptables", "ip6tables"].iter().zip(&own) {
        let rules = rules(&node, tool);
        assert!(rules.contains("-p sctp"), "{tool}: {rules}");
        assert!(rules.contains(&own.to_string()), "{tool}: {rules}");
    }
    node.del("p");
    node.del("o");
    for tool in ["iptables", "ip6tables"] {
        assert!(!rules(&node, tool).contains("--to-destination"), "{tool}");
    }
    node.lab.assert_clean("after DEL");
}

/// The kernel's rules for address translation, as the tool shows them.
fn rules(node: &Node, tool: &str) -> String {
    let mut command = Command::new(tool);
    command.args(["-t", "nat", "-S"]);
    let child = node.lab.host.within(|| command.output()).unwrap();
    String::from_utf8(child.stdout).unwrap()
}

#[test]
fn the_sample_of_the_stack_backend_confines_and_maps_ports() {
    let node = Node::with_sample("10-dvipa-stack.conflist");
    let group = format!("/dvipa-chain-{}/pod", std::process::id());
    let config = RuntimeConfig {
        port_mappings: vec![mapping(8080, 80, Protocol::Tcp)],
        cgroup_path: Some(group.clone()),
        ..RuntimeConfig::default()
    };
    let result = node.add("p", Path::new("host"), config).unwrap();
    let own: Vec<IpAddr> = result.pod_ips().collect();
    assert_eq!(own.len(), 2);
    assert_eq!(
        node.lab.active(),
        own.iter().copied().collect::<BTreeSet<_>>()
    );
    let host: IpAddr = "10.99.0.1".parse().unwrap();
    let web = SocketAddr::new(own[0], 80);
    let ns = &node.lab.host;
    assert_eq!(over_tcp(ns, web, ns, SocketAddr::new(host, 8080)), 42);
    node.del("p");
    node.lab.assert_clean("after DEL");
}

#[test]
fn a_plugin_behind_us_that_fails_leaves_nothing_of_ours() {
    let lab = Lab::new();
    let mut ours = lab.config.clone();
    for key in ["cniVersion", "name"] {
        ours.as_object_mut().unwrap().remove(key);
    }
    let list = json!({
        "cniVersion": "1.0.0", "name": "pods", "plugins": [ours, {"type": "fails"}],
    });
    fs::create_dir_all(lab.dir.path().join("bin")).unwrap();
    let script = lab.dir.path().join("bin/fails");
    let text = "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n\
                echo '{\"cniVersion\":\"1.0.0\",\"code\":111,\"msg\":\"it fails\"}'\nexit 1\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let node = Node::new(lab, &list);
    let pod = node.lab.pod("pod");
    let error = node
        .add("p", &pod.path, RuntimeConfig::default())
        .unwrap_err();
    assert!(error.contains("it fails"), "{error}");
    node.lab.assert_clean("after the failed chain");
    assert!(pod.link("eth0").is_none());
}
