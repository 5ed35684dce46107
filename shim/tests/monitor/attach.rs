//! Clients attached to containers, and execs without an owner.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::{self, Code, proto};
use protobuf::Message;

use crate::exec::{Exec, end, idle, make_fifo};
use crate::pod::{Container, Pod, code, eventually, is_alive};

/// A FIFO of a client, open for reading.
fn fifo(c: &Container<'_>, name: &str) -> (File, String) {
    let path = c.bundle.join(name);
    make_fifo(&path);
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let file = File::options()
        .read(true)
        .custom_flags(nonblock)
        .open(&path)
        .unwrap();
    (file, path.to_str().unwrap().to_owned())
}

fn attach(c: &Container<'_>, stdout: &str, stderr: &str) -> ttrpc::Result<proto::Response> {
    let mut request = api::ExecProcessRequest::new();
    request.id.clone_from(&c.id);
    (request.stdout, request.stderr) = (stdout.to_owned(), stderr.to_owned());
    let payload = request.write_to_bytes().unwrap();
    c.pod.call("zcri.shim.v1.Stdio", "Attach", payload)
}

fn end_execs(c: &Container<'_>) -> ttrpc::Result<proto::Response> {
    let mut request = api::StateRequest::new();
    request.id.clone_from(&c.id);
    let payload = request.write_to_bytes().unwrap();
    c.pod.call("zcri.shim.v1.Stdio", "EndExecs", payload)
}

