//! Operations on a network, and CHECK.

use std::fs;

use serde_json::json;
use zcri_cni::{CheckError, Failure, GcError, LoadError};

use crate::scripted::{Node, RESULT, attachment, eventually, key};

const NOT_READY: &str =
    r#"[ $CNI_COMMAND = ADD ] || { echo '{"code":50,"msg":"range exhausted"}'; exit 1; }"#;

#[tokio::test]
async fn check_asks_with_the_result_until_one_finds_fault() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.plugin(
        "b",
        &format!("[ $CNI_COMMAND = CHECK ] && [ -e $log.fail ] && exit 9; {RESULT}"),
    );
    node.plugin("c", RESULT);
    let error = node.cni.check(&key()).await.unwrap_err();
    assert!(matches!(error, CheckError::NotAttached { .. }), "{error}");

    node.network_of("0.4.0", &["a", "b", "c"])
        .add(&attachment())
        .await
        .unwrap();
    node.calls();
    node.cni.check(&key()).await.unwrap();
    assert_eq!(node.calls(), ["a CHECK", "b CHECK", "c CHECK"]);
    assert_eq!(
        node.input("a.CHECK")["prevResult"]["ips"][0]["address"],
        json!("192.0.2.7/24")
    );

    fs::write(node.path("log/b.CHECK.fail"), "").unwrap();
    let error = node.cni.check(&key()).await.unwrap_err();
    assert!(
        matches!(&error, CheckError::Plugin { error, .. } if error.plugin == "b"),
        "{error}"
    );
    assert_eq!(node.calls(), ["a CHECK", "b CHECK"]);
}

#[tokio::test]
async fn check_is_not_asked_where_it_must_not() {
    for (version, disabled) in [
        ("1.0.0", json!(true)),
        ("1.0.0", json!("true")),
        ("0.3.1", json!(false)),
    ] {
        let node = Node::new();
        node.plugin("a", RESULT);
        node.conflist(&json!({
            "cniVersion": version, "name": "n", "disableCheck": disabled, "plugins": [{"type": "a"}],
        }));
        node.cni.load().unwrap().add(&attachment()).await.unwrap();
        node.calls();
        node.cni.check(&key()).await.unwrap();
        assert!(node.calls().is_empty(), "{version} {disabled}");
    }
}

#[tokio::test]
async fn status_says_why_not() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.plugin("b", NOT_READY);
    node.plugin("c", RESULT);
    node.network_of("1.1.0", &["a", "c"])
        .status()
        .await
        .unwrap();
    assert_eq!(node.calls(), ["a STATUS", "c STATUS"]);
    assert_eq!(
        node.input("a.STATUS"),
        json!({"cniVersion": "1.1.0", "name": "test-net", "type": "a"})
    );
    assert!(!node.env("a.STATUS").contains_key("CNI_CONTAINERID"));

    let error = node
        .network_of("1.1.0", &["a", "b", "c"])
        .status()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "network \"test-net\": CNI plugin b STATUS: range exhausted (code 50)"
    );
    assert_eq!(error.errors[0].code(), Some(50));
}

#[tokio::test]
async fn status_before_1_1_looks_for_the_plugins_only() {
    let node = Node::new();
    node.plugin("b", NOT_READY);
    node.network_of("1.0.0", &["b"]).status().await.unwrap();
    assert!(node.calls().is_empty());
    let error = node
        .network_of("1.0.0", &["b", "missing"])
        .status()
        .await
        .unwrap_err();
    assert!(
        matches!(error.errors[0].failure, Failure::Missing { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn gc_names_the_valid_attachments_and_reports_everyone() {
    let node = Node::new();
    node.plugin("a", "exit 1");
    node.plugin("b", RESULT);
    let list = node.network_of("1.1.0", &["b"]);
    list.add(&attachment()).await.unwrap();
    node.calls();
    let list = node.network_of("1.1.0", &["a", "b", "missing"]);
    let error = list.gc().await.unwrap_err();
    let GcError::Plugins(error) = error else {
        panic!("{error}")
    };
    let failed = error
        .errors
        .iter()
        .map(|error| error.plugin.as_str())
        .collect::<Vec<_>>();
    assert_eq!(failed, ["a", "missing"]);
    assert_eq!(node.calls(), ["a GC", "b GC"]);
    let valid = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    assert_eq!(node.input("b.GC")["cni.dev/valid-attachments"], valid);
}

#[tokio::test]
async fn gc_is_not_asked_where_it_must_not() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.network_of("1.0.0", &["a"]).gc().await.unwrap();
    node.conflist(
        &json!({"cniVersion": "1.1.0", "name": "n", "disableGC": true, "plugins": [{"type": "a"}]}),
    );
    node.cni.load().unwrap().gc().await.unwrap();
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn gc_waits_for_an_add_that_runs() {
    let node = Node::new();
    node.plugin(
        "a",
        &format!("if [ $CNI_COMMAND = ADD ]; then
            while [ ! -e $log.go ]; do sleep 0.01; done; echo a ADD ends >> ${{log%/*}}/calls; fi; {RESULT}"),
    );
    let list = node.network_of("1.1.0", &["a"]);
    let adding = tokio::spawn({
        let list = list.clone();
        async move { list.add(&attachment()).await }
    });
    let calls = node.path("log/calls");
    eventually("ADD runs", || {
        fs::read_to_string(&calls).is_ok_and(|calls| calls.contains("a ADD"))
    })
    .await;
    let collecting = tokio::spawn({
        let list = list.clone();
        async move { list.gc().await }
    });
    // Nothing can show that GC never begins; it has the time of several other operations.
    for _ in 0..5 {
        list.status().await.unwrap();
    }
    fs::write(node.path("log/a.ADD.go"), "").unwrap();
    adding.await.unwrap().unwrap();
    collecting.await.unwrap().unwrap();
    let calls = node.calls();
    assert_eq!(
        calls[calls.len() - 2..],
        ["a ADD ends", "a GC"],
        "{calls:?}"
    );
}

#[tokio::test]
async fn versions_are_what_the_plugins_say() {
    let node = Node::new();
    node.plugin(
        "a",
        r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#,
    );
    let versions = node.network(&["a"]).versions().await.unwrap();
    assert_eq!(
        versions,
        [("a".to_owned(), vec!["0.4.0".to_owned(), "1.0.0".to_owned()])]
    );
    node.plugin("b", "echo '{}'");
    let error = node.network(&["b"]).versions().await.unwrap_err();
    assert!(
        matches!(error.errors[0].failure, Failure::Malformed { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn configuration_is_what_the_directory_has_now() {
    let node = Node::new();
    assert!(matches!(
        node.cni.load(),
        Err(LoadError::NoConfiguration { .. })
    ));
    node.plugin("a", RESULT);
    assert_eq!(node.network(&["a"]).name(), "test-net");
    let dir = node.path("net.d");
    fs::rename(&dir, node.path("away")).unwrap();
    assert!(matches!(
        node.cni.load(),
        Err(LoadError::NoConfiguration { .. })
    ));
    fs::rename(node.path("away"), &dir).unwrap();
    let list = node.cni.load().unwrap();
    assert_eq!(list.plugins().collect::<Vec<_>>(), ["a"]);
    assert_eq!(list.file(), dir.join("10-test.conflist"));
}
