//! ExecSync: output, exit codes, limits, time-outs, and what is left of the processes.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use tonic::Code;
use zcri_integration::pod::{envs, security, words};
use zcri_integration::v1::Int64Value;
use zcri_integration::{Test, TestNode, binaries, wait};

/// What of each stream is kept (api.proto, ExecSyncResponse).
const LIMIT: usize = 16 << 20;

#[tokio::test]
async fn output_and_exit_code_come_back() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let output = node.exec(&id, "echo out; echo err >&2; exit 42").await?;
    assert_eq!(
        (output.code, output.stdout.as_str(), output.stderr.as_str()),
        (42, "out\n", "err\n")
    );
    let killed = node.exec(&id, "kill -KILL $$").await?;
    assert_eq!(killed.code, 137);
    let none = node.cri().exec(&id, ["/bin/true"], 0).await?;
    assert_eq!(
        (none.exit_code, none.stdout.len(), none.stderr.len()),
        (0, 0, 0)
    );
    let words = node
        .cri()
        .exec(&id, ["/bin/echo", "a  b", "", "$HOME", "*"], 0)
        .await?;
    assert_eq!(words.stdout, b"a  b  $HOME *\n", "no shell comes between");
    node.finish().await
}

#[tokio::test]
async fn a_command_runs_as_the_container_does() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.envs = envs([("GREETING", "hello")]);
    config.working_dir = "/home/worker".to_owned();
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut config).no_new_privs = true;
    let id = pod.start(&config).await?;
    let seen = node.exec(&id, "echo $GREETING; pwd; id -u; sed -n 's/^NoNewPrivs:\\t//p;s/^CapEff:\\t//p' /proc/self/status").await?;
    assert_eq!(
        seen.success()?,
        "hello\n/home/worker\n1000\n0000000000000000\n1"
    );
    assert_eq!(
        node.exec(&id, "cat").await?.success()?,
        "",
        "it has no input"
    );
    node.finish().await
}

/// A probe that names a wrong program does so every few seconds: no WARN is allowed here. The code is that of containerd
/// and CRI-O.
#[tokio::test]
async fn a_missing_program_is_told() -> Test {
    let node = TestNode::start().await?;
    for handler in ["runc", "crun"] {
        let pod = node
            .run_pod_with(node.pod_config(handler)?, handler)
            .await?;
        let id = pod.sleeper("c").await?;
        for program in ["/no/such/program", "nosuchprogram", "/etc/passwd"] {
            let refused = node.cri().exec(&id, [program], 5).await.err();
            let refused = refused.with_context(|| format!("{handler} has run {program}"))?;
            assert_eq!(refused.code(), Code::Unknown, "{handler} {refused:?}");
            ensure!(
                refused.message().contains(&format!("{program:?}"))
                    && refused.message().contains("OCI runtime exec failed"),
                "{refused:?}"
            );
            let log = node.log();
            let told = |line: &&str| line.contains(&id) && line.contains(program);
            let lines: Vec<&str> = log.lines().filter(told).collect();
            ensure!(
                lines.len() == 1 && lines[0].contains("INFO"),
                "{handler} {program}: {lines:?}"
            );
        }
        assert_eq!(node.exec(&id, "echo fine").await?.success()?, "fine");
    }
    node.finish().await
}

/// What is not the program's fault is the node's, and its operator sees it.
#[tokio::test]
async fn a_runtime_that_cannot_run_commands_is_warned_of() -> Test {
    let failure = "OCI runtime exec failed: exit status 9";
    let mut node = TestNode::builder().allow_log(failure).prepare().await?;
    let program = node.files().dir.join("runtime");
    let runc = binaries::system("runc", "runc")?;
    // Its exec fails, whatever is to be run.
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' exec '*) exit 9;; esac\nexec {} \"$@\"\n",
        runc.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    node.add_config(&format!("[runtime.handlers.bad]\npath = {program:?}\n"))?;
    node.start_daemon().await?;
    let pod = node.run_pod_with(node.pod_config("p")?, "bad").await?;
    let id = pod.sleeper("c").await?;
    let refused = node.cri().exec(&id, ["/bin/true"], 5).await.err();
    let refused = refused.context("it has run")?;
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    ensure!(refused.message().contains(failure), "{refused:?}");
    let log = node.log();
    let warned = |line: &str| line.contains("WARN") && line.contains(failure);
    ensure!(log.lines().any(warned), "{log}");
    drop(pod);
    node.finish().await
}

