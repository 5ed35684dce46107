//! A pod under test: its directories, its monitor, and what must be gone in the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::ttrpc::{self, context, proto};
use containerd_shim_protos::{Client, TaskClient};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::{Value, json};

/// How long anything may take that has to happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Programs of the container's root, all of them busybox.
const PROGRAMS: [&str; 14] = [
    "sh", "sleep", "setsid", "cat", "echo", "true", "false", "ps", "dd", "yes", "head", "ls",
    "env", "stty",
];

/// A monitor and its containers.
pub(crate) struct Pod {
    dir: tempfile::TempDir,
    pub(crate) client: Client,
    pub(crate) task: TaskClient,
    pub(crate) shim_pid: u32,
    runtime: String,
    /// Below every cgroup hierarchy.
    cgroup: String,
    /// Started by a wrapper that the tests of crun need.
    wrapper: Vec<String>,
}

/// What the requests of a test say about a container.
pub(crate) struct Container<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) spec: Value,
    pub(crate) request: api::CreateTaskRequest,
}

pub(crate) fn code(result: ttrpc::Result<impl Sized>) -> (ttrpc::Code, String) {
    match result {
        Ok(_) => (ttrpc::Code::OK, String::new()),
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        Err(e) => panic!("no answer: {e}"),
    }
}

pub(crate) fn within() -> context::Context {
    context::with_duration(LIMIT)
}

/// Waits until `probe` gives something; the deadline is the only clock.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{what} did not happen within {LIMIT:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
}

impl Pod {
    pub(crate) fn new() -> Self {
        Self::with("/usr/sbin/runc", &[])
    }

    /// A pod whose monitor lives in a mount namespace that crun accepts: on a hybrid cgroup tree crun refuses to
    /// work while the version 2 part is mounted. `None` when crun is not there.
    pub(crate) fn with_crun() -> Option<Self> {
        if !Path::new("/usr/bin/crun").exists() {
            eprintln!("skipped: no /usr/bin/crun on this machine");
            return None;
        }
        let script = "if test -d /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$0\" \"$@\"";
        Some(Self::with(
            "/usr/bin/crun",
            &[
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
            ],
        ))
    }

