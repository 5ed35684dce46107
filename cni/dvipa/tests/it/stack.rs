//! Pods without a network namespace, confined by eBPF.

mod attachment;
mod interrupted;
mod sockets;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
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
        self.run_with(verb, id, &self.config(id))
    }

    fn run_with(&self, verb: &str, id: &str, config: &Value) -> Said {
        self.lab.run_with(verb, id, Path::new("host"), config)
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

/// EADDRNOTAVAIL: what a bind to an address that is not the pod's is told.
const FOREIGN: &str = "err 99";