#[tokio::test]
async fn what_is_too_much_is_dropped_and_the_command_goes_on() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let script =
        "head -c 20000000 /dev/zero; head -c 17000000 /dev/zero >&2; echo done > /tmp/done; exit 5";
    let answer = node.cri().exec(&id, ["/bin/sh", "-c", script], 60).await?;
    assert_eq!(
        (answer.exit_code, answer.stdout.len(), answer.stderr.len()),
        (5, LIMIT, LIMIT)
    );
    assert_eq!(node.exec(&id, "cat /tmp/done").await?.success()?, "done");
    node.finish().await
}

#[tokio::test]
async fn a_time_out_ends_the_whole_tree() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let script = "(sh -c 'trap \"\" TERM HUP INT; sleep 7777' &) ; setsid sleep 7777 & sleep 7777 & sleep 7777";
    let start = Instant::now();
    let status = node
        .cri()
        .exec(&id, ["/bin/sh", "-c", script], 1)
        .await
        .err()
        .context("no time-out")?;
    let took = start.elapsed();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    ensure!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    wait::until("the processes to end", wait::PATIENCE, async || {
        let left = node
            .exec(&id, "ps -o args | grep -c '^sleep 7777' || true")
            .await?;
        Ok((left.stdout.trim() == "0").then_some(()))
    })
    .await?;
    // The container itself is untouched.
    assert_eq!(node.exec(&id, "echo alive").await?.success()?, "alive");
    node.finish().await
}

/// A probe that starts something in the background must not hang until that ends, for it holds the output.
#[tokio::test]
async fn a_process_that_keeps_the_output_open_holds_nobody_up() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let start = Instant::now();
    let answer = node
        .cri()
        .exec(&id, ["/bin/sh", "-c", "echo first; sleep 30 & exit 3"], 25)
        .await?;
    assert_eq!(
        (answer.exit_code, answer.stdout.as_slice()),
        (3, b"first\n".as_slice())
    );
    ensure!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    node.finish().await
}

#[tokio::test]
async fn many_commands_run_at_the_same_time() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let calls = (0..20).map(|n| {
        let (node, id) = (&node, &id);
        async move { anyhow::Ok((n, node.exec(id, &format!("echo {n}; exit {n}")).await?)) }
    });
    for (n, output) in try_join_all(calls.collect::<Vec<_>>()).await? {
        assert_eq!((output.code, output.stdout), (n, format!("{n}\n")));
    }
    // Nothing of them is left in the container or in its bundle.
    let processes = node.exec(&id, "ls -d /proc/[0-9]* | wc -l").await?;
    ensure!(processes.success()?.parse::<usize>()? <= 4, "{processes:?}");
    let bundle = node.files().state.join("containers").join(&id);
    let left: Vec<_> = zcri_integration::images::tree(&bundle)?
        .into_iter()
        .filter(|path| path.contains("sync-"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    node.finish().await
}

#[tokio::test]
async fn a_client_that_leaves_does_not_hurt_the_container() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let call = tokio::spawn({
        let (cri, id) = (node.cri().clone(), id.clone());
        async move {
            cri.exec(
                &id,
                words([
                    "/bin/sh",
                    "-c",
                    "touch /tmp/began; sleep 2; touch /tmp/ended",
                ]),
                10,
            )
            .await
        }
    });
    wait::until("the command", wait::PATIENCE, async || {
        Ok((node.exec(&id, "test -e /tmp/began").await?.code == 0).then_some(()))
    })
    .await?;
    call.abort();
    assert_eq!(node.exec(&id, "echo alive").await?.success()?, "alive");
    node.finish().await
}
