//! Port-forward sessions into real pods.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use zcri_integration::plugin;
use zcri_integration::pod::{pod_security, words};
use zcri_integration::stream_client::{Event, Forward, ForwardBy};
use zcri_integration::v1::{NamespaceMode, NamespaceOption};
use zcri_integration::{Pod, Test, TestNode, wait};

/// Answers with what it is told, on every address of the pod.
const ECHO: u16 = 9000;
/// A web server that is reached by IPv4 only.
const FOUR: u16 = 9004;
/// The same by IPv6 only.
const SIX: u16 = 9006;

/// Starts the servers in a pod.
async fn serve(node: &TestNode, pod: &Pod<'_>) -> Result<()> {
    let mut config = node.container_config("servers").await?;
    let script = format!(
        "mkdir -p /www; echo page > /www/index.html; httpd -p 127.0.0.1:{FOUR} -h /www; httpd -p '[::1]:{SIX}' -h /www; \
         exec nc -ll -p {ECHO} -e cat"
    );
    config.command = words(["/bin/sh", "-c", &script]);
    let id = pod.start(&config).await?;
    wait::until("the servers to listen", wait::PATIENCE, async || {
        let listening = node
            .exec(&id, "cat /proc/net/tcp /proc/net/tcp6")
            .await?
            .stdout;
        let all = [ECHO, FOUR, SIX]
            .iter()
            .all(|port| listening.contains(&format!(":{port:04X} 0000")));
        Ok(all.then_some(()))
    })
    .await
}

async fn open(node: &TestNode, pod: &str, by: ForwardBy, ports: &[u16]) -> Result<Forward> {
    let ports: Vec<i32> = ports.iter().map(|port| i32::from(*port)).collect();
    let url = node.cri().port_forward_url(pod, &ports).await?;
    Forward::open(&url, by).await
}

#[tokio::test]
async fn bytes_go_to_the_pod_and_back_by_every_protocol() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    serve(&node, &pod).await?;
    for by in [ForwardBy::Spdy, ForwardBy::Tunnel, ForwardBy::Channels] {
        let mut forward = open(&node, &pod.id, by, &[ECHO, FOUR, SIX]).await?;
        let echo = forward.connect(ECHO).await?;
        let four = forward.connect(FOUR).await?;
        let six = forward.connect(SIX).await?;
        forward.send(echo.data, b"hello\n").await?;
        let seen = forward
            .read_until(echo.data, |seen| seen.ends_with(b"\n"))
            .await?;
        assert_eq!(seen, b"hello\n", "{by:?}");
        for web in [four, six] {
            forward.send(web.data, b"GET / HTTP/1.0\r\n\r\n").await?;
            let seen = forward
                .read_until(web.data, |seen| seen.ends_with(b"page\n"))
                .await?;
            ensure!(
                seen.starts_with(b"HTTP/1."),
                "{by:?}: {}",
                String::from_utf8_lossy(&seen)
            );
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_refused_port_is_an_error_of_that_connection_only() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    serve(&node, &pod).await?;
    for by in [ForwardBy::Spdy, ForwardBy::Tunnel] {
        let mut forward = open(&node, &pod.id, by, &[]).await?;
        let echo = forward.connect(ECHO).await?;
        let closed = forward.connect(9).await?;
        let seen = forward
            .read_until(closed.error, |seen| {
                seen.ends_with(b"refused") || contains(seen, "refused")
            })
            .await?;
        ensure!(
            contains(&seen, "port 9 "),
            "{}",
            String::from_utf8_lossy(&seen)
        );
        forward.send(echo.data, b"still here\n").await?;
        assert_eq!(
            forward
                .read_until(echo.data, |seen| seen.ends_with(b"\n"))
                .await?,
            b"still here\n"
        );
        // And new ones can be made.
        let next = forward.connect(ECHO).await?;
        forward.send(next.data, b"new\n").await?;
        assert_eq!(
            forward
                .read_until(next.data, |seen| seen.ends_with(b"\n"))
                .await?,
            b"new\n"
        );
    }
    node.finish().await
}

fn contains(seen: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(seen).contains(text)
}

#[tokio::test]
async fn many_connections_share_a_session_and_end_apart() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    serve(&node, &pod).await?;
    let mut forward = open(&node, &pod.id, ForwardBy::Spdy, &[ECHO]).await?;
    let mut ports = Vec::new();
    for n in 0..50_u8 {
        let port = forward.connect(ECHO).await?;
        ports.push((n, port));
        // One after the other, as the server takes few at once; all stay open.
        forward.send(port.data, &[n; 1000]).await?;
        let seen = forward
            .read_until(port.data, |seen| seen.len() == 1000)
            .await?;
        ensure!(seen.iter().all(|byte| *byte == n));
    }
    // All at the same time.
    for (n, port) in &ports {
        forward.send(port.data, &[n + 100; 1000]).await?;
    }
    let mut seen = vec![Vec::new(); ports.len()];
    while seen.iter().any(|bytes| bytes.len() < 1000) {
        match forward.next().await?.context("the session ended")? {
            Event::Data(channel, bytes) => seen[usize::from(channel / 2)].extend_from_slice(&bytes),
            Event::Closed(_) => {}
        }
    }
    for (n, bytes) in seen.iter().enumerate() {
        ensure!(bytes.iter().all(|byte| usize::from(*byte) == n + 100));
    }
    // The end of one is told to its server, whose end comes back.
    let (_, first) = ports[0];
    forward.finish(first.data).await?;
    loop {
        match forward.next().await?.context("the session ended")? {
            Event::Closed(channel) if channel == first.data => break,
            _ => {}
        }
    }
    let (_, last) = ports[49];
    forward.send(last.data, b"bye\n").await?;
    assert_eq!(
        forward
            .read_until(last.data, |seen| seen.ends_with(b"\n"))
            .await?,
        b"bye\n"
    );
    node.finish().await
}

