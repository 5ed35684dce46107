//! Plugins as processes: deadlines, leftovers, streams.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use zcri_cni::{AddError, CheckError, DelError, Failure};

use crate::scripted::{Node, RESULT, attachment, eventually, is_gone, key};

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

/// What a runtime leaves behind that was killed while a plugin ran. A GC is for no container, and runs when none is
/// attached, too.
#[tokio::test]
async fn plugins_of_a_runtime_that_died_are_ended() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.network_of("1.1.0", &["a"]).gc().await.unwrap();
    let given = node.env("a.GC");
    let plugin = |given: &BTreeMap<String, String>| {
        std::process::Command::new("/bin/sleep")
            .arg("1000")
            .env_clear()
            .envs(given)
            .spawn()
            .unwrap()
    };
    // Other tests run plugins for other runtimes meanwhile.
    let other = Node::new();
    other.plugin("a", RESULT);
    other.network_of("1.1.0", &["a"]).gc().await.unwrap();
    let (mut ours, mut foreign) = (plugin(&given), plugin(&other.env("a.GC")));
    let no_plugin = given.iter().filter(|(name, _)| *name != "CNI_COMMAND");
    let mut descendant = plugin(&no_plugin.map(|(k, v)| (k.clone(), v.clone())).collect());
    let ended = node.cni.end_leftovers().await;
    let lives = [&mut foreign, &mut descendant].map(|one| {
        let lives = one.try_wait().unwrap().is_none();
        one.kill().unwrap();
        one.wait().unwrap();
        lives
    });
    let pid = i32::try_from(ours.id()).unwrap();
    ours.kill().unwrap();
    ours.wait().unwrap();
    assert_eq!(ended.unwrap(), [pid]);
    assert_eq!(lives, [true, true], "they are not ours");
    assert!(node.cni.end_leftovers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_check_waits_for_the_pods_turn() {
    let node = Node::new();
    let wait =
        "[ $CNI_COMMAND = DEL ] && { : > $log.began; until [ -e $log.go ]; do sleep 0.01; done; }";
    node.plugin("a", &format!("{wait}; {RESULT}"));
    node.network(&["a"]).add(&attachment()).await.unwrap();
    let cni = node.cni.clone();
    let deleting = tokio::spawn(async move { cni.delete("pod1").await });
    let began = node.path("log/a.DEL.began");
    eventually("DEL runs", || began.exists()).await;
    let of_pod = key();
    let mut check = std::pin::pin!(node.cni.check(&of_pod));
    // The plugin would answer at once.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut check).await;
    fs::write(node.path("log/a.DEL.go"), "").unwrap();
    deleting.await.unwrap().unwrap();
    assert!(early.is_err(), "{early:?}");
    let after = check.await.unwrap_err();
    assert!(matches!(after, CheckError::NotAttached { .. }), "{after}");
    assert_eq!(node.calls(), ["a ADD", "a DEL"]);
}

#[tokio::test]
async fn operations_on_one_pod_wait_for_each_other() {
    let node = Node::new();
    // Meanwhile another DEL of the same pod would make the directory that is there already.
    node.plugin(
        "a",
        &format!("[ $CNI_COMMAND = DEL ] || {{ {RESULT}; exit 0; }}; mkdir $log.busy && sleep 0.05 && rmdir $log.busy"),
    );
    node.network(&["a"]).add(&attachment()).await.unwrap();
    node.calls();
    let deletes = (0..4).map(|_| {
        let cni = node.cni.clone();
        tokio::spawn(async move { cni.delete("pod1").await })
    });
    for one in deletes.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(node.calls(), ["a DEL"], "the later ones find nothing to do");
}
