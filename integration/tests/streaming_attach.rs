//! Attach sessions: what is seen, whose input it is, and that nobody but the client notices the client.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::words;
use zcri_integration::stream_client::{Remote, SPDY, Streams, Transport, WEBSOCKET};
use zcri_integration::v1::{ContainerConfig, ContainerState};
use zcri_integration::{Pod, Test, TestNode, cri_log, wait};

const BOTH: [Transport; 2] = [SPDY, WEBSOCKET];

async fn container(
    node: &TestNode,
    pod: &Pod<'_>,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<(String, ContainerConfig)> {
    let mut config = node.container_config(name).await?;
    config.command = words(["/bin/sh", "-c", script]);
    change(&mut config);
    Ok((pod.start(&config).await?, config))
}

async fn attach(
    node: &TestNode,
    id: &str,
    transport: Transport,
    streams: Streams,
) -> Result<Remote> {
    let url = node.cri().attach_url(id, streams).await?;
    Remote::open(&url, transport, streams).await
}

async fn is_running(node: &TestNode, id: &str) -> Result<bool> {
    let state = node.cri().status(id).await?.state;
    Ok(state == i32::from(ContainerState::ContainerRunning))
}

/// Output of a container so far.
fn logged(pod: &Pod<'_>, config: &ContainerConfig) -> Result<String> {
    Ok(cri_log::stream(&pod.log(config)?, "stdout"))
}

#[tokio::test]
async fn clients_see_the_same_and_the_last_words_in_full() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (round, transport) in BOTH.into_iter().enumerate() {
        let script = "echo early; until test -e /tmp/go; do sleep 0.01; done; echo err >&2; \
                      i=0; while test $i -lt 20000; do echo line $i; i=$((i+1)); done; echo last; exit 6";
        let (id, config) = container(&node, &pod, &format!("c{round}"), script, |_| ()).await?;
        wait::until("the first line", wait::PATIENCE, async || {
            Ok(logged(&pod, &config)
                .is_ok_and(|text| text == "early\n")
                .then_some(()))
        })
        .await?;
        let first = attach(&node, &id, transport, Streams::OUTPUT).await?;
        let second = attach(
            &node,
            &id,
            transport,
            Streams {
                stderr: false,
                ..Streams::OUTPUT
            },
        )
        .await?;
        node.exec(&id, "touch /tmp/go").await?;
        let (first, second) = tokio::join!(first.finish(), second.finish());
        let (first, second) = (first?, second?);
        let text = first.text();
        ensure!(
            text.starts_with("line 0\n") && text.ends_with("line 19999\nlast\n"),
            "{} bytes",
            text.len()
        );
        assert_eq!(first.errors(), "err\n");
        assert_eq!(second.stdout, first.stdout);
        // The attachment went well, whatever became of the container.
        assert_eq!((first.code()?, second.code()?), (0, 0));
        assert_eq!(node.exited(&id).await?.exit_code, 6);
        assert_eq!(logged(&pod, &config)?, format!("early\n{text}"));
    }
    node.finish().await
}

#[tokio::test]
async fn input_that_is_given_away_once_ends_with_its_first_client() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (round, transport) in BOTH.into_iter().enumerate() {
        let once = |config: &mut ContainerConfig| (config.stdin, config.stdin_once) = (true, true);
        let (id, _) = container(
            &node,
            &pod,
            &format!("a{round}"),
            "cat; echo end; exit 2",
            once,
        )
        .await?;
        let mut session = attach(&node, &id, transport, Streams::ALL).await?;
        session.input.write(b"hello\n").await?;
        session.expect("hello\n").await?;
        // It is the first one's: what another sends is nobody's.
        let mut other = attach(&node, &id, transport, Streams::ALL).await?;
        other.input.write(b"intruder\n").await?;
        other.input.close().await?;
        // It is attached once it sees something.
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let nagging = async {
            loop {
                ticks.tick().await;
                session.input.write(b"again\n").await?;
            }
        };
        tokio::select! {
            seen = other.expect("again\n") => seen?,
            failed = nagging => return failed,
        }
        session.input.close().await?;
        let (ended, other) = tokio::join!(session.finish(), other.finish());
        let ended = ended?.text();
        let words = ended
            .strip_prefix("hello\n")
            .and_then(|rest| rest.strip_suffix("end\n"));
        let again = words.with_context(|| ended.clone())?;
        ensure!(again.lines().all(|line| line == "again"), "{ended:?}");
        ensure!(other?.text().ends_with("again\nend\n"));
        assert_eq!(node.exited(&id).await?.exit_code, 2);
        // A client that vanishes is an end too.
        let (id, _) = container(&node, &pod, &format!("b{round}"), "cat; exit 3", once).await?;
        let mut session = attach(&node, &id, transport, Streams::ALL).await?;
        session.input.write(b"hello\n").await?;
        session.expect("hello\n").await?;
        drop(session);
        assert_eq!(node.exited(&id).await?.exit_code, 3);
    }
    node.finish().await
}

