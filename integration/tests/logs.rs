//! Container logs: the format, long lines, both streams, rotation, terminals, standard input.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use zcri_integration::cri_log::stream;
use zcri_integration::pod::words;
use zcri_integration::v1::ContainerState;
use zcri_integration::{Test, TestNode, cri_log, wait};

/// Bytes of text in one entry at most (containerd and CRI-O: 16 KiB).
const ENTRY: usize = 16 * 1024;

#[tokio::test]
async fn both_streams_are_logged_line_by_line() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words([
        "/bin/sh",
        "-c",
        "echo one; echo two >&2; echo; echo '  spaced  '; printf 'a\\tb\\\\n\\n'; printf unfinished",
    ]);
    let ended = pod.run(&config).await?;
    assert_eq!(
        stream(&ended.lines, "stdout").trim_end(),
        "one\n\n  spaced  \na\tb\\n\nunfinished"
    );
    assert_eq!(stream(&ended.lines, "stderr"), "two\n");
    let times: Vec<&str> = ended.lines.iter().map(|line| line.time.as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    node.finish().await
}

#[tokio::test]
async fn long_lines_are_split_and_marked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; echo short";
    config.command = words(["/bin/sh", "-c", script]);
    let ended = pod.run(&config).await?;
    let long = ended
        .lines
        .iter()
        .filter(|line| line.text.starts_with('x'))
        .collect::<Vec<_>>();
    assert!(long.iter().all(|line| line.text.len() <= ENTRY));
    assert!(
        long.len() >= 3 && long[..long.len() - 1].iter().all(|line| line.partial),
        "{} entries",
        long.len()
    );
    let wanted = format!("{}\n{}\nshort\n", "x".repeat(40_000), "y".repeat(16_384));
    assert_eq!(stream(&ended.lines, "stdout"), wanted);
    assert!(!ended.lines.last().context("a last line")?.partial);
    node.finish().await
}

#[tokio::test]
async fn bytes_that_are_no_text_are_logged_as_they_are() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/sh", "-c", "printf 'a\\377\\000b\\n'"]);
    let id = pod.start(&config).await?;
    node.exited(&id).await?;
    let log = std::fs::read(pod.log_path(&config))?;
    ensure!(
        log.ends_with(b" stdout F a\xff\0b\n"),
        "{:?}",
        String::from_utf8_lossy(&log)
    );
    node.finish().await
}

/// kubelet: rename the file, call ReopenContainerLog, compress the renamed one.
#[tokio::test]
async fn rotation_loses_and_repeats_no_line() -> Test {
    const LINES: usize = 20_000;
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/sh", "-c", &format!("seq 1 {LINES}; sleep 1000000")]);
    let id = pod.start(&config).await?;
    let current = pod.log_path(&config);
    let mut files = Vec::new();
    for n in 0..5 {
        let rotated = current.with_extension(format!("log.{n}"));
        wait::until_true("the log file", wait::PATIENCE, || current.exists()).await?;
        std::fs::rename(&current, &rotated)?;
        node.cri().reopen_log(&id).await?;
        ensure!(current.exists(), "no new file when the call returns");
        files.push(rotated);
    }
    files.push(current);
    let all = || -> anyhow::Result<String> {
        let texts: Vec<String> = files
            .iter()
            .map(std::fs::read_to_string)
            .collect::<Result<_, _>>()?;
        Ok(texts.concat())
    };
    wait::until("all lines", wait::PATIENCE, async || {
        Ok((all()?.lines().count() >= LINES).then_some(()))
    })
    .await?;
    let lines = cri_log::parse(&all()?)?;
    ensure!(
        lines.iter().map(|line| line.text.as_str()).eq((1..=LINES)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str)),
        "{} lines are not 1 to {LINES}",
        lines.len()
    );
    node.finish().await
}

#[tokio::test]
async fn a_reopened_log_belongs_to_a_running_container() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    node.cri().stop(&id, 0).await?;
    let status = node
        .cri()
        .reopen_log(&id)
        .await
        .err()
        .context("the log of an exited container was reopened")?;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
    node.finish().await
}

#[tokio::test]
async fn a_container_without_a_log_path_runs() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.log_path.clear();
    config.command = words(["/bin/sh", "-c", "seq 1 100000; exit 4"]);
    let id = pod.start(&config).await?;
    assert_eq!(node.exited(&id).await?.exit_code, 4);
    node.finish().await
}

#[tokio::test]
async fn a_terminal_is_one_when_asked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let mut config = node.container_config("c").await?;
    config.tty = true;
    config.command = words([
        "/bin/sh",
        "-c",
        "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo err >&2; echo $TERM",
    ]);
    let ended = pod.run(&config).await?;
    let text = stream(&ended.lines, "stdout");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        ["/dev/pts/0", "terminal", "err", "xterm"],
        "a terminal has one stream"
    );
    let mut plain = node.container_config("plain").await?;
    plain.command = words(["/bin/sh", "-c", "tty; test -t 1 || echo no terminal"]);
    assert_eq!(
        pod.run(&plain).await?.output().stdout,
        "not a tty\nno terminal\n"
    );
    node.finish().await
}

#[tokio::test]
async fn standard_input_stays_open_only_when_asked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let script = words(["/bin/sh", "-c", "echo reading; cat; echo end of input"]);
    let mut closed = node.container_config("closed").await?;
    closed.command.clone_from(&script);
    let ended = pod.run(&closed).await?;
    assert_eq!(ended.output().stdout, "reading\nend of input\n");
    let mut open = node.container_config("open").await?;
    open.command = script;
    (open.stdin, open.stdin_once) = (true, true);
    let id = pod.start(&open).await?;
    wait::until_true("the program to read", wait::PATIENCE, || {
        pod.log(&open).is_ok_and(|lines| !lines.is_empty())
    })
    .await?;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(
        node.cri().status(&id).await?.state(),
        ContainerState::ContainerRunning,
        "its input ended"
    );
    node.finish().await
}
