//! What is refused for security's sake, and profiles, identities, sysctls, process namespaces and CDI devices.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tonic::{Code, Status};
use zcri_integration::pod::{pod_security, security};
use zcri_integration::v1::security_profile::ProfileType;
use zcri_integration::v1::{
    Capability, CdiDevice, ContainerConfig, Int64Value, LinuxContainerSecurityContext,
    NamespaceMode, PodSandboxConfig, SecurityProfile,
};
use zcri_integration::{Pod, Test, TestNode};

const SECURITY: &str = "config.linux.security_context";

/// Creates a container that must be refused. Nothing of it may be left.
async fn refused(
    node: &TestNode,
    pod: &Pod<'_>,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<Status> {
    let before = node.cri().list_containers(Default::default()).await?.len();
    let mut config = node.container_config("refused").await?;
    change(&mut config);
    let answer = node.cri().create(&pod.id, &config, &pod.config).await;
    let status = answer.err().context("the container was made")?;
    let after = node.cri().list_containers(Default::default()).await?.len();
    ensure!(before == after, "something is left of it");
    Ok(status)
}

async fn refused_as(
    node: &TestNode,
    pod: &Pod<'_>,
    field: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> Test {
    let status = refused(node, pod, |c| change(security(c))).await?;
    ensure!(
        status.code() == Code::InvalidArgument,
        "{field}: {status:?}"
    );
    ensure!(status.message().contains(field), "{field} in {status:?}");
    Ok(())
}

fn capability(add: &[&str], drop: &[&str], ambient: &[&str]) -> Option<Capability> {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(Capability {
        add_capabilities: list(add),
        drop_capabilities: list(drop),
        add_ambient_capabilities: list(ambient),
    })
}

/// linux/capability.h
const NAMES: [(&str, u32); 4] = [
    ("SYS_RESOURCE", 24),
    ("SYS_MODULE", 16),
    ("NET_RAW", 13),
    ("CHOWN", 0),
];

#[tokio::test]
async fn no_container_exceeds_what_the_daemon_has() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let own = std::fs::read_to_string(format!(
        "/proc/{}/status",
        node.daemon_pid()?.as_raw_nonzero()
    ))?;
    let held = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t"));
    let held = u64::from_str_radix(held.context("no CapBnd")?, 16)?;
    let bounding = "sed -n 's/^CapBnd:\t//p' /proc/self/status";
    for change in [
        (|s: &mut LinuxContainerSecurityContext| s.capabilities = capability(&["ALL"], &[], &[]))
            as fn(&mut _),
        |s| s.privileged = true,
    ] {
        let output = pod.sh_with(bounding, |c| change(security(c))).await?;
        assert_eq!(u64::from_str_radix(output.success()?, 16)?, held);
    }
    for (name, number) in NAMES {
        if held & (1 << number) != 0 {
            let added = pod.sh_with("true", |c| {
                security(c).capabilities = capability(&[name], &[], &[])
            });
            added.await?.success()?;
            continue;
        }
        let field = |list: &str| format!("{SECURITY}.capabilities.{list}: {name}");
        refused_as(&node, &pod, &field("add_capabilities"), |s| {
            s.capabilities = capability(&[name], &[], &[])
        })
        .await?;
        refused_as(&node, &pod, &field("add_ambient_capabilities"), |s| {
            s.capabilities = capability(&[], &[], &[name])
        })
        .await?;
    }
    node.finish().await
}

/// Ambient capabilities reach a program of a user, whatever becomes of new privileges; dropped ones do not.
#[tokio::test]
async fn ambient_capabilities_reach_users() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let sets = async |change: &dyn Fn(&mut LinuxContainerSecurityContext)| -> Result<String> {
        let script =
            "sed -n 's/^Cap\\(Inh\\|Eff\\|Amb\\):\\t0*//p' /proc/self/status | tr '\\n' ' '";
        let output = pod.sh_with(script, |c| {
            security(c).run_as_user = Some(Int64Value { value: 1000 });
            change(security(c));
        });
        Ok(output.await?.success()?.to_owned())
    };
    assert_eq!(
        sets(&|s| s.capabilities = capability(&[], &["ALL"], &["NET_RAW"])).await?,
        "2000 2000 2000"
    );
    let quiet = |s: &mut LinuxContainerSecurityContext| {
        s.capabilities = capability(&[], &[], &["NET_RAW"]);
        s.no_new_privs = true;
    };
    assert_eq!(sets(&quiet).await?, "2000 2000 2000");
    assert_eq!(
        sets(&|s| s.capabilities = capability(&[], &["NET_RAW"], &["NET_RAW"])).await?,
        ""
    );
    node.finish().await
}

