//! Port-forward by its three ways.

use bytes::{Bytes, BytesMut};
use zcri_streaming::spdy::frame::{Encoder, Frame};
use zcri_streaming::spdy::header::Headers;

use crate::Node;
use crate::backend::{DISCARD_PORT, ECHO_PORT, HELLO_PORT, REFUSED_PORT, STUCK_PORT};
use crate::client::{Connection, Spdy, WebSocket, websocket_headers};

const PROTOCOL: &str = "portforward.k8s.io";

async fn pair(client: &mut Spdy, port: u16, request: usize) -> (u32, u32) {
    let (port, request) = (port.to_string(), request.to_string());
    let headers = |kind| {
        [
            ("streamtype", kind),
            ("port", port.as_str()),
            ("requestid", request.as_str()),
        ]
    };
    let error = client.open(&headers("error")).await;
    client.data(error, b"", true).await;
    let data = client.open(&headers("data")).await;
    (data, error)
}

#[tokio::test]
async fn many_connections_go_over_one() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    let mut pairs = Vec::new();
    for request in 0..100 {
        pairs.push(pair(&mut client, ECHO_PORT, request).await);
    }
    for (data, _) in &pairs {
        client
            .data(*data, format!("to {data}").as_bytes(), false)
            .await;
    }
    for (data, _) in &pairs {
        let wanted = format!("to {data}");
        client
            .until("the echo", |client| client.text(*data) == wanted)
            .await;
    }
    node.backend.lives(100).await;
    for (data, error) in &pairs {
        client.data(*data, b"!", true).await;
        client
            .until("the end", |client| {
                client.ended(*data) && client.ended(*error)
            })
            .await;
        assert!(client.text(*data).ends_with('!') && client.text(*error).is_empty());
    }
    node.backend.lives(0).await;
    node.stop().await;
}

#[tokio::test]
async fn a_refused_port_is_an_error_of_its_own_pair_only() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    let (good, _) = pair(&mut client, ECHO_PORT, 0).await;
    let (data, error) = pair(&mut client, REFUSED_PORT, 1).await;
    client
        .until("the error", |client| {
            client.ended(error) && client.ended(data)
        })
        .await;
    assert_eq!(
        client.text(error),
        "error forwarding port 1 to pod pod: connection refused"
    );
    client.data(good, b"alive", false).await;
    client
        .until("the echo", |client| client.text(good) == "alive")
        .await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn the_ports_of_the_session_are_a_bound() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[ECHO_PORT]), PROTOCOL).await;
    let (_, error) = pair(&mut client, HELLO_PORT, 0).await;
    client
        .until("the error", |client| client.ended(error))
        .await;
    assert!(
        client.text(error).contains("not made for this port"),
        "{}",
        client.text(error)
    );
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn old_clients_have_no_request_ids() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    let error = client
        .open(&[("streamtype", "error"), ("port", "13")])
        .await;
    let data = client.open(&[("streamtype", "data"), ("port", "13")]).await;
    client
        .until("the greeting", |client| {
            client.text(data) == "hello" && client.ended(data)
        })
        .await;
    client.data(data, b"", true).await;
    client.until("the end", |client| client.ended(error)).await;
    node.stop().await;
}

#[tokio::test]
async fn streams_that_make_no_pair_are_reset() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    let bad: [&[(&str, &str)]; 6] = [
        &[("port", "7")],
        &[("streamtype", "data")],
        &[("streamtype", "stdin"), ("port", "7")],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "data"), ("port", "7"), ("requestid", "x")],
    ];
    for headers in bad {
        let stream = client.open(headers).await;
        client
            .until("the reset", |client| client.ended(stream))
            .await;
        assert!(client.stream(stream).reset.is_some(), "{headers:?}");
    }
    // A second stream of a kind, and one for another port, of a pair that waits.
    let first = client
        .open(&[("streamtype", "error"), ("port", "7"), ("requestid", "0")])
        .await;
    for headers in [("error", "7"), ("data", "9")] {
        let stream = client
            .open(&[
                ("streamtype", headers.0),
                ("port", headers.1),
                ("requestid", "0"),
            ])
            .await;
        client
            .until("the reset", |client| client.ended(stream))
            .await;
    }
    let data = client
        .open(&[("streamtype", "data"), ("port", "7"), ("requestid", "0")])
        .await;
    client.data(data, b"paired", true).await;
    client
        .until("the echo", |client| {
            client.text(data) == "paired" && client.ended(first)
        })
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_reset_ends_the_connection_to_the_port() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    for (request, port) in [ECHO_PORT, DISCARD_PORT, STUCK_PORT]
        .into_iter()
        .enumerate()
    {
        let (data, error) = pair(&mut client, port, request).await;
        node.backend.lives(1).await;
        if port == STUCK_PORT {
            // More than the port takes, less than what holds up the client.
            client.data(data, &[0; 100_000], false).await;
        }
        client
            .send(&Frame::RstStream {
                stream: data,
                status: 5,
            })
            .await;
        node.backend.lives(0).await;
        client.until("the end", |client| client.ended(error)).await;
    }
    node.stop().await;
}

