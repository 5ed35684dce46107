//! Rules of the whole specification; the parts have tests of their own.

mod isolation;
mod mounts;
mod process;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use zcri_sys::cgroup::Version;

use super::*;
use crate::confinement::Labels;
use crate::container::config::{
    Capabilities, ImageRef, Mount, MountAccess, MountSource, PidMode, Propagation, Resources,
    SeccompProfile, Security,
};
use crate::pod::config::{IdMapping, PodNamespaces, PodPid, PodScope, PodSecurity, UserNamespace};

pub(super) fn facts() -> NodeFacts {
    NodeFacts {
        cgroup_version: Version::V2,
        bounding_capabilities: u64::MAX,
        lowest_oom_score_adj: -1000,
        seccomp: true,
        user_namespaces: true,
        swap: true,
        hugetlb: true,
    }
}

/// Owned parts of an input, to be changed by a test.
struct Case {
    pod: PodConfig,
    container: ContainerConfig,
    image: ImageDefaults,
    user: ResolvedUser,
    namespaces: NamespacePaths,
    cgroups: CgroupsPath,
    facts: NodeFacts,
    host: HostParts,
    confined: Confined,
}

impl Case {
    fn new() -> Self {
        let path = |kind: &str| Some(PathBuf::from(format!("/run/zcri/pods/p1/ns/{kind}")));
        Self {
            pod: PodConfig {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "default".into(),
                namespaces: PodNamespaces {
                    pid: PodPid::Container,
                    ..PodNamespaces::default()
                },
                ..PodConfig::default()
            },
            container: ContainerConfig {
                name: "nginx".into(),
                image: ImageRef {
                    image: "sha256:abc".into(),
                    user_specified: "nginx:1".into(),
                    ..ImageRef::default()
                },
                ..ContainerConfig::default()
            },
            image: ImageDefaults {
                env: vec!["PATH=/bin".into(), "LANG=C".into()],
                entrypoint: vec!["/entry".into()],
                cmd: vec!["default".into()],
                working_dir: "/srv".into(),
            },
            user: ResolvedUser {
                additional_gids: vec![0],
                home: Some("/root".into()),
                ..ResolvedUser::default()
            },
            namespaces: NamespacePaths {
                on_stack: false,
                network: path("net"),
                ipc: path("ipc"),
                uts: path("uts"),
                pid: None,
                user: None,
            },
            cgroups: CgroupsPath::Cgroupfs {
                parent: "/kubepods/pod1".into(),
                id: "c1".into(),
            },
            facts: facts(),
            host: HostParts {
                host_name: "web-0".into(),
                ..HostParts::default()
            },
            confined: Confined::default(),
        }
    }

    fn build(&self) -> Result<Spec, SpecError> {
        build(&SpecInput {
            pod: &self.pod,
            container: &self.container,
            image: &self.image,
            user: &self.user,
            namespaces: self.namespaces.clone(),
            rootfs: Path::new("/run/zcri/containers/c1/rootfs"),
            cgroups: &self.cgroups,
            paths: HostPaths {
                resolv_conf: "/run/zcri/pods/p1/resolv.conf".into(),
                hostname: "/run/zcri/pods/p1/hostname".into(),
                shm: "/run/zcri/pods/p1/shm".into(),
            },
            facts: &self.facts,
            pids_limit: Some(4096),
            ids: Ids {
                pod: "p1",
                container: "c1",
            },
            host: &self.host,
            confined: &self.confined,
        })
    }

    /// The specification as JSON, its sets (which JSON writes as lists) in order.
    fn json(&self) -> Value {
        let mut json = serde_json::to_value(self.build().unwrap()).unwrap();
        if let Some(sets) = json["process"]["capabilities"].as_object_mut() {
            for set in sets.values_mut().filter_map(Value::as_array_mut) {
                set.sort_by_key(Value::to_string);
            }
        }
        json
    }

    fn args(&self) -> Value {
        self.json()["process"]["args"].clone()
    }

    fn env(&self) -> Vec<String> {
        serde_json::from_value(self.json()["process"]["env"].clone()).unwrap()
    }

    /// Kinds of the namespaces with the last part of their paths.
    fn namespaces(&self) -> BTreeMap<String, String> {
        let list = self.json()["linux"]["namespaces"].clone();
        let pair = |namespace: &Value| {
            (
                namespace["type"].as_str().unwrap().to_owned(),
                namespace["path"].as_str().unwrap_or("new").to_owned(),
            )
        };
        list.as_array().unwrap().iter().map(pair).collect()
    }