#[tokio::test]
async fn identities_that_contradict_are_refused() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = |value| Some(Int64Value { value });
    let both = |s: &mut LinuxContainerSecurityContext| {
        (s.run_as_user, s.run_as_username) = (id(1), "worker".into());
    };
    refused_as(&node, &pod, &format!("{SECURITY}.run_as_username"), both).await?;
    refused_as(&node, &pod, &format!("{SECURITY}.run_as_group"), |s| {
        s.run_as_group = id(1)
    })
    .await?;
    for value in [-1, i64::from(u32::MAX), i64::MAX] {
        refused_as(&node, &pod, &format!("{SECURITY}.run_as_user"), |s| {
            s.run_as_user = id(value)
        })
        .await?;
        refused_as(
            &node,
            &pod,
            &format!("{SECURITY}.supplemental_groups[1]"),
            |s| s.supplemental_groups = vec![0, value],
        )
        .await?;
    }
    refused_as(
        &node,
        &pod,
        &format!("{SECURITY}.supplemental_groups_policy"),
        |s| s.supplemental_groups_policy = 7,
    )
    .await?;
    let group = pod.sh_with("id -u; id -g", |c| {
        (security(c).run_as_username, security(c).run_as_group) = ("worker".into(), id(5));
    });
    assert_eq!(group.await?.success()?, "1000\n5");
    node.finish().await
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    })
}

#[tokio::test]
async fn the_default_seccomp_profile_follows_the_capabilities() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let mount = "mount -t tmpfs none /tmp 2>/dev/null && echo mounts || echo refused; sed -n 's/^Seccomp:\\t//p' /proc/self/status";
    let run = async |change: &dyn Fn(&mut LinuxContainerSecurityContext)| -> Result<String> {
        let output = pod.sh_with(mount, |c| {
            security(c).seccomp = profile(ProfileType::RuntimeDefault, "");
            change(security(c));
        });
        Ok(output.await?.success()?.to_owned())
    };
    assert_eq!(run(&|_| ()).await?, "refused\n2");
    assert_eq!(
        run(&|s| s.capabilities = capability(&["SYS_ADMIN"], &[], &[])).await?,
        "mounts\n2"
    );
    assert_eq!(
        run(&|s| s.privileged = true).await?,
        "mounts\n0",
        "a privileged container has no filter"
    );
    node.finish().await
}

#[tokio::test]
async fn profiles_that_cannot_be_had_are_refused() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("seccomp")?;
    std::fs::write(dir.join("broken.json"), "{ \"defaultAction\": ")?;
    std::fs::write(
        dir.join("action.json"),
        r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#,
    )?;
    for name in ["missing.json", "broken.json", "action.json"] {
        let path = dir.join(name).display().to_string();
        let status = refused(&node, &pod, |c| {
            security(c).seccomp = profile(ProfileType::Localhost, &path)
        })
        .await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(
            status.message().contains(&format!("{SECURITY}.seccomp")),
            "{status:?}"
        );
        assert!(status.message().contains(&path), "{status:?}");
    }
    refused_as(
        &node,
        &pod,
        &format!("{SECURITY}.seccomp.localhost_ref"),
        |s| s.seccomp = profile(ProfileType::Localhost, "relative.json"),
    )
    .await?;
    refused_as(
        &node,
        &pod,
        &format!("{SECURITY}.seccomp.localhost_ref"),
        |s| s.seccomp = profile(ProfileType::Unconfined, "/x"),
    )
    .await?;
    refused_as(
        &node,
        &pod,
        &format!("{SECURITY}.seccomp.profile_type"),
        |s| {
            s.seccomp = Some(SecurityProfile {
                profile_type: 9,
                localhost_ref: String::new(),
            });
        },
    )
    .await?;
    node.finish().await
}

