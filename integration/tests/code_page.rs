//! Output in IBM-1047 becomes UTF-8: in the log, for ExecSync, for sessions; and who says that it does.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::words;
use zcri_integration::session::open;
use zcri_integration::stream_client::{Remote, SPDY, Streams, WEBSOCKET};
use zcri_integration::v1::{ContainerConfig, Mount};
use zcri_integration::{Pod, Test, TestNode, cri_log, images, wait};

/// The annotation, and the label of an image.
const NAME: &str = "zcri.io/output-code-page";
/// What of an output ExecSync gives (api.proto).
const LIMIT: usize = 16 << 20;

/// What iconv makes of a text, which is the judge here.
fn iconv(from: &str, to: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("iconv")
        .args(["-f", from, "-t", to])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("iconv")?;
    child.stdin.take().context("a pipe")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "iconv: {output:?}");
    Ok(output.stdout)
}

/// All bytes that there are, then a line for each of the two ends that lines have.
fn ebcdic() -> Result<Vec<u8>> {
    let mut bytes: Vec<u8> = (0..=255).collect();
    for (line, end) in [("ended by NL", 0x15), ("ended by LF, \u{fc}", 0x25)] {
        bytes.extend(iconv("UTF-8", "IBM1047", line.as_bytes())?);
        bytes.push(end);
    }
    Ok(bytes)
}

fn utf8(bytes: &[u8]) -> Result<String> {
    let text = String::from_utf8(iconv("IBM1047", "UTF-8", bytes)?)?;
    // Strictly 0x15 is NEXT LINE, at which no reader of a log ends a line.
    Ok(text.replace('\u{85}', "\n"))
}

/// A directory of the node that containers see as `/data`, with `all` in it.
fn data(node: &TestNode) -> Result<(PathBuf, Mount)> {
    let dir = node.scratch("data")?;
    std::fs::write(dir.join("all"), ebcdic()?)?;
    let mount = Mount {
        host_path: dir.display().to_string(),
        container_path: "/data".into(),
        ..Default::default()
    };
    Ok((dir, mount))
}

async fn in_ebcdic(node: &TestNode, script: &str, mount: &Mount) -> Result<ContainerConfig> {
    let mut config = node.container_config("c").await?;
    config.command = words(["/bin/sh", "-c", script]);
    config.mounts = vec![mount.clone()];
    config.annotations.insert(NAME.into(), "IBM-1047".into());
    Ok(config)
}

