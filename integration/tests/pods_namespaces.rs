//! Pods: what their containers share, and what they take from the host.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use zcri_integration::pod::{labels, pod_security, security};
use zcri_integration::v1::{DnsConfig, NamespaceMode, PodSandboxState};
use zcri_integration::{Test, TestNode, wait};

/// Names of the namespaces of a process, as the kernel tells them: `net:[4026531840]`.
fn host_namespace(kind: &str) -> Result<String> {
    Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?
        .display()
        .to_string())
}

/// The namespace `kind` that a container is in.
async fn namespace(node: &TestNode, container: &str, kind: &str) -> Result<String> {
    Ok(node
        .exec(container, &format!("readlink /proc/self/ns/{kind}"))
        .await?
        .success()?
        .to_owned())
}

#[tokio::test]
async fn containers_of_a_pod_share_its_namespaces_and_pods_do_not() -> Test {
    let node = TestNode::start().await?;
    let (one, two) = (node.pod("one").await?, node.pod("two").await?);
    let (a, b, c) = (
        one.sleeper("a").await?,
        one.sleeper("b").await?,
        two.sleeper("c").await?,
    );
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let (in_a, in_b, in_c) = (
            namespace(&node, &a, kind).await?,
            namespace(&node, &b, kind).await?,
            namespace(&node, &c, kind).await?,
        );
        let shared = !matches!(kind, "pid" | "mnt");
        assert_eq!(in_a == in_b, shared, "{kind} in one pod");
        assert_ne!(in_a, in_c, "{kind} of two pods");
        assert_ne!(in_a, host_namespace(kind)?, "{kind} of the host");
    }
    // The namespaces are the pod's: they outlive every container.
    let before = namespace(&node, &a, "net").await?;
    for id in [&a, &b] {
        node.cri().stop(id, 0).await?;
        node.cri().remove(id).await?;
    }
    let again = one.sleeper("again").await?;
    assert_eq!(namespace(&node, &again, "net").await?, before);
    node.finish().await
}

#[tokio::test]
async fn a_shared_pid_namespace_has_an_init_that_reaps() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("shared")?;
    let shared = || zcri_integration::v1::NamespaceOption {
        pid: NamespaceMode::Pod.into(),
        ..Default::default()
    };
    pod_security(&mut config).namespace_options = Some(shared());
    let pod = node.run_pod(config).await?;
    let start = async |name: &str| {
        let mut container = node.container_config(name).await?;
        security(&mut container).namespace_options = Some(shared());
        pod.start(&container).await
    };
    let (a, b) = (start("a").await?, start("b").await?);
    assert_eq!(
        namespace(&node, &a, "pid").await?,
        namespace(&node, &b, "pid").await?
    );
    assert_ne!(namespace(&node, &a, "pid").await?, host_namespace("pid")?);
    let processes = node.exec(&a, "ps -o pid,args").await?;
    let sleeps = processes
        .success()?
        .lines()
        .filter(|line| line.contains("/bin/sleep"))
        .count();
    assert_eq!(sleeps, 2, "{processes:?}");
    assert_ne!(
        node.exec(&a, "cat /proc/1/comm").await?.success()?,
        "sleep",
        "process 1 is the pod's init"
    );
    // Orphans become children of process 1, which has to wait for them.
    node.exec(&a, "for n in 1 2 3; do (sh -c 'sleep 0.01 & exit') ; done")
        .await?
        .success()?;
    let reaped = wait::until("zombies to be reaped", wait::PATIENCE, async || {
        let states = node.exec(&a, "grep -h ^State /proc/[0-9]*/status").await?;
        Ok((!states.stdout.contains("zombie") && !states.stdout.contains('Z')).then_some(()))
    });
    reaped.await?;
    // A container's end leaves the pod, and the other container, alone.
    node.cri().stop(&a, 0).await?;
    assert_eq!(node.exec(&b, "echo alive").await?.success()?, "alive");
    assert_eq!(
        node.cri().pod_status(&pod.id).await?.state(),
        PodSandboxState::SandboxReady
    );
    node.finish().await
}

