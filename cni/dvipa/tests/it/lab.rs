//! A host of its own for each test: a network namespace in which the binary runs, a directory for leases, and pods.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};
use zcri_sys::{
    namespace::{self, PodNamespaces},
    netlink::{
        Socket, nft,
        route::{self, Address, Link, Route},
    },
    netns::NetNs,
};

pub(crate) const DVIPA: &str = env!("CARGO_BIN_EXE_dvipa");

/// A host.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: Ns,
    /// The configuration; tests change it.
    pub(crate) config: Value,
}

/// A network namespace that ends with this.
pub(crate) struct Ns {
    pub(crate) path: PathBuf,
    pub(crate) ns: NetNs,
}

impl Ns {
    pub(crate) fn new(path: PathBuf) -> Self {
        namespace::create(&PodNamespaces {
            net: Some(path.clone()),
            ..PodNamespaces::default()
        })
        .expect("tests need root");
        let ns = NetNs::open(&path).unwrap();
        Self { path, ns }
    }

    /// Runs a closure with the thread in this namespace: sockets that it makes belong there.
    pub(crate) fn within<T>(&self, inside: impl FnOnce() -> T) -> T {
        self.ns.within(inside).unwrap()
    }

    pub(crate) fn netlink(&self) -> Socket {
        self.within(|| Socket::route().unwrap())
    }

    pub(crate) fn link(&self, name: &str) -> Option<Link> {
        self.links().into_iter().find(|link| link.name == name)
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        let mut links = Vec::new();
        self.netlink()
            .ask("links", route::dump_links(), |m| {
                links.extend(Link::parse(m))
            })
            .unwrap();
        links
    }

    pub(crate) fn addresses(&self) -> Vec<Address> {
        let mut all = Vec::new();
        self.netlink()
            .ask("addresses", route::dump_addresses(), |m| {
                all.extend(Address::parse(m));
            })
            .unwrap();
        all
    }

    pub(crate) fn routes(&self) -> Vec<Route> {
        let mut all = Vec::new();
        for v4 in [true, false] {
            self.netlink()
                .ask("routes", route::dump_routes(v4), |m| {
                    all.extend(Route::parse(m))
                })
                .unwrap();
        }
        all
    }

    pub(crate) fn add_address(&self, link: &str, ip: &str, prefix: u8) {
        let address = Address {
            index: self.link(link).unwrap().index,
            ip: ip.parse().unwrap(),
            prefix,
            protocol: 0,
            deprecated: false,
        };
        self.netlink().send_one("address", address.add()).unwrap();
    }

    pub(crate) fn add_route(&self, to: &str, prefix: u8, via: &str, link: &str) {
        let route = Route {
            to: to.parse().unwrap(),
            prefix,
            via: Some(via.parse().unwrap()),
            index: self.link(link).unwrap().index,
            protocol: 4,
        };
        self.netlink().send_one("route", route.add()).unwrap();
    }

    pub(crate) fn sysctl(&self, name: &str) -> String {
        let path = format!("/proc/sys/net/{name}");
        let text = self.within(|| fs::read_to_string(path));
        text.unwrap().trim().to_owned()
    }

    pub(crate) fn set_sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.within(|| fs::write(path, value)).unwrap();
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        drop(namespace::unpin(&self.path));
    }
}

/// What the binary said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) success: bool,
    pub(crate) json: Value,
    pub(crate) log: String,
}

