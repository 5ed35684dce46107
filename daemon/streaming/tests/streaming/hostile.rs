//! What a bad client can send, and what becomes of it.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use zcri_streaming::limits::{
    MAX_CONTROL_FRAME, MAX_HEADER_BLOCK, MAX_STREAMS, STREAM_CREATION_TIMEOUT,
};
use zcri_streaming::spdy::frame::{Frame, goaway, reset};
use zcri_streaming::spdy::header::{DICTIONARY, Headers};

use crate::Node;
use crate::client::{Spdy, WebSocket, masked};
use crate::command::V4;
use crate::websocket::V5;

/// Sends bytes where frames are expected: the connection ends with a GOAWAY that says why, and so does the command.
async fn breaks(node: &Node, what: &str, bytes: &[u8]) {
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    node.backend.lives(1).await;
    client.connection.send(bytes).await;
    node.backend.lives(0).await;
    client.end().await;
    let away = client.other.iter().find_map(|frame| match frame {
        Frame::GoAway { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(away, Some(goaway::PROTOCOL_ERROR), "{what}");
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let node = Node::start().await;
    let syn = |stream: u32, block: &[u8]| {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(block);
        control(1, &payload)
    };
    breaks(
        &node,
        "another version",
        b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01",
    )
    .await;
    breaks(
        &node,
        "a long control frame",
        &[
            b"\x80\x03\x00\x06\x00",
            &(MAX_CONTROL_FRAME as u32 + 1).to_be_bytes()[1..],
        ]
        .concat(),
    )
    .await;
    breaks(&node, "a short ping", &control(6, &[0; 3])).await;
    breaks(&node, "a short SYN_STREAM", &control(1, &[0; 9])).await;
    breaks(
        &node,
        "settings that are fewer than they say",
        &control(4, &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1]),
    )
    .await;
    breaks(&node, "data of stream 0", &[0, 0, 0, 0, 0, 0, 0, 1, 0]).await;
    breaks(
        &node,
        "a reset of stream 0",
        &control(3, &[0, 0, 0, 0, 0, 0, 0, 1]),
    )
    .await;
    breaks(&node, "no zlib", &syn(9, b"not compressed at all")).await;
    breaks(&node, "a reply", &{
        let mut client_encoder = zcri_streaming::spdy::frame::Encoder::new();
        let mut out = BytesMut::new();
        // Into a stream that has begun already: as stored blocks, without the begin of the zlib stream.
        client_encoder.encode(
            &Frame::SynReply {
                stream: 1,
                headers: Headers::default(),
                fin: false,
            },
            &mut BytesMut::new(),
        );
        client_encoder.encode(
            &Frame::SynReply {
                stream: 1,
                headers: Headers::default(),
                fin: false,
            },
            &mut out,
        );
        out.to_vec()
    })
    .await;
    breaks(
        &node,
        "an oversized window",
        &control(9, &[0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]),
    )
    .await;
    breaks(&node, "a window of nothing", &control(9, &[0; 8])).await;
    breaks(
        &node,
        "an oversized initial window",
        &control(4, &[0, 0, 0, 1, 0, 0, 0, 7, 0x80, 0, 0, 0]),
    )
    .await;
    node.stop().await;
}

#[tokio::test]
async fn stream_ids_that_break_the_rules_end_the_connection() {
    let node = Node::start().await;
    for id in [0, 1, 2, 3] {
        let mut client = Spdy::connect(&node.forward(&[]), "portforward.k8s.io").await;
        client.open(&[("streamtype", "error"), ("port", "7")]).await;
        client.open(&[("streamtype", "error"), ("port", "7")]).await;
        client
            .send(&Frame::SynStream {
                stream: id,
                headers: Headers::default(),
                fin: false,
                unidirectional: false,
            })
            .await;
        client.end().await;
        assert!(
            client
                .other
                .iter()
                .any(|f| matches!(f, Frame::GoAway { status: 1, .. })),
            "{id}"
        );
    }
    node.stop().await;
}

/// 16 MiB of zeros in a block of 16 KiB.
#[tokio::test]
async fn a_header_bomb_is_not_inflated() {
    let node = Node::start().await;
    let mut compress = Compress::new(Compression::best(), true);
    compress.set_dictionary(DICTIONARY).unwrap();
    let mut block = Vec::with_capacity(MAX_CONTROL_FRAME);
    let mut plain = vec![0, 0, 0, 1, 0, 0, 0, 1, b'x'];
    plain.put_u32(8 << 20);
    plain.resize(plain.len() + (8 << 20), b'y');
    compress
        .compress_vec(&plain, &mut block, FlushCompress::Sync)
        .unwrap();
    assert!(block.len() < MAX_CONTROL_FRAME - 10 && plain.len() > 100 * MAX_HEADER_BLOCK);
    let mut payload = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    payload.extend_from_slice(&block);
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    client.connection.send(&control(1, &payload)).await;
    client.end().await;
    assert!(
        client
            .other
            .iter()
            .any(|f| matches!(f, Frame::GoAway { status: 1, .. }))
    );
    node.stop().await;
}

#[tokio::test]
async fn frames_for_streams_that_are_not_open_are_answered_by_a_reset() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["cat"], false), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    client.data(101, b"to nobody", false).await;
    client
        .until("the reset", |client| client.streams.contains_key(&101))
        .await;
    assert_eq!(client.stream(101).reset, Some(reset::INVALID_STREAM));
    client
        .send(&Frame::RstStream {
            stream: 103,
            status: 1,
        })
        .await;
    client
        .send(&Frame::WindowUpdate {
            stream: 105,
            delta: 1,
        })
        .await;

    // The session goes on.
    client.data(streams["stdin"], b"all well", true).await;
    client.data(streams["stdin"], b"after the end", false).await;
    client
        .until("the reset", |client| {
            client.stream(streams["stdin"]).reset.is_some()
        })
        .await;
    assert_eq!(
        client.stream(streams["stdin"]).reset,
        Some(reset::STREAM_ALREADY_CLOSED)
    );
    client.end().await;
    assert!(client.text(streams["error"]).contains("Success"));
    node.stop().await;
}

