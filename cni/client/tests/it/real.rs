//! Debian's plugins (package containernetworking-plugins) in network namespaces. The node itself is a namespace too,
//! so that bridges, addresses and rules of tests that run at the same time do not meet. Needs root.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tempfile::TempDir;
use zcri_cni::{
    AddError, Attachment, Bandwidth, CheckError, Cni, CniDirs, NetworkList, PortMapping, Protocol,
    RuntimeConfig, pod_args,
};

const PLUGINS: &str = "/usr/lib/cni";

/// Says in one line what is missing.
fn require_prerequisites() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests need root: they make network namespaces"
    );
    for plugin in ["bridge", "host-local", "portmap", "bandwidth", "tuning"] {
        let path = Path::new(PLUGINS).join(plugin);
        assert!(
            path.exists(),
            "{} is missing: apt-get install containernetworking-plugins",
            path.display()
        );
    }
    for tool in ["ip", "iptables"] {
        let found = Command::new(tool).arg("-V").output().is_ok();
        assert!(
            found,
            "{tool} is missing: apt-get install iproute2 iptables"
        );
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace with a name, for as long as this lives.
struct Netns {
    name: String,
}

impl Netns {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "zcri-cni-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread that is in this namespace.
    fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = File::open(self.path()).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        })
    }

    fn addresses(&self) -> String {
        run("ip", &["-n", &self.name, "-o", "addr"])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
        if self.path().exists() && !thread::panicking() {
            panic!("{} is left: {deleted:?}", self.name);
        }
    }
}

/// A node: bridge `cni0` with 198.18.0.0/24, an IPv6 range, and records of its own.
struct Node {
    dir: TempDir,
    cni: Cni,
}

/// Runs a test on a node that is a network namespace, and looks for leftovers afterwards.
fn on_a_node(test: impl AsyncFnOnce(&Node) + Send + 'static) {
    require_prerequisites();
    let namespace = Netns::new();
    let ran = namespace.within(|| {
        run("ip", &["link", "set", "lo", "up"]);
        let node = Node::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(&node));
        assert_eq!(node.leases(), Vec::<String>::new(), "addresses are leaked");
        assert_eq!(
            fs::read_dir(node.path("records")).map_or(0, Iterator::count),
            0,
            "records are leaked"
        );
        // The kernel takes the interfaces of a namespace down after the namespace, in its own time.
        let links = || run("ip", &["-o", "link"]);
        let leaked = || {
            ["veth", "ifb", "bwp"]
                .iter()
                .any(|kind| links().contains(kind))
        };
        let end = Instant::now() + Duration::from_secs(10);
        while leaked() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!leaked(), "links are leaked:\n{}", links());
        let rules = run("iptables", &["-t", "nat", "-S"]);
        assert!(
            !rules.contains("CNI-DN") && !rules.contains("198.18."),
            "rules are leaked: {rules}"
        );
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("net.d")).unwrap();
        let dirs = CniDirs {
            conf_dir: dir.path().join("net.d"),
            plugin_dirs: vec!["/nonexistent".into(), PLUGINS.into()],
            cache_dir: dir.path().join("records"),
        };
        Self {
            dir,
            cni: Cni::new(dirs, Duration::from_secs(60)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bridge(&self) -> Value {
        self.bridge_with(json!([[{"subnet": "198.18.0.0/24"}], [{"subnet": "fd00:18::/64"}]]))
    }

    /// Debian's bridge finds its masquerading rules by the interface in the pod: they stay when it is gone.
    fn bridge_without_masquerade(&self) -> Value {
        let mut bridge = self.bridge();
        bridge["ipMasq"] = json!(false);
        bridge
    }

    fn bridge_with(&self, ranges: Value) -> Value {
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": self.path("leases"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
        })
    }

    fn network(&self, version: &str, plugins: &[Value]) -> std::sync::Arc<NetworkList> {
        let text = json!({"cniVersion": version, "name": "pods", "plugins": plugins}).to_string();
        fs::write(self.path("net.d/10-pods.conflist"), text).unwrap();
        self.cni.load().unwrap()
    }

    /// The addresses that host-local holds.
    fn leases(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("leases/pods")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut leases = names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect::<Vec<_>>();
        leases.sort();
        leases
    }
}

