//! Exec sessions: every protocol, streams, terminals, exit codes, and what is left when somebody goes away.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use tonic::Code;
use zcri_integration::stream_client::{
    Refused, Remote, SPDY, Status, Streams, Transport, WEBSOCKET, get,
};
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

async fn open(
    node: &TestNode,
    id: &str,
    script: &str,
    transport: Transport,
    streams: Streams,
) -> Result<Remote> {
    let url = node
        .cri()
        .exec_url(id, ["/bin/sh", "-c", script], streams)
        .await?;
    Remote::open(&url, transport, streams).await
}

/// Programs in a container whose arguments hold `text`.
async fn count(node: &TestNode, id: &str, text: &str) -> Result<usize> {
    let found = node
        .exec(
            id,
            "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null",
        )
        .await?;
    // The program that looks has the text nowhere.
    Ok(found
        .stdout
        .lines()
        .filter(|line| line.contains(text))
        .count())
}

async fn gone(node: &TestNode, id: &str, text: &str) -> Result<()> {
    wait::until("the processes to end", wait::PATIENCE, async || {
        Ok((count(node, id, text).await? == 0).then_some(()))
    })
    .await
}

/// FIFOs in the container's bundle.
fn fifos(node: &TestNode, id: &str) -> Result<Vec<String>> {
    let bundle = node.files().state.join("containers").join(id);
    let mut found = zcri_integration::images::tree(&bundle.join("."))?;
    found.retain(|path| {
        ["exec-", "sync-", "attach-"]
            .iter()
            .any(|p| path.starts_with(p))
    });
    Ok(found)
}

fn descriptors(node: &TestNode) -> Result<usize> {
    let pid = node.daemon_pid()?.as_raw_nonzero();
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

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
    let script = "while [ \"$(stty size)\" = '0 0' ]; do :; done; stty size";
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
    let node = TestNode::builder()
        .allow_log("did not start")
        .start()
        .await?;
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
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    wait::until("the descriptors to be closed", wait::PATIENCE, async || {
        Ok((descriptors(&node)? <= before).then_some(()))
    })
    .await?;
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
async fn requests_are_checked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let cri = node.cri();
    let code = |result: std::result::Result<String, tonic::Status>| result.err().map(|s| s.code());
    let cmd = ["/bin/true"];
    let none = Streams::default();
    let both = Streams {
        stderr: true,
        ..Streams::TTY
    };
    assert_eq!(
        code(cri.exec_url("", cmd, Streams::OUTPUT).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, cmd, none).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, cmd, both).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, [""; 0], Streams::OUTPUT).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url("nobody", cmd, Streams::OUTPUT).await),
        Some(Code::NotFound)
    );
    assert_eq!(
        code(cri.attach_url(&id, none).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.attach_url(&id, both).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.attach_url("nobody", Streams::OUTPUT).await),
        Some(Code::NotFound)
    );
    assert_eq!(
        code(cri.port_forward_url("", &[80]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url(&pod.id, &[0]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url(&pod.id, &[65536]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url("nobody", &[80]).await),
        Some(Code::NotFound)
    );
    node.finish().await
}

#[tokio::test]
async fn what_does_not_run_has_no_session() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let cri = node.cri();
    let code = |result: std::result::Result<String, tonic::Status>| result.err().map(|s| s.code());
    let cmd = ["/bin/true"];
    let created = pod.create(&node.container_config("created").await?).await?;
    assert_eq!(
        code(cri.exec_url(&created, cmd, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    assert_eq!(
        code(cri.attach_url(&created, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    // Between the URL and its use the container ends.
    let exec = cri.exec_url(&id, cmd, Streams::OUTPUT).await?;
    let attach = cri.attach_url(&id, Streams::OUTPUT).await?;
    cri.stop(&id, 0).await?;
    assert_eq!(
        code(cri.exec_url(&id, cmd, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    for (url, transport) in [(exec, SPDY), (attach, WEBSOCKET)] {
        let ended = Remote::open(&url, transport, Streams::OUTPUT)
            .await?
            .finish()
            .await?;
        match ended.status {
            Status::Failure(text) => {
                ensure!(text.contains("exited") && text.contains(&id), "{text}")
            }
            Status::Code(code) => anyhow::bail!("ended with {code}"),
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_url_is_for_one_use_and_there_is_a_bound() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let url = node
        .cri()
        .exec_url(&id, ["/bin/true"], Streams::OUTPUT)
        .await?;
    assert_eq!(
        Remote::open(&url, SPDY, Streams::OUTPUT)
            .await?
            .finish()
            .await?
            .code()?,
        0
    );
    let again = Remote::open(&url, SPDY, Streams::OUTPUT)
        .await
        .err()
        .context("a second use")?;
    let refused = again.downcast::<Refused>()?;
    assert_eq!(refused.status, 404, "{refused}");
    let guess = format!("{}x", url);
    assert_eq!(get(&guess).await?, 404);
    let mut full = None;
    for _ in 0..5000 {
        if let Err(status) = node
            .cri()
            .exec_url(&id, ["/bin/true"], Streams::OUTPUT)
            .await
        {
            full = Some(status.code());
            break;
        }
    }
    assert_eq!(full, Some(Code::ResourceExhausted));
    node.finish().await
}

#[tokio::test]
async fn the_containers_end_is_the_end_of_its_sessions() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let mut sessions = Vec::new();
    for (transport, streams) in [(SPDY, Streams::ALL), (WEBSOCKET, Streams::TTY)] {
        let mut session = open(&node, &id, "echo up; cat", transport, streams).await?;
        session.expect("up").await?;
        sessions.push(session);
    }
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
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    wait::until("the descriptors to be closed", wait::PATIENCE, async || {
        Ok((descriptors(&node)? <= before).then_some(()))
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn a_daemon_that_stops_ends_its_sessions_and_their_commands() -> Test {
    let mut node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let mut sessions = Vec::new();
    for transport in [SPDY, WEBSOCKET] {
        // If it read the end of its input first, it would end by itself, and leave what it has in the background.
        let mut session = open(
            &node,
            &id,
            "sleep 7777 & echo up; cat",
            transport,
            Streams::ALL,
        )
        .await?;
        session.expect("up").await?;
        sessions.push(session);
    }
    let status = node.stop_daemon().await?;
    ensure!(status.success(), "{status}");
    for mut session in sessions {
        // Whatever is said, it ends.
        while session.next().await?.is_some() {}
    }
    // Killed they are; when they are gone is the kernel's affair.
    wait::until_true("the end of the commands", wait::PATIENCE, || {
        zcri_integration::leaks::processes_with(node.slot(), "sleep 7777").is_empty()
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
    let mut sessions = Vec::new();
    for (transport, streams) in [(SPDY, Streams::ALL), (WEBSOCKET, Streams::TTY)] {
        let mut session = open(
            &node,
            &id,
            "sleep 7777 & echo up; exec sleep 7777",
            transport,
            streams,
        )
        .await?;
        session.expect("up").await?;
        sessions.push(session);
    }
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
    ensure!(!zcri_integration::leaks::processes_with(node.slot(), "sleep 7777").is_empty());
    node.start_daemon().await?;
    gone(&node, &id, "sleep 7777").await?;
    assert_eq!(fifos(&node, &id)?, Vec::<String>::new());
    node.finish().await
}