    fn with(runtime: &str, wrapper: &[&str]) -> Self {
        assert!(rustix_is_root(), "these tests need root");
        for needed in [runtime, "/bin/busybox"] {
            assert!(
                Path::new(needed).exists(),
                "{needed} is missing: apt-get install runc crun busybox-static"
            );
        }
        let dir = tempfile::Builder::new()
            .prefix("zs-")
            .tempdir_in("/tmp")
            .unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        for sub in [
            "pod",
            "c",
            "root/bin",
            "root/proc",
            "root/dev",
            "root/sys",
            "root/tmp",
            "runtime",
        ] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", dir.path().join("root/bin/busybox")).unwrap();
        for program in PROGRAMS {
            symlink("busybox", dir.path().join("root/bin").join(program)).unwrap();
        }
        let wrapper: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let address = start_shim(&dir.path().join("pod"), &wrapper);
        let client = Client::connect(&address).unwrap();
        let task = TaskClient::new(client.clone());
        let shim_pid = task
            .connect(within(), &api::ConnectRequest::new())
            .unwrap()
            .shim_pid;
        assert!(is_alive(shim_pid));
        let cgroup = format!("/zcri-shim-test-{name}");
        Self {
            dir,
            client,
            task,
            shim_pid,
            runtime: runtime.to_owned(),
            cgroup,
            wrapper,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    /// Runs the start action once more.
    pub(crate) fn start_again(&self) -> String {
        start_shim(&self.bundle(), &self.wrapper)
    }

    pub(crate) fn reconnect(&self) -> TaskClient {
        TaskClient::new(
            Client::connect(&format!(
                "unix://{}",
                self.bundle().join("shim.sock").display()
            ))
            .unwrap(),
        )
    }

    /// What the monitor has open.
    pub(crate) fn shim_descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.shim_pid)).unwrap();
        let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let mut links: Vec<_> = links
            .map(|link| link.to_string_lossy().into_owned())
            .collect();
        links.sort();
        links
    }

    pub(crate) fn shim_log(&self) -> String {
        fs::read_to_string(self.bundle().join("shim.log")).unwrap_or_default()
    }

    /// A container that logs and runs `script` with the shell.
    pub(crate) fn container(&self, id: &str, script: &str) -> Container<'_> {
        let bundle = self.dir.path().join("c").join(id);
        fs::create_dir_all(&bundle).unwrap();
        let log = self.dir.path().join("logs").join(id).join("0.log");
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.to_str().unwrap().to_owned();
        request.stdout = format!("cri-log://{}", log.display());
        request.stderr = request.stdout.clone();
        let mut options = Options::new();
        options.binary_name.clone_from(&self.runtime);
        options.root = self.dir.path().join("runtime").to_str().unwrap().to_owned();
        request.options = MessageField::some(any(
            "containerd.runc.v1.Options",
            options.write_to_bytes().unwrap(),
        ));
        let spec = spec(
            &self.dir.path().join("root"),
            &format!("{}/{id}", self.cgroup),
            script,
        );
        Container {
            pod: self,
            id: id.to_owned(),
            bundle,
            log,
            spec,
            request,
        }
    }

    /// The directories of a container's cgroup that exist.
    pub(crate) fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let parents = fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let below = |parent: &Path| parent.join(self.cgroup.trim_start_matches('/')).join(id);
        let mut found: Vec<PathBuf> = parents.map(|parent| below(&parent)).collect();
        found.push(below(Path::new("/sys/fs/cgroup")));
        found.retain(|path| path.is_dir());
        found
    }

    /// Calls the method that the Task API lacks.
    pub(crate) fn reopen_log(&self, id: &str) -> ttrpc::Result<proto::Response> {
        let mut state = api::StateRequest::new();
        state.id = id.to_owned();
        self.call(
            "zcri.shim.v1.Stdio",
            "ReopenLog",
            state.write_to_bytes().unwrap(),
        )
    }

    pub(crate) fn call(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
    ) -> ttrpc::Result<proto::Response> {
        let mut request = proto::Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        request.timeout_nano = i64::try_from(LIMIT.as_nanos()).unwrap();
        self.client.request(request)
    }

    pub(crate) fn shut_down(&self, now: bool) {
        let mut request = api::ShutdownRequest::new();
        request.now = now;
        self.task.shutdown(within(), &request).unwrap();
    }

    /// Ends the pod, and fails if anything of it is left.
    pub(crate) fn finish(self) {
        self.shut_down(false);
        eventually("the end of the monitor", || {
            (!is_alive(self.shim_pid)).then_some(())
        });
        assert!(
            !self.bundle().join("shim.sock").exists(),
            "the socket is left"
        );
        assert_eq!(self.cgroups(""), self.cgroup_parents(), "cgroups are left");
        let left: Vec<_> = fs::read_dir(self.dir.path().join("runtime"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(left.is_empty(), "the runtime keeps {left:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(self.dir.path().to_str().unwrap()),
            "mounts are left: {mounts}"
        );
        let calls: Vec<_> = walk(&self.dir.path().join("c"))
            .into_iter()
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with(".call")
            })
            .collect();
        assert!(calls.is_empty(), "files of calls are left: {calls:?}");
    }

    /// The parent directories of this pod's cgroups, which the tests themselves remove; nothing may be in them.
    fn cgroup_parents(&self) -> Vec<PathBuf> {
        let mut parents = self.cgroups("");
        parents.retain(|parent| {
            let inside = fs::read_dir(parent)
                .unwrap()
                .filter(|e| e.as_ref().unwrap().path().is_dir())
                .count();
            inside == 0
                && fs::read_to_string(parent.join("cgroup.procs"))
                    .unwrap()
                    .is_empty()
        });
        parents
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // After a failed test: what runs is ended by its numbers, all of which came from this pod's monitor.
        for cgroup in self
            .cgroups("")
            .into_iter()
            .flat_map(|dir| walk(&dir))
            .filter(|p| p.ends_with("cgroup.procs"))
        {
            for pid in fs::read_to_string(cgroup).unwrap_or_default().lines() {
                zcri_sys::signal::send(pid.parse().unwrap(), 9).ok();
            }
        }
        if is_alive(self.shim_pid) {
            if let Ok(pid) = fs::read_to_string(self.bundle().join("init.pid")) {
                zcri_sys::signal::send(pid.parse().unwrap_or(0), 9).ok();
            }
            zcri_sys::signal::send(self.shim_pid, 9).ok();
        }
        if std::thread::panicking() {
            eprintln!("shim.log: {}", self.shim_log());
        }
        let ids = fs::read_dir(self.dir.path().join("c"))
            .into_iter()
            .flatten()
            .flatten();
        let ids: Vec<_> = ids
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let start = Instant::now();
        while !self.cgroups("").is_empty() && start.elapsed() < Duration::from_secs(5) {
            for dir in ids
                .iter()
                .flat_map(|id| self.cgroups(id))
                .chain(self.cgroups(""))
            {
                walk(&dir)
                    .into_iter()
                    .filter(|p| p.is_dir())
                    .for_each(|p| drop(fs::remove_dir(p)));
                fs::remove_dir(&dir).ok();
            }
        }
    }
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() && entry.file_name() != "rootfs" {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

fn start_shim(bundle: &Path, wrapper: &[String]) -> String {
    let shim = env!("CARGO_BIN_EXE_zcri-shim");
    let mut command = match wrapper.split_first() {
        None => Command::new(shim),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(shim);
            command
        }
    };
    command
        .args(["-namespace", "zcri", "-id", "sandbox", "start"])
        .current_dir(bundle);
    // What a daemon under systemd has in its environment and must keep for itself.
    command.env("NOTIFY_SOCKET", "/run/nobody").process_group(0);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn any(type_url: &str, value: Vec<u8>) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = value;
    any
}