/// Streams that are opened and reset at once leave nothing behind, however many.
#[tokio::test]
async fn rapid_resets_do_not_pile_up() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for request in 0..5000 {
        let request = request.to_string();
        let stream = client
            .open(&[
                ("streamtype", "error"),
                ("port", "7"),
                ("requestid", &request),
            ])
            .await;
        client.send(&Frame::RstStream { stream, status: 5 }).await;
    }
    client.send(&Frame::Ping(1)).await;
    client
        .until("the answer", |client| {
            client.other.contains(&Frame::Ping(1))
        })
        .await;
    let begin = std::time::Instant::now();
    while tasks() > before {
        assert!(
            begin.elapsed() < crate::DEADLINE / 2,
            "{} tasks, not {before}",
            tasks()
        );
        tokio::task::yield_now().await;
    }
    let (data, _) = pair(&mut client, ECHO_PORT, 0).await;
    client.data(data, b"still served", true).await;
    client
        .until("the echo", |client| client.text(data) == "still served")
        .await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_closes_all_its_connections() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), PROTOCOL).await;
    for request in 0..10 {
        pair(&mut client, ECHO_PORT, request).await;
    }
    node.backend.lives(10).await;
    drop(client);
    node.backend.lives(0).await;
    node.stop().await;
}

#[tokio::test]
async fn channels_of_a_websocket_begin_with_their_port() {
    let node = Node::start().await;
    for protocol in ["v4.channel.k8s.io", ""] {
        let url = node.forward(&[]) + "?port=7&port=1,13";
        let mut client = WebSocket::connect(&url, protocol).await;
        client.send(0, b"echo").await;
        client
            .until("the answers", |client| {
                client.channel(0) == b"\x07\x00echo"
                    && client.channel(4) == b"\x0d\x00hello"
                    && client.channel(3).len() > 2
            })
            .await;
        assert_eq!(client.channel(1), [7, 0]);
        assert_eq!(client.channel(2), [1, 0]);
        assert!(
            client
                .channel(3)
                .starts_with(b"\x01\x00error forwarding port 1"),
            "{:?}",
            client.channel(3)
        );
        drop(client);
        node.backend.lives(0).await;
    }
    // The kubelet hands the ports on in its request.
    let mut client = WebSocket::connect(&node.forward(&[HELLO_PORT]), "v4.channel.k8s.io").await;
    client.end().await;
    assert_eq!(
        (client.channel(0), client.close),
        (b"\x0d\x00hello".to_vec(), Some(1000))
    );
    let mut client = WebSocket::connect(
        &(node.forward(&[]) + "?port=13"),
        "v4.base64.channel.k8s.io",
    )
    .await;
    client.end().await;
    assert_eq!(client.messages[0], b"0DQA=");
    node.stop().await;
}

#[tokio::test]
async fn bad_ports_of_a_query_are_refused() {
    let node = Node::start().await;
    let many = (1..200)
        .map(|port| port.to_string())
        .collect::<Vec<_>>()
        .join(",");
    for query in [
        "",
        "?port=",
        "?port=0",
        "?port=65536",
        "?port=7,x",
        &format!("?port={many}"),
    ] {
        let url = node.forward(&[]) + query;
        let mut connection = Connection::to(&url).await;
        let response = connection
            .request("GET", &url, &websocket_headers("v4.channel.k8s.io"))
            .await;
        assert_eq!(response.status, 400, "{query}");
    }
    node.stop().await;
}

/// The client's SPDY bytes in messages of any size, as a Go client writes a frame in many.
#[tokio::test]
async fn spdy_goes_through_a_websocket() {
    let node = Node::start().await;
    let mut client = WebSocket::connect(&node.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let headers = Headers::new([("streamtype", kind), ("port", "7"), ("requestid", "0")]);
        encoder.encode(
            &Frame::SynStream {
                stream,
                headers,
                fin: false,
                unidirectional: false,
            },
            &mut out,
        );
    }
    encoder.encode(
        &Frame::Data {
            stream: 3,
            bytes: Bytes::from_static(b"through"),
            fin: true,
        },
        &mut out,
    );
    encoder.encode(&Frame::Ping(1), &mut out);
    for piece in out.chunks(7) {
        client.frame(0x82, piece).await;
        client.frame(0x89, b"ping").await;
    }
    let mut spdy = zcri_streaming::spdy::frame::Decoder::new();
    let (mut received, mut buffer, mut taken, mut ponged) = (Vec::new(), BytesMut::new(), 0, false);
    while received != b"through" || !ponged {
        assert!(client.step().await, "the connection ended");
        for message in client.messages.drain(taken..) {
            buffer.extend_from_slice(&message);
        }
        taken = client.messages.len();
        while let Some(frame) = spdy.decode(&mut buffer).unwrap() {
            match frame {
                Frame::Data {
                    stream: 3, bytes, ..
                } => received.extend_from_slice(&bytes),
                Frame::Ping(1) => ponged = true,
                _ => {}
            }
        }
    }
    client
        .until("the pongs", |client| {
            client.pongs.len() == out.len().div_ceil(7)
        })
        .await;
    client.frame(0x88, &[]).await;
    client.end().await;
    assert_eq!(client.close, Some(1000));
    node.stop().await;
}
