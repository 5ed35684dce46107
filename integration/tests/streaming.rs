//! Exec sessions: every protocol, streams, terminals and exit codes.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use zcri_integration::session::{count, fifos, gone, open};
use zcri_integration::stream_client::{Remote, SPDY, Status, Streams, Transport, WEBSOCKET};
use zcri_integration::{Test, TestNode, wait};

/// Every protocol of both transports.
const TRANSPORTS: [Transport; 9] = [
    SPDY,
    Transport::Spdy("v3.channel.k8s.io"),
    Transport::Spdy("v2.channel.k8s.io"),
    Transport::Spdy("channel.k8s.io"),
    WEBSOCKET,
    Transport::WebSocket("v4.channel.k8s.io"),
    Transport::WebSocket("v4.base64.channel.k8s.io"),
    Transport::WebSocket("channel.k8s.io"),
    Transport::WebSocket("base64.channel.k8s.io"),
];

#[tokio::test]
async fn every_protocol_brings_output_and_the_end() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in TRANSPORTS {
        for (script, code) in [
            ("echo out; echo err >&2", 0),
            ("echo out; echo err >&2; exit 7", 7),
        ] {
            let session = open(&node, &id, script, transport, Streams::OUTPUT).await?;
            let ended = session
                .finish()
                .await
                .with_context(|| format!("{transport:?}"))?;
            assert_eq!(
                (ended.text().as_str(), ended.errors().as_str()),
                ("out\n", "err\n"),
                "{transport:?}"
            );
            match ended.status {
                Status::Code(seen) => assert_eq!(seen, code, "{transport:?}"),
                // The elders have no place for a number.
                Status::Failure(text) => {
                    ensure!(code == 7 && text.contains('7'), "{transport:?}: {text}")
                }
            }
        }
    }
    node.finish().await
}

#[tokio::test]
async fn every_exit_code_and_signal_is_told() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 127", 127),
        ("exit 128", 128),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
    ] {
        for transport in [SPDY, WEBSOCKET] {
            let ended = open(&node, &id, script, transport, Streams::OUTPUT)
                .await?
                .finish()
                .await?;
            assert_eq!(ended.code()?, code, "{script} {transport:?}");
        }
    }
    node.finish().await
}

#[tokio::test]
async fn the_end_of_input_is_the_end_for_the_command() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        let session = open(&node, &id, "cat; echo done", transport, Streams::ALL).await?;
        session.input.write(b"x\n").await?;
        session.input.close().await?;
        let ended = session.finish().await?;
        assert_eq!((ended.text().as_str(), ended.code()?), ("x\ndone\n", 0));
        // One that reads none of it.
        let session = open(&node, &id, "exit 3", transport, Streams::ALL).await?;
        session.input.write(&vec![b'x'; 300_000]).await.ok();
        assert_eq!(session.finish().await?.code()?, 3);
    }
    node.finish().await
}

/// More in both directions than any buffer on the way holds.
#[tokio::test]
async fn much_goes_in_and_comes_out_unchanged() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let noise = zcri_integration::images::noise(7, 12 << 20);
    for transport in [SPDY, WEBSOCKET] {
        let session = open(&node, &id, "cat", transport, Streams::ALL).await?;
        let input = session.input.clone();
        let send = async {
            input.write(&noise).await?;
            input.close().await
        };
        let (sent, ended) = tokio::join!(send, session.finish());
        sent?;
        let ended = ended?;
        ensure!(
            ended.stdout == noise,
            "{transport:?}: {} bytes",
            ended.stdout.len()
        );
    }
    node.finish().await
}

#[tokio::test]
async fn a_terminal_has_a_size_an_echo_and_control_characters() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        let script = "test -t 0 && test -t 1 && test -t 2 && echo tty; echo ready; \
                      while true; do read -r line || break; echo got $line; stty size; done; exit 9";
        let mut session = open(&node, &id, script, transport, Streams::TTY).await?;
        session.input.resize(101, 37).await?;
        session.expect("tty\r\nready\r\n").await?;
        session.prod("37 101\r\n").await?;
        session.input.resize(80, 24).await?;
        session.prod("24 80\r\n").await?;
        // Ctrl-D at the begin of a line is the end of the input.
        session.input.write(&[4]).await?;
        assert_eq!(session.finish().await?.code()?, 9);
        // Ctrl-C is a signal.
        let mut session = open(&node, &id, "echo go; sleep 7777", transport, Streams::TTY).await?;
        session.expect("go\r\n").await?;
        session.input.write(&[3]).await?;
        assert_eq!(session.finish().await?.code()?, 130);
    }
    node.finish().await
}