#[tokio::test]
async fn host_namespaces_are_the_hosts() -> Test {
    let node = TestNode::start().await?;
    let host = || zcri_integration::v1::NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut config = node.pod_config("host")?;
    // The kubelet sends no host name for pods on the host's network.
    config.hostname.clear();
    pod_security(&mut config).namespace_options = Some(host());
    let pod = node.run_pod(config).await?;
    let mut container = node.container_config("c").await?;
    security(&mut container).namespace_options = Some(host());
    let id = pod.start(&container).await?;
    for kind in ["net", "pid", "ipc", "uts"] {
        assert_eq!(
            namespace(&node, &id, kind).await?,
            host_namespace(kind)?,
            "{kind}"
        );
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(
        node.exec(&id, "hostname").await?.success()?,
        hostname.trim()
    );
    let status = node.cri().pod_status(&pod.id).await?;
    assert!(
        status.network.is_none_or(|network| network.ip.is_empty()),
        "an address on the host's network"
    );
    let options = status
        .linux
        .and_then(|linux| linux.namespaces)
        .and_then(|ns| ns.options)
        .context("no namespaces")?;
    assert_eq!(
        (options.network(), options.pid(), options.ipc()),
        (
            NamespaceMode::Node,
            NamespaceMode::Node,
            NamespaceMode::Node
        )
    );
    node.finish().await
}

#[tokio::test]
async fn sysctls_are_set_for_the_pod_alone() -> Test {
    let node = TestNode::builder()
        .allow_log("RunPodSandbox")
        .start()
        .await?;
    let mut config = node.pod_config("sysctls")?;
    let wanted = labels([
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "2000 3000"),
    ]);
    config.linux.get_or_insert_default().sysctls = wanted;
    let pod = node.run_pod(config).await?;
    let id = pod.sleeper("c").await?;
    let read = "cat /proc/sys/kernel/shm_rmid_forced; tr '\\t' ' ' < /proc/sys/net/ipv4/ip_local_port_range";
    assert_eq!(node.exec(&id, read).await?.success()?, "1\n2000 3000");
    let other = node.pod("plain").await?.sleeper("c").await?;
    assert_ne!(node.exec(&other, read).await?.success()?, "1\n2000 3000");

    let mut wrong = node.pod_config("wrong")?;
    wrong.linux.get_or_insert_default().sysctls = labels([("net.no_such_thing", "1")]);
    let status = node
        .cri()
        .run_pod(&wrong)
        .await
        .err()
        .context("an unknown sysctl was taken")?;
    assert!(status.message().contains("net.no_such_thing"), "{status:?}");
    // Not of a namespace: it would change the host.
    wrong.linux.get_or_insert_default().sysctls = labels([("kernel.panic", "77")]);
    let status = node
        .cri()
        .run_pod(&wrong)
        .await
        .err()
        .context("a sysctl of the host was taken")?;
    assert!(status.message().contains("kernel.panic"), "{status:?}");
    assert_ne!(
        std::fs::read_to_string("/proc/sys/kernel/panic")?.trim(),
        "77"
    );
    assert_eq!(
        node.cri().list_pods(Default::default()).await?.len(),
        2,
        "a failed pod is listed"
    );
    node.finish().await
}

#[tokio::test]
async fn names_and_dns_are_those_of_the_pod() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("named")?;
    config.hostname = "some-host".to_owned();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.1.2.3".into(), "10.1.2.4".into()],
        searches: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(config).await?;
    let output = pod
        .sh("hostname; cat /etc/hostname; cat /etc/resolv.conf")
        .await?;
    assert_eq!(
        output.success()?,
        "some-host\nsome-host\nsearch ns.svc.cluster.local cluster.local\n\
         nameserver 10.1.2.3\nnameserver 10.1.2.4\noptions ndots:5"
    );
    // /etc/hosts is the kubelet's: nothing is there unless it mounts it.
    assert_eq!(
        pod.sh("test -e /etc/hosts || echo none").await?.success()?,
        "none"
    );
    let plain = node.pod("plain").await?;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(
        plain.sh("cat /etc/resolv.conf").await?.success()?,
        host.trim()
    );
    node.finish().await
}

#[tokio::test]
async fn shared_memory_is_the_pods() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (a, b) = (pod.sleeper("a").await?, pod.sleeper("b").await?);
    node.exec(&a, "echo hello > /dev/shm/note")
        .await?
        .success()?;
    assert_eq!(
        node.exec(&b, "cat /dev/shm/note").await?.success()?,
        "hello"
    );
    assert_eq!(
        node.exec(&b, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2")
            .await?
            .success()?,
        "65536"
    );
    assert_eq!(
        node.exec(&b, "stat -c %a /dev/shm").await?.success()?,
        "1777"
    );
    let other = node.pod("other").await?.sleeper("c").await?;
    assert_eq!(node.exec(&other, "ls /dev/shm").await?.success()?, "");
    node.finish().await
}

#[tokio::test]
async fn containers_are_below_the_cgroup_parent_of_their_pod() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let parent = &pod
        .config
        .linux
        .as_ref()
        .context("a linux section")?
        .cgroup_parent;
    // The OCI runtime's own process becomes the container's a moment after the start is answered.
    let below = wait::until("a cgroup of the container", wait::PATIENCE, async || {
        Ok(Some(cgroups(&node)?).filter(|found| !found.is_empty()))
    })
    .await?;
    for (hierarchy, path) in below {
        ensure!(
            path.starts_with(&format!("{parent}/")) && path.contains(&id),
            "{hierarchy} at {path}"
        );
    }
    node.finish().await
}

/// The cgroups of the node's sleeping containers, seen from outside: hierarchy and path.
fn cgroups(node: &TestNode) -> Result<Vec<(String, String)>> {
    let slot = node.slot().name();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() != "sleep" || !text.contains(&slot) {
            continue;
        }
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            // The unified hierarchy of a hybrid machine may stay out of it.
            if path != "/" && !(controllers.is_empty() && text.lines().count() > 1) {
                found.push((controllers.to_owned(), path.to_owned()));
            }
        }
    }
    Ok(found)
}
