//! From Create to Delete, and starts that fail.

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::pod::{Pod, any, code, eventually, is_alive, within};

#[test]
fn runs_logs_exits_and_leaves_nothing() {
    let pod = Pod::new();
    let c = pod.container("c1", "echo out; echo err >&2; exit 42");
    c.create().unwrap();
    let created = c.state().unwrap();
    assert_eq!(
        (created.status.enum_value().unwrap(), created.pid),
        (api::Status::CREATED, 0)
    );
    let pid = c.start().unwrap();
    assert_eq!(c.wait(), 42);
    let mut entries = c.entries();
    entries.sort();
    let want = [("stderr", "F", "err"), ("stdout", "F", "out")];
    assert_eq!(
        entries,
        want.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );
    let record = c.exit_record().unwrap();
    assert_eq!(
        (&record["pid"], &record["exit_code"], &record["oom_killed"]),
        (&json!(pid), &json!(42), &json!(false))
    );
    assert_eq!(
        std::fs::read_to_string(c.bundle.join("init.pid")).unwrap(),
        pid.to_string()
    );
    let stopped = c.state().unwrap();
    assert_eq!(
        (stopped.status.enum_value().unwrap(), stopped.exit_status),
        (api::Status::STOPPED, 42)
    );
    let ns = stopped.exited_at.seconds * 1_000_000_000 + i64::from(stopped.exited_at.nanos);
    assert_eq!(record["exited_at_ns"], json!(ns));
    let deleted = c.delete().unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 42));
    assert_eq!(code(c.state()).0, Code::NOT_FOUND);
    assert!(pod.cgroups("c1").is_empty());
    assert_eq!(pod.shim_log(), "");
    pod.finish();
}

#[test]
fn many_short_containers_all_give_their_own_exit_code() {
    let pod = Pod::new();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let pod = &pod;
            scope.spawn(move || {
                for round in 0..8 {
                    let want = worker * 8 + round;
                    let c = pod.container(&format!("c{want}"), &format!("exit {want}"));
                    c.run();
                    assert_eq!(c.wait(), want);
                    assert_eq!(c.delete().unwrap().exit_status, want);
                }
            });
        }
    });
    pod.finish();
}

#[test]
fn a_program_that_does_not_exist_is_an_error_with_the_runtimes_words() {
    let pod = Pod::new();
    let before = pod.shim_descriptors();
    let mut c = pod.container("c1", "");
    c.spec["process"]["args"] = json!(["/bin/nonexistent"]);
    c.create().unwrap();
    let (status, message) = code(c.start());
    assert_eq!(status, Code::UNKNOWN);
    assert!(
        message.contains("/bin/nonexistent") && message.contains("no such file"),
        "{message}"
    );
    assert_eq!(c.wait(), 128);
    assert_eq!(c.text(), "", "the runtime's words are not the container's");
    assert_eq!(code(c.start()).0, Code::FAILED_PRECONDITION);
    c.delete().unwrap();

    let mut c = pod.container("c2", "");
    let mut options = api_options(&c.request);
    options.binary_name = "/nonexistent/runc".to_owned();
    c.request.options.as_mut().unwrap().value = encode(&options);
    c.create().unwrap();
    let (_, message) = code(c.start());
    assert!(
        message.contains("/nonexistent/runc") && message.contains("No such file"),
        "{message}"
    );
    c.delete().unwrap();
    assert_eq!(pod.shim_descriptors(), before);
    pod.finish();
}

fn api_options(request: &api::CreateTaskRequest) -> containerd_shim_protos::shim::oci::Options {
    protobuf::Message::parse_from_bytes(&request.options.value).unwrap()
}

fn encode(message: &impl protobuf::Message) -> Vec<u8> {
    message.write_to_bytes().unwrap()
}

#[test]
fn requests_that_do_not_fit_the_state_are_refused() {
    let pod = Pod::new();
    let c = pod.container("c1", "sleep 1000");
    for (result, want) in [
        (code(c.state()), Code::NOT_FOUND),
        (code(c.start()), Code::NOT_FOUND),
        (code(c.kill(9, false)), Code::NOT_FOUND),
        (code(c.delete()), Code::NOT_FOUND),
        (code(pod.reopen_log("c1")), Code::NOT_FOUND),
    ] {
        assert_eq!(result.0, want, "{}", result.1);
        assert!(result.1.contains("c1"), "{}", result.1);
    }
    assert_eq!(
        code(pod.task.create(within(), &c.request)).0,
        Code::FAILED_PRECONDITION,
        "no config.json"
    );
    c.create().unwrap();
    assert_eq!(code(c.create()).0, Code::ALREADY_EXISTS);
    assert_eq!(code(c.kill(9, false)).0, Code::FAILED_PRECONDITION);
    c.start().unwrap();
    assert_eq!(code(c.start()).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(c.delete()).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(c.kill(65, false)).0, Code::INVALID_ARGUMENT);
    c.kill(9, false).unwrap();
    assert_eq!(c.wait(), 137);
    assert_eq!(code(c.kill(9, false)).0, Code::NOT_FOUND);
    c.delete().unwrap();
    // Never started.
    let c = pod.container("c2", "true");
    c.create().unwrap();
    assert_eq!(c.delete().unwrap().pid, 0);
    pod.finish();
}

