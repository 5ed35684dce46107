//! Runs specifications that [`zcri_daemon::container::spec`] builds with the real runc and crun, as root.
//!
//! The pod's namespaces are the node's here but for PID and mount: what is tested is the specification, not the pod.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use zcri_daemon::confinement::Confined;
use zcri_daemon::container::config::{
    Capabilities, ContainerConfig, Mount, MountAccess, MountSource, PidMode, Propagation,
    Resources, SeccompProfile, Security,
};
use zcri_daemon::container::spec::{
    self, CgroupsPath, DeviceKind, DeviceNode, HostParts, HostPaths, Ids, ImageDefaults,
    LocalProfile, NamespacePaths, NodeFacts, Peers, PreparedMount, ResolvedUser, SpecInput,
};
use zcri_daemon::pod::config::{PodConfig, PodNamespaces, PodPid, PodScope, PodSecurity};
use zcri_sys::{cgroup, node};

/// Runs a test with each runtime that is installed, or says in one line why it cannot.
fn each(test: impl Fn(Bundle)) {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    if !Path::new("/bin/busybox").exists() {
        return eprintln!("skipped: no /bin/busybox (package busybox-static)");
    }
    let installed: Vec<_> = ["/usr/sbin/runc", "/usr/bin/crun"]
        .into_iter()
        .filter(|p| Path::new(p).exists())
        .collect();
    if installed.is_empty() {
        return eprintln!("skipped: neither runc nor crun is installed");
    }
    for runtime in installed {
        eprintln!("with {runtime}:");
        test(Bundle::new(runtime));
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The v2 part of a hybrid tree.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// One container: a bundle with a busybox root, removed with everything of it at the end.
struct Bundle {
    runtime: &'static str,
    dir: tempfile::TempDir,
    id: String,
    pod: PodConfig,
    container: ContainerConfig,
    user: ResolvedUser,
    facts: NodeFacts,
    host: HostParts,
}

struct Ran {
    code: i32,
    out: String,
}

impl Bundle {
    fn new(runtime: &'static str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for sub in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "id", "cat", "env", "ls", "mkdir", "mount", "unshare", "chmod", "touch", "grep",
            "wc", "true",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for (file, text) in [
            ("resolv.conf", "nameserver 192.0.2.1\n"),
            ("hostname", "spec-test\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        std::fs::create_dir(dir.path().join("shm")).unwrap();
        let tree = cgroup::Tree::detect().unwrap();
        let node_scope = PodNamespaces {
            network: PodScope::Node,
            ipc: PodScope::Node,
            pid: PodPid::Container,
            user: None,
        };
        Self {
            runtime,
            id: format!(
                "zcri-spec-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ),
            pod: PodConfig {
                namespaces: node_scope,
                ..PodConfig::default()
            },
            container: ContainerConfig {
                security: Security {
                    pid: PidMode::Container,
                    ..Security::default()
                },
                ..ContainerConfig::default()
            },
            user: ResolvedUser {
                additional_gids: vec![0],
                ..ResolvedUser::default()
            },
            facts: NodeFacts {
                cgroup_version: tree.version(),
                bounding_capabilities: node::bounding_capabilities().unwrap(),
                lowest_oom_score_adj: node::lowest_oom_score_adj().unwrap(),
                seccomp: node::has_seccomp(),
                user_namespaces: true,
                swap: false,
                hugetlb: false,
            },
            host: HostParts {
                host_name: "spec-test".into(),
                ..HostParts::default()
            },
            dir,
        }
    }

    fn sh(mut self, script: &str) -> Self {
        self.container.command = ["/bin/sh", "-c", script].map(str::to_owned).into();
        self
    }

    fn mount(mut self, source: &Path, target: &str, access: MountAccess) -> Self {
        let mount = Mount {
            container_path: target.into(),
            source: MountSource::Host(source.to_owned()),
            access,
            propagation: Propagation::Private,
            selinux_relabel: false,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            options: Vec::new(),
        };
        self.host.mounts.push(PreparedMount {
            mount,
            source: source.to_owned(),
            peers: Peers::Private,
            kept: Vec::new(),
        });
        self
    }

    fn write_spec(&self) {
        let dir = self.dir.path();
        let spec = spec::build(&SpecInput {
            pod: &self.pod,
            container: &self.container,
            image: &ImageDefaults::default(),
            user: &self.user,
            namespaces: NamespacePaths::default(),
            rootfs: &dir.join("rootfs"),
            cgroups: &CgroupsPath::Cgroupfs {
                parent: "/".into(),
                id: self.id.clone(),
            },
            paths: HostPaths {
                resolv_conf: dir.join("resolv.conf"),
                hostname: dir.join("hostname"),
                shm: dir.join("shm"),
            },
            facts: &self.facts,
            pids_limit: Some(64),
            ids: Ids {
                pod: "p",
                container: &self.id,
            },
            host: &self.host,
            confined: &Confined::default(),
        })
        .unwrap();
        std::fs::write(dir.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    }

    /// The runtime's command line. crun refuses a hybrid tree whose v2 part has controllers, so there it gets a mount
    /// namespace without that part.
    fn command(&self) -> Command {
        let hybrid = std::fs::read_to_string(format!("{UNIFIED}/cgroup.controllers"))
            .is_ok_and(|c| !c.trim().is_empty());
        let mut command = if hybrid && self.runtime.ends_with("crun") {
            let mut command = Command::new("unshare");
            let script = format!("umount {UNIFIED} && exec \"$@\"");
            command.args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
                self.runtime,
            ]);
            command
        } else {
            Command::new(self.runtime)
        };
        command
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the container to its end.
    fn run(self) -> Ran {
        self.write_spec();
        let run = self
            .command()
            .arg("run")
            .arg("--bundle")
            .arg(self.dir.path())
            .arg(&self.id)
            .output()
            .unwrap();
        text(run)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A container that a failed test left; there is none otherwise, and the answer does not matter.
        self.command()
            .args(["delete", "--force", &self.id])
            .output()
            .ok();
    }
}

fn text(output: Output) -> Ran {
    let mut out = String::from_utf8_lossy(&output.stdout).into_owned();
    out.push_str(&String::from_utf8_lossy(&output.stderr));
    Ran {
        code: output.status.code().unwrap_or(-1),
        out,
    }
}

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(key));
    found
        .unwrap_or_else(|| panic!("no {key:?} in:\n{text}"))
        .trim()
}

#[test]
fn an_ordinary_container() {
    each(|bundle| {
        let mut bundle = bundle.sh(
        "id; env; pwd; cat /etc/resolv.conf /etc/hostname; grep -E '^(Cap|NoNew|Seccomp)' /proc/self/status; \
         echo pid=$$; cat /proc/self/oom_score_adj; echo interrupts=$(cat /proc/interrupts | wc -c); grep ' /proc/sys ' /proc/mounts; touch /sys/x 2>&1; \
         touch /tmp/written && echo root-is-writable; [ -c /dev/null ] && echo null-is-there; exit 7",
    );
        bundle.user = ResolvedUser {
            uid: 0,
            gid: 0,
            additional_gids: vec![0, 1234],
            home: Some("/root".into()),
        };
        bundle.container.working_dir = "/tmp".into();
        bundle.container.env = vec![("GREETING".into(), "grüß dich = gut".as_bytes().to_vec())];
        bundle.container.security.no_new_privs = true;
        let ran = bundle.run();
        assert_eq!(ran.code, 7, "{}", ran.out);
        for expected in [
            "uid=0 gid=0 groups=0,1234",
            "GREETING=grüß dich = gut",
            "HOSTNAME=spec-test",
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "\n/tmp\n",
            "nameserver 192.0.2.1",
            "\npid=1\n",
            "Read-only file system",
            "root-is-writable",
            "null-is-there",
        ] {
            assert!(
                ran.out.contains(expected),
                "no {expected:?} in:\n{}",
                ran.out
            );
        }
        assert_eq!(line(&ran.out, "NoNewPrivs:"), "1");
        assert_eq!(line(&ran.out, "Seccomp:"), "0");
        // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD
        // AUDIT_WRITE SETFCAP
        assert_eq!(line(&ran.out, "CapBnd:"), "00000000a80425fb");
        assert_eq!(line(&ran.out, "CapEff:"), "00000000a80425fb");
        assert_eq!(line(&ran.out, "CapInh:"), "0000000000000000");
        assert_eq!(line(&ran.out, "interrupts="), "0", "masked");
        assert!(ran.out.contains("proc /proc/sys proc ro"), "{}", ran.out);
    });
}

#[test]
fn a_user_without_rights_and_a_read_only_root() {
    each(|bundle| {
        let mut bundle = bundle.sh(
            "id; touch /x 2>&1; grep -E '^Cap' /proc/self/status; touch /dev/shm/x && echo shm",
        );
        bundle.user = ResolvedUser {
            uid: 1000,
            gid: 1001,
            additional_gids: vec![50, 1001],
            home: None,
        };
        bundle.container.security.readonly_rootfs = true;
        bundle.container.security.capabilities = Capabilities {
            drop: vec!["ALL".into()],
            ..Capabilities::default()
        };
        let ran = bundle.run();
        assert!(
            ran.out.contains("uid=1000 gid=1001 groups=50,1001"),
            "{}",
            ran.out
        );
        assert!(ran.out.contains("Read-only file system"), "{}", ran.out);
        assert_eq!(line(&ran.out, "CapBnd:"), "0000000000000000");
    });
}

#[test]
fn ambient_capabilities_reach_programs_of_other_users() {
    each(|bundle| {
        let mut bundle = bundle.sh("grep -E '^Cap' /proc/self/status");
        bundle.user = ResolvedUser {
            uid: 1000,
            gid: 1000,
            additional_gids: vec![1000],
            home: None,
        };
        bundle.container.security.capabilities.add_ambient = vec!["NET_BIND_SERVICE".into()];
        let ran = bundle.run();
        assert_eq!(line(&ran.out, "CapEff:"), "0000000000000400", "{}", ran.out);
        assert_eq!(line(&ran.out, "CapAmb:"), "0000000000000400");
    });
}

#[test]
fn runtime_default_lets_programs_work_and_keeps_namespaces_and_mounts_out() {
    each(|bundle| {
        let runtime = bundle.runtime;
        // SYS_ADMIN is not given: the calls fail by the filter before the kernel's own check; CLONE_NEWUSER needs no
        // capability, so that there only the filter refuses.
        let mut bundle = bundle.sh(
        "grep ^Seccomp: /proc/self/status; (sleep 0 & wait; echo children work); ls -l / | wc -l; \
         echo to-file > /tmp/f && cat /tmp/f && chmod 600 /tmp/f && mkdir /tmp/d && echo files work; \
         mount -t tmpfs none /tmp 2>&1 || echo no mount; unshare -U true 2>&1 || echo no user namespace; \
         unshare -m true 2>&1 || echo no mount namespace",
    );
        bundle.container.security.seccomp = SeccompProfile::RuntimeDefault;
        let ran = bundle.run();
        assert_eq!(line(&ran.out, "Seccomp:"), "2");
        for expected in [
            "children work",
            "files work",
            "no mount\n",
            "no user namespace",
            "no mount namespace",
        ] {
            assert!(
                ran.out.contains(expected),
                "no {expected:?} in:\n{}",
                ran.out
            );
        }
        assert!(
            ran.out.matches("Operation not permitted").count() >= 2,
            "{}",
            ran.out
        );

        let open = Bundle::new(runtime);
        let mut open = open.sh("unshare -U true && echo user namespaces work");
        open.container.security.seccomp = SeccompProfile::Unconfined;
        assert!(
            open.run().out.contains("user namespaces work"),
            "so it was the filter"
        );
    });
}

#[test]
fn runtime_default_opens_what_a_capability_stands_for() {
    each(|bundle| {
        let mut bundle = bundle.sh("unshare -m true && mount -t tmpfs none /tmp && echo mounted");
        bundle.container.security.seccomp = SeccompProfile::RuntimeDefault;
        bundle.container.security.capabilities.add = vec!["SYS_ADMIN".into()];
        let ran = bundle.run();
        assert!(ran.out.contains("mounted"), "{}", ran.out);
    });
}

#[test]
fn a_profile_of_the_node() {
    each(|bundle| {
        let mut bundle = bundle.sh("chmod 400 /tmp; mkdir /tmp/d && echo made");
        let path = PathBuf::from("/profiles/chmod.json");
        bundle.container.security.seccomp = SeccompProfile::Localhost(path.clone());
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#;
        bundle.host.seccomp = Some(LocalProfile {
            path,
            json: json.into(),
            kernel: (6, 1),
        });
        let ran = bundle.run();
        assert!(
            ran.out.contains("Operation not permitted") && ran.out.contains("made"),
            "{}",
            ran.out
        );
    });
}

#[test]
fn a_privileged_container_has_the_nodes_devices_and_may_write_to_sys() {
    each(|bundle| {
        let mut bundle = bundle.sh(
        "grep -E '^(CapEff|Seccomp):' /proc/self/status; ls -l /dev/node-null; echo x > /dev/node-null && echo wrote; \
         grep ' /sys ' /proc/mounts; echo interrupts=$(cat /proc/interrupts | wc -c)",
    );
        bundle.pod.security = PodSecurity {
            privileged: true,
            ..PodSecurity::default()
        };
        bundle.container.security.privileged = true;
        bundle.container.security.seccomp = SeccompProfile::RuntimeDefault;
        bundle.host.devices = vec![DeviceNode {
            path: "/dev/node-null".into(),
            kind: DeviceKind::Character,
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
            permissions: "rwm".into(),
        }];
        let bounding = bundle.facts.bounding_capabilities;
        let ran = bundle.run();
        assert_eq!(line(&ran.out, "CapEff:"), format!("{bounding:016x}"));
        assert_eq!(line(&ran.out, "Seccomp:"), "0");
        assert!(
            ran.out.contains("wrote") && ran.out.contains("sysfs /sys sysfs rw"),
            "{}",
            ran.out
        );
        assert_ne!(line(&ran.out, "interrupts="), "0", "not masked");
    });
}

#[test]
fn mounts_in_their_order_and_with_their_access() {
    each(|bundle| {
        let sources = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = sources.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("name"), name).unwrap();
            path
        };
        let ran = bundle
            .mount(&dir("child"), "/data/sub", MountAccess::ReadOnly)
            .mount(&dir("parent"), "/data", MountAccess::ReadWrite)
            .mount(&dir("recursive"), "/rro", MountAccess::RecursiveReadOnly)
            .sh(
                "cat /data/name /data/sub/name /rro/name; touch /data/x && echo; \
             touch /data/sub/x 2>&1; touch /rro/x 2>&1",
            )
            .run();
        assert!(ran.out.starts_with("parentchildrecursive\n"), "{}", ran.out);
        assert_eq!(
            ran.out.matches("Read-only file system").count(),
            2,
            "{}",
            ran.out
        );
        assert!(sources.path().join("parent/x").exists());
    });
}

#[test]
fn limits_reach_the_kernel_and_can_be_updated() {
    each(|bundle| {
        let mut bundle = bundle.sh("while :; do sleep 1; done");
        bundle.container.resources = Resources {
            memory_limit: Some(64 << 20),
            cpu_shares: Some(512),
            ..Resources::default()
        };
        bundle.write_spec();
        let mut started = bundle.command();
        started
            .args(["run", "--detach", "--bundle"])
            .arg(bundle.dir.path())
            .arg(&bundle.id);
        let status = started
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let tree = cgroup::Tree::detect().unwrap();
        let path = CgroupsPath::Cgroupfs {
            parent: "/".into(),
            id: bundle.id.clone(),
        }
        .in_tree();
        let limit = || {
            let file = match tree.version() {
                cgroup::Version::V1 => "memory.limit_in_bytes",
                cgroup::Version::V2 => "memory.max",
            };
            let mut text = String::new();
            let file = tree.dir("memory", &path).unwrap().join(file);
            std::fs::File::open(file)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text.trim().parse::<u64>().unwrap()
        };
        assert_eq!(limit(), 64 << 20);

        let update = Resources {
            memory_limit: Some(32 << 20),
            ..Resources::default()
        };
        let json = serde_json::to_vec(&spec::linux_resources(&update, &bundle.facts)).unwrap();
        let file = bundle.dir.path().join("update.json");
        std::fs::write(&file, json).unwrap();
        let updated = text(
            bundle
                .command()
                .args(["update", "--resources"])
                .arg(&file)
                .arg(&bundle.id)
                .output()
                .unwrap(),
        );
        assert_eq!(updated.code, 0, "{}", updated.out);
        assert_eq!(limit(), 32 << 20);

        let exec = bundle.dir.path().join("process.json");
        let spec: oci_spec::runtime::Spec =
            serde_json::from_slice(&std::fs::read(bundle.dir.path().join("config.json")).unwrap())
                .unwrap();
        let process = spec::exec_process(
            spec.process().as_ref().unwrap(),
            &["id".to_owned(), "-u".to_owned()],
            false,
        );
        std::fs::write(&exec, serde_json::to_vec(&process).unwrap()).unwrap();
        let ran = text(
            bundle
                .command()
                .args(["exec", "--process"])
                .arg(&exec)
                .arg(&bundle.id)
                .output()
                .unwrap(),
        );
        assert_eq!((ran.code, ran.out.as_str()), (0, "0\n"));
    });
}