/// Everything until the monitor closes its end.
fn rest(mut fifo: File) -> String {
    rustix::fs::fcntl_setfl(&fifo, rustix::fs::OFlags::empty()).unwrap();
    let mut bytes = Vec::new();
    fifo.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Makes the file that the container's script waits for.
fn go(pid: u32) {
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
}

const UNTIL_GO: &str = "until test -e /tmp/go; do sleep 0.01; done";

#[test]
fn clients_see_what_comes_and_the_last_words_in_full() {
    let pod = Pod::new();
    let script = format!(
        "echo early; {UNTIL_GO}; echo err >&2; i=0; while test $i -lt 2000; do echo line $i; i=$((i+1)); done; \
         head -c 200000 /dev/zero; echo last; exit 5"
    );
    let c = pod.container("c1", &script);
    let pid = c.run();
    c.wait_for_text("early\n");
    let ((out1, path1), (err1, path_err1)) = (fifo(&c, "o1"), fifo(&c, "e1"));
    let (out2, path2) = fifo(&c, "o2");
    attach(&c, &path1, &path_err1).unwrap();
    attach(&c, &path2, "").unwrap();
    for fifo in [&out1, &out2] {
        rustix::pipe::fcntl_setpipe_size(fifo, 1 << 20).unwrap();
    }
    go(pid);
    // Nobody reads before the end: what fits is kept.
    assert_eq!(c.wait(), 5);
    let first = rest(out1);
    assert!(first.starts_with("line 0\nline 1\n"), "{}", &first[..20]);
    assert!(first.ends_with("\0last\n"));
    assert_eq!(first.matches('\0').count(), 200_000);
    assert_eq!(rest(out2), first);
    assert_eq!(rest(err1), "err\n");
    assert!(c.text().ends_with("\0last\n"));
    assert_eq!(
        code(attach(&c, &path1, "")).0,
        Code::FAILED_PRECONDITION,
        "the container has ended"
    );
    c.delete().unwrap();
    assert_eq!(code(attach(&c, &path1, "")).0, Code::NOT_FOUND);
    pod.finish();
}

#[test]
fn a_slow_client_holds_up_nobody_and_is_told() {
    let pod = Pod::new();
    let script = format!("{UNTIL_GO}; head -c 8000000 /dev/zero | tr '\\0' q; exit 0");
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/tr")).unwrap();
    let c = pod.container("c1", &script);
    let before_run = pod.shim_descriptors();
    let pid = c.run();
    let ((slow, slow_path), (slow_err, slow_err_path)) = (fifo(&c, "so"), fifo(&c, "se"));
    let (quick, quick_path) = fifo(&c, "qo");
    rustix::pipe::fcntl_setpipe_size(&quick, 1 << 20).unwrap();
    attach(&c, &slow_path, &slow_err_path).unwrap();
    attach(&c, &quick_path, "").unwrap();
    let reader = std::thread::spawn(move || rest(quick));
    go(pid);
    assert_eq!(c.wait(), 0);
    let quick = reader.join().unwrap();
    // The thread above may lose a race now and then; what it lost it was told of.
    let told: usize = missing(&quick);
    assert_eq!(quick.matches('q').count() + told, 8_000_000);
    assert_eq!(c.text().len(), 8_000_000);
    let slow = std::thread::spawn(move || rest(slow));
    let notice = rest(slow_err);
    let seen = slow.join().unwrap();
    assert_eq!(seen.len() + missing(&notice), 8_000_000, "{notice}");
    assert!(seen.len() >= 65_536 && missing(&notice) > 0);
    eventually("the end of the clients' FIFOs", || {
        pod.shim_descriptors()
            .iter()
            .all(|name| !name.contains("/c/c1/"))
            .then_some(())
    });
    c.delete().unwrap();
    assert_eq!(pod.shim_descriptors(), before_run);
    pod.finish();
}

/// The sum of what notices say is missing.
fn missing(text: &str) -> usize {
    text.split("[zcri: ")
        .skip(1)
        .map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum()
}

#[test]
fn who_detaches_leaves_the_container_running() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let before = pod.shim_descriptors();
    for round in 0..3 {
        let (out, path) = fifo(&c, &format!("o{round}"));
        attach(&c, &path, "").unwrap();
        assert_eq!(pod.shim_descriptors().len(), before.len() + 1);
        drop(out);
        eventually("the monitor's end of the FIFO is closed", || {
            (pod.shim_descriptors() == before).then_some(())
        });
    }
    assert_eq!(
        c.state().unwrap().status.enum_value(),
        Ok(api::Status::RUNNING)
    );
    // Nobody reads there.
    let (out, path) = fifo(&c, "gone");
    drop(out);
    assert_eq!(code(attach(&c, &path, "")).0, Code::FAILED_PRECONDITION);
    assert_eq!(
        code(attach(&c, "cri-log:///x", "")).0,
        Code::INVALID_ARGUMENT
    );
    let (out, path) = fifo(&c, "half");
    assert_eq!(
        code(attach(&c, &path, "/nowhere")).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(pod.shim_descriptors(), before);
    for _ in 0..64 {
        attach(&c, &path, "").unwrap();
    }
    assert_eq!(code(attach(&c, &path, "")).0, Code::RESOURCE_EXHAUSTED);
    drop(out);
    eventually("all are detached", || {
        (pod.shim_descriptors() == before).then_some(())
    });
    end(pod, "c1");
}

#[test]
fn a_terminal_without_a_log_has_an_audience_too() {
    let pod = Pod::new();
    let mut c = pod.container("c1", "cat");
    c.spec["process"]["terminal"] = true.into();
    c.request.terminal = true;
    (c.request.stdout, c.request.stderr) = (String::new(), String::new());
    let stdin: PathBuf = c.bundle.join("in");
    make_fifo(&stdin);
    c.request.stdin = stdin.to_str().unwrap().to_owned();
    c.run();
    let (mut out, path) = fifo(&c, "o1");
    let (err, err_path) = fifo(&c, "e1");
    attach(&c, &path, &err_path).unwrap();
    fs::write(&stdin, "hello\n").unwrap();
    let mut seen = Vec::new();
    eventually("the echo and the answer", || {
        let mut chunk = [0; 100];
        if let Ok(n) = out.read(&mut chunk) {
            seen.extend_from_slice(&chunk[..n]);
        }
        (seen == b"hello\r\nhello\r\n").then_some(())
    });
    // Ctrl-D ends cat, and with it all streams.
    fs::write(&stdin, "\x04").unwrap();
    assert_eq!(c.wait(), 0);
    assert_eq!(rest(out), "");
    assert_eq!(rest(err), "");
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn output_without_a_log_is_taken_and_can_be_attached_to() {
    let pod = Pod::new();
    // More than pipes hold.
    let script = format!("head -c 3000000 /dev/zero; touch /tmp/ready; {UNTIL_GO}; echo seen");
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/touch")).unwrap();
    let mut c = pod.container("c1", &script);
    (c.request.stdout, c.request.stderr) = (String::new(), String::new());
    let pid = c.run();
    let ready = format!("/proc/{pid}/root/tmp/ready");
    eventually("the container has written", || {
        fs::exists(&ready).unwrap().then_some(())
    });
    let (out, path) = fifo(&c, "o1");
    attach(&c, &path, "").unwrap();
    go(pid);
    assert_eq!(c.wait(), 0);
    let seen = rest(out);
    assert!(seen.ends_with("seen\n"), "{} bytes", seen.len());
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn execs_without_an_owner_are_ended_with_their_trees() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let before = pod.shim_descriptors();
    let mut running = Exec::new(
        &c,
        "running",
        "setsid sleep 1000 & sleep 1000 & exec sleep 1500",
    );
    let pid = running.run();
    let mut left = Exec::new(&c, "left", "sleep 2000 & echo done");
    left.run();
    assert_eq!(left.wait(), 0);
    let created = Exec::new(&c, "created", "echo never");
    created.exec().unwrap();
    // One whose runtime is at work when the owner is found to be gone.
    let starting = Exec::new(&c, "starting", "sleep 3000");
    starting.exec().unwrap();
    std::thread::scope(|scope| {
        let started = scope.spawn(|| starting.start());
        eventually("the runtime is at work", || {
            let mut state = api::StateRequest::new();
            state.id.clone_from(&c.id);
            state.exec_id = "starting".to_owned();
            let start_again = started.is_finished() || is_starting(&c, "starting");
            start_again.then_some(())
        });
        end_execs(&c).unwrap();
        drop(started.join().unwrap());
    });
    eventually("all of them are forgotten", || {
        ["running", "left", "created", "starting"]
            .iter()
            .all(|id| exec_state(&c, id).0 == Code::NOT_FOUND)
            .then_some(())
    });
    eventually("the process has ended", || (!is_alive(pid)).then_some(()));
    // What an exec left behind when it ended by itself is the container's.
    eventually("what was killed is gone", || {
        (sleepers(&c) == ["100000", "2000"]).then_some(())
    });
    running.hang_up();
    left.hang_up();
    assert_eq!(pod.shim_descriptors(), before);
    assert_eq!(pod.shim_log(), "");
    end_execs(&c).unwrap();
    end(pod, "c1");
}

fn exec_state(c: &Container<'_>, exec_id: &str) -> (Code, String) {
    let mut request = api::StateRequest::new();
    request.id.clone_from(&c.id);
    request.exec_id = exec_id.to_owned();
    code(c.pod.task.state(crate::pod::within(), &request))
}

/// Whether a start of the exec is under way or done: a second one is refused then.
fn is_starting(c: &Container<'_>, exec_id: &str) -> bool {
    fs::read_dir(&c.bundle).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with(".call-")
    }) && !exec_id.is_empty()
}

