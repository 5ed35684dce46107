//! ADD: what plugins are given, and what is left when one fails.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::json;
use zcri_cni::{AddError, Command, Failure, PluginError, PortMapping, Protocol, RuntimeConfig};

use crate::scripted::{Node, RESULT, attachment, key};

fn plugin_error(error: AddError) -> (PluginError, Vec<PluginError>) {
    match error {
        AddError::Plugin { error, undo, .. } => (*error, undo),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn plugins_run_in_order_and_get_what_the_specification_says() {
    let node = Node::new();
    node.plugin("first", RESULT);
    node.plugin("second", RESULT);
    node.conflist(&json!({
        "cniVersion": "0.4.0",
        "cniVersions": ["1.0.0"],
        "name": "test-net",
        "plugins": [
            {"type": "first", "ipam": {"type": "x"}, "runtimeConfig": {"a": 1}, "prevResult": {}, "cni.dev/x": 1},
            {"type": "second", "capabilities": {"portMappings": true, "mac": true, "dns": false}, "key": [1.5, null]},
        ],
    }));
    let mut attachment = attachment();
    attachment.runtime_config = RuntimeConfig {
        port_mappings: vec![PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        }],
        cgroup_path: Some("/pods/pod1".to_owned()),
        ..RuntimeConfig::default()
    };
    let result = node.cni.load().unwrap().add(&attachment).await.unwrap();
    assert_eq!(result.pod_ips().next(), Some("192.0.2.7".parse().unwrap()));
    assert_eq!(
        node.calls(),
        ["first ADD", "second ADD"],
        "each plugin is started once"
    );

    let first =
        json!({"cniVersion": "1.0.0", "name": "test-net", "type": "first", "ipam": {"type": "x"}});
    assert_eq!(node.input("first.ADD"), first);
    let second = json!({
        "cniVersion": "1.0.0",
        "name": "test-net",
        "type": "second",
        "key": [1.5, null],
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        },
    });
    assert_eq!(node.input("second.ADD"), second);

    let env = node.env("first.ADD");
    let path = format!(
        "{}:{}",
        node.path("empty").display(),
        node.path("bin").display()
    );
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
                K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=uid-1";
    for (name, value) in [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "pod1"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
        ("CNI_PATH", path.as_str()),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    let names = env
        .keys()
        .map(String::as_str)
        .filter(|name| !name.starts_with("CNI_"))
        .collect::<Vec<_>>();
    assert_eq!(
        names,
        ["PATH", "ZCRI_CNI"],
        "nothing of the daemon's environment leaks"
    );
}

#[tokio::test]
async fn the_result_is_kept() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let list = node.network(&["a"]);
    assert_eq!(node.cni.attachments().await.unwrap(), []);
    let result = list.add(&attachment()).await.unwrap();
    assert_eq!(node.cni.attachments().await.unwrap(), [key()]);
    assert_eq!(node.cni.result(&key()).await.unwrap(), Some(result));
    assert_eq!(node.records(), ["pod1:eth0"]);
}

#[tokio::test]
async fn a_second_add_is_refused_and_changes_nothing() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let list = node.network(&["a"]);
    list.add(&attachment()).await.unwrap();
    node.calls();
    let error = list.add(&attachment()).await.unwrap_err();
    assert!(
        matches!(&error, AddError::Attached { key: k } if *k == key()),
        "{error}"
    );
    assert!(node.calls().is_empty());
    assert!(node.cni.result(&key()).await.unwrap().is_some());
}

