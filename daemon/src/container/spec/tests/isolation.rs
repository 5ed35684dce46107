//! What the process is kept apart from.

use super::*;

#[test]
fn namespaces_of_pod_container_and_node() {
    let mut case = Case::new();
    let own = case.namespaces();
    let ns = |kind: &str| format!("/run/zcri/pods/p1/ns/{kind}");
    assert_eq!(own.get("network"), Some(&ns("net")));
    assert_eq!(own.get("ipc"), Some(&ns("ipc")));
    assert_eq!(own.get("uts"), Some(&ns("uts")));
    for kind in ["pid", "mount", "cgroup"] {
        assert_eq!(own.get(kind).map(String::as_str), Some("new"), "{kind}");
    }
    assert_eq!(own.len(), 6);

    case.pod.namespaces.network = PodScope::Node;
    case.pod.namespaces.ipc = PodScope::Node;
    let keys: Vec<_> = case.namespaces().into_keys().collect();
    assert_eq!(
        keys,
        ["cgroup", "mount", "pid"],
        "the node's name comes with the node's network"
    );
    assert_eq!(case.mount("/dev/shm")["source"], "/dev/shm");

    case.facts.cgroup_version = Version::V1;
    assert!(!case.namespaces().contains_key("cgroup"));
    assert!(!Case::new().privileged().namespaces().contains_key("cgroup"));
}

#[test]
fn a_lost_namespace_is_an_error_and_never_the_nodes() {
    for lose in [
        |paths: &mut NamespacePaths| paths.network = None,
        |paths: &mut NamespacePaths| paths.ipc = None,
        |paths: &mut NamespacePaths| paths.uts = None,
    ] {
        let mut case = Case::new();
        lose(&mut case.namespaces);
        assert!(matches!(
            case.build(),
            Err(SpecError::NamespaceMissing { .. })
        ));
    }
    let mut case = Case::new();
    case.pod.namespaces.pid = PodPid::Pod;
    assert!(matches!(
        case.build(),
        Err(SpecError::NamespaceMissing { kind: "PID" })
    ));
    case.container.security.pid = PidMode::Target("other".into());
    assert!(case.build().is_err());
}

#[test]
fn pid_namespaces() {
    let joined = Some("/pid".to_owned());
    let new = Some("new".to_owned());
    for (container, pod, expected) in [
        (PidMode::Pod, PodPid::Pod, &joined),
        (PidMode::Pod, PodPid::Container, &new),
        (PidMode::Pod, PodPid::Node, &None),
        (PidMode::Container, PodPid::Pod, &new),
        (PidMode::Container, PodPid::Node, &new),
        (PidMode::Node, PodPid::Container, &None),
        (PidMode::Target("c0".into()), PodPid::Container, &joined),
    ] {
        let mut case = Case::new();
        case.pod.namespaces.pid = pod;
        case.container.security.pid = container.clone();
        case.namespaces.pid = Some("/pid".into());
        assert_eq!(
            case.namespaces().get("pid"),
            expected.as_ref(),
            "{container:?} in {pod:?}"
        );
    }
}

#[test]
fn user_namespaces_bring_their_mappings() {
    let mut case = Case::new();
    let range = IdMapping {
        container_id: 0,
        host_id: 100_000,
        length: 65_536,
    };
    case.pod.namespaces.user = Some(UserNamespace {
        uids: vec![range],
        gids: vec![range],
    });
    assert!(matches!(
        case.build(),
        Err(SpecError::NamespaceMissing { kind: "user" })
    ));
    case.namespaces.user = Some("/user".into());
    assert_eq!(case.namespaces()["user"], "/user");
    assert_eq!(
        case.json()["linux"]["uidMappings"],
        json!([{"hostID": 100_000, "containerID": 0, "size": 65_536}])
    );
    assert!(
        case.mount("/dev/pts")["options"]
            .to_string()
            .contains("gid=5")
    );
    assert_eq!(case.mount("/sys")["type"], "sysfs");
    case.namespaces.on_stack = true;
    assert_eq!(case.mount("/sys")["type"], "bind");
    case.namespaces.on_stack = false;
    case.pod.namespaces.network = PodScope::Node;
    assert_eq!(case.mount("/sys")["type"], "bind");
    let small = IdMapping { length: 5, ..range };
    case.pod.namespaces.user = Some(UserNamespace {
        uids: vec![small],
        gids: vec![small],
    });
    assert!(
        !case.mount("/dev/pts")["options"]
            .to_string()
            .contains("gid=5")
    );
}