#[tokio::test]
async fn a_large_transfer_is_unchanged() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let noise = zcri_integration::images::noise(3, 8 << 20);
    let dir = node.scratch("www")?;
    std::fs::write(dir.join("noise"), &noise)?;
    let mut config = node.container_config("web").await?;
    config.command = words(["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]);
    config.mounts = vec![zcri_integration::v1::Mount {
        host_path: dir.display().to_string(),
        container_path: "/www".to_owned(),
        ..Default::default()
    }];
    let id = pod.start(&config).await?;
    wait::until("the web server", wait::PATIENCE, async || {
        let listening = node
            .exec(&id, "cat /proc/net/tcp /proc/net/tcp6")
            .await?
            .stdout;
        Ok(listening.contains(":1F90 0000").then_some(()))
    })
    .await?;
    for by in [ForwardBy::Spdy, ForwardBy::Tunnel, ForwardBy::Channels] {
        let mut forward = open(&node, &pod.id, by, &[8080]).await?;
        let port = forward.connect(8080).await?;
        forward
            .send(port.data, b"GET /noise HTTP/1.0\r\n\r\n")
            .await?;
        let seen = forward
            .read_until(port.data, |seen| {
                seen.ends_with(&noise[noise.len() - 100..])
            })
            .await?;
        ensure!(seen.ends_with(&noise), "{by:?}: {} bytes", seen.len());
    }
    node.finish().await
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_the_hosts_ports() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    pod_security(&mut config).namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    });
    let pod = node.run_pod(config).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = [0; 6];
            if socket.read_exact(&mut bytes).await.is_ok() {
                socket.write_all(&bytes).await.ok();
            }
        }
    });
    let mut forward = open(&node, &pod.id, ForwardBy::Spdy, &[port]).await?;
    let connection = forward.connect(port).await?;
    forward.send(connection.data, b"hello\n").await?;
    assert_eq!(
        forward
            .read_until(connection.data, |seen| seen.len() == 6)
            .await?,
        b"hello\n"
    );
    node.finish().await
}

/// Without a network namespace a pod is reached at its address on the node's stack.
#[tokio::test]
async fn a_pod_without_a_namespace_is_reached_at_its_address() -> Test {
    let node = TestNode::builder()
        .config("[network]\nisolation = \"stack\"\nnetns_token = \"stack:{id}\"")
        .start()
        .await?;
    let listener = tokio::net::TcpListener::bind("127.77.7.7:0").await?;
    let port = listener.local_addr()?.port();
    let address = r#"{"cniVersion":"1.1.0","ips":[{"address":"127.77.7.7/32"}]}"#;
    plugin::install(
        &node,
        "giver",
        &format!("[ $CNI_COMMAND = ADD ] && echo '{address}'; exit 0"),
    )?;
    plugin::only(&node, "giver", &[])?;
    let pod = node.pod("p").await?;
    assert_eq!(pod.ip().await?, "127.77.7.7");
    let mut forward = open(&node, &pod.id, ForwardBy::Spdy, &[port]).await?;
    let connection = forward.connect(port).await?;
    let (mut server, _) = listener.accept().await?;
    forward.send(connection.data, b"hello\n").await?;
    let mut bytes = [0; 6];
    server.read_exact(&mut bytes).await?;
    server.write_all(&bytes).await?;
    let seen = forward
        .read_until(connection.data, |seen| seen.len() == 6)
        .await?;
    assert_eq!(seen, b"hello\n");
    node.finish().await
}

#[tokio::test]
async fn a_stopped_pod_has_no_ports() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    serve(&node, &pod).await?;
    let url = node
        .cri()
        .port_forward_url(&pod.id, &[i32::from(ECHO)])
        .await?;
    let mut forward = Forward::open(&url, ForwardBy::Spdy).await?;
    node.cri().stop_pod(&pod.id).await?;
    let port = forward.connect(ECHO).await?;
    forward
        .read_until(port.error, |seen| contains(seen, "not ready"))
        .await?;
    let refused = node.cri().port_forward_url(&pod.id, &[]).await.err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(Code::FailedPrecondition)
    );
    node.finish().await
}
