//! Remote commands over SPDY.

use serde_json::{Value, json};

use crate::client::{Spdy, WebSocket};
use crate::websocket::V5;
use crate::{Node, config};

pub(crate) const V4: &str = "v4.channel.k8s.io";
const ALL: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

fn status(client: &Spdy, error: u32) -> Value {
    serde_json::from_slice(&client.stream(error).bytes).unwrap()
}

#[tokio::test]
async fn input_comes_back_and_the_half_close_ends_the_command() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["cat"], false), V4).await;
    let streams = client.command(&ALL).await;
    client.data(streams["stdin"], b"hello ", false).await;
    let stdout = streams["stdout"];
    client
        .until("the echo", |client| client.text(stdout) == "hello ")
        .await;
    client.data(streams["stdin"], b"world", true).await;
    client.end().await;
    assert_eq!(client.text(stdout), "hello world");
    assert_eq!(
        status(&client, streams["error"]),
        json!({"metadata": {}, "status": "Success"})
    );
    assert!(
        streams.values().all(|stream| client.stream(*stream).fin),
        "{:?}",
        client.streams
    );
    node.stop().await;
}

#[tokio::test]
async fn every_exit_code_is_reported() {
    let node = Node::start().await;
    for code in 0..=255 {
        let mut client = Spdy::connect(&node.exec(&["exit", &code.to_string()], false), V4).await;
        let streams = client.command(&ALL).await;
        client
            .until("the status", |client| client.ended(streams["error"]))
            .await;
        let status = status(&client, streams["error"]);
        if code == 0 {
            assert_eq!(status["status"], "Success");
        } else {
            assert_eq!(status["reason"], "NonZeroExitCode");
            let cause = json!({"reason": "ExitCode", "message": code.to_string()});
            assert_eq!(status["details"]["causes"], json!([cause]));
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn outputs_are_apart() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["both"], false), V4).await;
    let streams = client.command(&ALL).await;
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), "to stdout");
    assert_eq!(client.text(streams["stderr"]), "to stderr");
    node.stop().await;
}

#[tokio::test]
async fn older_protocols_have_plain_errors_and_no_resize() {
    let node = Node::start().await;
    for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let mut client = Spdy::connect(&node.exec(&["exit", "3"], false), protocol).await;
        let streams = client.command(&ALL).await;
        client.end().await;
        assert!(
            client.text(streams["error"]).ends_with("exit status 3"),
            "{protocol}"
        );

        let mut client = Spdy::connect(&node.exec(&["exit", "0"], true), protocol).await;
        let resize: &[&str] = if protocol.starts_with("v3") {
            &["resize"]
        } else {
            &[]
        };
        let streams = client
            .command(&[&["error", "stdin", "stdout"], resize].concat())
            .await;
        client.end().await;
        assert!(
            client.stream(streams["error"]).fin && client.text(streams["error"]).is_empty(),
            "{protocol}"
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn the_first_common_protocol_of_the_client_is_taken() {
    let node = Node::start().await;
    let url = node.exec(&["exit", "0"], false);
    let mut connection = crate::client::Connection::to(&url).await;
    let offers = (
        "X-Stream-Protocol-Version",
        "v5.channel.k8s.io, v3.channel.k8s.io",
    );
    let more = ("X-Stream-Protocol-Version", "v4.channel.k8s.io");
    let response = connection
        .request(
            "GET",
            &url,
            &[crate::client::SPDY[0], crate::client::SPDY[1], offers, more],
        )
        .await;
    assert_eq!(response.status, 101);
    assert_eq!(
        response.headers["x-stream-protocol-version"],
        "v3.channel.k8s.io"
    );
    drop(connection);
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["sizes"], true), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "resize"])
        .await;
    let (stdout, resize) = (streams["stdout"], streams["resize"]);
    client
        .data(resize, b"{\"Width\":80,\"Height\":24}\n", false)
        .await;
    client
        .until("the first size", |client| client.text(stdout) == "80x24;")
        .await;
    client.data(resize, b"{\"Width\":1,\"Hei", false).await;
    client.data(resize, b"ght\":2}\n", false).await;
    client.end().await;
    assert_eq!(client.text(stdout), "80x24;1x2;");
    node.stop().await;
}

#[tokio::test]
async fn a_command_that_cannot_be_started_says_why() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["missing"], false), V4).await;
    let streams = client.command(&ALL).await;
    client.end().await;
    assert_eq!(client.text(streams["stderr"]), "exec: no such file\n");
    assert_eq!(
        status(&client, streams["error"])["details"]["causes"][0]["message"],
        "127"
    );

    // With a terminal there is one output.
    let mut client = Spdy::connect(&node.exec(&["missing"], true), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "resize"])
        .await;
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), "exec: no such file\r\n");
    node.stop().await;
}

#[tokio::test]
async fn a_stopped_container_is_a_clear_error() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["stopped"], false), V4).await;
    let streams = client.command(&ALL).await;
    client.end().await;
    let status = status(&client, streams["error"]);
    assert_eq!(status["reason"], "InternalError");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("container c is not running"),
        "{status}"
    );
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_command() {
    let node = Node::start().await;
    for command in [&["hang"][..], &["cat"], &["pour", "100000000"]] {
        let mut client = Spdy::connect(&node.exec(command, false), V4).await;
        client.command(&ALL).await;
        node.backend.lives(1).await;
        drop(client);
        node.backend.lives(0).await;
    }
    node.stop().await;
}

