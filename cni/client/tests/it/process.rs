//! Plugins as processes: deadlines, leftovers, streams.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use zcri_cni::{AddError, DelError, Failure};

use crate::scripted::{Node, RESULT, attachment, eventually, is_gone};

/// Leaves its process id and hangs, with a child that hangs as well.
const HANGS: &str = "echo about to hang >&2; sleep 1000 & echo $! > $log.pid; sleep 1000";

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let node = Node::with_timeout(Duration::from_secs(2));
    node.plugin("a", RESULT);
    node.plugin(
        "b",
        &format!("[ $CNI_COMMAND = DEL ] && exit 0; trap '' TERM INT HUP; {HANGS}"),
    );
    let begin = Instant::now();
    let error = node
        .network(&["a", "b"])
        .add(&attachment())
        .await
        .unwrap_err();
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let AddError::Plugin { error, undo, .. } = error else {
        panic!("{error}")
    };
    assert!(
        matches!(error.failure, Failure::TimedOut { after } if after == Duration::from_secs(2)),
        "{error}"
    );
    assert_eq!(error.stderr, "about to hang");
    assert!(undo.is_empty());
    eventually("its child is gone", || is_gone(&node.path("log/b.ADD.pid"))).await;
    assert_eq!(node.calls(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
}

#[tokio::test]
async fn one_that_hangs_does_not_keep_others_from_cleaning() {
    let node = Node::with_timeout(Duration::from_secs(2));
    node.plugin("a", RESULT);
    node.plugin(
        "b",
        &format!("[ $CNI_COMMAND = DEL ] && {{ {HANGS}; }}; {RESULT}"),
    );
    node.network(&["a", "b"]).add(&attachment()).await.unwrap();
    node.calls();
    let error = node.cni.delete("pod1").await.unwrap_err();
    let [DelError::Plugin { error, .. }] = &error.errors[..] else {
        panic!("{error}")
    };
    assert!(
        error.plugin == "b" && matches!(error.failure, Failure::TimedOut { .. }),
        "{error}"
    );
    assert_eq!(node.calls(), ["b DEL", "a DEL"]);
    eventually("its child is gone", || is_gone(&node.path("log/b.DEL.pid"))).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_process_and_a_record() {
    let node = Node::new();
    node.plugin("a", &format!("[ $CNI_COMMAND = DEL ] && exit 0; {HANGS}"));
    let list = node.network(&["a"]);
    let pid = node.path("log/a.ADD.pid");
    let adding = tokio::spawn(async move { list.add(&attachment()).await });
    eventually("it runs", || {
        fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty())
    })
    .await;
    adding.abort();
    assert!(adding.await.unwrap_err().is_cancelled());
    eventually("it is gone", || is_gone(&pid)).await;
    node.calls();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.calls(), ["a DEL"]);
    assert!(node.records().is_empty());
}

#[tokio::test]
async fn output_that_something_else_holds_open_is_not_waited_for() {
    let node = Node::new();
    node.plugin("a", &format!("{RESULT}; sleep 1000 & echo $! > $log.pid"));
    let begin = Instant::now();
    let result = node.network(&["a"]).add(&attachment()).await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(result.pod_ips().count(), 1);
    // It was left running on purpose: a plugin may start a daemon. This one ends here.
    let pid = fs::read_to_string(node.path("log/a.ADD.pid"))
        .unwrap()
        .trim()
        .parse::<i32>()
        .unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_plugin_need_not_read_its_input() {
    let node = Node::new();
    node.program("a", &format!("#!/bin/sh\n{RESULT}\n"));
    let filler = "x".repeat(300_000);
    node.conflist(
        &json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a", "filler": filler}]}),
    );
    node.cni.load().unwrap().add(&attachment()).await.unwrap();
}

#[tokio::test]
async fn much_on_standard_error_is_shortened() {
    let node = Node::new();
    node.program(
        "a",
        "#!/bin/sh\ncat >/dev/null\nhead -c 1000000 /dev/zero | tr '\\0' e >&2\nexit 1\n",
    );
    let error = node.network(&["a"]).add(&attachment()).await.unwrap_err();
    let AddError::Plugin { error, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(error.stderr, "e".repeat(8192));
}

#[tokio::test]
async fn many_pods_at_once_keep_their_own() {
    let node = Node::new();
    let echo = r#"echo "{\"ips\":[{\"address\":\"192.0.2.${CNI_CONTAINERID#p}/32\"}]}""#;
    node.plugin("a", echo);
    let list = node.network(&["a"]);
    let adding = (0..32).map(|i| {
        let list = list.clone();
        tokio::spawn(async move {
            let mut one = attachment();
            one.container_id = format!("p{i}");
            let result = list.add(&one).await.unwrap();
            assert_eq!(
                result.pod_ips().next().unwrap().to_string(),
                format!("192.0.2.{i}")
            );
        })
    });
    for one in adding.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(node.cni.attachments().await.unwrap().len(), 32);
    for i in 0..32 {
        node.cni.delete(&format!("p{i}")).await.unwrap();
    }
    assert!(node.records().is_empty());
}