#[tokio::test]
async fn a_stream_window_that_overflows_ends_its_stream() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["cat"], false), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    client
        .send(&Frame::WindowUpdate {
            stream: streams["stderr"],
            delta: i32::MAX as u32,
        })
        .await;
    client
        .until("the reset", |client| client.ended(streams["stderr"]))
        .await;
    assert_eq!(
        client.stream(streams["stderr"]).reset,
        Some(reset::FLOW_CONTROL_ERROR)
    );
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let mut last = 0;
    for request in 0..=MAX_STREAMS {
        let request = request.to_string();
        last = client
            .open(&[
                ("streamtype", "error"),
                ("port", "7"),
                ("requestid", &request),
            ])
            .await;
    }
    client
        .until("the refusal", |client| client.ended(last))
        .await;
    assert_eq!(client.stream(last).reset, Some(reset::REFUSED_STREAM));
    assert!(!client.ended(last - 2));
    drop(client);
    node.stop().await;
}

/// A command takes no more streams than it has.
#[tokio::test]
async fn streams_that_a_command_has_not_are_reset() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    let streams = client
        .command(&["error", "error", "colour", "stdin", "stdout"])
        .await;
    client
        .until("the reset", |client| {
            client.ended(streams["colour"]) && client.ended(streams["error"])
        })
        .await;
    client.open(&[("streamtype", "stderr")]).await;
    node.backend.lives(1).await;
    let late = client.open(&[("streamtype", "stdin")]).await;
    client
        .until("the refusal", |client| client.ended(late))
        .await;
    assert_eq!(client.stream(late).reset, Some(reset::REFUSED_STREAM));
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_cut_off() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    node.backend.lives(1).await;
    let mut pings = BytesMut::new();
    for id in 0..5000 {
        pings.extend_from_slice(&client.encode(&Frame::Ping(2 * id + 1)));
    }
    let begin = Instant::now();
    while tokio::time::timeout(
        Duration::from_secs(5),
        tokio::io::AsyncWriteExt::write_all(&mut client.connection.io, &pings),
    )
    .await
    .is_ok_and(|result| result.is_ok())
    {
        assert!(
            begin.elapsed() < crate::DEADLINE,
            "answers are kept without bound"
        );
    }
    node.backend.lives(0).await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn websocket_frames_that_break_the_rules_end_the_connection() {
    let node = Node::start().await;
    let mut unmasked = masked(0x82, b"\0x");
    unmasked[1] &= 0x7f;
    let cases: [(&str, Vec<u8>); 11] = [
        ("not masked", unmasked),
        ("a reserved bit", masked(0xc2, b"\0x")),
        ("an unknown opcode", masked(0x83, b"\0x")),
        ("an unknown control opcode", masked(0x8b, b"\0x")),
        ("a continuation of nothing", masked(0x80, b"\0x")),
        (
            "a message within a message",
            [masked(0x02, b"\0x"), masked(0x82, b"\0x")].concat(),
        ),
        ("a fragmented ping", masked(0x09, b"x")),
        ("a long ping", masked(0x89, &[b'x'; 126])),
        (
            "a length that is not the shortest",
            [0x82, 0xfe, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        ),
        (
            "a length of 64 bits",
            [&[0x82, 0xff, 0xff][..], &[0xff; 11]].concat(),
        ),
        ("a close of one byte", masked(0x88, b"x")),
    ];
    for (what, bytes) in cases {
        let mut client = WebSocket::connect(&node.exec(&["hang"], false), V5).await;
        node.backend.lives(1).await;
        client.connection.send(&bytes).await;
        node.backend.lives(0).await;
        client.end().await;
        assert_eq!(client.close, Some(1002), "{what}");
    }
    node.stop().await;
}

#[tokio::test]
async fn channel_messages_that_break_the_rules_end_the_connection() {
    let node = Node::start().await;
    let long = [
        b"0".to_vec(),
        vec![b'A'; zcri_streaming::limits::MAX_BASE64_MESSAGE + 1],
    ]
    .concat();
    let base64 = "v4.base64.channel.k8s.io";
    let cases: [(&str, &str, u8, Vec<u8>); 5] = [
        ("a close signal without a channel", V5, 0x82, vec![255]),
        ("a close signal with two", V5, 0x82, vec![255, 0, 1]),
        ("a close signal for no channel", V5, 0x82, vec![255, 9]),
        ("no base64", base64, 0x81, b"0 - ".to_vec()),
        ("a message without bounds", base64, 0x81, long),
    ];
    for (what, protocol, first, payload) in cases {
        let mut client = WebSocket::connect(&node.exec(&["hang"], false), protocol).await;
        node.backend.lives(1).await;
        client.frame(first, &payload).await;
        node.backend.lives(0).await;
        client.end().await;
        assert_eq!(client.close, Some(1002), "{what}");
    }
    node.stop().await;
}

/// Those who have windows are not sent more than they hold.
#[tokio::test]
async fn a_client_with_windows_gets_no_more_than_its_window() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["pour", "300000"], false), V4).await;
    client.send(&Frame::Settings(vec![(7, 1000)])).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    let stdout = streams["stdout"];
    client
        .until("a window", |client| {
            client
                .streams
                .get(&stdout)
                .is_some_and(|s| s.bytes.len() >= 1000)
        })
        .await;
    // Anything more would have come before the answer to this.
    client.send(&Frame::Ping(1)).await;
    client
        .until("the answer", |client| {
            client.other.contains(&Frame::Ping(1))
        })
        .await;
    assert_eq!(client.stream(stdout).bytes.len(), 1000);
    client
        .send(&Frame::WindowUpdate {
            stream: 0,
            delta: 1 << 20,
        })
        .await;
    while !client.ended(stdout) {
        let had = client.stream(stdout).bytes.len();
        client
            .send(&Frame::WindowUpdate {
                stream: stdout,
                delta: 50_000,
            })
            .await;
        client
            .until("more", |client| {
                client.stream(stdout).bytes.len() > had || client.ended(stdout)
            })
            .await;
    }
    client.end().await;
    assert_eq!(client.stream(stdout).bytes.len(), 300_000);
    node.stop().await;
}