#[test]
fn a_privileged_container() {
    let mut case = Case::new().privileged();
    case.container.security.masked_paths = Some(strings(&["/proc/kcore"]));
    case.container.security.seccomp = SeccompProfile::RuntimeDefault;
    let json = case.json();
    assert_eq!(
        json["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
    assert_eq!(
        json["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    for absent in ["seccomp", "maskedPaths", "readonlyPaths"] {
        assert_eq!(json["linux"].get(absent), None, "{absent}");
    }
    for target in ["/sys", "/sys/fs/cgroup"] {
        let options = case.mount(target)["options"].clone();
        assert!(
            options.as_array().unwrap().contains(&json!("rw")),
            "{options}"
        );
    }
    case.pod.security.privileged = false;
    assert!(matches!(
        case.build(),
        Err(SpecError::PrivilegedInUnprivilegedPod)
    ));
}

#[test]
fn paths_that_are_hidden() {
    let mut case = Case::new();
    let masked = |case: &Case| case.json()["linux"]["maskedPaths"].clone();
    assert!(
        masked(&case)
            .as_array()
            .unwrap()
            .contains(&json!("/proc/kcore")),
        "no security context: safe defaults"
    );
    case.container.security.masked_paths = Some(Vec::new());
    case.container.security.readonly_paths = Some(Vec::new());
    assert_eq!(masked(&case), json!([]));
    assert_eq!(case.json()["linux"]["readonlyPaths"], json!([]));
}

#[test]
fn seccomp_by_kind() {
    let mut case = Case::new();
    assert_eq!(case.json()["linux"].get("seccomp"), None);
    case.container.security.seccomp = SeccompProfile::RuntimeDefault;
    assert_eq!(case.json()["linux"]["seccomp"]["defaultErrnoRet"], 38);
    case.container.security.seccomp = SeccompProfile::Localhost("/p.json".into());
    assert!(
        matches!(case.build(), Err(SpecError::SeccompProfile { .. })),
        "was not read"
    );
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
    case.host.seccomp = Some(LocalProfile {
        path: "/p.json".into(),
        json: json.into(),
        kernel: (6, 1),
    });
    assert_eq!(
        case.json()["linux"]["seccomp"]["syscalls"][0]["names"],
        json!(["mkdir"])
    );
    case.container.security.capabilities.add = strings(&["SYS_ADMIN"]);
    assert_eq!(
        case.json()["linux"]["seccomp"]["syscalls"],
        json!([]),
        "conditions see the container's capabilities"
    );
    case.host.seccomp = Some(LocalProfile {
        path: "/p.json".into(),
        json: "{}".into(),
        kernel: (6, 1),
    });
    let message = case.build().unwrap_err().to_string();
    assert!(
        message.contains("/p.json") && message.contains("defaultAction"),
        "{message}"
    );
    case.facts.seccomp = false;
    assert!(matches!(case.build(), Err(SpecError::SeccompUnavailable)));
    case.container.security.seccomp = SeccompProfile::Unconfined;
    assert!(case.build().is_ok());
}

#[test]
fn security_modules() {
    let mut case = Case::new();
    let json = case.json();
    for absent in ["apparmorProfile", "selinuxLabel"] {
        assert_eq!(json["process"].get(absent), None);
    }
    assert_eq!(json["linux"].get("mountLabel"), None);
    case.confined = Confined {
        apparmor: Some("mine".into()),
        selinux: Labels {
            process: Some("u:r:p:s0".into()),
            mount: Some("u:r:f:s0".into()),
        },
    };
    let json = case.json();
    assert_eq!(json["process"]["apparmorProfile"], "mine");
    assert_eq!(json["process"]["selinuxLabel"], "u:r:p:s0");
    assert_eq!(json["linux"]["mountLabel"], "u:r:f:s0");
    let labelled = |json: &Value| {
        let mounts = json["mounts"].as_array().unwrap().clone();
        let labelled = mounts.into_iter().filter(|mount| {
            let mut options = mount["options"].as_array().into_iter().flatten();
            options.any(|option| option == "context=\"u:r:f:s0\"")
        });
        labelled
            .map(|mount| mount["destination"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(labelled(&json), Vec::<String>::new());
    // runc cannot label all that it mounts there.
    case.namespaces.user = Some("/run/zcri/pods/p1/ns/user".into());
    case.pod.namespaces.user = Some(UserNamespace {
        uids: Vec::new(),
        gids: Vec::new(),
    });
    let json = case.json();
    assert_eq!(json["linux"].get("mountLabel"), None);
    assert_eq!(labelled(&json), ["/dev", "/dev/pts"]);
}
