//! How a container's process comes out of image and request: command, environment, directory, user, groups.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use zcri_integration::images;
use zcri_integration::pod::{container_config, envs, security, shim_of, words};
use zcri_integration::v1::{
    ContainerConfig, ContainerState, Int64Value, LinuxContainerSecurityContext,
    SupplementalGroupsPolicy,
};
use zcri_integration::{Test, TestNode};

/// An image that says all that an image can about its process; its program tells what became of it.
async fn talkative(node: &TestNode) -> Result<String> {
    let image = images::busybox()?
        .entrypoint([
            "/bin/sh",
            "-c",
            "echo image-entrypoint \"$0\" \"$@\"; pwd; env | sort; id",
        ])
        .cmd(["image-cmd"])
        .env(["PATH=/bin", "FROM=image", "BOTH=image"])
        .working_dir("/home/worker")
        .user("worker")
        .build();
    node.registry.push("talkative", "1", image);
    let name = node.registry.reference("talkative", "1");
    node.cri().pull(&name).await?;
    Ok(name)
}

#[tokio::test]
async fn the_image_gives_what_the_request_leaves_out() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let output = pod
        .run(&container_config("c", &talkative(&node).await?))
        .await?
        .output();
    let lines: Vec<&str> = output.success()?.lines().collect();
    assert_eq!(lines[..2], ["image-entrypoint image-cmd", "/home/worker"]);
    for line in [
        "FROM=image",
        "BOTH=image",
        "PATH=/bin",
        "HOME=/home/worker",
        "HOSTNAME=p",
    ] {
        assert!(lines.contains(&line), "{line} in {lines:?}");
    }
    assert_eq!(
        lines.last(),
        Some(&"uid=1000(worker) gid=1000(worker) groups=1000(worker),2000(wheel),3000(audio)")
    );
    node.finish().await
}

/// Kubernetes: a command replaces entrypoint and cmd, args alone replace cmd.
#[tokio::test]
async fn the_request_replaces_what_it_gives() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let image = talkative(&node).await?;
    let run = async |name: &str, change: &dyn Fn(&mut ContainerConfig)| -> Result<String> {
        let mut config = container_config(name, &image);
        change(&mut config);
        Ok(pod.run(&config).await?.output().success()?.to_owned())
    };
    let args = run("args", &|c| c.args = words(["one", "two"])).await?;
    assert!(args.starts_with("image-entrypoint one two\n"), "{args}");
    assert_eq!(
        run("command", &|c| c.command = words(["/bin/echo"])).await?,
        "",
        "cmd of the image is not for it"
    );
    let both = |c: &mut ContainerConfig| {
        c.command = words(["/bin/echo", "x"]);
        c.args = words(["y"]);
    };
    assert_eq!(run("both", &both).await?, "x y");
    let found = |c: &mut ContainerConfig| c.command = words(["echo", "found in PATH"]);
    assert_eq!(run("path", &found).await?, "found in PATH");
    let env = |c: &mut ContainerConfig| {
        c.envs = envs([("BOTH", "request"), ("NEW", "a=b c"), ("EMPTY", "")])
    };
    let env = run("env", &env).await?;
    for line in ["FROM=image", "BOTH=request", "NEW=a=b c", "EMPTY="] {
        assert_eq!(
            env.lines().filter(|found| *found == line).count(),
            1,
            "{line} in {env}"
        );
    }
    assert!(!env.contains("BOTH=image"), "{env}");
    let dir = |c: &mut ContainerConfig| c.working_dir = "/made/for/it".to_owned();
    assert!(
        run("dir", &dir).await?.contains("\n/made/for/it\n"),
        "a working directory is made when it is not there"
    );
    node.finish().await
}

/// User, group and sorted groups out of the words of id(1): `uid=1(a) gid=2(b) groups=2(b),3`.
fn ids(text: &str) -> (u32, u32, Vec<u32>) {
    let number = |word: &str| {
        word.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap_or(u32::MAX)
    };
    let field = |name: &str| {
        text.split_whitespace()
            .find_map(|word| word.strip_prefix(name))
            .unwrap_or_default()
    };
    let mut groups: Vec<u32> = field("groups=").split(',').map(number).collect();
    groups.sort_unstable();
    (number(field("uid=")), number(field("gid=")), groups)
}

