//! Descriptions, good and bad, and what they make of a specification.

use serde_json::{Value, json};

use super::*;

fn config(names: &[&str]) -> ContainerConfig {
    ContainerConfig {
        cdi_devices: names.iter().map(|name| (*name).to_owned()).collect(),
        ..ContainerConfig::default()
    }
}

fn spec() -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0, "additionalGids": [5]}, "env": ["A=old", "B=b"], "args": ["x"]},
        "root": {"path": "r"},
        "mounts": [{"destination": "/proc"}, {"destination": "/lib/x/deep"}, {"destination": "/gone"}],
        "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    }))
    .unwrap()
}

fn applied(dirs: &[PathBuf], config: &ContainerConfig) -> Result<Value, String> {
    let mut spec = spec();
    let done = apply(dirs, config, &mut spec).map_err(|e| e.to_string());
    done.map(|()| serde_json::to_value(spec).unwrap())
}

const FULL: &str = r#"
cdiVersion: "0.6.0"
kind: acme.com/gpu
annotations: {by: hand}
containerEdits:
  env: [ALL=1]
devices:
- name: "0"
  containerEdits:
    env: ["A=new"]
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 0o600}
    - {path: /dev/said, type: b, major: 7, minor: 300, uid: 1, gid: 2}
    mounts:
    - {hostPath: /usr/lib/acme, containerPath: /lib/x, options: [ro, nosuid]}
    - {hostPath: /new, containerPath: /gone, type: bind, options: [bind]}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, a], timeout: 3}
    additionalGids: [0, 5, 44]
- name: "1"
  containerEdits: {}
"#;

#[test]
fn everything_that_a_device_needs_is_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("acme.yaml"), FULL).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "no description").unwrap();
    let dirs = [PathBuf::from("/no/such/dir"), dir.path().to_owned()];
    let json = applied(&dirs, &config(&["acme.com/gpu=0", "acme.com/gpu=1"])).unwrap();
    assert_eq!(json["process"]["env"], json!(["B=b", "ALL=1", "A=new"]));
    assert_eq!(json["process"]["user"]["additionalGids"], json!([5, 44]));
    let devices = &json["linux"]["devices"];
    assert_eq!(
        devices[0],
        json!({"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 0, "gid": 0})
    );
    assert_eq!(
        devices[1],
        json!({"path": "/dev/said", "type": "b", "major": 7, "minor": 300, "uid": 1, "gid": 2})
    );
    let rules = &json["linux"]["resources"]["devices"];
    assert_eq!(rules[0]["allow"], json!(false));
    assert_eq!(
        rules[1],
        json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"})
    );
    let targets: Vec<_> = json["mounts"].as_array().unwrap().iter().collect();
    let places: Vec<_> = targets.iter().map(|m| m["destination"].clone()).collect();
    assert_eq!(places, ["/proc", "/lib/x", "/lib/x/deep", "/gone"]);
    assert_eq!(targets[1]["options"], json!(["rbind", "ro", "nosuid"]));
    assert_eq!(targets[3]["options"], json!(["bind"]));
    assert_eq!(
        json["hooks"]["createContainer"],
        json!([{"path": "/bin/hook", "args": ["hook", "a"], "timeout": 3}])
    );
}

#[test]
fn annotations_of_older_kubelets_name_devices_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("acme.yaml"), FULL).unwrap();
    let mut config = config(&["acme.com/gpu=1"]);
    let annotation = "acme.com/gpu=1, acme.com/gpu=0";
    config
        .annotations
        .insert("cdi.k8s.io/plugin".into(), annotation.into());
    assert_eq!(names(&config), ["acme.com/gpu=1", "acme.com/gpu=0"]);
    assert!(applied(&[dir.path().to_owned()], &config).is_ok());
    assert_eq!(
        applied(&[], &self::config(&[])).unwrap()["process"]["env"],
        json!(["A=old", "B=b"])
    );
}

fn small(env: &str) -> String {
    json!({"cdiVersion": "1.0.0", "kind": "v/c", "devices": [{"name": "d", "containerEdits": {"env": [env]}}]}).to_string()
}

#[test]
fn a_later_directory_wins_and_equals_contradict() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = [first.path().to_owned(), second.path().to_owned()];
    std::fs::write(first.path().join("a.json"), small("E=first")).unwrap();
    std::fs::write(first.path().join("b.json"), small("E=rival")).unwrap();
    let error = applied(&dirs, &config(&["v/c=d"])).unwrap_err();
    assert!(
        error.contains("a.json") && error.contains("b.json"),
        "{error}"
    );
    std::fs::write(second.path().join("z.json"), small("E=second")).unwrap();
    let json = applied(&dirs, &config(&["v/c=d"])).unwrap();
    assert!(
        json["process"]["env"]
            .as_array()
            .unwrap()
            .contains(&json!("E=second"))
    );
}

#[test]
fn what_cannot_be_is_named() {
    let device = |edits: Value| {
        json!({"cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": "d", "containerEdits": edits}]})
            .to_string()
    };
    for (text, words) in [
        ("{".to_owned(), "x.json"),
        (small("E=1").replace("1.0.0", "2.0"), "cdiVersion"),
        (small("E=1").replace("v/c", "vc"), "kind"),
        (device(json!({"nonsense": 1})), "nonsense"),
        (
            device(json!({"deviceNodes": [{"path": "/dev/no-such-device"}]})),
            "/dev/no-such-device",
        ),
        (
            device(json!({"deviceNodes": [{"path": "/etc/passwd"}]})),
            "is not a device",
        ),
        (
            device(json!({"deviceNodes": [{"path": "/dev/null", "type": "b"}]})),
            "of the type",
        ),
        (
            device(json!({"deviceNodes": [{"path": "dev/null"}]})),
            "device path",
        ),
        (
            device(json!({"deviceNodes": [{"path": "/dev/null", "permissions": "x"}]})),
            "permissions",
        ),
        (
            device(json!({"mounts": [{"hostPath": "/a", "containerPath": "b"}]})),
            "containerPath",
        ),
        (
            device(json!({"hooks": [{"hookName": "never", "path": "/a"}]})),
            "hookName",
        ),
        (device(json!({"env": ["novalue"]})), "novalue"),
        (device(json!({"intelRdt": {"closID": "x"}})), "intelRdt"),
        (device(json!({"netDevices": []})), "netDevices"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.json"), &text).unwrap();
        let error = applied(&[dir.path().to_owned()], &config(&["v/c=d"])).unwrap_err();
        assert!(error.contains(words), "{words} in {error}");
        assert!(
            error.contains("config.CDI_devices") && error.contains("v/c=d"),
            "{error}"
        );
    }
    let error = applied(&[], &config(&["v/c=d"])).unwrap_err();
    assert!(error.contains("no such device"), "{error}");
}