/// The other way: a client that keeps to its window is never stuck.
#[tokio::test]
async fn a_client_that_keeps_to_the_windows_can_send_any_amount() {
    const TOTAL: usize = 3_000_000;
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["count"], false), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    let stdin = streams["stdin"];
    let mut sent = 0;
    while sent < TOTAL {
        let granted = |client: &Spdy, wanted| {
            let updates = client.other.iter().filter_map(|frame| match frame {
                Frame::WindowUpdate { stream, delta } if *stream == wanted => Some(*delta as usize),
                _ => None,
            });
            65536 + updates.sum::<usize>()
        };
        let part = TOTAL
            .min(granted(&client, stdin))
            .min(granted(&client, 0))
            .saturating_sub(sent)
            .min(10_000);
        if part == 0 {
            let (before, before_all) = (granted(&client, stdin), granted(&client, 0));
            client
                .until("a window", |c| {
                    granted(c, stdin) > before || granted(c, 0) > before_all
                })
                .await;
            continue;
        }
        let bytes: Bytes = (sent..sent + part).map(crate::backend::pattern).collect();
        sent += part;
        client
            .send(&Frame::Data {
                stream: stdin,
                bytes,
                fin: sent == TOTAL,
            })
            .await;
    }
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), TOTAL.to_string());
    node.stop().await;
}

