//! How long ADD and DEL take: dvipa against bridge with host-local, one pod after the other, in turn.
//!
//! ```text
//! cargo build --release -p zcri-dvipa --bins --examples
//! target/release/examples/cni-bench [COUNT [PATH-OF-DVIPA [DIRECTORY-OF-PLUGINS]]]
//! ```
//!
//! The node is a network namespace of its own, and every pod has one. What is measured is the whole life of the plugin's
//! process, as a runtime waits for it, first with no pod on the node and then with as many as COUNT. Needs root.

use std::{
    error::Error,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use zcri_sys::{
    namespace::{self, PodNamespaces},
    netns::NetNs,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A network namespace that ends with this.
struct Ns {
    path: PathBuf,
    ns: NetNs,
}

impl Ns {
    fn new(path: PathBuf) -> Outcome<Self> {
        namespace::create(&PodNamespaces {
            net: Some(path.clone()),
            ..PodNamespaces::default()
        })?;
        let ns = NetNs::open(&path)?;
        Ok(Self { path, ns })
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        drop(namespace::unpin(&self.path));
    }
}

/// A plugin with its configuration.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    config: Value,
}

/// Runs it once; how long that took, and the result.
fn run(
    host: &Ns,
    candidate: &Candidate,
    verb: &str,
    id: &str,
    pod: &Ns,
    result: Option<&Value>,
) -> Outcome<(Duration, Value)> {
    let mut config = candidate.config.clone();
    if let Some(result) = result {
        config["prevResult"] = result.clone();
    }
    let plugins = candidate.program.parent().unwrap_or(Path::new("/"));
    let mut command = Command::new(&candidate.program);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", &pod.path)
        .env("CNI_PATH", plugins)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let text = config.to_string();
    let begin = Instant::now();
    let mut child = host.ns.within(|| command.spawn())??;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let took = begin.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("{} {verb}: {said}", candidate.name).into());
    }
    let result = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((took, result))
}

fn candidates(dvipa: &Path, plugins: &Path, data: &Path) -> [Candidate; 2] {
    let of = |name, program: PathBuf, config| Candidate {
        name,
        program,
        config,
    };
    [
        of(
            "dvipa",
            dvipa.to_owned(),
            json!({
                "cniVersion": "1.0.0", "name": "bench-dvipa", "type": "dvipa", "backend": "netns",
                "vipaRanges": ["198.18.0.0/20"], "ipMasq": true, "maxVipas": 4000,
                "dataDir": data.join("dvipa"),
            }),
        ),
        of(
            "bridge + host-local",
            plugins.join("bridge"),
            json!({
                "cniVersion": "1.0.0", "name": "bench-bridge", "type": "bridge", "bridge": "bench0",
                "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local", "dataDir": data.join("host-local"),
                    "ranges": [[{"subnet": "198.19.0.0/20"}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
        ),
    ]
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, Duration::as_secs_f64)
        * 1000.0
}

/// Attaches `count` pods by each candidate in turn, then detaches them; the medians of ADD and DEL in ms.
fn measure(host: &Ns, all: &[Candidate; 2], dir: &Path, count: usize, keep: bool) -> Outcome<()> {
    let mut adds = [Vec::new(), Vec::new()];
    let mut dels = [Vec::new(), Vec::new()];
    let mut kept = Vec::new();
    for i in 0..count {
        for (c, candidate) in all.iter().enumerate() {
            let id = format!("{}{i}{c}", if keep { "k" } else { "p" });
            let pod = Ns::new(dir.join(&id))?;
            let (took, result) = run(host, candidate, "ADD", &id, &pod, None)?;
            adds[c].push(took);
            kept.push((c, id, pod, result));
            if !keep {
                let (c, id, pod, result) = kept.remove(0);
                dels[c].push(run(host, &all[c], "DEL", &id, &pod, Some(&result))?.0);
            }
        }
    }
    for (c, id, pod, result) in kept {
        dels[c].push(run(host, &all[c], "DEL", &id, &pod, Some(&result))?.0);
    }
    let pods = if keep {
        format!("0 to {count}")
    } else {
        "0".to_owned()
    };
    let mut medians = Vec::new();
    for (c, candidate) in all.iter().enumerate() {
        let (add, del) = (median(&mut adds[c]), median(&mut dels[c]));
        println!("| {} | {pods} | {add:.2} | {del:.2} |", candidate.name);
        medians.push((add, del));
    }
    let ratio = (medians[0].0 / medians[1].0, medians[0].1 / medians[1].1);
    println!("| ratio | {pods} | {:.2} | {:.2} |", ratio.0, ratio.1);
    Ok(())
}

fn main() -> Outcome<()> {
    let mut words = std::env::args().skip(1);
    let count = words.next().map_or(Ok(100), |text| text.parse())?;
    let beside = std::env::current_exe()?.with_file_name("../dvipa");
    let dvipa = words.next().map_or(beside, PathBuf::from).canonicalize()?;
    let plugins = words.next().map_or("/usr/lib/cni".into(), PathBuf::from);
    let dir = std::env::temp_dir().join(format!("cni-bench-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let host = Ns::new(dir.join("host"))?;
    let all = candidates(&dvipa, &plugins, &dir);
    println!("| plugin | other pods on the node | ADD, ms | DEL, ms |\n|---|---|---|---|");
    let measured = measure(&host, &all, &dir, count, false)
        .and_then(|()| measure(&host, &all, &dir, count, true));
    drop(host);
    std::fs::remove_dir_all(&dir)?;
    measured
}