#[test]
fn bad_create_requests_name_the_field() {
    let pod = Pod::new();
    let refused = |change: &dyn Fn(&mut api::CreateTaskRequest), words: &str| {
        let mut c = pod.container("c1", "true");
        change(&mut c.request);
        let (status, message) = code(c.create());
        assert_ne!(status, Code::OK);
        assert!(message.contains(words), "{message}");
    };
    refused(&|r| r.id = "../x".into(), "../x");
    refused(&|r| r.bundle = "relative".into(), "relative");
    refused(&|r| r.stdout = "binary:///x".into(), "stdout");
    refused(
        &|r| r.stderr = "cri-log:///elsewhere".into(),
        "different logs",
    );
    refused(
        &|r| r.stdin = "/nonexistent/fifo".into(),
        "/nonexistent/fifo",
    );
    refused(
        &|r| r.options = Some(any("x.y.Z", Vec::new())).into(),
        "x.y.Z",
    );
    refused(
        &|r| {
            r.stdout = "cri-log:///dev/null/x".into();
            r.stderr.clear();
        },
        "/dev/null/x",
    );
    pod.finish();
}

#[test]
fn a_second_start_finds_the_first_and_a_dead_ones_socket_is_replaced() {
    let pod = Pod::new();
    let address = pod.start_again();
    assert_eq!(
        address,
        format!("unix://{}", pod.bundle().join("shim.sock").display())
    );
    let shim = |client: &containerd_shim_protos::TaskClient| {
        client
            .connect(within(), &api::ConnectRequest::new())
            .unwrap()
            .shim_pid
    };
    assert_eq!(shim(&pod.reconnect()), pod.shim_pid);
    zcri_sys::signal::send(pod.shim_pid, 9).unwrap();
    eventually("the death of the monitor", || {
        (!is_alive(pod.shim_pid)).then_some(())
    });
    assert_eq!(pod.start_again(), address);
    let client = pod.reconnect();
    let second = shim(&client);
    assert_ne!(second, pod.shim_pid);
    client
        .shutdown(within(), &api::ShutdownRequest::new())
        .unwrap();
    eventually("the end of the monitor", || {
        (!is_alive(second)).then_some(())
    });
}

#[test]
fn signals_and_a_lost_terminal_do_not_end_the_monitor() {
    let pod = Pod::new();
    for signal in [1, 2, 13, 15] {
        zcri_sys::signal::send(pod.shim_pid, signal).unwrap();
    }
    let mut c = pod.container("c1", "");
    c.spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let pid = c.run();
    // Nothing of that reaches the container: it has the default dispositions and no mask.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for name in ["SigBlk:\t", "SigIgn:\t"] {
        let set = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        // 32 and 33 are the C library's own.
        let set = u64::from_str_radix(set, 16).unwrap() & !(3 << 31);
        assert_eq!(set, 0, "{name}");
    }
    c.kill(15, false).unwrap();
    // Process 1 of a namespace ignores what it does not handle.
    assert!(is_alive(pid));
    c.kill(9, false).unwrap();
    assert_eq!(c.wait(), 137);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn a_shutdown_with_tasks_does_nothing() {
    let pod = Pod::new();
    let c = pod.container("c1", "sleep 1000");
    c.run();
    pod.shut_down(false);
    assert!(pod.bundle().join("shim.sock").exists());
    c.kill(9, true).unwrap();
    c.wait();
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn delete_clears_away_what_a_dead_monitor_left() {
    let pod = Pod::new();
    let c = pod.container("c1", "sleep 1000");
    let pid = c.run();
    zcri_sys::signal::send(pod.shim_pid, 9).unwrap();
    eventually("the death of the monitor", || {
        (!is_alive(pod.shim_pid)).then_some(())
    });
    assert!(is_alive(pid));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_zcri-shim"))
        .args([
            "-namespace",
            "zcri",
            "-id",
            "c1",
            "-bundle",
            c.bundle.to_str().unwrap(),
            "delete",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let response: api::DeleteResponse =
        protobuf::Message::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((response.pid, response.exit_status), (pid, 137));
    eventually("the death of the container", || {
        (!is_alive(pid)).then_some(())
    });
    assert!(pod.cgroups("c1").is_empty());
}
