//! What `[stream]` says is what the streaming server does.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zcri_integration::session::open;
use zcri_integration::stream_client::{Remote, SPDY, Streams, WEBSOCKET};
use zcri_integration::{Test, TestNode, wait};

/// A free port of this machine, as likely as can be had.
async fn free_port() -> anyhow::Result<u16> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?.port())
}

#[tokio::test]
async fn address_port_and_base_url_are_those_of_the_configuration() -> Test {
    let port = free_port().await?;
    let stream = format!(
        "[stream]\naddress = \"127.0.0.1\"\nport = {port}\nbase_url = \"http://localhost:{port}/\""
    );
    let node = TestNode::builder().config(&stream).start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let url = node
        .cri()
        .exec_url(&id, ["/bin/echo", "hello"], Streams::OUTPUT)
        .await?;
    ensure!(
        url.starts_with(&format!("http://localhost:{port}/exec/")),
        "{url}"
    );
    let url = url.replace("localhost", "127.0.0.1");
    assert_eq!(
        Remote::open(&url, SPDY, Streams::OUTPUT)
            .await?
            .finish()
            .await?
            .text(),
        "hello\n"
    );
    node.finish().await
}

#[tokio::test]
async fn a_session_in_which_nothing_moves_is_ended_with_its_command() -> Test {
    let node = TestNode::builder()
        .config("[stream]\nidle_timeout_seconds = 1")
        .start()
        .await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    for transport in [SPDY, WEBSOCKET] {
        let script = "echo up; exec sleep 7777";
        let mut session = open(&node, &id, script, transport, Streams::ALL).await?;
        session.expect("up\n").await?;
        let start = Instant::now();
        while session.next().await?.is_some() {}
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        wait::until("the command to end", wait::PATIENCE, async || {
            let left = zcri_integration::leaks::processes_with(node.slot(), "sleep 7777");
            Ok(left.is_empty().then_some(()))
        })
        .await?;
    }
    node.finish().await
}

/// That TLS is spoken, and nothing else; zcri-streaming's own tests go through whole sessions.
#[tokio::test]
async fn with_a_certificate_tls_is_spoken() -> Test {
    let dir = tempfile::tempdir()?;
    let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
    std::fs::write(
        &cert,
        include_str!("../../daemon/image/tests/pull/tls/server.crt"),
    )?;
    std::fs::write(
        &key,
        include_str!("../../daemon/image/tests/pull/tls/server.key"),
    )?;
    let stream = format!(
        "[stream]\ntls_cert_file = {cert:?}\ntls_key_file = {key:?}\ntls_min_version = \"1.3\""
    );
    let node = TestNode::builder().config(&stream).start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let url = node
        .cri()
        .exec_url(&id, ["/bin/true"], Streams::OUTPUT)
        .await?;
    let host = url.strip_prefix("https://").context("no https URL")?;
    let host = host.split('/').next().context("no host")?;
    // Plain HTTP gets no answer in HTTP, but a TLS alert or nothing.
    let mut plain = TcpStream::connect(host).await?;
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.ok();
    ensure!(
        !answer.starts_with(b"HTTP"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // A hello that offers TLS 1.2 only is refused with an alert: protocol_version (RFC 8446, 6.2).
    let mut old = TcpStream::connect(host).await?;
    old.write_all(&client_hello()).await?;
    let mut alert = [0; 7];
    old.read_exact(&mut alert).await?;
    assert_eq!((alert[0], alert[5], alert[6]), (21, 2, 70), "{alert:?}");
    node.finish().await
}

/// A ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) with one suite and the extensions that a server may ask for.
fn client_hello() -> Vec<u8> {
    let extensions: [&[u8]; 2] = [
        // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 13, 0, 4, 0, 2, 4, 3],
        // supported_groups: secp256r1
        &[0, 10, 0, 4, 0, 2, 0, 23],
    ];
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    // No session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    body.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(&extensions);
    let length = u16::try_from(body.len()).unwrap_or(0);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(length + 4).to_be_bytes());
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(&body);
    record
}
