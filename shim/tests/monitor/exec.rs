//! Processes that are run in a container.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::{self, Code};
use protobuf::MessageField;

use crate::pod::{Container, Pod, any, code, eventually, is_alive, process, within};

/// One exec, with the FIFOs a daemon would open.
pub(crate) struct Exec<'a> {
    container: &'a Container<'a>,
    pub(crate) id: String,
    pub(crate) request: api::ExecProcessRequest,
    pub(crate) stdout: PathBuf,
    out: Option<File>,
}

pub(crate) fn make_fifo(path: &std::path::Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

impl<'a> Exec<'a> {
    pub(crate) fn new(container: &'a Container<'a>, id: &str, script: &str) -> Self {
        let stdout = container.bundle.join(format!("{id}-out"));
        make_fifo(&stdout);
        // Opened before the monitor is asked, without waiting for it.
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let out = File::options()
            .read(true)
            .custom_flags(nonblock)
            .open(&stdout)
            .unwrap();
        let mut request = api::ExecProcessRequest::new();
        request.id.clone_from(&container.id);
        request.exec_id = id.to_owned();
        request.stdout = stdout.to_str().unwrap().to_owned();
        request.stderr = request.stdout.clone();
        let spec = serde_json::to_vec(&process(script)).unwrap();
        request.spec = MessageField::some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Process",
            spec,
        ));
        Self {
            container,
            id: id.to_owned(),
            request,
            stdout,
            out: Some(out),
        }
    }

    pub(crate) fn exec(&self) -> ttrpc::Result<api::Empty> {
        self.container.pod.task.exec(within(), &self.request)
    }

    pub(crate) fn start(&self) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id.clone_from(&self.container.id);
        request.exec_id.clone_from(&self.id);
        self.container
            .pod
            .task
            .start(within(), &request)
            .map(|response| response.pid)
    }

    pub(crate) fn run(&self) -> u32 {
        self.exec().unwrap();
        self.start().unwrap()
    }

    /// Everything until the last writer is gone.
    pub(crate) fn output(&mut self) -> String {
        let mut out = self.out.take().unwrap();
        rustix::fs::fcntl_setfl(&out, rustix::fs::OFlags::empty()).unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn wait(&self) -> u32 {
        let mut request = api::WaitRequest::new();
        request.id.clone_from(&self.container.id);
        request.exec_id.clone_from(&self.id);
        self.container
            .pod
            .task
            .wait(within(), &request)
            .unwrap()
            .exit_status
    }

    pub(crate) fn kill_all(&self) -> ttrpc::Result<api::Empty> {
        let mut request = api::KillRequest::new();
        request.id.clone_from(&self.container.id);
        request.exec_id.clone_from(&self.id);
        request.signal = 9;
        request.all = true;
        self.container.pod.task.kill(within(), &request)
    }

    pub(crate) fn delete(&self) -> ttrpc::Result<api::DeleteResponse> {
        let mut request = api::DeleteRequest::new();
        request.id.clone_from(&self.container.id);
        request.exec_id.clone_from(&self.id);
        self.container.pod.task.delete(within(), &request)
    }
}

/// A container that does nothing, for a while.
pub(crate) fn idle<'a>(pod: &'a Pod, id: &str) -> Container<'a> {
    let c = pod.container(id, "sleep 100000");
    c.run();
    c
}

pub(crate) fn end(pod: Pod, id: &str) {
    let c = pod.container(id, "");
    c.kill(9, true).unwrap();
    assert_eq!(c.wait(), 137);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn output_exit_code_and_input() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let mut e = Exec::new(&c, "e1", "cat; echo err >&2; exit 9");
    let stdin = c.bundle.join("e1-in");
    make_fifo(&stdin);
    let mut writer = File::options().read(true).write(true).open(&stdin).unwrap();
    e.request.stdin = stdin.to_str().unwrap().to_owned();
    e.run();
    writer.write_all(b"typed\n").unwrap();
    drop(writer);
    assert_eq!(e.output(), "typed\nerr\n");
    assert_eq!(e.wait(), 9);
    assert_eq!(e.delete().unwrap().exit_status, 9);
    assert_eq!(code(e.delete()).0, Code::NOT_FOUND);
    assert_eq!(
        c.text(),
        "",
        "an exec does not write to the container's log"
    );
    end(pod, "c1");
}

#[test]
fn what_cannot_be_run_is_an_error() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let before = pod.shim_descriptors();
    let mut e = Exec::new(&c, "e1", "");
    let mut missing = process("");
    missing["args"] = serde_json::json!(["nonexistent"]);
    e.request.spec.as_mut().unwrap().value = serde_json::to_vec(&missing).unwrap();
    e.exec().unwrap();
    assert_eq!(code(e.exec()).0, Code::ALREADY_EXISTS);
    let (status, message) = code(e.start());
    assert_eq!(status, Code::UNKNOWN);
    assert!(
        message.contains("nonexistent") && message.contains("not found"),
        "{message}"
    );
    e.output();
    e.delete().unwrap();

    let mut e = Exec::new(&c, "e2", "true");
    e.request.spec.as_mut().unwrap().value = b"no json".to_vec();
    assert_eq!(code(e.exec()).0, Code::INVALID_ARGUMENT);
    let e = Exec::new(&c, "e3", "true");
    let mut unread = Exec::new(&c, "e4", "true");
    unread.out = None;
    let (status, message) = code(unread.exec());
    assert_eq!(status, Code::FAILED_PRECONDITION);
    assert!(message.contains("e4-out"), "{message}");
    assert_eq!(pod.shim_descriptors(), before);
    c.kill(9, false).unwrap();
    c.wait();
    assert_eq!(code(e.exec()).0, Code::FAILED_PRECONDITION);
    c.delete().unwrap();
    pod.finish();
}

