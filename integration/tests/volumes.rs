//! Volumes: read-only with all below, options, links, block devices, and what is refused.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount as kernel_mount, unmount};
use tonic::Code;
use zcri_integration::pod::{pod_security, security};
use zcri_integration::v1::{ContainerConfig, Device, Mount, MountPropagation};
use zcri_integration::{Pod, Test, TestNode};

fn mount(host: &Path, inside: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        ..Default::default()
    }
}

/// A tmpfs of the test's own.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(dir: PathBuf, flags: MountFlags) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        kernel_mount("tmpfs", &dir, "tmpfs", flags, None)?;
        // Whatever the machine has: only what a test makes shared is.
        rustix::mount::mount_change(&dir, rustix::mount::MountPropagationFlags::PRIVATE)?;
        Ok(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A failure shows in the audit.
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

/// Creates a container that must be refused as an invalid argument; gives the message. Nothing may be left.
async fn refused(
    node: &TestNode,
    pod: &Pod<'_>,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<String> {
    let mut config = node.container_config("refused").await?;
    change(&mut config);
    let answer = node.cri().create(&pod.id, &config, &pod.config).await;
    let status = answer.err().context("the container was made")?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    ensure!(
        node.cri()
            .list_containers(Default::default())
            .await?
            .is_empty()
    );
    Ok(status.message().to_owned())
}

#[tokio::test]
async fn a_recursively_read_only_mount_is_so_to_the_bottom() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    let below = Tmpfs::new(dir.join("below"), MountFlags::empty())?;
    let script = "for d in /ro /rro; do for f in $d/x $d/below/x; do touch $f 2>/dev/null && echo $f; done; done; true";
    let read_only = Mount {
        readonly: true,
        ..mount(&dir, "/ro")
    };
    let recursive = Mount {
        recursive_read_only: true,
        container_path: "/rro".into(),
        ..read_only.clone()
    };
    let mounts = vec![read_only, recursive.clone()];
    let output = pod.sh_with(script, |c| c.mounts = mounts).await?;
    assert_eq!(output.success()?, "/ro/below/x");
    let mut config = node.container_config("status").await?;
    config.mounts = vec![recursive.clone()];
    let id = pod.start(&config).await?;
    assert_eq!(node.cri().status(&id).await?.mounts, [recursive]);
    node.cri().remove_pod(&pod.id).await?;
    drop(below);
    node.finish().await
}

#[tokio::test]
async fn recursively_read_only_is_refused_where_it_cannot_be() -> Test {
    let node = TestNode::builder()
        .config("[runtime.handlers.silent]\npath = \"/bin/false\"")
        .allow_log("a runtime handler cannot be used")
        .start()
        .await?;
    let dir = node.scratch("volume")?;
    let silent = node
        .run_pod_with(node.pod_config("silent")?, "silent")
        .await?;
    let recursive = Mount {
        readonly: true,
        recursive_read_only: true,
        ..mount(&dir, "/v")
    };
    let message = refused(&node, &silent, |c| c.mounts = vec![recursive.clone()]).await?;
    assert!(
        message.contains("config.mounts.recursive_read_only"),
        "{message}"
    );
    let pod = node.pod("p").await?;
    let writable = Mount {
        readonly: false,
        ..recursive.clone()
    };
    for propagation in [
        MountPropagation::PropagationHostToContainer,
        MountPropagation::PropagationBidirectional,
    ] {
        let travelling = Mount {
            propagation: propagation.into(),
            ..recursive.clone()
        };
        for given in [&writable, &travelling] {
            let message = refused(&node, &pod, |c| c.mounts = vec![given.clone()]).await?;
            assert!(
                message.contains("config.mounts[0].recursive_read_only"),
                "{message}"
            );
        }
    }
    node.finish().await
}

#[tokio::test]
async fn propagation_needs_a_source_that_has_it() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let private = Tmpfs::new(node.scratch("private")?.join("v"), MountFlags::empty())?;
    for (propagation, word) in [
        (MountPropagation::PropagationHostToContainer, "slave"),
        (MountPropagation::PropagationBidirectional, "shared"),
    ] {
        let message = refused(&node, &pod, |c| {
            security(c).privileged = true;
            c.mounts = vec![Mount {
                propagation: propagation.into(),
                ..mount(&private.0, "/v")
            }];
        });
        let message = message.await?;
        assert!(
            message.contains(&private.0.display().to_string()),
            "{message}"
        );
        assert!(message.contains(word), "{message}");
    }
    node.cri().remove_pod(&pod.id).await?;
    drop(private);
    node.finish().await
}