/// What the container's `sleep`s were told, sorted.
fn sleepers(c: &Container<'_>) -> Vec<String> {
    let mut request = api::PidsRequest::new();
    request.id.clone_from(&c.id);
    let answer = c.pod.task.pids(crate::pod::within(), &request).unwrap();
    let mut found: Vec<String> = answer
        .processes
        .iter()
        .filter_map(|process| fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).ok())
        .filter_map(|line| {
            let (program, seconds) = line.split_once('\0')?;
            program
                .ends_with("sleep")
                .then(|| seconds.trim_end_matches('\0').to_owned())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_launch_whose_launcher_died_comes_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = |stdin: Stdio| {
        Command::new(env!("CARGO_BIN_EXE_zcri-shim"))
            .args(["-namespace", "zcri", "-id", "sandbox", "start"])
            .current_dir(dir.path())
            .stdin(stdin)
            .output()
            .unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    let output = start(reader.into());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && words.contains("gone"),
        "{words}"
    );
    assert!(!dir.path().join("shim.sock").exists());
    // While the other end is held, it starts.
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(start(reader.into()).status.success());
    let address = format!("unix://{}", dir.path().join("shim.sock").display());
    let client = containerd_shim_protos::Client::connect(&address).unwrap();
    let task = containerd_shim_protos::TaskClient::new(client);
    let pid = task
        .connect(crate::pod::within(), &api::ConnectRequest::new())
        .unwrap()
        .shim_pid;
    let mut request = api::ShutdownRequest::new();
    request.now = true;
    task.shutdown(crate::pod::within(), &request).unwrap();
    eventually("the end of the monitor", || (!is_alive(pid)).then_some(()));
}