#[tokio::test]
async fn other_input_stays_open_and_its_end_detaches() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (round, transport) in BOTH.into_iter().enumerate() {
        let open = |config: &mut ContainerConfig| config.stdin = true;
        let (id, config) = container(&node, &pod, &format!("c{round}"), "cat", open).await?;
        for word in ["one\n", "two\n"] {
            let mut session = attach(&node, &id, transport, Streams::ALL).await?;
            session.input.write(word.as_bytes()).await?;
            session.expect(word).await?;
            session.input.close().await?;
            assert_eq!(session.finish().await?.code()?, 0);
        }
        // Just gone.
        let mut session = attach(&node, &id, transport, Streams::ALL).await?;
        session.input.write(b"three\n").await?;
        session.expect("three\n").await?;
        drop(session);
        ensure!(is_running(&node, &id).await?);
        assert_eq!(logged(&pod, &config)?, "one\ntwo\nthree\n");
    }
    node.finish().await
}

#[tokio::test]
async fn a_terminal_is_shared_by_its_clients() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (round, transport) in BOTH.into_iter().enumerate() {
        let script = "echo ready; while read -r line; do echo got $line; stty size; done; exit 8";
        let tty = |config: &mut ContainerConfig| (config.stdin, config.tty) = (true, true);
        let (id, _) = container(&node, &pod, &format!("c{round}"), script, tty).await?;
        let mut first = attach(&node, &id, transport, Streams::TTY).await?;
        let mut second = attach(&node, &id, transport, Streams::TTY).await?;
        // It is attached once it sees something.
        second.prod("got").await?;
        first.input.resize(90, 30).await?;
        first.input.write(b"one\n").await?;
        for session in [&mut first, &mut second] {
            session.expect("got one\r\n").await?;
        }
        second.input.resize(91, 31).await?;
        second.prod("\r\n31 91\r\n").await?;
        first.expect("\r\n31 91\r\n").await?;
        drop(second);
        first.input.write(b"three\n").await?;
        first.expect("got three\r\n").await?;
        // Ctrl-D ends the script, which ends the session.
        first.input.write(&[4]).await?;
        assert_eq!(first.finish().await?.code()?, 0);
        assert_eq!(node.exited(&id).await?.exit_code, 8);
    }
    node.finish().await
}

#[tokio::test]
async fn a_slow_client_loses_output_and_is_told_and_nobody_else_notices() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    for (round, transport) in BOTH.into_iter().enumerate() {
        // More than the socket's buffers and the FIFO hold together.
        let script = "until test -e /tmp/go; do sleep 0.01; done; head -c 40000000 /dev/zero | tr '\\0' q; echo end";
        let (id, config) = container(&node, &pod, &format!("c{round}"), script, |_| ()).await?;
        let slow = attach(&node, &id, transport, Streams::OUTPUT).await?;
        let quick = attach(&node, &id, transport, Streams::OUTPUT).await?;
        node.exec(&id, "touch /tmp/go").await?;
        // The slow one reads nothing until the container has ended.
        let quick = quick.finish().await?;
        assert_eq!(node.exited(&id).await?.exit_code, 0);
        let log = logged(&pod, &config)?;
        assert_eq!(
            (
                log.len(),
                log.ends_with("q\nend\n") || log.ends_with("qend\n")
            ),
            (40_000_004, true)
        );
        let slow = slow.finish().await?;
        for (name, session) in [("slow", &slow), ("quick", &quick)] {
            let missing: usize = session
                .errors()
                .split("[zcri: ")
                .skip(1)
                .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
                .sum();
            assert_eq!(
                session.stdout.len() + missing,
                40_000_004,
                "{name}: {}",
                session.errors()
            );
            ensure!(name == "quick" || missing > 0, "nothing is missing");
        }
    }
    node.finish().await
}

#[tokio::test]
async fn only_what_runs_can_be_attached_to() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    // Without a log.
    let (id, _) = container(
        &node,
        &pod,
        "c",
        "echo unseen; until test -e /tmp/go; do sleep 0.01; done; echo seen",
        |config| {
            config.log_path.clear();
        },
    )
    .await?;
    let session = attach(&node, &id, SPDY, Streams::OUTPUT).await?;
    node.exec(&id, "touch /tmp/go").await?;
    ensure!(session.finish().await?.text().ends_with("seen\n"));
    node.exited(&id).await?;
    let refused = node.cri().attach_url(&id, Streams::OUTPUT).await.err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(Code::FailedPrecondition)
    );
    node.finish().await
}

#[tokio::test]
async fn a_daemon_that_dies_detaches_and_its_input_ends_with_it() -> Test {
    let mut node = TestNode::start().await?;
    let (once, open);
    let sessions = {
        let pod = node.pod("p").await?;
        let cat = "cat; exit 5";
        let given = |config: &mut ContainerConfig| (config.stdin, config.stdin_once) = (true, true);
        once = container(&node, &pod, "once", cat, given).await?.0;
        open = container(&node, &pod, "open", cat, |config| config.stdin = true)
            .await?
            .0;
        let mut sessions = Vec::new();
        for id in [&once, &open] {
            let mut session = attach(&node, id, WEBSOCKET, Streams::ALL).await?;
            session.input.write(b"hello\n").await?;
            session.expect("hello\n").await?;
            sessions.push(session);
        }
        sessions
    };
    node.kill_daemon().await?;
    drop(sessions);
    node.start_daemon().await?;
    assert_eq!(node.exited(&once).await?.exit_code, 5);
    let mut session = attach(&node, &open, SPDY, Streams::ALL).await?;
    session.input.write(b"again\n").await?;
    session.expect("again\n").await?;
    // An orderly stop detaches too.
    node.stop_daemon().await?;
    while session.next().await?.is_some() {}
    node.start_daemon().await?;
    ensure!(is_running(&node, &open).await?);
    node.finish().await
}