/// Moves the clock while nothing else goes on.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn answered(client: &mut Spdy) {
    client.send(&Frame::Ping(1)).await;
    client
        .until("the answer", |client| {
            client.other.contains(&Frame::Ping(1))
        })
        .await;
}

#[tokio::test]
async fn a_client_that_does_not_open_its_streams_is_not_waited_for() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["hang"], false), V4).await;
    client.command(&["error", "stdin", "stdout"]).await;
    answered(&mut client).await;
    pass(STREAM_CREATION_TIMEOUT).await;
    client.end().await;
    assert!(client.other.contains(&Frame::GoAway {
        last_stream: 5,
        status: goaway::OK
    }));
    assert!(
        node.backend.requests.lock().unwrap().is_empty(),
        "nothing was started"
    );
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn half_a_pair_of_a_port_forward_is_not_waited_for() {
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let error = client
        .open(&[("streamtype", "error"), ("port", "7"), ("requestid", "0")])
        .await;
    let data = client
        .open(&[("streamtype", "data"), ("port", "7"), ("requestid", "1")])
        .await;
    answered(&mut client).await;
    pass(STREAM_CREATION_TIMEOUT).await;
    client
        .until("the ends", |client| {
            client.ended(error) && client.ended(data)
        })
        .await;
    assert_eq!(client.text(error), "timed out waiting for the data stream");
    drop(client);
    node.stop().await;
}

/// A frame may be as long as its 24 bits say; nobody waits until it is there whole.
#[tokio::test]
async fn the_longest_frame_is_taken_as_it_comes() {
    const LENGTH: usize = zcri_streaming::spdy::frame::MAX_PAYLOAD;
    let node = Node::start().await;
    let mut client = Spdy::connect(&node.exec(&["count"], false), V4).await;
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    let bytes: Vec<u8> = (0..LENGTH).map(crate::backend::pattern).collect();
    client.data(streams["stdin"], &bytes, true).await;
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), LENGTH.to_string());
    node.stop().await;
}