/// A tree with a child, and a grandchild that left the session and lost its parent.
const TREE: &str = "sleep 1000 & (setsid sleep 1001 &) ; echo ready; sleep 1002";

fn processes_of(pod: &Pod, id: &str) -> Vec<u32> {
    let mut request = api::PidsRequest::new();
    request.id = id.to_owned();
    pod.task
        .pids(within(), &request)
        .unwrap()
        .processes
        .iter()
        .map(|info| info.pid)
        .collect()
}

#[test]
fn a_timeout_ends_the_whole_tree_and_nothing_else() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let init = c.state().unwrap().pid;
    let mut e = Exec::new(&c, "e1", TREE);
    let root = e.run();
    let mut other = Exec::new(&c, "e2", TREE);
    let root_of_other = other.run();
    for exec in [&mut e, &mut other] {
        eventually("a tree", || exec.first_bytes(&mut [0; 6]).then_some(()));
    }
    let all = eventually("both trees", || {
        Some(processes_of(&pod, "c1")).filter(|pids| pids.len() == 7)
    });
    assert!(all.contains(&init) && all.contains(&root));
    e.kill_all().unwrap();
    assert_eq!(e.wait(), 137);
    // The end of the pipe proves that every process that held it is gone.
    assert_eq!(e.output(), "");
    e.delete().unwrap();
    // Not below 4: the other exec and the container go on.
    eventually("the end of the tree", || {
        (processes_of(&pod, "c1").len() == 4).then_some(())
    });
    assert!(is_alive(init) && is_alive(root_of_other));
    other.kill_all().unwrap();
    assert_eq!(other.output(), "");
    other.wait();
    other.delete().unwrap();
    eventually("the end of the other tree", || {
        (processes_of(&pod, "c1") == [init]).then_some(())
    });
    end(pod, "c1");
}

#[test]
fn what_an_exec_left_behind_lives_on_and_can_be_ended_until_it_is_deleted() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let mut left = Exec::new(&c, "e1", "setsid sleep 1000 & echo left");
    left.run();
    assert_eq!(left.wait(), 0);
    assert_eq!(processes_of(&pod, "c1").len(), 2);
    left.kill_all().unwrap();
    assert_eq!(left.output(), "left\n");
    left.delete().unwrap();
    let kept = Exec::new(
        &c,
        "e2",
        "setsid sleep 1000 </dev/null >/dev/null 2>&1 & true",
    );
    kept.run();
    kept.wait();
    kept.delete().unwrap();
    assert_eq!(
        processes_of(&pod, "c1").len(),
        2,
        "a daemon that an exec started is the container's"
    );
    end(pod, "c1");
}

/// Enough to show a leak; `ZCRI_TEST_EXECS=1000` for more.
fn rounds() -> usize {
    std::env::var("ZCRI_TEST_EXECS").map_or(200, |text| text.parse().unwrap())
}

#[test]
fn many_short_execs_leak_nothing() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let before = pod.shim_descriptors();
    // The files of a call go right after its answer.
    let files = || {
        eventually("the end of all calls", || {
            let names = fs::read_dir(&c.bundle)
                .unwrap()
                .map(|e| e.unwrap().file_name());
            let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            (!names.iter().any(|name| name.starts_with(".call"))).then_some(names.len())
        })
    };
    let files_before = files();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let c = &c;
            scope.spawn(move || {
                for round in 0..rounds() / 4 {
                    let want = u32::try_from(round % 100).unwrap();
                    let mut e = Exec::new(
                        c,
                        &format!("e{worker}-{round}"),
                        &format!("echo {round}; exit {want}"),
                    );
                    e.run();
                    assert_eq!(e.output(), format!("{round}\n"));
                    assert_eq!(e.wait(), want);
                    e.delete().unwrap();
                    fs::remove_file(&e.stdout).unwrap();
                }
            });
        }
    });
    assert_eq!(pod.shim_descriptors(), before);
    assert_eq!(files(), files_before);
    for cgroup in pod.cgroups("c1") {
        let below = fs::read_dir(&cgroup)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().is_dir())
            .count();
        assert_eq!(
            below,
            0,
            "cgroups of execs are left in {}",
            cgroup.display()
        );
    }
    assert_eq!(pod.shim_log(), "");
    end(pod, "c1");
}

impl Exec<'_> {
    /// Reads some output without waiting; did anything come?
    pub(crate) fn first_bytes(&mut self, buffer: &mut [u8]) -> bool {
        self.out.as_mut().unwrap().read(buffer).is_ok_and(|n| n > 0)
    }

    /// The reader goes away.
    pub(crate) fn hang_up(&mut self) {
        self.out = None;
    }
}
