//! Exec sessions whose client, container or daemon goes away, and what is left of them.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use zcri_integration::leaks::processes_with;
use zcri_integration::session::{count, descriptors, fifos, gone, open};
use zcri_integration::stream_client::{Remote, SPDY, Streams, Transport, WEBSOCKET};
use zcri_integration::{Test, TestNode, wait};

/// Sessions that have said `up`.
async fn begin<const N: usize>(
    node: &TestNode,
    id: &str,
    script: &str,
    ways: [(Transport, Streams); N],
) -> Result<Vec<Remote>> {
    let mut sessions = Vec::new();
    for (transport, streams) in ways {
        let mut session = open(node, id, script, transport, streams).await?;
        session.expect("up").await?;
        sessions.push(session);
    }
    Ok(sessions)
}

/// No FIFO is left in the bundle, and the daemon comes back to the descriptors it had before.
async fn nothing_is_left(node: &TestNode, id: &str, before: usize) -> Result<()> {
    assert_eq!(fifos(node, id)?, Vec::<String>::new());
    wait::until("the descriptors to be closed", wait::PATIENCE, async || {
        Ok((descriptors(node)? <= before).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_command_with_all_that_descends_from_it() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    node.exec(&id, "true").await?;
    let before = descriptors(&node)?;
    for transport in [SPDY, WEBSOCKET] {
        for (streams, last) in [
            (Streams::ALL, "cat; sleep 7777"),
            (Streams::TTY, "cat; sleep 7777"),
            // One that would end by itself with its input.
            (Streams::ALL, "cat"),
        ] {
            let script =
                format!("setsid sleep 7777 & (sleep 7777 &); sleep 7777 & echo up; {last}");
            let script = script.as_str();
            let mut session = open(&node, &id, script, transport, streams).await?;
            session.expect("up").await?;
            ensure!(count(&node, &id, "sleep 7777").await? >= 3);
            drop(session);
            gone(&node, &id, "sleep 7777").await?;
        }
    }
    nothing_is_left(&node, &id, before).await?;
    node.finish().await
}

/// The shim holds what the FIFO does not take, and must let go of it.
#[tokio::test]
async fn a_terminal_that_floods_ends_with_its_client() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        let script = "echo up; while true; do echo 7777777777777777777777777777777777777777; done";
        let mut session = open(&node, &id, script, transport, Streams::TTY).await?;
        session.expect("up").await?;
        // Another session comes through meanwhile, by the same shim.
        let other = open(&node, &id, "stty size", WEBSOCKET, Streams::TTY).await?;
        ensure!(other.finish().await?.code()? == 0);
        drop(session);
        gone(&node, &id, "7777777777").await?;
        // One whose command is over, with output that nobody has taken.
        let script = "head -c 1000000 /dev/zero; exit 3";
        let session = open(&node, &id, script, transport, Streams::TTY).await?;
        gone(&node, &id, "head -c 1000000").await?;
        drop(session);
    }
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    node.finish().await
}

#[tokio::test]
async fn the_containers_end_is_the_end_of_its_sessions() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let ways = [(SPDY, Streams::ALL), (WEBSOCKET, Streams::TTY)];
    let sessions = begin(&node, &id, "echo up; cat", ways).await?;
    node.cri().stop(&id, 0).await?;
    for session in sessions {
        assert_eq!(session.finish().await?.code()?, 137);
    }
    node.finish().await
}

#[tokio::test]
async fn many_sessions_at_once_leave_nothing() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    node.exec(&id, "true").await?;
    let before = descriptors(&node)?;
    let sessions = (0..40).map(|n| {
        let (node, id) = (&node, &id);
        async move {
            let transport = if n % 2 == 0 { SPDY } else { WEBSOCKET };
            let streams = if n % 4 < 2 {
                Streams::ALL
            } else {
                Streams::TTY
            };
            let mut session = open(
                node,
                id,
                &format!("read x; echo {n} $x; exit {n}"),
                transport,
                streams,
            )
            .await?;
            session.input.write(b"hello\n").await?;
            session.expect(&format!("{n} hello")).await?;
            let ended = session.finish().await?;
            ensure!(ended.code()? == n, "{n}: {ended:?}");
            Ok(())
        }
    });
    try_join_all(sessions.collect::<Vec<_>>()).await?;
    nothing_is_left(&node, &id, before).await?;
    node.finish().await
}

#[tokio::test]
async fn a_daemon_that_stops_ends_its_sessions_and_their_commands() -> Test {
    let mut node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    // If it read the end of its input first, it would end by itself, and leave what it has in the background.
    let script = "sleep 7777 & echo up; cat";
    let ways = [(SPDY, Streams::ALL), (WEBSOCKET, Streams::ALL)];
    let sessions = begin(&node, &id, script, ways).await?;
    let status = node.stop_daemon().await?;
    ensure!(status.success(), "{status}");
    for mut session in sessions {
        // Whatever is said, it ends.
        while session.next().await?.is_some() {}
    }
    // Killed they are; when they are gone is the kernel's affair.
    wait::until_true("the end of the commands", wait::PATIENCE, || {
        processes_with(node.slot(), "sleep 7777").is_empty()
    })
    .await?;
    node.start_daemon().await?;
    assert_eq!(node.exec(&id, "echo alive").await?.success()?, "alive");
    node.finish().await
}

#[tokio::test]
async fn commands_of_a_daemon_that_was_killed_are_ended_by_the_next() -> Test {
    let mut node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let script = "sleep 7777 & echo up; exec sleep 7777";
    let ways = [(SPDY, Streams::ALL), (WEBSOCKET, Streams::TTY)];
    let sessions = begin(&node, &id, script, ways).await?;
    // ExecSync too.
    let probe = tokio::spawn({
        let (cri, id) = (node.cri().clone(), id.clone());
        async move { cri.exec(&id, ["/bin/sleep", "7777"], 0).await }
    });
    wait::until("all to run", wait::PATIENCE, async || {
        Ok((count(&node, &id, "sleep 7777").await? == 5).then_some(()))
    })
    .await?;
    node.kill_daemon().await?;
    probe.abort();
    drop(sessions);
    ensure!(!processes_with(node.slot(), "sleep 7777").is_empty());
    node.start_daemon().await?;
    gone(&node, &id, "sleep 7777").await?;
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    node.finish().await
}