/// Nobody reads the connection while the command does not read its input; the client's end is found all the same.
#[tokio::test]
async fn a_client_that_vanishes_behind_a_full_input_ends_its_command() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    let streams = client.command(&ALL).await;
    client
        .until("the replies", |client| client.streams.len() == 4)
        .await;
    let frame = client.encode(&zcri_streaming::spdy::frame::Frame::Data {
        stream: streams["stdin"],
        bytes: vec![0; 60_000].into(),
        fin: false,
    });
    // As much as fits: the server's buffers, then the kernel's.
    let mut sent = 0;
    while tokio::time::timeout(
        std::time::Duration::from_millis(300),
        client.connection.send(&frame),
    )
    .await
    .is_ok()
    {
        sent += frame.len();
        assert!(sent < 64 << 20, "the server takes input without bound");
    }
    node.backend.lives(1).await;
    drop(client);
    node.backend.lives(0).await;
    node.stop().await;
}

#[tokio::test]
async fn a_command_that_closed_its_input_does_not_hold_up_the_client() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["deaf"], true), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "resize"])
        .await;
    client
        .until("the command", |client| {
            client.text(streams["stdout"]) == "deaf"
        })
        .await;
    for _ in 0..100 {
        client.data(streams["stdin"], &[0; 32 * 1024], false).await;
    }
    client
        .until("the end of the input", |client| {
            client.ended(streams["stdin"])
        })
        .await;
    client
        .data(streams["resize"], b"{\"Width\":1,\"Height\":1}", false)
        .await;
    client.end().await;
    assert!(client.text(streams["error"]).contains("Success"));
    node.stop().await;
}

#[tokio::test]
async fn several_clients_attach_and_detach() {
    let node = Node::start().await;
    let container = node.backend.container("pets");
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Spdy::connect(&node.attach("pets"), V4).await;
        let streams = client.command(&["error", "stdin", "stdout"]).await;
        clients.push((client, streams));
    }
    node.backend.lives(3).await;
    while container.watchers() < 3 {
        tokio::task::yield_now().await;
    }
    container.print("one ");
    for (client, streams) in &mut clients {
        client
            .until("the output", |client| {
                client.text(streams["stdout"]) == "one "
            })
            .await;
    }
    // One leaves; the others and the container stay.
    drop(clients.pop());
    node.backend.lives(2).await;
    let (client, streams) = &mut clients[0];
    client.data(streams["stdin"], b"two", false).await;
    for (client, streams) in &mut clients {
        client
            .until("what was typed", |client| {
                client.text(streams["stdout"]) == "one two"
            })
            .await;
    }
    container.print(" last");
    container.end(9);
    for (client, streams) in &mut clients {
        client.end().await;
        assert_eq!(client.text(streams["stdout"]), "one two last");
        assert_eq!(
            status(client, streams["error"])["details"]["causes"][0]["message"],
            "9"
        );
    }
    node.stop().await;
}

/// A client that is told nothing would take its command for a success.
#[tokio::test]
async fn a_stop_of_the_server_ends_sessions_and_says_so() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for command in [&["hang"][..], &["cat"], &["pour", "1000000000"]] {
        let mut client = Spdy::connect(&node.exec(command, false), V4).await;
        let streams = client.command(&ALL).await;
        clients.push((client, streams));
    }
    let mut websocket = WebSocket::connect(&node.exec(&["hang"], false), V5).await;
    node.backend.lives(4).await;
    let reading = tokio::spawn(async move {
        for (client, streams) in &mut clients {
            client.end().await;
            let status = status(client, streams["error"]);
            assert_eq!(status["reason"], "InternalError", "{status}");
            assert!(client.stream(streams["error"]).fin && client.stream(streams["stdout"]).fin);
        }
        websocket.end().await;
        let status: Value = serde_json::from_slice(&websocket.channel(3)).unwrap();
        assert!(
            status["message"]
                .as_str()
                .unwrap()
                .contains("the server is stopping"),
            "{status}"
        );
        assert_eq!(websocket.close, Some(1000));
    });
    node.stop().await;
    reading.await.unwrap();
}

#[tokio::test]
async fn an_idle_session_is_ended_and_pings_do_not_count() {
    let idle_timeout = std::time::Duration::from_millis(400);
    let node = Node::with(zcri_streaming::ServerConfig {
        idle_timeout,
        ..config()
    })
    .await;
    let mut client = Spdy::connect(&node.exec(&["cat"], false), V4).await;
    let streams = client.command(&ALL).await;
    client.data(streams["stdin"], b"x", false).await;
    client
        .until("the echo", |client| client.text(streams["stdout"]) == "x")
        .await;
    let begin = std::time::Instant::now();
    let mut id = 1;
    loop {
        client
            .send(&zcri_streaming::spdy::frame::Frame::Ping(id))
            .await;
        id += 2;
        if tokio::time::timeout(
            idle_timeout / 4,
            client.until("the end", |client| {
                client
                    .other
                    .iter()
                    .any(|frame| matches!(frame, zcri_streaming::spdy::frame::Frame::GoAway { .. }))
            }),
        )
        .await
        .is_ok()
        {
            break;
        }
        assert!(
            begin.elapsed() < crate::DEADLINE,
            "the session was never ended"
        );
    }
    assert!(begin.elapsed() > idle_timeout / 2, "{:?}", begin.elapsed());
    let status = status(&client, streams["error"]);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("nothing moved"),
        "{status}"
    );
    node.backend.lives(0).await;
    drop(client);
    node.stop().await;
}
