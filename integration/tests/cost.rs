//! What the daemon does not do, counted by strace: nothing while nobody asks, no look at an image for statistics, no
//! process for an event.
#![forbid(unsafe_code)]

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use zcri_integration::registry::{Compression, LayerBuilder};
use zcri_integration::v1::{ContainerEventType, GetEventsRequest, ListContainerStatsRequest};
use zcri_integration::{Test, TestNode, images, wait};

/// How long a daemon is watched that shall do nothing: the peers that sample do so each second.
const WINDOW: Duration = Duration::from_millis(2500);
/// Calls that look at files, use a network or start a process. Ends of threads and the like are not among them.
const DOING: &str = "trace=openat,open,openat2,statx,newfstatat,getdents64,pread64,connect,sendto,sendmsg,sendmmsg,\
                     execve,execveat,clone,vfork,fork";
/// Calls that start a program.
const STARTING: &str = "trace=execve,execveat";

/// A daemon that is watched.
struct Watched {
    strace: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Watched {
    async fn new(node: &TestNode, what: &str) -> Result<Self> {
        let pid = node.daemon_pid()?.as_raw_nonzero().to_string();
        let mut strace = Command::new("strace")
            .args(["-f", "-q", "-e", what, "-p", &pid])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let errors = strace.stderr.take().context("no output")?;
        let traced = || {
            // Each thread by itself.
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten();
            tasks.flatten().all(|task| {
                let status =
                    std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        };
        wait::until_true("strace to be there", wait::PATIENCE, traced).await?;
        let lines = BufReader::new(errors).lines();
        Ok(Self { strace, lines })
    }

    /// What it did until now.
    async fn end(mut self) -> Result<Vec<String>> {
        let id = i32::try_from(self.strace.id().context("strace has ended")?)?;
        kill_process(Pid::from_raw(id).context("no process")?, Signal::INT)?;
        let mut seen = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            seen.push(line);
        }
        self.strace.wait().await?;
        Ok(seen)
    }
}

async fn stats(node: &TestNode) -> Result<usize> {
    let request = ListContainerStatsRequest::default();
    let answer = node.cri().runtime().list_container_stats(request).await?;
    Ok(answer.into_inner().stats.len())
}

#[tokio::test]
async fn nothing_is_done_while_nobody_asks() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for number in 0..5 {
        pod.sleeper(&format!("c{number}")).await?;
    }
    // Nobody who asked once is asked for more.
    assert_eq!(stats(&node).await?, 5);
    let mut events = node
        .cri()
        .runtime()
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    let mut watched = Watched::new(&node, DOING).await?;
    let first = tokio::time::timeout(WINDOW, watched.lines.next_line()).await;
    ensure!(first.is_err(), "{first:?}");
    // It was watched.
    assert_eq!(stats(&node).await?, 5);
    let seen = watched.end().await?;
    ensure!(!seen.is_empty());
    ensure!(
        tokio::time::timeout(Duration::ZERO, events.message())
            .await
            .is_err()
    );
    node.finish().await
}

/// The size of a writable layer is that of its own files, however many the image has.
#[tokio::test]
async fn statistics_cost_the_same_whatever_the_image() -> Test {
    let mut counts = Vec::new();
    for files in [0, 3000] {
        let node = TestNode::start().await?;
        let mut layer = LayerBuilder::new();
        for number in 0..files {
            layer = layer.file(&format!("many/{number}"), 0o644, "x");
        }
        let layer = layer.build(Compression::Gzip);
        node.registry
            .push("many", "1", images::busybox()?.layer(layer).build());
        let name = node.registry.reference("many", "1");
        node.cri().pull(&name).await?;
        let pod = node.pod("p").await?;
        let config = zcri_integration::pod::container_config("c", &name);
        pod.start(&config).await?;
        let watched = Watched::new(&node, DOING).await?;
        assert_eq!(stats(&node).await?, 1);
        counts.push(watched.end().await?.len());
        node.finish().await?;
    }
    ensure!(counts[1] < counts[0] + 20, "{counts:?} calls");
    Ok(())
}

/// A container's life is told to several, and the daemon starts no program for that (those of the container are the
/// shim's).
#[tokio::test]
async fn events_start_no_process() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let config = node.container_config("c").await?;
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        let answer = node
            .cri()
            .runtime()
            .get_container_events(GetEventsRequest {})
            .await?;
        subscribers.push(answer.into_inner());
    }
    let watched = Watched::new(&node, STARTING).await?;
    let id = pod.start(&config).await?;
    node.cri().stop(&id, 0).await?;
    node.cri().remove(&id).await?;
    for events in &mut subscribers {
        for kind in [
            ContainerEventType::ContainerCreatedEvent,
            ContainerEventType::ContainerStartedEvent,
            ContainerEventType::ContainerStoppedEvent,
            ContainerEventType::ContainerDeletedEvent,
        ] {
            let next = tokio::time::timeout(wait::PATIENCE, events.message()).await??;
            let event = next.context("the stream ended")?;
            assert_eq!(
                (event.container_event_type(), &event.container_id),
                (kind, &id)
            );
        }
    }
    let seen = watched.end().await?;
    ensure!(seen.is_empty(), "{seen:?}");
    node.finish().await
}
