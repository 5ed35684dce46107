//! Stopping, killing, limits.

use containerd_shim_protos::api;
use protobuf::MessageField;
use serde_json::json;

use crate::pod::{Pod, any, code, eventually, within};

#[test]
fn a_stop_signal_reaches_a_handler_and_its_exit_code_comes_back() {
    let pod = Pod::new();
    let c = pod.container(
        "c1",
        "trap 'echo stopping; exit 7' TERM; echo ready; while true; do sleep 0.01; done",
    );
    c.run();
    c.wait_for_text("ready\n");
    c.kill(15, false).unwrap();
    assert_eq!(c.wait(), 7);
    assert!(c.text().ends_with("stopping\n"));
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn real_time_signals_are_signals() {
    let pod = Pod::new();
    let c = pod.container(
        "c1",
        "trap 'exit 3' RTMIN+3 || trap 'exit 3' 37; echo ready; while true; do sleep 0.01; done",
    );
    c.run();
    c.wait_for_text("ready\n");
    c.kill(37, false).unwrap();
    assert_eq!(c.wait(), 3);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn memory_that_runs_out_is_told_from_a_plain_kill() {
    let pod = Pod::new();
    let mut c = pod.container("c1", "exec dd if=/dev/zero of=/dev/null bs=100M count=1");
    c.spec["linux"]["resources"] = json!({"memory": {"limit": 20 << 20}});
    c.run();
    assert_eq!(c.wait(), 137);
    assert_eq!(
        c.exit_record().unwrap()["oom_killed"],
        json!(true),
        "{}",
        c.text()
    );
    c.delete().unwrap();
    // The shell sees its child killed and ends with the same code.
    let mut c = pod.container(
        "c2",
        "dd if=/dev/zero of=/dev/null bs=100M count=1; exit $?",
    );
    c.spec["linux"]["resources"] = json!({"memory": {"limit": 20 << 20}});
    c.run();
    assert_eq!(c.wait(), 137);
    assert_eq!(c.exit_record().unwrap()["oom_killed"], json!(true));
    c.delete().unwrap();
    let c = pod.container("c3", "sleep 1000");
    c.run();
    c.kill(9, false).unwrap();
    assert_eq!(c.wait(), 137);
    assert_eq!(c.exit_record().unwrap()["oom_killed"], json!(false));
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn pausing_updating_and_killing_what_is_paused() {
    let pod = Pod::new();
    let c = pod.container("c1", "sleep 1000");
    c.run();
    let mut pause = api::PauseRequest::new();
    pause.id = "c1".to_owned();
    let status = || c.state().unwrap().status.enum_value().unwrap();
    pod.task.pause(within(), &pause).unwrap();
    assert_eq!(status(), api::Status::PAUSED);
    let (_, message) = code(pod.task.pause(within(), &pause));
    assert!(message.contains("pause failed"), "{message}");
    let mut resume = api::ResumeRequest::new();
    resume.id = "c1".to_owned();
    pod.task.resume(within(), &resume).unwrap();
    assert_eq!(status(), api::Status::RUNNING);
    let mut update = api::UpdateTaskRequest::new();
    update.id = "c1".to_owned();
    let resources = json!({"memory": {"limit": 64 << 20}})
        .to_string()
        .into_bytes();
    update.resources = MessageField::some(any(
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        resources,
    ));
    pod.task.update(within(), &update).unwrap();
    let limit = pod.cgroups("c1").iter().find_map(|dir| {
        ["memory.limit_in_bytes", "memory.max"]
            .iter()
            .find_map(|name| std::fs::read_to_string(dir.join(name)).ok())
    });
    assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());
    update.resources.as_mut().unwrap().value = b"{".to_vec();
    assert!(
        code(pod.task.update(within(), &update))
            .1
            .contains("no JSON")
    );
    pod.task.pause(within(), &pause).unwrap();
    c.kill(9, false).unwrap();
    assert_eq!(c.wait(), 137);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn kill_all_reaches_what_left_the_session() {
    let pod = Pod::new();
    let c = pod.container("c1", "trap : TERM; (setsid sleep 1000 &); sleep 1001 & echo ready; while true; do sleep 0.01; done");
    c.run();
    c.wait_for_text("ready\n");
    c.kill(15, true).unwrap();
    let processes = || {
        let mut request = api::PidsRequest::new();
        request.id = "c1".to_owned();
        let pids = pod.task.pids(within(), &request).unwrap().processes;
        let names = pids
            .iter()
            .filter_map(|info| std::fs::read_to_string(format!("/proc/{}/cmdline", info.pid)).ok());
        names
            .filter(|line| line.starts_with("sleep\x00100"))
            .count()
    };
    eventually("the end of the sleepers", || {
        (processes() == 0).then_some(())
    });
    c.kill(9, true).unwrap();
    assert_eq!(c.wait(), 137);
    c.delete().unwrap();
    pod.finish();
}