fn attachment(id: &str, netns: &Netns) -> Attachment {
    Attachment {
        container_id: id.to_owned(),
        netns: netns.path(),
        ifname: "eth0".to_owned(),
        args: pod_args("default", id, "uid", id),
        runtime_config: RuntimeConfig::default(),
    }
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

fn bandwidth() -> Value {
    json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})
}

fn host_port(port: u16) -> Vec<PortMapping> {
    vec![PortMapping {
        host_port: port,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    }]
}

/// What a server in the pod says to one who connects to `to` from the node.
fn greeting(pod: &Netns, to: SocketAddr) -> String {
    let (ready, bound) = std::sync::mpsc::channel();
    let server = pod.within(move || {
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello from the pod").unwrap();
    });
    bound.recv().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    server.join().unwrap();
    text
}

#[test]
fn a_pod_lives_on_a_bridge_in_every_version() {
    on_a_node(async |node| {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let list = node.network(version, &[node.bridge(), portmap(), bandwidth()]);
            let pod = Netns::new();
            let mut attachment = attachment("pod1", &pod);
            attachment.runtime_config.port_mappings = host_port(8080);
            attachment.runtime_config.bandwidth =
                Some(Bandwidth::from_rates(Some(80_000_000), Some(80_000_000)));
            let result = list
                .add(&attachment)
                .await
                .unwrap_or_else(|e| panic!("{version}: {e}"));

            let ips = result.pod_ips().collect::<Vec<_>>();
            let [ip @ IpAddr::V4(_), IpAddr::V6(_)] = ips[..] else {
                panic!("{version}: {ips:?}")
            };
            assert!(
                pod.addresses().contains(&format!("inet {ip}/24")),
                "{}",
                pod.addresses()
            );
            let inside = result
                .interfaces
                .iter()
                .find(|interface| interface.sandbox.is_some())
                .unwrap();
            assert_eq!(inside.name, "eth0");
            assert_eq!(inside.sandbox.as_deref(), pod.path().to_str());
            assert_eq!(
                greeting(&pod, SocketAddr::new(ip, 80)),
                "hello from the pod"
            );
            assert_eq!(
                greeting(&pod, "198.18.0.1:8080".parse().unwrap()),
                "hello from the pod",
                "by the host port"
            );

            node.cni
                .delete("pod1")
                .await
                .unwrap_or_else(|e| panic!("{version}: {e}"));
            assert!(!pod.addresses().contains("eth0"), "{}", pod.addresses());
            node.cni.delete("pod1").await.unwrap();
        }
    });
}

#[test]
fn check_is_content_with_what_add_made() {
    on_a_node(async |node| {
        // Without port mappings: portmap 1.1 looks for their rules of IPv4 among those of IPv6.
        let list = node.network("1.0.0", &[node.bridge(), portmap(), bandwidth()]);
        let pod = Netns::new();
        let mut attachment = attachment("pod1", &pod);
        attachment.runtime_config.bandwidth = Some(Bandwidth::from_rates(Some(1_000_000), None));
        list.add(&attachment).await.unwrap();
        node.cni.check(&attachment.key()).await.unwrap();
        node.cni.delete("pod1").await.unwrap();
    });
}

#[test]
fn check_notices_an_interface_that_is_gone() {
    on_a_node(async |node| {
        let list = node.network("1.0.0", &[node.bridge_without_masquerade(), portmap()]);
        let pod = Netns::new();
        let attachment = attachment("pod1", &pod);
        list.add(&attachment).await.unwrap();
        run("ip", &["-n", &pod.name, "link", "del", "eth0"]);
        let error = node.cni.check(&attachment.key()).await.unwrap_err();
        assert!(
            matches!(&error, CheckError::Plugin { error, .. } if error.plugin == "bridge"),
            "{error}"
        );
        node.cni.delete("pod1").await.unwrap();
    });
}