#[tokio::test]
async fn mount_options_take_away() -> Test {
    let node = TestNode::start().await?;
    assert!(
        node.cri()
            .node_status()
            .await?
            .features
            .context("no features")?
            .mount_options
    );
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    std::fs::write(dir.join("run"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(
        dir.join("run"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let with = |options: &[&str], inside: &str, readonly| Mount {
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        readonly,
        ..mount(&dir, inside)
    };
    let mounts = vec![
        with(&[], "/all", false),
        with(&["noexec"], "/a", false),
        with(&["noexec", "nosuid", "nodev"], "/b", true),
    ];
    let wanted = mounts.clone();
    let script = "/all/run; /a/run 2>/dev/null || echo refused; touch /a/x && echo written; touch /b/x 2>/dev/null || echo read-only; \
                  awk '$5==\"/b\" {print $6}' /proc/self/mountinfo | tr ',' '\\n' | sort | tr '\\n' ' '";
    let output = pod.sh_with(script, |c| c.mounts = mounts).await?;
    assert_eq!(
        output.success()?,
        "ran\nrefused\nwritten\nread-only\nnodev noexec nosuid relatime ro"
    );
    let mut config = node.container_config("status").await?;
    config.mounts = wanted.clone();
    let id = pod.start(&config).await?;
    assert_eq!(node.cri().status(&id).await?.mounts, wanted);
    node.cri().remove(&id).await?;
    for option in [
        "exec",
        "suid",
        "rw",
        "remount",
        "noexec,exec",
        "size=1g",
        "",
        "idmap",
    ] {
        let given = with(&["nodev", option], "/v", false);
        let message = refused(&node, &pod, |c| c.mounts = vec![given]).await?;
        assert!(
            message.contains("config.mounts[0].mount_options[1]"),
            "{message}"
        );
    }
    node.finish().await
}

/// What the node took away from a mount, a container does not get back.
#[tokio::test]
async fn the_options_of_the_source_stay() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let limits = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let source = Tmpfs::new(node.scratch("source")?.join("a"), limits)?;
    let frozen = Tmpfs::new(node.scratch("source")?.join("b"), MountFlags::RDONLY)?;
    let script = "for d in /rw /ro /frozen; do awk -v d=$d '$5==d {print $6}' /proc/self/mountinfo; done; \
                  touch /rw/x && echo written; touch /frozen/x 2>/dev/null || echo refused";
    let mounts = vec![
        mount(&source.0, "/rw"),
        Mount {
            readonly: true,
            ..mount(&source.0, "/ro")
        },
        mount(&frozen.0, "/frozen"),
    ];
    let output = pod.sh_with(script, |c| c.mounts = mounts).await?;
    let text = output.success()?;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("rw,nosuid,nodev,noexec"), "{text}");
    assert!(lines[1].starts_with("ro,nosuid,nodev,noexec"), "{text}");
    assert!(lines[2].starts_with("ro"), "{text}");
    assert_eq!(lines[3..], ["written", "refused"]);
    node.cri().remove_pod(&pod.id).await?;
    drop((source, frozen));
    node.finish().await
}

#[tokio::test]
async fn a_host_path_may_be_a_link() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let dir = node.scratch("volume")?;
    std::fs::create_dir(dir.join("real"))?;
    std::fs::write(dir.join("real/file"), "behind")?;
    std::os::unix::fs::symlink("real", dir.join("link"))?;
    std::os::unix::fs::symlink(dir.join("link/file"), dir.join("chain"))?;
    std::os::unix::fs::symlink("loop", dir.join("loop"))?;
    let mounts = vec![
        mount(&dir.join("link"), "/d"),
        mount(&dir.join("chain"), "/f"),
    ];
    let output = pod
        .sh_with("cat /d/file; echo; cat /f", |c| c.mounts = mounts.clone())
        .await?;
    assert_eq!(output.success()?, "behind\nbehind");
    let mut config = node.container_config("status").await?;
    config.mounts = mounts.clone();
    let id = pod.start(&config).await?;
    assert_eq!(
        node.cri().status(&id).await?.mounts,
        mounts,
        "as it was asked for"
    );
    node.cri().remove(&id).await?;
    let message = refused(&node, &pod, |c| {
        c.mounts = vec![mount(&dir.join("loop"), "/l")]
    })
    .await?;
    assert!(message.contains("config.mounts.host_path"), "{message}");
    node.finish().await
}

#[tokio::test]
async fn block_devices_are_those_asked_for() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let is_block = |path: &PathBuf| {
        use std::os::unix::fs::FileTypeExt as _;
        std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
    };
    let entries = std::fs::read_dir("/dev")?.map(|entry| entry.map(|e| e.path()));
    let paths = entries.collect::<std::io::Result<Vec<_>>>()?;
    let Some(path) = paths.iter().find(|path| is_block(path)) else {
        eprintln!("skipped: this machine has no block device in /dev");
        return node.finish().await;
    };
    let device = |permissions: &str| Device {
        container_path: "/dev/disk".into(),
        host_path: path.display().to_string(),
        permissions: permissions.into(),
    };
    let script = "test -b /dev/disk && stat -c '%t:%T' /dev/disk; (true < /dev/disk) 2>/dev/null && echo reads; \
                  (true >> /dev/disk) 2>/dev/null || echo writes-not";
    let output = pod
        .sh_with(script, |c| c.devices = vec![device("r")])
        .await?;
    let number = std::os::unix::fs::MetadataExt::rdev(&std::fs::metadata(path)?);
    let wanted = format!(
        "{:x}:{:x}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    );
    let text = output.success()?;
    assert!(
        text.starts_with(&wanted) && text.ends_with("writes-not"),
        "{text}"
    );
    let message = refused(&node, &pod, |c| c.devices = vec![device("x")]).await?;
    assert!(
        message.contains("config.devices[0].permissions"),
        "{message}"
    );
    node.finish().await
}
