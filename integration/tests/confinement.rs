//! Security modules of the kernel. Where one is off, what is seen of it is that it is off.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::{pod_security, security};
use zcri_integration::v1::security_profile::ProfileType;
use zcri_integration::v1::{
    Capability, ContainerConfig, Mount, NamespaceMode, SeLinuxOption, SecurityProfile,
};
use zcri_integration::{Pod, Test, TestNode};

const OWN_LABEL: &str = "tr -d '\\0' < /proc/self/attr/current";

fn apparmor_is_on() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'))
}

fn selinux_is_on() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn apparmor(kind: ProfileType, name: &str) -> impl FnOnce(&mut ContainerConfig) {
    let profile = SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    };
    |config| security(config).apparmor = Some(profile)
}

/// What the label of a process of such a container is.
async fn label(pod: &Pod<'_>, change: impl FnOnce(&mut ContainerConfig)) -> Result<String> {
    let output = pod.sh_with(OWN_LABEL, change).await?;
    Ok(output.success()?.trim().to_owned())
}

/// The field that such a container is refused for.
async fn refused(
    node: &TestNode,
    pod: &Pod<'_>,
    field: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Test {
    let mut config = node.container_config("refused").await?;
    change(&mut config);
    let answer = node.cri().create(&pod.id, &config, &pod.config).await;
    let status = answer.err().context("the container was made")?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    ensure!(status.message().contains(field), "{field} in {status:?}");
    Ok(())
}

#[tokio::test]
async fn apparmor_profiles_are_those_asked_for() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let missing = apparmor(ProfileType::Localhost, "no-such-profile");
    refused(&node, &pod, "security_context.apparmor", missing).await?;
    if !apparmor_is_on() {
        let default = apparmor(ProfileType::RuntimeDefault, "");
        refused(&node, &pod, "security_context.apparmor", default).await?;
        pod.sh("true").await?.success()?;
        pod.sh_with("true", apparmor(ProfileType::Unconfined, ""))
            .await?
            .success()?;
        return node.finish().await;
    }
    const DEFAULT: &str = "zcri-default (enforce)";
    ensure!(label(&pod, |_| ()).await? == DEFAULT);
    let default = label(&pod, apparmor(ProfileType::RuntimeDefault, "")).await?;
    ensure!(default == DEFAULT, "{default}");
    let named = label(&pod, apparmor(ProfileType::Localhost, "zcri-default")).await?;
    ensure!(named == DEFAULT, "{named}");
    let none = label(&pod, apparmor(ProfileType::Unconfined, "")).await?;
    ensure!(none == "unconfined", "{none}");
    let privileged = label(&pod, |c| security(c).privileged = true).await?;
    ensure!(privileged == "unconfined", "{privileged}");

    let container = pod.sleeper("c").await?;
    let exec = node.exec(&container, OWN_LABEL).await?;
    ensure!(exec.success()?.trim() == DEFAULT, "{exec:?}");
    // Whatever runs on the node may unload it.
    let mut remove = std::process::Command::new("apparmor_parser");
    remove.arg("--remove");
    remove.stdin(std::process::Stdio::piped());
    let mut remove = remove.spawn()?;
    let mut stdin = remove.stdin.take().context("no stdin")?;
    std::io::Write::write_all(&mut stdin, b"profile zcri-default { }\n")?;
    drop(stdin);
    ensure!(remove.wait()?.success());
    ensure!(label(&pod, |_| ()).await? == DEFAULT, "it is loaded again");
    what_is_outside_is_left_alone(&pod).await?;
    processes_outside_are_left_alone(&node).await?;
    node.finish().await
}

