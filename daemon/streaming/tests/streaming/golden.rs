//! What Go clients sent, byte for byte (crictl 1.36, client-go and spdystream of its time, through a recording
//! proxy): `exec -i` of `cat`, `exec -it` with a resize, `port-forward` of three connections and to a refused port.

use std::collections::HashMap;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use zcri_streaming::spdy::frame::{Decoder, Frame};
use zcri_streaming::upgrade::{Endpoint, Protocol, negotiate};
use zcri_streaming::websocket::channel::{self, Input};
use zcri_streaming::websocket::frame::{self as websocket, Event};

/// The protocol that the recorded request gets, and what was sent after it.
fn replay(endpoint: Endpoint, recording: &[u8]) -> (Protocol, BytesMut) {
    let end = recording
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    let mut lines = std::str::from_utf8(&recording[..end]).unwrap().lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, uri) = (first.next().unwrap(), first.next().unwrap());
    let mut headers = HeaderMap::new();
    for (name, value) in lines.map(|line| line.split_once(": ").unwrap()) {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    let method: Method = method.parse().unwrap();
    let upgrade = negotiate(endpoint, &method, &uri.parse::<Uri>().unwrap(), &headers).unwrap();
    (upgrade.protocol, BytesMut::from(&recording[end + 4..]))
}

fn frames(mut bytes: BytesMut) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    let frames = std::iter::from_fn(|| decoder.decode(&mut bytes).unwrap()).collect();
    assert!(bytes.is_empty());
    frames
}

/// Streams by their headers, and the data of each.
fn by_stream(frames: &[Frame]) -> Vec<(u32, HashMap<String, String>, String)> {
    let opened = frames.iter().filter_map(|frame| match frame {
        Frame::SynStream {
            stream, headers, ..
        } => Some((*stream, headers)),
        _ => None,
    });
    let data = |id: u32| {
        let bytes = frames.iter().filter_map(|frame| match frame {
            Frame::Data { stream, bytes, .. } if *stream == id => Some(bytes.to_vec()),
            _ => None,
        });
        String::from_utf8(bytes.flatten().collect()).unwrap()
    };
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    opened
        .map(|(id, headers)| (id, headers.iter().map(owned).collect(), data(id)))
        .collect()
}

fn command(recording: &[u8]) -> Vec<(u32, String, String)> {
    let (protocol, bytes) = replay(Endpoint::Command, recording);
    // It offers version 5 first, which is of WebSocket.
    assert_eq!(
        protocol,
        Protocol::SpdyCommand {
            resize: true,
            json: true
        }
    );
    let frames = frames(bytes);
    by_stream(&frames)
        .into_iter()
        .map(|(id, headers, data)| (id, headers["streamtype"].clone(), data))
        .collect()
}

fn row(id: u32, kind: &str, data: &str) -> (u32, String, String) {
    (id, kind.to_owned(), data.to_owned())
}

#[test]
fn exec_over_spdy() {
    let streams = command(include_bytes!("../golden/spdy-exec.bin"));
    let input = row(3, "stdin", "from stdin\n");
    assert_eq!(
        streams,
        [
            row(1, "error", ""),
            input,
            row(5, "stdout", ""),
            row(7, "stderr", "")
        ]
    );
    let (_, bytes) = replay(Endpoint::Command, include_bytes!("../golden/spdy-exec.bin"));
    let frames = frames(bytes);
    assert!(
        matches!(frames.last(), Some(Frame::Data { stream: 3, fin: true, bytes }) if bytes.is_empty()),
        "half-close"
    );
}

#[test]
fn exec_with_a_terminal_over_spdy() {
    let streams = command(include_bytes!("../golden/spdy-exec-tty.bin"));
    let sizes = "{\"Width\":91,\"Height\":33}\n{\"Width\":120,\"Height\":40}\n";
    let (input, resize) = (row(3, "stdin", "hello\r"), row(7, "resize", sizes));
    assert_eq!(
        streams,
        [row(1, "error", ""), input, row(5, "stdout", ""), resize]
    );
}