/// Log, attach, ExecSync and exec, on a node of either kind.
async fn all_ways(node: TestNode, zos: bool) -> Test {
    let (dir, mount) = data(&node)?;
    let expected = utf8(&ebcdic()?)?;
    ensure!(expected.contains("ended by NL\nended by LF, \u{fc}\n"));
    let pod = if zos {
        node.run_pod(node.host_pod_config("p")?).await?
    } else {
        node.pod("p").await?
    };
    let script = "until test -e /data/go; do sleep 0.01; done; cat /data/all; cat /data/all >&2; \
                  until test -e /data/end; do sleep 0.01; done";
    let config = in_ebcdic(&node, script, &mount).await?;
    let id = pod.start(&config).await?;
    let url = node.cri().attach_url(&id, Streams::OUTPUT).await?;
    let attached = Remote::open(&url, SPDY, Streams::OUTPUT).await?;
    std::fs::write(dir.join("go"), "")?;
    wait::until("the log", wait::PATIENCE, async || {
        let all = pod.log(&config).is_ok_and(|lines| {
            cri_log::stream(&lines, "stdout") == expected
                && cri_log::stream(&lines, "stderr") == expected
        });
        Ok(all.then_some(()))
    })
    .await?;

    let output = node
        .cri()
        .exec(
            &id,
            ["/bin/sh", "-c", "cat /data/all; cat /data/all >&2; exit 7"],
            30,
        )
        .await?;
    assert_eq!(output.exit_code, 7);
    assert_eq!(String::from_utf8(output.stdout)?, expected);
    assert_eq!(String::from_utf8(output.stderr)?, expected);

    for transport in [SPDY, WEBSOCKET] {
        let script = "cat; cat /data/all; cat /data/all >&2";
        let session = open(&node, &id, script, transport, Streams::ALL).await?;
        // Input is a file's as often as a person's: bytes, as they are.
        session.input.write(b"\x81\x82\x15").await?;
        session.input.close().await?;
        let finished = session.finish().await?;
        assert_eq!(finished.code()?, 0);
        assert_eq!(finished.text(), format!("ab\n{expected}"));
        assert_eq!(finished.errors(), expected);
    }
    std::fs::write(dir.join("end"), "")?;
    let seen = attached.finish().await?;
    assert_eq!(seen.text(), expected);
    assert_eq!(seen.errors(), expected);
    node.exited(&id).await?;
    drop(pod);
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_arrives_by_log_attach_and_exec() -> Test {
    all_ways(TestNode::start().await?, false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_arrives_on_an_lpar() -> Test {
    all_ways(TestNode::start_zos().await?, true).await
}

/// What writes to a terminal in a code page reads from it in that code page: both directions.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_converted_both_ways() -> Test {
    let node = TestNode::start().await?;
    let (dir, mount) = data(&node)?;
    let expected = utf8(&ebcdic()?)?;
    let pod = node.pod("p").await?;
    // The terminal of this kernel knows lines in ASCII only.
    let script = |typed: &str| {
        format!(
            "stty raw -echo; cat /data/all; dd bs=1 count=12 2>/dev/null >/data/{typed}; cat /data/all"
        )
    };
    let typed = "ls -l \u{e4}[] \u{20ac}\n";
    let meant = b"\x93\xa2\x40\x60\x93\x40\x43\xad\xbd\x40\x3f\x15";

    let mut config = in_ebcdic(&node, "", &mount).await?;
    config.command = words(["/bin/sh", "-c", &format!("read x; {}", script("attach"))]);
    (config.tty, config.stdin) = (true, true);
    let id = pod.start(&config).await?;
    let mut sessions = Vec::new();
    let url = node.cri().attach_url(&id, Streams::TTY).await?;
    let attached = Remote::open(&url, SPDY, Streams::TTY).await?;
    // To the terminal of this kernel the end of a line is 0x0a, which SMM is in IBM-1047.
    attached.input.write("\u{8e}".as_bytes()).await?;
    let exec = open(&node, &id, &script("exec"), WEBSOCKET, Streams::TTY).await?;
    // The container ends with the last of them.
    sessions.push(("exec", exec));
    sessions.push(("attach", attached));
    for (name, mut session) in sessions {
        let begun = session.expect("ended by LF, \u{fc}\n").await;
        begun.with_context(|| format!("{name}: {:?}", pod.log(&config)))?;
        // In pieces, as they may come.
        for piece in typed.as_bytes().chunks(1) {
            session.input.write(piece).await?;
        }
        let finished = session.finish().await?;
        let text = finished.text();
        // The echo of what attach was opened with comes before.
        let from = text.find('\0').context("the first byte")?;
        assert_eq!(&text[from..], format!("{expected}{expected}"), "{name}");
        assert_eq!(std::fs::read(dir.join(name))?, meant, "{name}");
    }
    drop(pod);
    node.finish().await
}

/// Runs what prints "HELLO" in EBCDIC; gives what was logged.
async fn hello(pod: &Pod<'_>, image: Option<&str>, annotation: Option<&str>) -> Result<String> {
    let output = pod
        .sh_with("printf '\\310\\305\\323\\323\\326\\025'", |config| {
            if let Some(image) = image {
                config.image.get_or_insert_default().image = image.into();
            }
            if let Some(value) = annotation {
                config.annotations.insert(NAME.into(), value.into());
            }
        })
        .await?;
    // Not converted it is no UTF-8, for which the log's reader has another character.
    let raw = output.stdout.contains('\u{fffd}');
    Ok(if raw { "raw".into() } else { output.stdout })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_that_says_something_decides() -> Test {
    let setting = |value: &str| {
        let runc = zcri_integration::binaries::system("runc", "runc")?;
        let handlers = [("runc", ""), ("ebcdic", value)].map(|(name, value)| {
            format!("[runtime.handlers.{name}]\npath = {runc:?}\noutput_code_page = {value:?}\n")
        });
        anyhow::Ok(handlers.concat())
    };
    let builder = TestNode::builder().config(&setting("IBM-1047")?);
    let mut node = builder.start().await?;
    let mut labelled = Vec::new();
    for (tag, value) in [("on", "IBM-1047"), ("off", "none"), ("wrong", "EBCDIC")] {
        let image = images::busybox()?.label(NAME, value).build();
        node.registry.push("library/labelled", tag, image);
        let reference = node.registry.reference("library/labelled", tag);
        node.cri().pull(&reference).await?;
        labelled.push(reference);
    }
    let [on, off, wrong] = &labelled[..] else {
        anyhow::bail!("three images")
    };
    let plain = node.pod("plain").await?;
    let handled = node
        .run_pod_with(node.pod_config("handled")?, "ebcdic")
        .await?;
    let mut config = node.pod_config("annotated")?;
    config.annotations.insert(NAME.into(), "cp1047".into());
    let annotated = node.run_pod(config).await?;
    for (pod, image, annotation, expected) in [
        (&plain, None, None, "raw"),
        (&plain, None, Some("IBM-1047"), "HELLO\n"),
        (&plain, Some(on), None, "HELLO\n"),
        (&plain, Some(on), Some("none"), "raw"),
        (&plain, Some(wrong), Some(""), "raw"),
        (&handled, None, None, "HELLO\n"),
        (&handled, Some(off), None, "raw"),
        (&handled, None, Some(""), "raw"),
        (&annotated, Some(off), None, "HELLO\n"),
        (&annotated, None, Some("none"), "raw"),
        // Nothing on Linux has a tag.
        (&plain, None, Some("IBM-1047 untagged"), "HELLO\n"),
    ] {
        let found = hello(pod, image.map(String::as_str), annotation).await?;
        assert_eq!(
            found,
            expected,
            "{:?} {image:?} {annotation:?}",
            pod.config.metadata.as_ref().map(|m| &m.name)
        );
    }
    node.allow_log("CreateContainer");
    for (image, annotation, field) in [
        (None, Some("IBM-37"), "config.annotations"),
        (Some(wrong), None, "label"),
    ] {
        let mut config = node.container_config("wrong").await?;
        if let Some(image) = image {
            config.image.get_or_insert_default().image.clone_from(image);
        }
        if let Some(value) = annotation {
            config.annotations.insert(NAME.into(), value.into());
        }
        let refused = node.cri().create(&plain.id, &config, &plain.config).await;
        let refused = refused.err().context("a wrong value was taken")?;
        assert_eq!(refused.code(), Code::InvalidArgument);
        let value = annotation.unwrap_or("EBCDIC");
        for part in [field, NAME, value] {
            ensure!(refused.message().contains(part), "{refused:?}");
        }
    }
    // What a container was made with holds, whatever the next daemon is told.
    let id = handled.sleeper("c").await?;
    drop((plain, handled, annotated));
    node.stop_daemon().await?;
    node.add_config(&setting("none")?)?;
    node.start_daemon().await?;
    let output = node.exec(&id, "printf '\\310\\311'").await?;
    assert_eq!(output.stdout, "HI");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exec_sync_cuts_off_ends_with_a_whole_character() -> Test {
    let node = TestNode::start().await?;
    let (_, mount) = data(&node)?;
    let pod = node.pod("p").await?;
    let config = in_ebcdic(&node, "sleep 1000000", &mount).await?;
    let id = pod.start(&config).await?;
    // An "a", then characters of two bytes: the limit is within one of them.
    let script = "printf '\\201'; head -c 9000000 /dev/zero | tr '\\0' '\\103'";
    let output = node.cri().exec(&id, ["/bin/sh", "-c", script], 60).await?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(text.len(), LIMIT - 1);
    ensure!(text.starts_with("a\u{e4}") && text.ends_with('\u{e4}'));
    drop(pod);
    node.finish().await
}
