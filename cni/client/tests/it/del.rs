//! DEL: with what was then, to the end, again when it failed.

use std::fs;

use serde_json::json;
use zcri_cni::DelError;

use crate::scripted::{Node, RESULT, attachment, key};

/// Succeeds, except for a DEL while the file `fail` is in the log directory.
fn fails_on_demand(code: i32) -> String {
    format!(
        "[ $CNI_COMMAND = DEL ] && [ -e ${{log%/*}}/fail ] && {{ echo '{{\"code\":{code},\"msg\":\"busy\"}}'; exit 1; }}; {RESULT}"
    )
}

#[tokio::test]
async fn every_plugin_is_asked_and_every_error_reported() {
    let node = Node::new();
    for name in ["a", "c"] {
        node.plugin(name, RESULT);
    }
    node.plugin("b", &fails_on_demand(11));
    node.network(&["a", "b", "c"])
        .add(&attachment())
        .await
        .unwrap();
    node.calls();

    fs::write(node.path("log/fail"), "").unwrap();
    let error = node.cni.delete("pod1").await.unwrap_err();
    let expected = "pod1: network \"test-net\", interface eth0: CNI plugin b DEL: busy (code 11)";
    assert_eq!(error.to_string(), expected);
    assert!(
        matches!(&error.errors[..], [DelError::Plugin { error, .. }] if error.code() == Some(11))
    );
    assert_eq!(node.calls(), ["c DEL", "b DEL", "a DEL"]);
    assert_eq!(
        node.cni.attachments().await.unwrap(),
        [key()],
        "kept for another try"
    );

    fs::remove_file(node.path("log/fail")).unwrap();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.calls(), ["c DEL", "b DEL", "a DEL"]);
    assert!(node.records().is_empty());

    node.cni.delete("pod1").await.unwrap();
    assert!(node.calls().is_empty(), "what is gone is gone");
}

#[tokio::test]
async fn an_unknown_container_needs_no_cleaning() {
    let node = Node::new();
    node.plugin("a", &fails_on_demand(3));
    node.network(&["a"]).add(&attachment()).await.unwrap();
    fs::write(node.path("log/fail"), "").unwrap();
    node.cni.delete("pod1").await.unwrap();
    assert!(node.records().is_empty());
}

#[tokio::test]
async fn a_missing_plugin_does_not_keep_the_others_from_cleaning() {
    let node = Node::new();
    for name in ["a", "b"] {
        node.plugin(name, RESULT);
    }
    node.network(&["a", "b"]).add(&attachment()).await.unwrap();
    fs::rename(node.path("bin/b"), node.path("b.away")).unwrap();
    node.calls();
    let error = node.cni.delete("pod1").await.unwrap_err().to_string();
    assert!(
        error.contains("CNI plugin b DEL: no such plugin in"),
        "{error}"
    );
    assert_eq!(node.calls(), ["a DEL"]);
    fs::rename(node.path("b.away"), node.path("bin/b")).unwrap();
    node.cni.delete("pod1").await.unwrap();
}

#[tokio::test]
async fn the_configuration_of_then_is_used() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.plugin("other", RESULT);
    node.conflist(&json!({"cniVersion": "1.0.0", "name": "then", "plugins": [
        {"type": "a", "key": "then", "capabilities": {"mac": true}},
    ]}));
    let mut attachment = attachment();
    attachment.runtime_config.mac = Some("c2:11:22:33:44:55".to_owned());
    node.cni.load().unwrap().add(&attachment).await.unwrap();
    node.network(&["other"]);
    node.calls();

    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.calls(), ["a DEL"]);
    let expected = json!({
        "cniVersion": "1.0.0",
        "name": "then",
        "type": "a",
        "key": "then",
        "runtimeConfig": {"mac": "c2:11:22:33:44:55"},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        },
    });
    assert_eq!(node.input("a.DEL"), expected);
    let (add, del) = (node.env("a.ADD"), node.env("a.DEL"));
    for name in [
        "CNI_ARGS",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_NETNS",
        "CNI_PATH",
    ] {
        assert_eq!(add[name], del[name], "{name}");
    }
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_not_named() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let netns = node.path("netns");
    fs::write(&netns, "").unwrap();
    let mut attachment = attachment();
    attachment.netns = netns.clone();
    node.network(&["a"]).add(&attachment).await.unwrap();
    fs::remove_file(netns).unwrap();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.env("a.DEL")["CNI_NETNS"], "");
}

#[tokio::test]
async fn version_0_3_knows_no_result_on_del() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.network_of("0.3.1", &["a"])
        .add(&attachment())
        .await
        .unwrap();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(
        node.input("a.DEL"),
        json!({"cniVersion": "0.3.1", "name": "test-net", "type": "a"})
    );
}

#[tokio::test]
async fn all_interfaces_of_a_pod_go_and_no_other_pods() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let list = node.network(&["a"]);
    for (id, ifname) in [
        ("pod1", "eth0"),
        ("pod1", "net1"),
        ("pod10", "eth0"),
        ("pod", "eth0"),
    ] {
        let mut one = attachment();
        one.container_id = id.to_owned();
        one.ifname = ifname.to_owned();
        list.add(&one).await.unwrap();
    }
    node.cni.delete("pod1").await.unwrap();
    let left = node
        .cni
        .attachments()
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    assert_eq!(left, ["pod (eth0)", "pod10 (eth0)"]);
    for id in ["", "..", "pod/../pod10", "*"] {
        node.cni.delete(id).await.unwrap();
    }
    assert_eq!(node.cni.attachments().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_damaged_record_is_deleted_by_todays_configuration() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.network(&["a"]).add(&attachment()).await.unwrap();
    let record = node.path("records/pod1:eth0");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, &text[..text.len() / 2]).unwrap();
    assert!(node.cni.result(&key()).await.is_err());

    let conf = node.path("net.d/10-test.conflist");
    let away = node.path("away");
    fs::rename(&conf, &away).unwrap();
    let error = node.cni.delete("pod1").await.unwrap_err();
    assert!(
        matches!(&error.errors[..], [DelError::Damaged { .. }]),
        "{error}"
    );
    assert!(
        error.to_string().contains("no CNI configuration in"),
        "{error}"
    );
    assert_eq!(node.records().len(), 1);

    fs::rename(&away, &conf).unwrap();
    node.calls();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.calls(), ["a DEL"]);
    assert_eq!(node.env("a.DEL")["CNI_CONTAINERID"], "pod1");
    assert!(node.records().is_empty());
}