fn forwarded(frames: &[Frame], port: &str, pairs: usize) {
    let streams = by_stream(frames);
    assert_eq!(streams.len(), 2 * pairs);
    for request in 0..pairs {
        let request = request.to_string();
        let pair: Vec<_> = streams
            .iter()
            .filter(|(_, headers, _)| headers["requestid"] == request)
            .collect();
        let kinds: Vec<&str> = pair
            .iter()
            .map(|(_, headers, _)| headers["streamtype"].as_str())
            .collect();
        assert_eq!(kinds, ["error", "data"]);
        assert!(pair.iter().all(|(_, headers, _)| headers["port"] == port));
        assert!(
            pair[0].2.is_empty() && pair[1].2.starts_with("GET /g.name HTTP/1.1\r\n"),
            "{pair:?}"
        );
    }
}

#[test]
fn port_forward_over_spdy() {
    for (recording, port, pairs) in [
        (
            &include_bytes!("../golden/spdy-forward.bin")[..],
            "18997",
            3,
        ),
        (&include_bytes!("../golden/spdy-refused.bin")[..], "1", 1),
    ] {
        let (protocol, bytes) = replay(Endpoint::Forward, recording);
        assert_eq!(protocol, Protocol::SpdyForward);
        let frames = frames(bytes);
        forwarded(&frames, port, pairs);
        // The client resets what the server has closed, and ends all after an error.
        let reset = frames
            .iter()
            .any(|frame| matches!(frame, Frame::RstStream { status: 5, .. }));
        let away = matches!(frames.last(), Some(Frame::GoAway { status: 0, .. }));
        assert!(if port == "1" { away } else { reset }, "{frames:?}");
    }
}

fn messages(protocol: &Protocol, mut bytes: BytesMut) -> (Vec<Input>, Vec<Event>) {
    let Protocol::ChannelCommand { format, json: true } = protocol else {
        panic!("{protocol:?}")
    };
    assert!(format.close_signal && !format.base64);
    let (mut frames, mut decoder) = (websocket::Decoder::new(), channel::Decoder::new(*format));
    let (mut inputs, mut others) = (Vec::new(), Vec::new());
    while let Some(event) = frames.decode(&mut bytes).unwrap() {
        match event {
            Event::Data { .. } => inputs.extend(decoder.decode(event).unwrap()),
            other => others.push(other),
        }
    }
    assert!(bytes.is_empty());
    (inputs, others)
}

fn data(channel: u8, text: &'static str) -> Input {
    Input::Data {
        channel,
        bytes: text.as_bytes().into(),
    }
}

#[test]
fn exec_over_websocket() {
    let (protocol, bytes) = replay(
        Endpoint::Command,
        include_bytes!("../golden/websocket-exec.bin"),
    );
    let (inputs, others) = messages(&protocol, bytes);
    assert_eq!(
        inputs,
        [data(0, "from stdin\n"), Input::Closed { channel: 0 }]
    );
    assert_eq!(others, [Event::Close { code: Some(1000) }]);
}

#[test]
fn exec_with_a_terminal_over_websocket() {
    let (protocol, bytes) = replay(
        Endpoint::Command,
        include_bytes!("../golden/websocket-exec-tty.bin"),
    );
    let (inputs, _) = messages(&protocol, bytes);
    let (first, second) = (
        "{\"Width\":91,\"Height\":33}\n",
        "{\"Width\":120,\"Height\":40}\n",
    );
    let typed: Vec<u8> = inputs
        .iter()
        .filter_map(|input| match input {
            Input::Data { channel: 0, bytes } => Some(bytes.to_vec()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(typed, b"hello\r");
    assert!(
        inputs.contains(&data(4, first)) && inputs.contains(&data(4, second)),
        "{inputs:?}"
    );
}

#[test]
fn port_forward_over_spdy_in_websocket() {
    for (recording, port, pairs) in [
        (
            &include_bytes!("../golden/websocket-forward.bin")[..],
            "18997",
            3,
        ),
        (
            &include_bytes!("../golden/websocket-refused.bin")[..],
            "1",
            1,
        ),
    ] {
        let (protocol, mut bytes) = replay(Endpoint::Forward, recording);
        assert_eq!(protocol, Protocol::TunnelForward);
        let (mut decoder, mut spdy) = (websocket::Decoder::new(), BytesMut::new());
        while let Some(event) = decoder.decode(&mut bytes).unwrap() {
            if let Event::Data { bytes, .. } = event {
                spdy.extend_from_slice(&bytes);
            }
        }
        forwarded(&frames(spdy), port, pairs);
    }
}