/// The default profile keeps a container from what else it could do: nothing is masked, and it may administer.
async fn what_is_outside_is_left_alone(pod: &Pod<'_>) -> Test {
    // Each is written back as it is.
    const SCRIPT: &str = "same() { v=$(cat $1) && (echo $v > $1) 2>/dev/null && echo $1; }
        same /proc/sys/vm/swappiness; same /proc/sys/kernel/core_pattern; same /proc/sys/kernel/shmmni
        (echo h > /proc/sysrq-trigger) 2>/dev/null && echo sysrq
        mount -t tmpfs t /tmp 2>/dev/null && echo mount
        echo > /tmp/file && rm /tmp/file && echo file; sh -c 'kill -0 $PPID' && echo signal; true";
    let open = |c: &mut ContainerConfig| {
        let security = security(c);
        security.masked_paths = Vec::new();
        security.readonly_paths = Vec::new();
        security.capabilities = Some(Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Default::default()
        });
    };
    let seen = |output: String| output.split_whitespace().map(str::to_owned).collect();
    let confined: Vec<String> = seen(pod.sh_with(SCRIPT, open).await?.success()?.to_owned());
    let unconfined = |c: &mut ContainerConfig| {
        open(c);
        apparmor(ProfileType::Unconfined, "")(c);
    };
    let free: Vec<String> = seen(pod.sh_with(SCRIPT, unconfined).await?.success()?.to_owned());
    ensure!(
        free == [
            "/proc/sys/vm/swappiness",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/shmmni",
            "sysrq",
            "mount",
            "file",
            "signal"
        ],
        "without the profile: {free:?}"
    );
    ensure!(
        confined == ["/proc/sys/kernel/shmmni", "file", "signal"],
        "with the profile: {confined:?}"
    );
    Ok(())
}

async fn processes_outside_are_left_alone(node: &TestNode) -> Test {
    let mut config = node.pod_config("pids")?;
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    for (kind, expected) in [
        (ProfileType::RuntimeDefault, "kept out"),
        (ProfileType::Unconfined, "reaches"),
    ] {
        let output = pod
            .sh_with("kill -0 1 && echo reaches || echo kept out", |c| {
                apparmor(kind, "")(c);
                let options = security(c).namespace_options.get_or_insert_default();
                options.pid = NamespaceMode::Node.into();
            })
            .await?;
        ensure!(output.success()? == expected, "{kind:?}: {output:?}");
    }
    Ok(())
}

fn volume(node: &TestNode, name: &str, relabel: bool) -> Result<Mount> {
    Ok(Mount {
        host_path: node.scratch(name)?.display().to_string(),
        container_path: "/volume".into(),
        selinux_relabel: relabel,
        ..Default::default()
    })
}

/// The label of a file, as the node sees it.
fn label_of(path: &Path) -> Result<String> {
    let mut value = [0; 4096];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value)
        .with_context(|| format!("label of {}", path.display()))?;
    let text = String::from_utf8_lossy(value.get(..length).unwrap_or_default());
    Ok(text.trim_end_matches('\0').to_owned())
}

/// `(type, level)`.
fn parts(label: &str) -> Result<(&str, &str)> {
    let mut parts = label.splitn(4, ':').skip(2);
    let kind = parts.next().context("no type")?;
    Ok((kind, parts.next().unwrap_or_default()))
}

#[tokio::test]
async fn selinux_labels_are_those_of_the_pod() -> Test {
    let mut node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    if !selinux_is_on() {
        // Manifests that name a label run on nodes of all kinds.
        let relabelled = volume(&node, "volume", true)?;
        let host_path = relabelled.host_path.clone();
        pod.sh_with("echo > /volume/file", |c| {
            c.mounts.push(relabelled);
            security(c).selinux_options = Some(SeLinuxOption {
                r#type: "spc_t".into(),
                ..Default::default()
            });
        })
        .await?
        .success()?;
        ensure!(label_of(&Path::new(&host_path).join("file")).is_err());
        return node.finish().await;
    }
    let own = label(&pod, |_| ()).await?;
    let (kind, level) = parts(&own)?;
    ensure!(level.contains(":c") && level.contains(','), "{own}");
    ensure!(label(&pod, |_| ()).await? == own, "all of a pod are alike");
    let other = node.pod("q").await?;
    let others = label(&other, |_| ()).await?;
    ensure!(
        parts(&others)?.0 == kind && parts(&others)?.1 != level,
        "{own} {others}"
    );
    let container = pod.sleeper("c").await?;
    let exec = node.exec(&container, OWN_LABEL).await?;
    ensure!(exec.success()?.trim() == own, "{exec:?}");
    files_are_labelled(&node, &container, level).await?;
    volumes_are_the_pods(&node, &pod, &other, level).await?;

    let given = |kind: &str, level: &str| SeLinuxOption {
        r#type: kind.into(),
        level: level.into(),
        ..Default::default()
    };
    let levelled = label(&pod, |c| {
        security(c).selinux_options = Some(given("", "s0:c5,c6"));
    })
    .await?;
    ensure!(parts(&levelled)? == (kind, "s0:c5,c6"), "{levelled}");
    let reads = |c: &mut ContainerConfig| {
        security(c).selinux_options = Some(given("", "s0:c5,c6"));
    };
    pod.sh_with("cat /etc/resolv.conf /etc/hostname > /tmp/read", reads)
        .await?
        .success()?;
    refused(&node, &pod, "selinux_options", |c| {
        security(c).selinux_options = Some(given("no_such_type_t", ""));
    })
    .await?;
    let mut config = node.pod_config("pids")?;
    pod_security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .pid = NamespaceMode::Node.into();
    let among = node.run_pod(config).await?;
    let free = label(&among, |c| {
        let options = security(c).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Node.into();
    })
    .await?;
    ensure!(parts(&free)?.0 != kind, "{free}");

    the_init_is_one_of_the_pod(&node, kind).await?;

    let (id, config) = (pod.id.clone(), pod.config.clone());
    drop((pod, other, among));
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let mut again = node.container_config("again").await?;
    again.command = vec!["/bin/sleep".into(), "3600".into()];
    let again = node.cri().create(&id, &again, &config).await?;
    node.cri().start(&again).await?;
    let exec = node.exec(&again, OWN_LABEL).await?;
    ensure!(exec.success()?.trim() == own, "after a restart: {exec:?}");
    node.finish().await
}