#[tokio::test]
async fn users_and_groups_follow_request_then_image() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let image = talkative(&node).await?;
    let id = async |change: &dyn Fn(&mut LinuxContainerSecurityContext)| -> Result<_> {
        let mut config = container_config("id", &image);
        config.command = words(["/bin/id"]);
        change(security(&mut config));
        let ended = pod.run(&config).await?;
        node.cri().remove(&ended.id).await?;
        let user = ended
            .status
            .user
            .clone()
            .and_then(|user| user.linux)
            .context("no user in the status")?;
        Ok((
            ended.output().success()?.to_owned(),
            (user.uid, user.gid, user.supplemental_groups),
        ))
    };
    let number = |value| Some(Int64Value { value });
    let (text, user) = id(&|s| s.run_as_user = number(0)).await?;
    assert_eq!((ids(&text), user.0, user.1), ((0, 0, vec![0, 3000]), 0, 0));
    let (text, _) = id(&|s| s.run_as_user = number(4321)).await?;
    assert_eq!(
        ids(&text),
        (4321, 0, vec![0]),
        "a user without an entry is in the root group"
    );
    let merge = |s: &mut LinuxContainerSecurityContext| {
        s.run_as_user = number(1000);
        s.run_as_group = number(77);
        s.supplemental_groups = vec![5, 6];
    };
    let (text, user) = id(&merge).await?;
    assert_eq!(
        ids(&text),
        (1000, 77, vec![5, 6, 77, 2000, 3000]),
        "the request's groups and the image's"
    );
    assert_eq!((user.0, user.1), (1000, 77));
    let strict = |s: &mut LinuxContainerSecurityContext| {
        merge(s);
        s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    };
    let (text, user) = id(&strict).await?;
    assert_eq!(
        ids(&text),
        (1000, 77, vec![5, 6, 77]),
        "the image's groups are not for it"
    );
    assert!(user.2.contains(&5) && !user.2.contains(&2000), "{user:?}");
    let (text, _) = id(&|s| s.run_as_username = "worker".to_owned()).await?;
    assert_eq!(ids(&text), (1000, 1000, vec![1000, 2000, 3000]));
    let mut unknown = container_config("unknown", &image);
    security(&mut unknown).run_as_username = "nobody-here".to_owned();
    let status = node
        .cri()
        .create(&pod.id, &unknown, &pod.config)
        .await
        .err()
        .context("an unknown user was taken")?;
    assert!(status.message().contains("nobody-here"), "{status:?}");
    node.allow_log("nobody-here");
    node.finish().await
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() -> Test {
    let node = TestNode::builder()
        .allow_log("StartContainer")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words(["/no/such/program"]);
    let id = pod.create(&config).await?;
    let status = node.cri().start(&id).await.err().context("it started")?;
    assert!(status.message().contains("/no/such/program"), "{status:?}");
    let container = node.cri().status(&id).await?;
    assert_eq!(container.state(), ContainerState::ContainerExited);
    assert_ne!(container.exit_code, 0);
    assert!(
        container.reason == "StartError" || container.reason == "Error",
        "{}",
        container.reason
    );
    assert!(
        container.message.contains("/no/such/program"),
        "{}",
        container.message
    );
    // The pod goes on.
    assert_eq!(pod.sh("echo fine").await?.success()?, "fine");
    node.finish().await
}

/// A daemon that holds many pods needs many files; a program that closes every possible descriptor suffers from that,
/// so that the shim, and what it starts, has the limit that the daemon was given. (Some versions of runc raise it once
/// more, for they are written in Go.)
#[tokio::test]
async fn the_daemon_may_open_what_it_can_and_its_shims_have_the_nodes_limit() -> Test {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(1 << 20);
    // Inherited by the daemon, as from a shell or a service manager.
    let nodes = Rlimit {
        current: Some(hard / 2),
        maximum: before.maximum,
    };
    setrlimit(Resource::Nofile, nodes)?;
    let node = TestNode::start().await?;
    setrlimit(Resource::Nofile, before)?;
    let soft = |pid: Pid| -> Result<u64> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero()))?;
        let files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let soft = files.and_then(|line| line.split_whitespace().next());
        Ok(soft.context("limits")?.parse()?)
    };
    assert_eq!(soft(node.daemon_pid()?)?, hard);
    let pod = node.pod("p").await?;
    assert_eq!(soft(shim_of(&pod.id)?)?, hard / 2);
    node.finish().await
}

#[tokio::test]
async fn limits_of_the_configuration_are_those_of_every_process() -> Test {
    let node = TestNode::builder()
        .config("[runtime]\nrlimits = [\"nofile=512:1024\", \"core=0\", \"stack=4194304:8388608\"]")
        .start()
        .await?;
    let pod = node.pod("p").await?;
    let ask = "ulimit -Hn; ulimit -Sc; ulimit -Ss";
    let first = pod.sh(&format!("ulimit -Sn; {ask}")).await?;
    assert_eq!(first.success()?, "512\n1024\n0\n4096");
    let id = pod.sleeper("c").await?;
    // Not the soft limit of files, which a runc of before 1.1.13 raises in `exec`.
    let command = node.exec(&id, ask).await?;
    assert_eq!(command.success()?, "1024\n0\n4096");
    node.finish().await
}
