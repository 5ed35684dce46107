//! Requests that are no upgrade, tokens that are not good, clients that take their time.

use std::time::{Duration, Instant};

use zcri_streaming::limits::{HANDSHAKE_TIMEOUT, MAX_REQUEST_HEAD};

use crate::Node;
use crate::client::{Connection, SPDY, websocket_headers};
use crate::command::V4;

const VERSION: (&str, &str) = ("X-Stream-Protocol-Version", V4);

async fn status(method: &str, url: &str, headers: &[(&str, &str)]) -> u16 {
    Connection::to(url)
        .await
        .request(method, url, headers)
        .await
        .status
}

#[tokio::test]
async fn a_token_is_good_for_one_request_at_its_own_path() {
    let node = Node::start().await;
    let url = node.exec(&["exit", "0"], false);
    let good = [SPDY[0], SPDY[1], VERSION];
    assert_eq!(status("POST", &url, &good).await, 101);
    assert_eq!(status("POST", &url, &good).await, 404, "a second time");
    assert_eq!(
        status(
            "POST",
            &node
                .exec(&["exit", "0"], false)
                .replace("/exec/", "/attach/"),
            &good
        )
        .await,
        404
    );
    let base = url.rsplit_once('/').unwrap().0;
    for guess in ["", "/", "/AAAAAAAAAAAAAAAAAAAA", "/../x", "/%00"] {
        assert_eq!(
            status("POST", &format!("{base}{guess}"), &good).await,
            404,
            "{guess}"
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn bad_upgrade_requests_are_refused_and_use_up_their_token() {
    let node = Node::start().await;
    let [connection, upgrade] = SPDY;
    let websocket = websocket_headers(V4);
    let without = |name: &str| {
        websocket
            .iter()
            .copied()
            .filter(|(n, _)| *n != name)
            .collect::<Vec<_>>()
    };
    let with = |name, value| [without(name), vec![(name, value)]].concat();
    let many = vec!["x"; 100].join(",");
    let cases = vec![
        ("DELETE", vec![connection, upgrade, VERSION], 405),
        ("POST", vec![upgrade, VERSION], 400),
        ("POST", vec![connection, VERSION], 400),
        (
            "POST",
            vec![("Connection", "keep-alive"), upgrade, VERSION],
            400,
        ),
        ("POST", vec![connection, ("Upgrade", "h2c"), VERSION], 400),
        ("POST", vec![connection, upgrade], 400),
        ("POST", vec![connection, upgrade, (VERSION.0, " , ")], 400),
        (
            "POST",
            vec![connection, upgrade, (VERSION.0, "v9.channel.k8s.io")],
            403,
        ),
        (
            "POST",
            vec![connection, upgrade, (VERSION.0, "portforward.k8s.io")],
            403,
        ),
        ("POST", vec![connection, upgrade, (VERSION.0, &many)], 400),
        (
            "POST",
            vec![connection, upgrade, VERSION, ("Content-Length", "3")],
            400,
        ),
        (
            "POST",
            vec![
                connection,
                upgrade,
                VERSION,
                ("Transfer-Encoding", "chunked"),
            ],
            400,
        ),
        ("POST", websocket.clone(), 405),
        ("GET", without("Sec-WebSocket-Version"), 426),
        ("GET", with("Sec-WebSocket-Version", "8"), 426),
        ("GET", without("Sec-WebSocket-Key"), 400),
        ("GET", with("Sec-WebSocket-Key", "c2hvcnQ="), 400),
        (
            "GET",
            with("Sec-WebSocket-Protocol", "v4.channel.k8s.io.evil"),
            403,
        ),
        (
            "GET",
            with("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io"),
            403,
        ),
    ];
    for (method, headers, expected) in cases {
        let url = node.exec(&["exit", "0"], false);
        assert_eq!(
            status(method, &url, &headers).await,
            expected,
            "{method} {headers:?}"
        );
        assert_eq!(
            status("POST", &url, &[connection, upgrade, VERSION]).await,
            404,
            "{method} {headers:?}"
        );
    }
    let mut client = Connection::to(&node.exec(&["cat"], false)).await;
    let url = node.exec(&["cat"], false);
    let response = client
        .request("POST", &url, &[connection, upgrade, (VERSION.0, "v9")])
        .await;
    assert!(
        response
            .headers
            .contains_key("x-accepted-stream-protocol-versions")
    );
    node.stop().await;
}

#[tokio::test]
async fn a_request_without_bounds_is_cut_off() {
    let node = Node::start().await;
    let url = node.exec(&["cat"], false);
    let mut connection = Connection::to(&url).await;
    connection.send(b"GET / HTTP/1.1\r\nX: ").await;
    let part = vec![b'x'; 4096];
    let mut sent = 0;
    while tokio::io::AsyncWriteExt::write_all(&mut connection.io, &part)
        .await
        .is_ok()
    {
        sent += part.len();
        assert!(
            sent < 64 * MAX_REQUEST_HEAD,
            "the server takes a head without bound"
        );
        if connection_answered(&mut connection).await {
            break;
        }
    }
    let mut connection = Connection::to(&url).await;
    connection
        .send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        .await;
    connection.rest().await;
    node.stop().await;
}

async fn connection_answered(connection: &mut Connection) -> bool {
    tokio::time::timeout(Duration::from_millis(5), connection.fill())
        .await
        .is_ok()
}

/// A byte now and then holds a connection no longer than silence does.
#[tokio::test]
async fn a_slow_handshake_is_cut_off() {
    let node = Node::start().await;
    let url = node.exec(&["cat"], false);
    let (mut slow, mut silent) = (Connection::to(&url).await, Connection::to(&url).await);
    let begin = Instant::now();
    let dripping = async {
        for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "
            .iter()
            .chain(std::iter::repeat(&b'x'))
        {
            if tokio::io::AsyncWriteExt::write_all(&mut slow.io, &[*byte])
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(dripping, async { assert!(silent.rest().await.is_empty()) });
    assert!(
        begin.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    node.stop().await;
}
