//! The specification for z/OS, by the rules of the runtime specification.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use zcri_config::{Wlm, WlmTarget};

use super::*;
use crate::confinement::Confined;
use crate::container::config::{
    ContainerConfig, Mount, MountAccess, MountSource, Propagation, Resources,
};
use crate::container::spec::{
    CgroupsPath, HostParts, HostPaths, Ids, ImageDefaults, NamespacePaths, Peers, PreparedMount,
    ResolvedUser,
};
use crate::pod::config::{PodConfig, PodNamespaces};

/// Owned parts of an input, to be changed by a test.
struct Case {
    pod: PodConfig,
    container: ContainerConfig,
    user: ResolvedUser,
    namespaces: NamespacePaths,
    host: HostParts,
    wlm: WlmTarget,
    mapping: WlmMapping,
}

impl Case {
    fn new() -> Self {
        Self {
            pod: PodConfig {
                name: "cics".into(),
                uid: "u-1".into(),
                namespace: "prod".into(),
                namespaces: PodNamespaces {
                    pid: PodPid::Container,
                    ..PodNamespaces::default()
                },
                ..PodConfig::default()
            },
            container: ContainerConfig {
                name: "region".into(),
                command: vec!["/bin/sh".into()],
                resources: Resources {
                    memory_limit: Some(1 << 30),
                    cpu_shares: Some(512),
                    oom_score_adj: 1000,
                    ..Resources::default()
                },
                ..ContainerConfig::default()
            },
            user: ResolvedUser {
                uid: 1000,
                gid: 2000,
                additional_gids: vec![2000],
                home: None,
            },
            namespaces: NamespacePaths::default(),
            host: HostParts::default(),
            wlm: Wlm::default().default,
            mapping: WlmMapping::default(),
        }
    }

    fn build(&self) -> Result<Value, SpecError> {
        let image = ImageDefaults::default();
        let cgroups = CgroupsPath::Cgroupfs {
            parent: "/unused".into(),
            id: "c1".into(),
        };
        let facts = crate::platform::zos::facts(&zcri_sys::cgroup::Tree::none());
        let input = SpecInput {
            pod: &self.pod,
            container: &self.container,
            image: &image,
            user: &self.user,
            namespaces: self.namespaces.clone(),
            rootfs: Path::new("/run/zcri/containers/c1/rootfs"),
            cgroups: &cgroups,
            paths: HostPaths {
                resolv_conf: "/run/zcri/pods/p1/resolv.conf".into(),
                hostname: "/run/zcri/pods/p1/hostname".into(),
                shm: "/unused".into(),
            },
            facts: &facts,
            pids_limit: Some(100),
            ids: Ids {
                pod: "p1",
                container: "c1",
            },
            host: &self.host,
            confined: &Confined::default(),
        };
        let spec = build(&input, Some(&self.wlm), &self.mapping)?;
        Ok(serde_json::to_value(&spec).unwrap())
    }

    fn spec(&self) -> Value {
        self.build().unwrap()
    }
}

#[test]
fn there_is_a_zos_object_and_no_other_platforms() {
    let spec = Case::new().spec();
    for foreign in ["linux", "windows", "solaris", "vm", "freebsd", "hostname"] {
        assert!(spec.get(foreign).is_none(), "{foreign}");
    }
    assert_eq!(spec["ociVersion"], "1.2.1");
    assert_eq!(
        spec["zos"],
        json!({ "namespaces": [{ "type": "mount" }, { "type": "pid" }] })
    );
}

/// runtime-spec, config.md, "z/OS Process" and the platform tags of specs-go/config.go.
#[test]
fn a_process_has_nothing_of_linux_alone() {
    let spec = Case::new().spec();
    let process = spec["process"].as_object().unwrap();
    for name in process.keys() {
        let known = ["args", "cwd", "env", "noNewPrivileges", "terminal", "user"];
        assert!(known.contains(&name.as_str()), "{name}");
    }
    assert_eq!(
        process["user"],
        json!({ "uid": 1000, "gid": 2000, "umask": 18, "additionalGids": [2000] })
    );
}

