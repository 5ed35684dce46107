//! What a container may see and do: mounts, devices, capabilities, privilege, seccomp, read-only parts.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use zcri_integration::pod::{pod_security, security, words};
use zcri_integration::v1::security_profile::ProfileType;
use zcri_integration::v1::{
    Capability, ContainerConfig, Device, Int64Value, Mount, MountPropagation, SecurityProfile,
};
use zcri_integration::{Test, TestNode};

fn mount(host: &std::path::Path, inside: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        ..Default::default()
    }
}

fn profile(kind: ProfileType) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    })
}

#[tokio::test]
async fn mounts_are_there_writable_or_not() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    std::fs::write(dir.join("file"), "from the host")?;
    let script = "cat /rw/file; echo back > /rw/new; cat /deep/er/file; echo x > /ro/no 2>/dev/null || echo refused; \
                  cat /etc/single; touch /ro/file 2>/dev/null || echo refused";
    let mounts = vec![
        mount(&dir, "/rw"),
        Mount {
            readonly: true,
            ..mount(&dir, "/ro")
        },
        mount(&dir, "/deep/er"),
        Mount {
            readonly: true,
            ..mount(&dir.join("file"), "/etc/single")
        },
    ];
    let wanted = mounts.clone();
    let output = pod.sh_with(script, |c| c.mounts = mounts).await?;
    assert_eq!(
        output.success()?,
        "from the hostfrom the hostrefused\nfrom the hostrefused"
    );
    assert_eq!(std::fs::read_to_string(dir.join("new"))?, "back\n");
    let mut config = node.container_config("status").await?;
    config.mounts = wanted.clone();
    let id = pod.start(&config).await?;
    let told = node.cri().status(&id).await?.mounts;
    for mount in &wanted {
        assert!(told.contains(mount), "{mount:?} in {told:?}");
    }
    node.finish().await
}

/// The kubelet relies on it: a host path that is not there becomes a directory.
#[tokio::test]
async fn a_missing_mount_source_becomes_a_directory() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let missing = node.scratch("volumes")?.join("to/be/made");
    let output = pod
        .sh_with("touch /v/x && echo done", |c| {
            c.mounts = vec![mount(&missing, "/v")]
        })
        .await?;
    assert_eq!(output.success()?, "done");
    assert!(missing.join("x").exists());
    node.finish().await
}

#[tokio::test]
async fn mounts_propagate_as_asked() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let shared = SharedMount::new(&node)?;
    let of = |propagation: MountPropagation| Mount {
        propagation: propagation.into(),
        ..mount(&shared.dir, "/v")
    };
    let start = async |name: &str, propagation| -> Result<String> {
        let mut config = node.container_config(name).await?;
        security(&mut config).privileged = true;
        config.mounts = vec![of(propagation)];
        pod.start(&config).await
    };
    let private = start("private", MountPropagation::PropagationPrivate).await?;
    let slave = start("slave", MountPropagation::PropagationHostToContainer).await?;
    let both = start("both", MountPropagation::PropagationBidirectional).await?;
    let point = shared.dir.join("from-host");
    std::fs::create_dir(&point)?;
    rustix::mount::mount(
        "tmpfs",
        &point,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )?;
    std::fs::write(point.join("seen"), "")?;
    let sees = async |id: &str, path: &str| -> Result<bool> {
        Ok(node.exec(id, &format!("test -e {path}")).await?.code == 0)
    };
    assert!(!sees(&private, "/v/from-host/seen").await?);
    assert!(sees(&slave, "/v/from-host/seen").await?);
    assert!(sees(&both, "/v/from-host/seen").await?);
    for (id, name, comes_back) in [(&slave, "from-slave", false), (&both, "from-both", true)] {
        node.exec(
            id,
            &format!("mkdir /v/{name} && mount -t tmpfs none /v/{name} && touch /v/{name}/seen"),
        )
        .await?
        .success()?;
        assert_eq!(
            shared.dir.join(name).join("seen").exists(),
            comes_back,
            "{name}"
        );
    }
    node.cri().remove_pod(&pod.id).await?;
    drop(shared);
    node.finish().await
}

/// A directory of the node that is a shared mount of its own.
struct SharedMount {
    dir: std::path::PathBuf,
}

impl SharedMount {
    fn new(node: &TestNode) -> Result<Self> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let dir = node.scratch("shared")?;
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), None)?;
        mount_change(&dir, MountPropagationFlags::SHARED)?;
        Ok(Self { dir })
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        // Lazily: what is mounted in it goes too. A failure shows in the audit.
        rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[tokio::test]