#[tokio::test]
async fn what_ran_before_a_failure_is_undone_in_reverse() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let fails = r#"[ $CNI_COMMAND = DEL ] && exit 0
        echo oops >&2; echo '{"cniVersion":"1.0.0","code":7,"msg":"no such range","details":"10.0.0.0/33"}'; exit 1"#;
    node.plugin("b", fails);
    node.plugin("c", RESULT);
    let error = node
        .network(&["a", "b", "c"])
        .add(&attachment())
        .await
        .unwrap_err();
    let text = error.to_string();
    let expected = "network \"test-net\": CNI plugin b ADD: no such range: 10.0.0.0/33 (code 7) (stderr: oops)";
    assert_eq!(text, expected);
    let (error, undo) = plugin_error(error);
    assert_eq!(
        (error.plugin.as_str(), error.command, error.code()),
        ("b", Command::Add, Some(7))
    );
    assert_eq!(error.stderr, "oops");
    assert!(undo.is_empty());
    assert_eq!(node.calls(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
    assert_eq!(
        node.input("b.DEL")["prevResult"]["ips"][0]["address"],
        json!("192.0.2.7/24")
    );
    assert!(node.records().is_empty(), "nothing is left");
}

#[tokio::test]
async fn what_cannot_be_undone_is_reported_and_kept_for_delete() {
    let node = Node::new();
    let stuck = format!(
        "[ $CNI_COMMAND = ADD ] && {{ {RESULT}; exit 0; }}; [ -e $log.ok ] || {{ echo stuck >&2; exit 3; }}"
    );
    node.plugin("a", &stuck);
    node.plugin("b", "[ $CNI_COMMAND = DEL ] || exit 4");
    let list = node.network(&["a", "b"]);
    let error = list.add(&attachment()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("b ADD: ended with exit status: 4"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("undone: CNI plugin a DEL: ended with exit status: 3"),
        "{error}"
    );
    let (_, undo) = plugin_error(error);
    assert_eq!(undo.len(), 1);
    assert_eq!(undo[0].stderr, "stuck");
    assert_eq!(node.calls(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
    assert_eq!(node.cni.attachments().await.unwrap(), [key()]);
    assert_eq!(
        node.cni.result(&key()).await.unwrap(),
        None,
        "it is not attached"
    );

    fs::write(node.path("log/a.DEL.ok"), "").unwrap();
    node.cni.delete("pod1").await.unwrap();
    assert_eq!(node.calls(), ["b DEL", "a DEL"]);
    assert_eq!(
        node.input("a.DEL")["prevResult"]["ips"][0]["address"],
        json!("192.0.2.7/24")
    );
    assert!(node.records().is_empty());
}

#[tokio::test]
async fn a_missing_plugin_is_found_out_before_anything_runs() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.program("b", "not executable");
    fs::set_permissions(node.path("bin/b"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(node.path("empty/b")).unwrap();
    let (error, undo) = plugin_error(
        node.network(&["a", "b"])
            .add(&attachment())
            .await
            .unwrap_err(),
    );
    let Failure::Missing { searched } = &error.failure else {
        panic!("{error}")
    };
    assert_eq!(*searched, [node.path("empty"), node.path("bin")]);
    let text = error.to_string();
    assert!(
        text.contains("no such plugin in")
            && text.contains(&node.path("bin").display().to_string()),
        "{text}"
    );
    assert!(undo.is_empty() && node.calls().is_empty() && node.records().is_empty());
}

#[tokio::test]
async fn a_plugin_that_cannot_be_started_is_undone_too() {
    let node = Node::new();
    node.plugin("a", RESULT);
    node.program("b", "#!/nonexistent/interpreter\n");
    let (error, undo) = plugin_error(
        node.network(&["a", "b"])
            .add(&attachment())
            .await
            .unwrap_err(),
    );
    assert!(
        matches!(error.failure, Failure::NotStarted { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("/bin/b"), "{error}");
    assert_eq!(undo.len(), 1, "its DEL cannot be started either");
    assert_eq!(node.calls(), ["a ADD", "a DEL"]);
}

#[tokio::test]
async fn a_result_that_is_none_fails_and_is_undone() {
    for (body, names) in [
        ("echo no json", "result"),
        ("true", "EOF"),
        (
            "echo '{\"cniVersion\":\"0.2.0\",\"ip4\":{\"ip\":\"10.0.0.2/24\"}}'",
            "0.2.0",
        ),
        ("echo '{\"ips\":[{\"address\":\"10.0.0.2\"}]}'", "10.0.0.2"),
        (
            "head -c 3000000 /dev/zero | tr '\\0' ' '; echo '{}'",
            "more than",
        ),
    ] {
        let node = Node::new();
        node.plugin("a", body);
        let (error, _) = plugin_error(node.network(&["a"]).add(&attachment()).await.unwrap_err());
        assert!(
            matches!(error.failure, Failure::Malformed { .. }),
            "{body}: {error}"
        );
        assert!(error.to_string().contains(names), "{body}: {error}");
        assert_eq!(node.calls(), ["a ADD", "a DEL"], "{body}");
        assert!(node.records().is_empty());
    }
}

#[tokio::test]
async fn an_invalid_attachment_reaches_no_plugin() {
    let node = Node::new();
    node.plugin("a", RESULT);
    let mut wrong = attachment();
    wrong.container_id = "../../etc/passwd".to_owned();
    let error = node.network(&["a"]).add(&wrong).await.unwrap_err();
    assert!(
        matches!(&error, AddError::Invalid(e) if e.field == "container_id"),
        "{error}"
    );
    assert!(error.to_string().contains("../../etc/passwd"), "{error}");
    assert!(node.calls().is_empty() && node.records().is_empty());
}

#[tokio::test]
async fn without_a_record_nothing_runs() {
    let node = Node::new();
    node.plugin("a", RESULT);
    fs::write(node.path("records"), "a file").unwrap();
    let error = node.network(&["a"]).add(&attachment()).await.unwrap_err();
    assert!(matches!(error, AddError::Record { .. }), "{error}");
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn an_attachment_whose_result_cannot_be_kept_is_undone() {
    let node = Node::new();
    let records = node.path("records");
    let breaks = format!(
        "[ $CNI_COMMAND = ADD ] && rm -r '{0}' && touch '{0}'; {RESULT}",
        records.display()
    );
    node.plugin("a", &breaks);
    let error = node.network(&["a"]).add(&attachment()).await.unwrap_err();
    assert!(
        matches!(&error, AddError::Record { undo, .. } if undo.is_empty()),
        "{error}"
    );
    assert_eq!(node.calls(), ["a ADD", "a DEL"]);
}