pub(crate) fn process(script: &str) -> Value {
    json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
        "noNewPrivileges": true, "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"]},
    })
}

fn spec(root: &Path, cgroup: &str, script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2", "process": process(script), "root": {"path": root, "readonly": true},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=100m"]},
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}

impl Container<'_> {
    pub(crate) fn create(&self) -> ttrpc::Result<api::CreateTaskResponse> {
        fs::write(
            self.bundle.join("config.json"),
            serde_json::to_vec(&self.spec).unwrap(),
        )
        .unwrap();
        self.pod.task.create(within(), &self.request)
    }

    pub(crate) fn start(&self) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id.clone_from(&self.id);
        self.pod
            .task
            .start(within(), &request)
            .map(|response| response.pid)
    }

    /// Creates and starts; the process number.
    pub(crate) fn run(&self) -> u32 {
        self.create().unwrap();
        self.start().unwrap()
    }

    pub(crate) fn wait(&self) -> u32 {
        let mut request = api::WaitRequest::new();
        request.id.clone_from(&self.id);
        self.pod.task.wait(within(), &request).unwrap().exit_status
    }

    pub(crate) fn kill(&self, signal: u32, all: bool) -> ttrpc::Result<api::Empty> {
        let mut request = api::KillRequest::new();
        request.id.clone_from(&self.id);
        request.signal = signal;
        request.all = all;
        self.pod.task.kill(within(), &request)
    }

    pub(crate) fn delete(&self) -> ttrpc::Result<api::DeleteResponse> {
        let mut request = api::DeleteRequest::new();
        request.id.clone_from(&self.id);
        self.pod.task.delete(within(), &request)
    }

    pub(crate) fn state(&self) -> ttrpc::Result<api::StateResponse> {
        let mut request = api::StateRequest::new();
        request.id.clone_from(&self.id);
        self.pod.task.state(within(), &request)
    }

    /// Entries of the log: (stream, tag, text).
    pub(crate) fn entries(&self) -> Vec<(String, String, String)> {
        parse_log(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The text of the log, `P` entries joined.
    pub(crate) fn text(&self) -> String {
        let entry =
            |(_, tag, text): (String, String, String)| if tag == "F" { text + "\n" } else { text };
        self.entries().into_iter().map(entry).collect()
    }

    pub(crate) fn wait_for_text(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || {
            self.text().contains(text).then_some(())
        });
    }

    pub(crate) fn exit_record(&self) -> Option<Value> {
        let bytes = fs::read(self.bundle.join("exit.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }
}

pub(crate) fn parse_log(text: &str) -> Vec<(String, String, String)> {
    let entry = |line: &str| {
        let mut fields = line.splitn(4, ' ');
        let mut next = || {
            fields
                .next()
                .unwrap_or_else(|| panic!("torn entry {line:?}"))
                .to_owned()
        };
        let time = next();
        assert!(
            time.len() == 30 && time.starts_with("20") && time.ends_with('Z'),
            "time {time:?}"
        );
        (next(), next(), next())
    };
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "the log ends within an entry"
    );
    text.split_terminator('\n').map(entry).collect()
}