#[test]
fn limits_are_nowhere() {
    let text = Case::new().spec().to_string();
    for word in ["memory", "512", "cgroup", "oomScoreAdj", "pids", "unused"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
}

#[test]
fn pid_namespaces() {
    let mut case = Case::new();
    let pid = |case: &Case| {
        let namespaces = case.spec()["zos"]["namespaces"].clone();
        let all = namespaces.as_array().unwrap().iter();
        all.filter(|namespace| namespace["type"] == "pid")
            .map(|namespace| namespace["path"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(pid(&case), [Value::Null], "its own");
    case.pod.namespaces.pid = PodPid::Node;
    assert!(pid(&case).is_empty(), "the runtime's, which is the node's");
    case.pod.namespaces.pid = PodPid::Pod;
    assert!(matches!(
        case.build(),
        Err(SpecError::NamespaceMissing { kind: "PID" })
    ));
    case.namespaces.pid = Some("/run/zcri/pods/p1/ns/pid".into());
    assert_eq!(pid(&case), ["/run/zcri/pods/p1/ns/pid"]);
    case.container.security.pid = PidMode::Target("c0".into());
    case.namespaces.pid = Some("/proc/17/ns/pid".into());
    assert_eq!(pid(&case), ["/proc/17/ns/pid"]);
}

/// runtime-spec, config-zos.md: `/proc` SHOULD be there; config.md: destinations MUST be absolute.
#[test]
fn mounts_are_proc_a_tfs_for_dev_and_plain_binds() {
    let mut case = Case::new();
    case.host.mounts = vec![PreparedMount {
        mount: Mount {
            container_path: "/data".into(),
            source: MountSource::Host("/u/data".into()),
            access: MountAccess::ReadOnly,
            propagation: Propagation::Private,
            selinux_relabel: false,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            options: Vec::new(),
        },
        source: PathBuf::from("/u/data"),
        peers: Peers::Private,
        kept: Vec::new(),
    }];
    let spec = case.spec();
    let mounts = spec["mounts"].as_array().unwrap();
    let found: Vec<_> = mounts
        .iter()
        .map(|m| {
            (
                m["destination"].as_str().unwrap(),
                m["type"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("/proc", "proc"),
            ("/dev", "tfs"),
            ("/data", "bind"),
            ("/etc/resolv.conf", "bind"),
            ("/etc/hostname", "bind"),
        ]
    );
    assert_eq!(
        mounts[1]["options"],
        json!(["nosuid", "-p 1755", "-s 64"]),
        "as in the specification's example"
    );
    assert_eq!(mounts[2]["options"], json!(["rbind", "ro"]));
}

#[test]
fn the_class_is_told_as_the_configuration_says() {
    let mut case = Case::new();
    let spec = case.spec();
    assert_eq!(spec["annotations"]["zcri.io/wlm-service-class"], "SYSCNTNR");
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], "p1");
    case.wlm.qualifier = Some("PAYROLL".into());
    case.mapping = WlmMapping {
        class_annotation: None,
        qualifier_annotation: Some("example.com/qualifier".into()),
        class_env: Some("WLM_CLASS".into()),
        qualifier_env: None,
    };
    case.container.env = vec![("WLM_CLASS".into(), b"CHEAT".to_vec())];
    let spec = case.spec();
    assert_eq!(spec["annotations"]["example.com/qualifier"], "PAYROLL");
    let env: Vec<_> = spec["process"]["env"].as_array().unwrap().iter().collect();
    assert!(env.contains(&&json!("WLM_CLASS=SYSCNTNR")), "{env:?}");
    assert!(!env.contains(&&json!("WLM_CLASS=CHEAT")), "{env:?}");
    let built: Spec = serde_json::from_value(spec).unwrap();
    assert_eq!(wlm_of(&built), Some(case.wlm));
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut case = Case::new();
    case.container.security.privileged = true;
    assert!(matches!(
        case.build(),
        Err(SpecError::PrivilegedInUnprivilegedPod)
    ));
}