async fn devices_are_those_asked_for() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let basic = pod.sh("ls /dev | sort | tr '\\n' ' '; head -c 3 /dev/zero | wc -c; echo x > /dev/null; test -r /dev/kmsg || echo none").await?;
    let text = basic.success()?;
    for name in [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdout",
    ] {
        assert!(
            text.split_whitespace().any(|found| found == name),
            "{name} in {text}"
        );
    }
    assert!(text.ends_with("3\nnone"), "{text}");
    // None of those that every container may use.
    let host = ["/dev/loop-control", "/dev/fuse", "/dev/autofs"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let device = Device {
        container_path: "/dev/mine".to_owned(),
        host_path: host
            .context("prerequisite: none of the devices that this test knows")?
            .to_owned(),
        permissions: "r".to_owned(),
    };
    let script = "true < /dev/mine && echo readable; true > /dev/mine || echo refused";
    let asked = pod
        .sh_with(script, |c| c.devices = vec![device.clone()])
        .await?;
    assert_eq!(asked.success()?, "readable\nrefused");
    let none = pod
        .sh_with("test -e /dev/mine || echo none", |_| ())
        .await?;
    assert_eq!(none.success()?, "none");
    let missing = Device {
        host_path: "/dev/no-such-device".into(),
        container_path: "/dev/x".into(),
        permissions: "rwm".into(),
    };
    let mut config = node.container_config("missing").await?;
    config.devices = vec![missing];
    let status = node
        .cri()
        .create(&pod.id, &config, &pod.config)
        .await
        .err()
        .context("a missing device was taken")?;
    assert!(
        status.message().contains("/dev/no-such-device"),
        "{status:?}"
    );
    node.allow_log("no-such-device");
    node.finish().await
}

/// The effective capabilities of process 1 in a container of this configuration.
async fn effective(
    pod: &zcri_integration::Pod<'_>,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<u64> {
    let output = pod
        .sh_with("sed -n 's/^CapEff:\\t//p' /proc/self/status", change)
        .await?;
    Ok(u64::from_str_radix(output.success()?, 16)?)
}

// linux/capability.h
const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