/// A size that is told while the command is still being started is not lost. The command waits for it, as the client may
/// be slower than the start.
#[tokio::test]
async fn a_size_told_at_once_is_not_lost() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    // Until there is one, busybox's stty says nothing on its output, and others say `0 0`.
    let script =
        "until size=$(stty size 2>/dev/null); test -n \"${size#0 0}\"; do :; done; echo $size";
    for transport in [SPDY, WEBSOCKET] {
        let session = open(&node, &id, script, transport, Streams::TTY).await?;
        session.input.resize(132, 50).await?;
        let ended = session.finish().await?;
        assert_eq!(
            (ended.text().as_str(), ended.code()?),
            ("50 132\r\n", 0),
            "{transport:?}"
        );
    }
    node.finish().await
}

#[tokio::test]
async fn what_cannot_be_run_has_a_shells_code_and_the_runtimes_words() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        for (program, code) in [
            ("/no/such/program", 127),
            ("nosuchprogram", 127),
            ("/etc/passwd", 126),
        ] {
            for streams in [Streams::OUTPUT, Streams::TTY] {
                let url = node.cri().exec_url(&id, [program], streams).await?;
                let ended = Remote::open(&url, transport, streams)
                    .await?
                    .finish()
                    .await?;
                assert_eq!(ended.code()?, code, "{program} {transport:?} {ended:?}");
                let said = if streams.tty {
                    ended.text()
                } else {
                    ended.errors()
                };
                ensure!(said.contains(program), "{program} {transport:?} {ended:?}");
            }
        }
    }
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    node.finish().await
}

#[tokio::test]
async fn the_last_bytes_come_and_a_holder_of_the_output_holds_nobody_up() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        let script = "head -c 5000000 /dev/zero; echo last; sleep 8888 & exit 4";
        let start = Instant::now();
        let ended = open(&node, &id, script, transport, Streams::OUTPUT)
            .await?
            .finish()
            .await?;
        ensure!(ended.stdout.len() == 5_000_005 && ended.stdout.ends_with(b"last\n"));
        assert_eq!(ended.code()?, 4);
        ensure!(
            start.elapsed() < Duration::from_secs(15),
            "{:?}",
            start.elapsed()
        );
        // The same through a terminal, byte for byte but for the carriage return.
        let script = "stty -opost; head -c 500000 /dev/zero; echo last; exit 4";
        let ended = open(&node, &id, script, transport, Streams::TTY)
            .await?
            .finish()
            .await?;
        ensure!(ended.stdout.len() == 500_005 && ended.stdout.ends_with(b"last\n"));
        assert_eq!(ended.code()?, 4);
    }
    // What a command left behind when it ended is the container's.
    assert_eq!(count(&node, &id, "sleep 8888").await?, 2);
    node.finish().await
}

#[tokio::test]
async fn a_slow_client_slows_its_own_command_only() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        // Never reads.
        let script = "i=0; while true; do head -c 100000 /dev/zero; i=$((i+1)); echo $i > /tmp/written; done";
        let mut slow = open(&node, &id, script, transport, Streams::OUTPUT).await?;
        let written = async || -> Result<u64> {
            let text = node.exec(&id, "cat /tmp/written").await?;
            Ok(text.stdout.trim().parse().unwrap_or(0))
        };
        // It comes to a stop, after what the buffers on the way hold.
        let mut before = 0;
        wait::until(
            "the command to wait for its client",
            wait::PATIENCE,
            async || {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let now = written().await?;
                let stopped = now > 0 && now == before;
                before = now;
                Ok(stopped.then_some(()))
            },
        )
        .await?;
        ensure!(
            before < 300,
            "{before} times 100 kB were taken from a client that does not read"
        );
        // Others do not notice.
        let quick = open(
            &node,
            &id,
            "head -c 3000000 /dev/zero",
            transport,
            Streams::OUTPUT,
        )
        .await?;
        assert_eq!(quick.finish().await?.stdout.len(), 3_000_000);
        // It goes on when it is read.
        while slow.seen.stdout.len() < 40_000_000 {
            slow.next().await?.context("the session ended")?;
        }
        // For a moment the file is empty.
        wait::until("the command to go on", wait::PATIENCE, async || {
            Ok((written().await? > before).then_some(()))
        })
        .await?;
        drop(slow);
        gone(&node, &id, "/tmp/written").await?;
    }
    node.finish().await
}