#[test]
fn after_a_reboot_the_address_is_given_back() {
    on_a_node(async |node| {
        let list = node.network(
            "1.0.0",
            &[node.bridge_without_masquerade(), portmap(), bandwidth()],
        );
        let pod = Netns::new();
        list.add(&attachment("pod1", &pod)).await.unwrap();
        assert_eq!(node.leases().len(), 2);
        drop(pod);
        node.cni.delete("pod1").await.unwrap();
    });
}

#[test]
fn a_plugin_that_fails_after_the_bridge_leaves_nothing() {
    on_a_node(async |node| {
        let fails = json!({"type": "tuning", "sysctl": {"net.ipv4.no_such_key": "1"}});
        let list = node.network("1.0.0", &[node.bridge(), portmap(), fails]);
        let pod = Netns::new();
        let mut attachment = attachment("pod1", &pod);
        attachment.runtime_config.port_mappings = host_port(8080);
        let error = list.add(&attachment).await.unwrap_err();
        let AddError::Plugin {
            error: failed,
            undo,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(failed.plugin, "tuning");
        assert!(error.to_string().contains("no_such_key"), "{error}");
        assert!(undo.is_empty(), "{error}");
        assert!(!pod.addresses().contains("eth0"), "{}", pod.addresses());
    });
}

#[test]
fn an_exhausted_range_is_an_error_in_the_plugins_words() {
    on_a_node(async |node| {
        // .1 is the gateway, .3 the broadcast address: one is left.
        let list = node.network(
            "1.0.0",
            &[node.bridge_with(json!([[{"subnet": "198.18.0.0/30"}]]))],
        );
        let (first, second) = (Netns::new(), Netns::new());
        list.add(&attachment("pod1", &first)).await.unwrap();
        let error = list
            .add(&attachment("pod2", &second))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no IP addresses available in range set"),
            "{error}"
        );
        node.cni.delete("pod1").await.unwrap();
        list.add(&attachment("pod2", &second)).await.unwrap();
        node.cni.delete("pod2").await.unwrap();
    });
}

#[test]
fn plugins_too_old_for_the_configuration_say_so() {
    on_a_node(async |node| {
        let versions = node
            .network("1.0.0", &[node.bridge()])
            .versions()
            .await
            .unwrap();
        assert!(
            versions[0].1.iter().any(|version| version == "1.0.0"),
            "{versions:?}"
        );
        if versions[0].1.iter().any(|version| version == "1.1.0") {
            return;
        }
        let pod = Netns::new();
        let error = node
            .network("1.1.0", &[node.bridge()])
            .add(&attachment("pod1", &pod))
            .await
            .unwrap_err();
        let AddError::Plugin { error: failed, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(failed.code(), Some(1), "{error}");
        assert_eq!(
            node.cni.attachments().await.unwrap().len(),
            1,
            "DEL failed the same way, so the record is kept"
        );
        fs::remove_dir_all(node.path("records")).unwrap();
    });
}

#[test]
fn pods_that_come_and_go_together_get_different_addresses() {
    on_a_node(async |node| {
        let list = node.network("1.0.0", &[node.bridge(), portmap()]);
        let pods = (0..8).map(|_| Netns::new()).collect::<Vec<_>>();
        let attachments = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| attachment(&format!("pod{i}"), pod))
            .collect::<Vec<_>>();
        let local = tokio::task::LocalSet::new();
        let add = |attachment: Attachment| {
            let list = list.clone();
            local.spawn_local(async move {
                list.add(&attachment)
                    .await
                    .unwrap()
                    .pod_ips()
                    .next()
                    .unwrap()
            })
        };
        let adding = attachments.iter().cloned().map(add).collect::<Vec<_>>();
        let del = |attachment: Attachment| {
            let cni = node.cni.clone();
            local.spawn_local(async move { cni.delete(&attachment.container_id).await.unwrap() })
        };
        local
            .run_until(async {
                let mut ips = Vec::new();
                for one in adding {
                    ips.push(one.await.unwrap());
                }
                ips.sort();
                ips.dedup();
                assert_eq!(ips.len(), 8);
                for one in attachments.into_iter().map(del).collect::<Vec<_>>() {
                    one.await.unwrap();
                }
            })
            .await;
    });
}