impl Said {
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{} {}", self.json, self.log);
        self.json
    }

    /// The error's code and whole text.
    pub(crate) fn err(self) -> (u64, String) {
        assert!(!self.success, "{} {}", self.json, self.log);
        let text = |key: &str| self.json[key].as_str().unwrap().to_owned();
        (
            self.json["code"].as_u64().unwrap(),
            format!("{}: {}", text("msg"), text("details")),
        )
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            log: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Lab {
    /// With six IPv4 addresses and 254 of IPv6.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Ns::new(dir.path().join("host"));
        host.set_sysctl("ipv4/ip_forward", "0");
        host.add_address("lo", "10.99.0.1", 32);
        host.add_address("lo", "fd00:99::1", 128);
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "dvipa", "backend": "netns",
            "vipaRanges": ["192.0.2.248/29", "2001:db8::/120"],
            "dataDir": dir.path().join("data"),
        });
        Self { dir, host, config }
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    /// A network namespace for a pod.
    pub(crate) fn pod(&self, name: &str) -> Ns {
        Ns::new(self.dir.path().join(name))
    }

    /// The command, in the host's namespace, with a program and arguments before the binary.
    pub(crate) fn command(&self, before: &[&str], verb: &str, id: &str, netns: &Path) -> Command {
        let words: Vec<&str> = before.iter().copied().chain([DVIPA]).collect();
        self.command_of(&words, verb, id, netns)
    }

    /// As [`Lab::command`], of another program.
    pub(crate) fn command_of(&self, words: &[&str], verb: &str, id: &str, netns: &Path) -> Command {
        let mut words = words.iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={id}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a command with a configuration on its standard input.
    pub(crate) fn start(&self, mut command: Command, config: &Value) -> Child {
        let mut child = self.host.within(|| command.spawn()).unwrap();
        let text = config.to_string();
        // A plugin that is killed at once does not read it.
        drop(child.stdin.take().unwrap().write_all(text.as_bytes()));
        child
    }

    pub(crate) fn run(&self, verb: &str, id: &str, netns: &Path) -> Said {
        self.run_with(verb, id, netns, &self.config)
    }

    pub(crate) fn run_with(&self, verb: &str, id: &str, netns: &Path, config: &Value) -> Said {
        let command = self.command(&[], verb, id, netns);
        self.start(command, config)
            .wait_with_output()
            .unwrap()
            .into()
    }

    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Said {
        self.run("ADD", id, &pod.path)
    }

    pub(crate) fn del(&self, id: &str, pod: &Ns) -> Said {
        self.run("DEL", id, &pod.path)
    }

    /// With the result of ADD.
    pub(crate) fn check(&self, id: &str, pod: &Ns, result: &Value) -> Said {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        self.run_with("CHECK", id, &pod.path, &config)
    }

    pub(crate) fn status(&self) -> Said {
        self.run("STATUS", "", Path::new(""))
    }

    pub(crate) fn gc(&self, valid: &[&str]) -> Said {
        let mut config = self.config.clone();
        let all: Vec<Value> = valid
            .iter()
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect();
        config["cni.dev/valid-attachments"] = json!(all);
        self.run_with("GC", "", Path::new(""), &config)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.config["dataDir"].as_str().unwrap().into()
    }

    pub(crate) fn lease(&self, ip: &str) -> PathBuf {
        self.data().join("leases").join(ip)
    }

    /// The directory of this boot's owners.
    pub(crate) fn boot_dir(&self) -> PathBuf {
        let node = visible(&self.data().join("owners")).pop().unwrap();
        visible(&node).pop().unwrap()
    }

    pub(crate) fn leases(&self) -> BTreeSet<IpAddr> {
        let name = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        visible(&self.data().join("leases"))
            .into_iter()
            .filter_map(name)
            .collect()
    }

    /// What the plugin made on the host: routes, addresses, elements of masquerading.
    pub(crate) fn active(&self) -> BTreeSet<IpAddr> {
        let routes = self.host.routes().into_iter();
        let routes = routes.filter(|r| r.protocol == 122).map(|r| r.to);
        let addresses = self.host.addresses().into_iter();
        let addresses = addresses.filter(|a| a.protocol == 122).map(|a| a.ip);
        routes.chain(addresses).collect()
    }

    pub(crate) fn masqueraded(&self) -> BTreeSet<IpAddr> {
        let mut socket = self.host.within(|| Socket::netfilter().unwrap());
        let all = nft::elements(&mut socket, "zcri_dvipa").unwrap();
        all.into_iter().collect()
    }

    pub(crate) fn pairs(&self) -> Vec<String> {
        let links = self.host.links().into_iter().map(|link| link.name);
        links.filter(|name| name.starts_with("dvipa")).collect()
    }

    /// Nothing is left of any attachment.
    pub(crate) fn assert_clean(&self, when: &str) {
        assert_eq!(self.leases(), BTreeSet::new(), "leases {when}");
        assert_eq!(self.active(), BTreeSet::new(), "addresses {when}");
        assert_eq!(self.pairs(), Vec::<String>::new(), "interfaces {when}");
        assert_eq!(self.masqueraded(), BTreeSet::new(), "masquerading {when}");
        if self.data().join("owners").exists() {
            for stack in visible(&self.boot_dir()) {
                let owners = visible(&stack);
                assert!(owners.is_empty(), "owners {when}: {owners:?}");
            }
        }
    }
}

/// What is in a directory, but for names that begin with a dot.
pub(crate) fn visible(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        !path
            .file_name()
            .unwrap()
            .as_encoded_bytes()
            .starts_with(b".")
    });
    paths.sort();
    paths
}

/// The addresses of a result, in order.
pub(crate) fn ips(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| {
        let address = ip["address"].as_str().unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    })
    .collect()
}

/// Numbers that look random and can be had again: xorshift64*.
pub(crate) struct Dice(Cell<u64>);

impl Dice {
    /// From the environment (`DVIPA_SEED`), or the clock; the seed is printed.
    pub(crate) fn new() -> Self {
        let given = std::env::var("DVIPA_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let seed = given.unwrap_or_else(|| u64::from(now.subsec_nanos()) << 8 | 1);
        println!("DVIPA_SEED={seed}");
        Self(Cell::new(seed))
    }

    pub(crate) fn from(seed: u64) -> Self {
        Self(Cell::new(seed | 1))
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}