    /// Targets of the mounts in order.
    fn targets(&self) -> Vec<String> {
        let mounts = self.json()["mounts"].clone();
        mounts
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["destination"].as_str().unwrap().to_owned())
            .collect()
    }

    fn mount(&self, target: &str) -> Value {
        let mounts = self.json()["mounts"].clone();
        let found: Vec<Value> = mounts
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["destination"] == target)
            .cloned()
            .collect();
        assert_eq!(found.len(), 1, "{target}");
        found[0].clone()
    }

    fn privileged(mut self) -> Self {
        self.pod.security = PodSecurity {
            privileged: true,
            ..PodSecurity::default()
        };
        self.container.security.privileged = true;
        self
    }

    fn with_mount(mut self, target: &str) -> Self {
        self.host
            .mounts
            .push(prepared(target, Propagation::Private, Peers::Private));
        self
    }
}

fn prepared(target: &str, propagation: Propagation, peers: Peers) -> PreparedMount {
    let mount = Mount {
        container_path: target.into(),
        source: MountSource::Host("/link".into()),
        access: MountAccess::ReadWrite,
        propagation,
        selinux_relabel: false,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
        options: Vec::new(),
    };
    PreparedMount {
        mount,
        source: format!("/data{target}").into(),
        peers,
        kept: Vec::new(),
    }
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

#[test]
fn a_typical_container() {
    let mut case = Case::new();
    case.container.args = strings(&["serve", "--port=80"]);
    case.container.env = vec![
        ("LANG".into(), b"de".to_vec()),
        ("POD".into(), b"web".to_vec()),
    ];
    case.container.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit: Some(64 << 20),
        oom_score_adj: 982,
        ..Resources::default()
    };
    case.container.security = Security {
        pid: PidMode::Container,
        no_new_privs: true,
        readonly_rootfs: true,
        masked_paths: Some(strings(&["/proc/kcore", "/sys/firmware"])),
        readonly_paths: Some(strings(&["/proc/sys"])),
        capabilities: Capabilities {
            add: strings(&["NET_BIND_SERVICE"]),
            drop: strings(&["ALL"]),
            ..Capabilities::default()
        },
        ..Security::default()
    };
    case.user = ResolvedUser {
        uid: 101,
        gid: 101,
        additional_gids: vec![101, 2000],
        home: Some("/nonexistent".into()),
    };
    case.host.mounts = vec![
        prepared("/usr/share/nginx/html", Propagation::Private, Peers::Shared),
        prepared("/etc/hosts", Propagation::Private, Peers::Shared),
    ];
    case.host.devices = vec![DeviceNode {
        path: "/dev/fuse".into(),
        kind: DeviceKind::Character,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        permissions: "rw".into(),
    }];
    let golden: Value = serde_json::from_str(include_str!("golden/typical.json")).unwrap();
    let built = case.json();
    assert_eq!(
        built,
        golden,
        "built:\n{}",
        serde_json::to_string_pretty(&built).unwrap()
    );
}

#[test]
fn devices_and_their_rules() {
    let mut case = Case::new();
    assert_eq!(
        case.json()["linux"]["resources"]["devices"],
        json!([{"allow": false, "access": "rwm"}])
    );
    let node = DeviceNode {
        path: "/dev/disk".into(),
        kind: DeviceKind::Block,
        major: 8,
        minor: 1,
        mode: 0o660,
        uid: 0,
        gid: 6,
        permissions: "r".into(),
    };
    case.host.devices = vec![node];
    let json = case.json();
    assert_eq!(
        json["linux"]["devices"],
        json!([{"path": "/dev/disk", "type": "b", "major": 8, "minor": 1, "fileMode": 0o660, "uid": 0, "gid": 6}])
    );
    assert_eq!(
        json["linux"]["resources"]["devices"][1],
        json!({"allow": true, "type": "b", "major": 8, "minor": 1, "access": "r"})
    );
}

#[test]
fn annotations_of_the_request_stay_out() {
    let mut case = Case::new();
    case.container
        .annotations
        .insert("run.oci.handler".into(), "wasm".into());
    case.pod
        .annotations
        .insert("io.kubernetes.cri.sandbox-id".into(), "forged".into());
    let annotations = case.json()["annotations"].clone();
    assert_eq!(annotations.get("run.oci.handler"), None);
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "p1");
    assert_eq!(annotations["io.kubernetes.cri.image-name"], "nginx:1");
}

#[test]
fn updates_before_the_start_keep_devices_and_processes() {
    let case = Case::new();
    let mut spec = case.build().unwrap();
    let given = Resources {
        memory_limit: Some(1 << 20),
        ..Resources::default()
    };
    set_resources(&mut spec, &given, &case.facts);
    let resources = serde_json::to_value(spec.linux().as_ref().unwrap().resources()).unwrap();
    assert_eq!(
        resources,
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 1 << 20, "swap": 1 << 20},
            "pids": {"limit": 4096},
        })
    );
}