#[tokio::test]
async fn capabilities_are_the_defaults_with_additions_and_drops() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let capabilities = |add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        Some(Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        })
    };
    let default = effective(&pod, |_| ()).await?;
    assert!(
        default & CHOWN != 0 && default & (NET_ADMIN | SYS_ADMIN) == 0,
        "{default:x}"
    );
    let added = effective(&pod, |c| {
        security(c).capabilities = capabilities(&["NET_ADMIN"], &[])
    })
    .await?;
    assert_eq!(added, default | NET_ADMIN, "{added:x}");
    let dropped = effective(&pod, |c| {
        security(c).capabilities = capabilities(&[], &["CHOWN"])
    })
    .await?;
    assert_eq!(dropped, default & !CHOWN, "{dropped:x}");
    let only = effective(&pod, |c| {
        security(c).capabilities = capabilities(&["CAP_NET_RAW"], &["ALL"])
    })
    .await?;
    assert_eq!(only, NET_RAW, "{only:x}");
    let all = effective(&pod, |c| {
        security(c).capabilities = capabilities(&["ALL"], &[])
    })
    .await?;
    assert!(
        all & (NET_ADMIN | SYS_ADMIN) == NET_ADMIN | SYS_ADMIN,
        "{all:x}"
    );
    let user = effective(&pod, |c| {
        security(c).run_as_user = Some(Int64Value { value: 1000 })
    })
    .await?;
    assert_eq!(user, 0, "a user has none without ambient capabilities");
    let ambient = effective(&pod, |c| {
        let security = security(c);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.capabilities = Some(Capability {
            add_ambient_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
    });
    assert_eq!(ambient.await?, NET_RAW);
    let mut config = node.container_config("unknown").await?;
    security(&mut config).capabilities = capabilities(&["NO_SUCH_CAPABILITY"], &[]);
    let status = node
        .cri()
        .create(&pod.id, &config, &pod.config)
        .await
        .err()
        .context("an unknown capability")?;
    assert!(
        status.message().contains("NO_SUCH_CAPABILITY"),
        "{status:?}"
    );
    node.finish().await
}

#[tokio::test]
async fn privilege_opens_what_is_closed_otherwise() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let probe = "mount -t tmpfs none /tmp 2>/dev/null && echo mounts; test -e /dev/kmsg && echo devices; \
                 (echo 0 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo writes-proc; \
                 sed -n 's/^Seccomp:\\t//p' /proc/self/status; ls /proc/acpi >/dev/null 2>&1; \
                 head -c 1 /proc/kcore >/dev/null 2>&1 && echo reads-kcore; true";
    let plain = pod.sh(probe).await?;
    assert_eq!(
        plain
            .success()?
            .lines()
            .filter(|line| line.len() > 1)
            .collect::<Vec<_>>(),
        Vec::<&str>::new()
    );
    let privileged = pod
        .sh_with(probe, |c| security(c).privileged = true)
        .await?;
    let text = privileged.success()?;
    for line in ["mounts", "devices", "writes-proc", "0"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_read_only_root_leaves_the_volumes_writable() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    let script = "touch /x 2>/dev/null || echo refused; touch /v/x /dev/shm/x && echo writable; cat /etc/resolv.conf > /dev/null && echo ok";
    let output = pod
        .sh_with(script, |c| {
            security(c).readonly_rootfs = true;
            c.mounts = vec![mount(&dir, "/v")];
        })
        .await?;
    assert_eq!(output.success()?, "refused\nwritable\nok");
    node.finish().await
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_asked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    std::fs::write(dir.join("secret"), "secret")?;
    let script = "cat /v/secret; ls /v/dir | wc -l; touch /tmp/x 2>/dev/null || echo refused";
    std::fs::create_dir(dir.join("dir"))?;
    std::fs::write(dir.join("dir/inner"), "")?;
    let output = pod
        .sh_with(script, |c| {
            c.mounts = vec![mount(&dir, "/v")];
            security(c).masked_paths = words(["/v/secret", "/v/dir", "/not/there"]);
            security(c).readonly_paths = words(["/tmp"]);
        })
        .await?;
    assert_eq!(output.success()?, "0\nrefused");
    node.finish().await
}

#[tokio::test]
async fn seccomp_is_as_the_profile_says() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    // seccomp of /proc/self/status: 0 is none, 2 is a filter.
    let mode = "sed -n 's/^Seccomp:\\t//p' /proc/self/status";
    let with = async |script: &str, profile: Option<SecurityProfile>| -> Result<String> {
        let output = pod
            .sh_with(script, |c| security(c).seccomp = profile)
            .await?;
        Ok(output.success()?.to_owned())
    };
    assert_eq!(with(mode, profile(ProfileType::Unconfined)).await?, "0");
    assert_eq!(with(mode, profile(ProfileType::RuntimeDefault)).await?, "2");
    let file = node.scratch("seccomp")?.join("no-mkdir.json");
    std::fs::write(
        &file,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#,
    )?;
    let local = |path: String| {
        Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: path,
        })
    };
    let script = "mkdir /tmp/x 2>/dev/null || echo refused; touch /tmp/y && echo fine";
    assert_eq!(
        with(script, local(file.display().to_string())).await?,
        "refused\nfine"
    );
    let mut config = node.container_config("missing").await?;
    security(&mut config).seccomp = local("/no/such/profile.json".to_owned());
    let status = node
        .cri()
        .create(&pod.id, &config, &pod.config)
        .await
        .err()
        .context("a missing profile was taken")?;
    assert!(
        status.message().contains("/no/such/profile.json"),
        "{status:?}"
    );
    node.allow_log("/no/such/profile.json");
    node.finish().await
}

#[tokio::test]
async fn no_new_privileges_are_gained() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let script = "sed -n 's/^NoNewPrivs:\\t//p' /proc/self/status";
    assert_eq!(pod.sh(script).await?.success()?, "0");
    assert_eq!(
        pod.sh_with(script, |c| security(c).no_new_privs = true)
            .await?
            .success()?,
        "1"
    );
    node.finish().await
}

/// Whatever a container is, the host's files are not reachable from it.
#[tokio::test]
async fn the_host_is_not_in_the_container() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let seen = pod
        .sh("ls / | sort | tr '\\n' ' '; cut -d' ' -f5 /proc/self/mountinfo | sort")
        .await?;
    let text = seen.success()?;
    let host = node.files().dir.display().to_string();
    ensure!(!text.contains(&host), "{host} is in {text}");
    for path in [
        "/proc",
        "/sys",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys/fs/cgroup",
        "/etc/resolv.conf",
        "/etc/hostname",
    ] {
        ensure!(
            text.lines().any(|line| line == path),
            "{path} is not mounted: {text}"
        );
    }
    node.finish().await
}
