//! Containers and execs with a terminal, and containers with streams that are not logs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;

use crate::exec::{Exec, end, idle, make_fifo};
use crate::pod::{Container, Pod, code, eventually, within};

fn resize(
    c: &Container<'_>,
    exec: &str,
    width: u32,
    height: u32,
) -> containerd_shim_protos::ttrpc::Result<api::Empty> {
    let mut request = api::ResizePtyRequest::new();
    request.id.clone_from(&c.id);
    request.exec_id = exec.to_owned();
    (request.width, request.height) = (width, height);
    c.pod.task.resize_pty(within(), &request)
}

fn close_input(c: &Container<'_>) {
    let mut request = api::CloseIORequest::new();
    request.id.clone_from(&c.id);
    request.stdin = true;
    c.pod.task.close_io(within(), &request).unwrap();
}

/// A writer that comes, writes and goes.
fn write_once(fifo: &Path, text: &str) {
    let mut file = File::options().write(true).open(fifo).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_containers_terminal_goes_to_the_log_and_takes_input_and_a_size() {
    let pod = Pod::new();
    let mut c = pod.container(
        "c1",
        "test -t 0 && test -t 1 && test -t 2 && stty size; cat; echo unreached",
    );
    c.spec["process"]["terminal"] = true.into();
    c.request.terminal = true;
    let stdin = c.bundle.join("in");
    make_fifo(&stdin);
    c.request.stdin = stdin.to_str().unwrap().to_owned();
    c.create().unwrap();
    resize(&c, "", 101, 31).unwrap();
    c.start().unwrap();
    c.wait_for_text("31 101\r\n");
    // A writer that goes away does not end the input.
    for word in ["hello\n", "again\n"] {
        write_once(&stdin, word);
        // Once as the echo of the terminal, once from cat.
        let twice = word.trim_end().to_owned() + "\r\n" + word.trim_end() + "\r\n";
        c.wait_for_text(&twice);
    }
    assert!(c.entries().iter().all(|(stream, ..)| stream == "stdout"));
    resize(&c, "", 90, 40).unwrap();
    c.kill(9, true).unwrap();
    assert_eq!(c.wait(), 137);
    resize(&c, "", 90, 40).unwrap();
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn an_execs_terminal_goes_through_fifos() {
    let pod = Pod::new();
    let c = idle(&pod, "c1");
    let before = pod.shim_descriptors();
    let mut e = Exec::new(
        &c,
        "e1",
        "read line; stty size; echo got $line; head -c 300000 /dev/zero | tr '\\0' z; exit 4",
    );
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/tr")).unwrap();
    let stdin = c.bundle.join("e1-in");
    make_fifo(&stdin);
    let mut writer = File::options().read(true).write(true).open(&stdin).unwrap();
    e.request.stdin = stdin.to_str().unwrap().to_owned();
    e.request.stderr = String::new();
    e.request.terminal = true;
    e.run();
    resize(&c, "e1", 77, 22).unwrap();
    writer.write_all(b"word\n").unwrap();
    // All of it arrives, though the FIFO is far smaller and the process is gone long before.
    let output = e.output();
    assert!(
        output.starts_with("word\r\n22 77\r\ngot word\r\n"),
        "{}",
        &output[..60]
    );
    assert_eq!(output.matches('z').count(), 300_000);
    assert_eq!(e.wait(), 4);
    e.delete().unwrap();
    drop(writer);
    assert_eq!(pod.shim_descriptors(), before);
    // One whose reader goes away is not stuck.
    let mut e = Exec::new(
        &c,
        "e2",
        "stty -opost; while echo xxxxxxxxxxxxxxxxxxxxxx; do true; done",
    );
    e.request.stderr = String::new();
    e.request.terminal = true;
    e.run();
    let mut some = [0; 100];
    eventually("some output", || e.first_bytes(&mut some).then_some(()));
    e.hang_up();
    e.kill_all().unwrap();
    assert_eq!(e.wait(), 137);
    e.delete().unwrap();
    assert_eq!(pod.shim_descriptors(), before);
    assert_eq!(code(resize(&c, "", 1, 1)).0, Code::FAILED_PRECONDITION);
    end(pod, "c1");
}

/// A socket's address holds 107 bytes.
#[test]
fn a_terminal_comes_from_a_bundle_with_a_long_path() {
    let pod = Pod::new();
    let id = "long-".repeat(24) + "id";
    let mut c = pod.container(&id, "stty size; exec sleep 100000");
    c.spec["process"]["terminal"] = true.into();
    c.request.terminal = true;
    c.create().unwrap();
    resize(&c, "", 101, 31).unwrap();
    c.start().unwrap();
    c.wait_for_text("31 101\r\n");
    let mut e = Exec::new(&c, "e1", "stty size; exit 3");
    e.request.stderr = String::new();
    e.request.terminal = true;
    e.exec().unwrap();
    resize(&c, "e1", 90, 20).unwrap();
    e.start().unwrap();
    assert_eq!(e.output(), "20 90\r\n");
    assert_eq!(e.wait(), 3);
    e.delete().unwrap();
    end(pod, &id);
}

#[test]
fn input_of_a_container_lasts_until_it_is_closed() {
    let pod = Pod::new();
    let mut c = pod.container("c1", "cat; echo end");
    let stdin = c.bundle.join("in");
    make_fifo(&stdin);
    c.request.stdin = stdin.to_str().unwrap().to_owned();
    c.run();
    for word in ["one\n", "two\n"] {
        write_once(&stdin, word);
        c.wait_for_text(word);
    }
    close_input(&c);
    assert_eq!(c.wait(), 0);
    assert_eq!(c.text(), "one\ntwo\nend\n");
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn output_to_a_fifo_outlives_its_reader() {
    let pod = Pod::new();
    let mut c = pod.container(
        "c1",
        "echo one; until test -e /tmp/go; do sleep 0.01; done; echo two; echo err >&2",
    );
    let stdout = c.bundle.join("out");
    make_fifo(&stdout);
    c.request.stdout = stdout.to_str().unwrap().to_owned();
    c.request.stderr = String::new();
    let pid = c.run();
    let mut first = File::open(&stdout).unwrap();
    let mut line = [0; 4];
    first.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"one\n");
    drop(first);
    // Nobody reads; the container must get neither an error nor a signal.
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let mut second = File::open(&stdout).unwrap();
    second.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"two\n");
    assert_eq!(c.wait(), 0);
    assert_eq!(
        second.read(&mut line).unwrap(),
        0,
        "the end of the container is the end of the FIFO"
    );
    c.delete().unwrap();
    pod.finish();
}
