//! Remote commands over WebSocket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::Node;
use crate::client::WebSocket;

pub(crate) const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn the_close_signal_of_version_5_ends_the_input() {
    let node = Node::start().await;
    let mut client = WebSocket::connect(&node.exec(&["cat"], false), V5).await;
    client.send(0, b"hello ").await;
    client
        .until("the echo", |client| client.channel(1) == b"hello ")
        .await;
    assert_eq!(
        client.messages[0],
        [1],
        "the greeting on the first channel that the client reads"
    );
    client.send(0, b"world").await;
    client.send(255, &[0]).await;
    client.end().await;
    assert_eq!(client.channel(1), b"hello world");
    let status: Value = serde_json::from_slice(&client.channel(3)).unwrap();
    assert_eq!(status["status"], "Success");
    assert_eq!(client.close, Some(1000));
    assert!(!client.text);
    node.stop().await;
}

#[tokio::test]
async fn version_4_and_1_have_no_close_signal() {
    let node = Node::start().await;
    for protocol in [V4, "channel.k8s.io", ""] {
        let mut client = WebSocket::connect(&node.exec(&["cat"], false), protocol).await;
        client.send(255, &[0]).await;
        client.send(0, b"still open").await;
        client
            .until("the echo", |client| client.channel(1) == b"still open")
            .await;
        drop(client);
        node.backend.lives(0).await;
        let mut client = WebSocket::connect(&node.exec(&["both"], false), protocol).await;
        client.end().await;
        assert_eq!(
            (&client.channel(1)[..], &client.channel(2)[..]),
            (&b"to stdout"[..], &b"to stderr"[..])
        );
        let error = String::from_utf8(client.channel(3)).unwrap();
        assert_eq!(
            error.starts_with('{'),
            protocol == V4,
            "{protocol}: {error}"
        );
        assert!(error.contains('3'));
    }
    node.stop().await;
}

#[tokio::test]
async fn base64_is_text_both_ways() {
    let node = Node::start().await;
    for protocol in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
        let mut client = WebSocket::connect(&node.exec(&["cat"], false), protocol).await;
        let message = format!("0{}", STANDARD.encode([0, 255, 7]));
        client.frame(0x81, message.as_bytes()).await;
        client
            .until("the echo", |client| {
                client.channel(b'1') == STANDARD.encode([0, 255, 7]).as_bytes()
            })
            .await;
        assert!(client.text);
        drop(client);
        node.backend.lives(0).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn fragments_pings_and_unknown_channels_are_taken() {
    let node = Node::start().await;
    let mut client = WebSocket::connect(&node.exec(&["cat"], false), V5).await;
    client.frame(0x02, b"").await;
    client.frame(0x89, b"are you there").await;
    client.frame(0x00, b"\0frag").await;
    client.frame(0x8a, b"an answer to nothing").await;
    client.frame(0x80, b"ments").await;
    client.send(77, b"to nobody").await;
    client.send(1, b"to an output").await;
    client
        .until("the echo", |client| client.channel(1) == b"fragments")
        .await;
    assert_eq!(client.pongs, [b"are you there"]);
    client.frame(0x88, &1000u16.to_be_bytes()).await;
    client.end().await;
    assert_eq!(client.close, Some(1000), "a close is answered");
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let node = Node::start().await;
    let mut client = WebSocket::connect(&node.exec(&["sizes"], true), V4).await;
    client.send(4, b"{\"Width\":80,\"Height\":24}").await;
    client
        .until("the size", |client| client.channel(1) == b"80x24;")
        .await;
    client.send(4, b"{\"Width\":1,\"Height\":24}").await;
    client.end().await;
    assert_eq!(client.channel(1), b"80x24;1x24;");
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_command() {
    let node = Node::start().await;
    for command in [&["hang"][..], &["cat"], &["pour", "100000000"]] {
        let client = WebSocket::connect(&node.exec(command, false), V5).await;
        node.backend.lives(1).await;
        drop(client);
        node.backend.lives(0).await;
    }
    // One that says so, too.
    let mut client = WebSocket::connect(&node.exec(&["hang"], false), V5).await;
    node.backend.lives(1).await;
    client.frame(0x88, &[]).await;
    node.backend.lives(0).await;
    node.stop().await;
}