/// Where containers share a PID namespace, they see its first process.
async fn the_init_is_one_of_the_pod(node: &TestNode, kind: &str) -> Test {
    let mut config = node.pod_config("shared")?;
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = NamespaceMode::Pod.into();
    let pod = node.run_pod(config).await?;
    let script = "for p in self 1; do tr -d '\\0' < /proc/$p/attr/current; echo; done; cat /proc/1/mountinfo";
    let output = pod
        .sh_with(script, |c| {
            let options = security(c).namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Pod.into();
        })
        .await?;
    let mut lines = output.success()?.lines();
    let (own, init) = (lines.next(), lines.next());
    ensure!(own == init && own.is_some(), "{output:?}");
    let (found, level) = parts(own.unwrap_or_default())?;
    ensure!(found == kind, "{own:?}");
    let root = lines.next().context("it has no root")?;
    ensure!(root.contains("context=") && root.contains(level), "{root}");
    Ok(())
}

async fn files_are_labelled(node: &TestNode, container: &str, level: &str) -> Test {
    let info = node.info(container).await?;
    let root = format!("/proc/{}/root", info["pid"]);
    let expected = label_of(&Path::new(&root).join("bin/busybox"))?;
    ensure!(parts(&expected)?.1 == level, "{expected}");
    for file in ["", "dev/shm", "dev"] {
        let found = label_of(&Path::new(&root).join(file))?;
        ensure!(found == expected, "/{file}: {found}");
    }
    for file in ["etc/resolv.conf", "etc/hostname"] {
        let found = label_of(&Path::new(&root).join(file))?;
        ensure!(
            parts(&found)? == (parts(&expected)?.0, "s0"),
            "/{file}: {found}"
        );
    }
    let written = node
        .exec(
            container,
            "echo > /dev/shm/x && echo > /new && cat /etc/hostname",
        )
        .await?;
    written.success()?;
    Ok(())
}

async fn volumes_are_the_pods(
    node: &TestNode,
    pod: &Pod<'_>,
    other: &Pod<'_>,
    level: &str,
) -> Test {
    let mine = volume(node, "mine", true)?;
    let deep = Path::new(&mine.host_path).join("a/b");
    std::fs::create_dir_all(&deep)?;
    std::fs::write(deep.join("file"), "secret\n")?;
    let read = "cat /volume/a/b/file && echo more > /volume/a/b/new";
    pod.sh_with(read, |c| c.mounts.push(mine.clone()))
        .await?
        .success()?;
    for path in [&deep, &deep.join("file"), Path::new(&mine.host_path)] {
        let found = label_of(path)?;
        ensure!(parts(&found)?.1 == level, "{}: {found}", path.display());
    }
    // Another pod is kept out, also as root: that is what categories are for.
    let theirs = Mount {
        selinux_relabel: false,
        ..mine.clone()
    };
    let output = other.sh_with(read, |c| c.mounts.push(theirs)).await?;
    if std::fs::read_to_string("/sys/fs/selinux/enforce")?.starts_with('1') {
        ensure!(output.stderr.contains("Permission denied"), "{output:?}");
    }
    refused(node, pod, "selinux_relabel", |c| {
        c.mounts.push(Mount {
            host_path: "/etc".into(),
            ..mine.clone()
        });
    })
    .await
}