#[tokio::test]
async fn a_privileged_container_needs_a_privileged_pod() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    refused_as(&node, &pod, &format!("{SECURITY}.privileged"), |s| {
        s.privileged = true
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn proc_is_masked_unless_it_is_asked_for_whole() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let script = "(echo 1000 > /proc/sys/net/ipv4/ip_unprivileged_port_start) 2>/dev/null && echo writes; wc -c < /proc/keys; ls /sys/firmware | wc -l";
    let masked = |s: &mut LinuxContainerSecurityContext| {
        s.masked_paths = vec!["/proc/keys".into(), "/sys/firmware".into()];
        s.readonly_paths = vec!["/proc/sys".into()];
    };
    let output = pod.sh_with(script, |c| masked(security(c))).await?;
    assert_eq!(output.success()?, "0\n0");
    // How the kubelet says `procMount: Unmasked`.
    let output = pod.sh_with(script, |c| {
        security(c).masked_paths.clear();
        security(c).readonly_paths.clear();
    });
    let text = output.await?.success()?.to_owned();
    assert!(text.starts_with("writes\n"), "{text}");
    refused_as(&node, &pod, &format!("{SECURITY}.masked_paths[0]"), |s| {
        s.masked_paths = vec!["proc/keys".into()]
    })
    .await?;
    refused_as(&node, &pod, &format!("{SECURITY}.readonly_paths[1]"), |s| {
        s.readonly_paths = vec!["/proc".into(), String::new()]
    })
    .await?;
    node.finish().await
}

fn sysctl(config: &mut PodSandboxConfig, name: &str, value: &str) {
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert(name.to_owned(), value.to_owned());
}

#[tokio::test]
async fn sysctls_are_set_in_namespaces_of_the_pod_and_nowhere_else() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    sysctl(&mut config, "net.ipv4.ip_unprivileged_port_start", "77");
    sysctl(&mut config, "kernel/shm_rmid_forced", "1");
    sysctl(&mut config, "net/ipv4/conf/lo/forwarding", "1");
    let pod = node.run_pod(config).await?;
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/conf/lo/forwarding";
    assert_eq!(pod.sh(script).await?.success()?, "77\n1\n1");
    assert_ne!(
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?.trim(),
        "77"
    );
    let refuse = async |name: &str,
                        value: &str,
                        network: NamespaceMode,
                        ipc: NamespaceMode|
           -> Result<Status> {
        let mut config = node.pod_config("refused")?;
        let options = pod_security(&mut config)
            .namespace_options
            .get_or_insert_default();
        (options.network, options.ipc) = (network.into(), ipc.into());
        sysctl(&mut config, name, value);
        let status = node.cri().run_pod(&config).await.err();
        let status = status.with_context(|| format!("{name} was set"))?;
        ensure!(node.cri().list_pods(Default::default()).await?.len() == 1);
        Ok(status)
    };
    let (own, host) = (NamespaceMode::Pod, NamespaceMode::Node);
    for (name, value, network, ipc) in [
        ("kernel.panic", "1", own, own),
        ("vm.swappiness", "1", own, own),
        ("net.ipv4.ip_forward", "1", host, own),
        ("kernel.shm_rmid_forced", "1", own, host),
        ("fs.mqueue.msg_max", "1", own, host),
        ("net.ipv4/../../../kernel/panic", "1", own, own),
        ("net..x", "1", own, own),
        ("", "1", own, own),
        ("net.ipv4.ip_forward", "1\0", own, own),
    ] {
        let status = refuse(name, value, network, ipc).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(
            status.message().contains("config.linux.sysctls["),
            "{name}: {status:?}"
        );
    }
    for (name, value) in [
        ("net.ipv4.no_such_sysctl", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "x"),
    ] {
        let status = refuse(name, value, own, own).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(
            status.message().contains("config.linux.sysctls") && status.message().contains(name),
            "{status:?}"
        );
    }
    node.finish().await
}

fn target(config: &mut ContainerConfig, id: &str) {
    let options = security(config).namespace_options.get_or_insert_default();
    (options.pid, options.target_id) = (NamespaceMode::Target.into(), id.to_owned());
}

#[tokio::test]
async fn a_container_can_share_the_processes_of_another() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let sleeper = pod.sleeper("target").await?;
    let script = "ps | grep -c '[s]leep 1000000'; readlink /proc/1/ns/pid";
    let output = pod.sh_with(script, |c| target(c, &sleeper)).await?;
    let text = output.success()?.to_owned();
    assert!(text.starts_with("1\n"), "{text}");
    let inside = node.exec(&sleeper, "readlink /proc/1/ns/pid").await?;
    assert!(text.ends_with(inside.success()?), "{text}");
    let short = pod.sh_with(script, |c| target(c, &sleeper[..12])).await?;
    assert_eq!(short.success()?, text);

    // Whatever has the number of the target's process when it is started is not taken for the target.
    let mut late = node.container_config("late").await?;
    target(&mut late, &sleeper);
    let late = pod.create(&late).await?;
    node.allow_log("OCI runtime run failed");
    node.cri().stop(&sleeper, 0).await?;
    let status = node
        .cri()
        .start(&late)
        .await
        .err()
        .context("the target is gone")?;
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    assert_eq!(node.cri().status(&late).await?.exit_code, 128);

    let status = refused(&node, &pod, |c| target(c, &sleeper)).await?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let field = format!("{SECURITY}.namespace_options.target_id");
    for unknown in ["", "no-such-container"] {
        let status = refused(&node, &pod, |c| target(c, unknown)).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(&field), "{status:?}");
    }
    let other = node.pod("other").await?;
    let foreign = other.sleeper("foreign").await?;
    let status = refused(&node, &pod, |c| target(c, &foreign)).await?;
    assert!(status.message().contains(&field), "{status:?}");
    let mut config = node.pod_config("target-pod")?;
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = NamespaceMode::Target.into();
    let status = node
        .cri()
        .run_pod(&config)
        .await
        .err()
        .context("a pod has no target")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    node.finish().await
}

/// The beginning of several ids names none of them, for every request that changes something.
#[tokio::test]
async fn the_beginning_of_several_ids_is_refused() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut ids: Vec<String> = Vec::new();
    // Of 17 ids at least two have the same first digit.
    let prefix = loop {
        let config = node.container_config(&format!("c{}", ids.len())).await?;
        let id = pod.create(&config).await?;
        let first = id[..1].to_owned();
        let shared = ids.iter().any(|other| other.starts_with(&first));
        ids.push(id);
        if shared {
            break first;
        }
    };
    let cri = node.cri();
    let mut answers = vec![
        ("StopContainer", cri.stop(&prefix, 0).await),
        ("RemoveContainer", cri.remove(&prefix).await),
        ("StartContainer", cri.start(&prefix).await),
        ("ContainerStatus", cri.status(&prefix).await.map(drop)),
    ];
    let mut config = node.container_config("ambiguous").await?;
    target(&mut config, &prefix);
    answers.push((
        "CreateContainer",
        cri.create(&pod.id, &config, &pod.config).await.map(drop),
    ));
    for (call, answer) in answers {
        let status = answer
            .err()
            .with_context(|| format!("{call} took {prefix}"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{call}: {status:?}");
    }
    assert_eq!(
        cri.list_containers(Default::default()).await?.len(),
        ids.len()
    );
    cri.stop("no-such-container", 0).await?;
    cri.remove("no-such-container").await?;
    let status = cri
        .remove_image("Not A Reference")
        .await
        .err()
        .context("it is none")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    cri.remove_image("no.such/image:1").await?;
    node.finish().await
}

#[tokio::test]
async fn cdi_devices_are_as_described() -> Test {
    let node = TestNode::builder().no_cdi_but("cdi").start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("cdi")?;
    // None of those that every container may use.
    let device = ["/dev/loop-control", "/dev/fuse", "/dev/autofs"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .context("prerequisite: none of the devices that this test knows")?;
    std::fs::write(dir.join("lib"), "a library")?;
    let text = format!(
        "cdiVersion: 0.6.0\nkind: acme.com/gpu\ncontainerEdits:\n  env: [ACME=all]\ndevices:\n- name: one\n  containerEdits:\n    \
         env: [ACME_DEVICE=one]\n    deviceNodes:\n    - {{path: /dev/acme, hostPath: {device}, permissions: r}}\n    \
         mounts:\n    - {{hostPath: {}, containerPath: /usr/lib/acme, options: [ro, bind]}}\n",
        dir.join("lib").display()
    );
    std::fs::write(dir.join("acme.yaml"), text)?;
    let ask = |c: &mut ContainerConfig, name: &str| {
        c.cdi_devices = vec![CdiDevice {
            name: name.to_owned(),
        }]
    };
    let script = "echo $ACME $ACME_DEVICE; true < /dev/acme && echo readable; true > /dev/acme || echo refused; cat /usr/lib/acme";
    let output = pod.sh_with(script, |c| ask(c, "acme.com/gpu=one")).await?;
    assert_eq!(output.success()?, "all one\nreadable\nrefused\na library");
    for (name, field) in [
        ("acme.com/gpu=two", "config.CDI_devices"),
        ("other.com/gpu=one", "config.CDI_devices"),
        ("acme.com/gpu", "config.CDI_devices[0].name"),
        ("=", "config.CDI_devices[0].name"),
    ] {
        let status = refused(&node, &pod, |c| ask(c, name)).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(
            status.message().contains(field) && status.message().contains(name),
            "{status:?}"
        );
    }
    node.finish().await
}

#[tokio::test]
async fn checkpoints_are_said_to_come_later() -> Test {
    let node = TestNode::start().await?;
    let mut runtime = node.cri().runtime();
    let answers = [
        runtime
            .checkpoint_container(zcri_integration::v1::CheckpointContainerRequest::default())
            .await
            .map(drop),
        runtime
            .checkpoint_pod(zcri_integration::v1::CheckpointPodRequest::default())
            .await
            .map(drop),
        runtime
            .restore_pod(zcri_integration::v1::RestorePodRequest::default())
            .await
            .map(drop),
    ];
    for answer in answers {
        let status = answer.err().context("it was done")?;
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("CRIU"), "{status:?}");
    }
    node.finish().await
}
