//! Many sessions at once, and one after the other: nothing is left over. A program of its own, as it counts the file
//! descriptors of the process.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use zcri_streaming::spdy::frame::Frame;

#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
#[path = "../streaming/backend.rs"]
mod backend;
#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
#[path = "../streaming/client.rs"]
mod client;

use backend::Fake;
use client::{Spdy, WebSocket};
use zcri_streaming::{ExecRequest, Server, ServerConfig};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const STREAMS: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

/// Short sessions in all, by so many clients at a time.
const SHORT_SESSIONS: usize = 10_000;
const CLIENTS: usize = 16;

struct Node {
    server: Server,
    backend: Arc<Fake>,
}

impl Node {
    async fn start() -> Arc<Self> {
        let backend = Arc::new(Fake::default());
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let config = ServerConfig {
            address,
            port: 0,
            tls: None,
            idle_timeout: Duration::ZERO,
            base_url: None,
        };
        let node = Arc::new(Self {
            server: Server::bind(config, backend.clone()).await.unwrap(),
            backend,
        });
        let server = node.clone();
        tokio::spawn(async move { server.server.serve(std::future::pending()).await });
        node
    }

    fn exec(&self, command: &[&str]) -> String {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let container_id = "c".to_owned();
        let request = ExecRequest {
            container_id,
            command,
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        self.server.exec_url(request).unwrap()
    }

    /// File descriptors and tasks, when they are as few as `at_most`.
    async fn settles(&self, at_most: (usize, usize)) {
        self.backend.lives(0).await;
        let begin = Instant::now();
        loop {
            let now = usage();
            if now.0 <= at_most.0 && now.1 <= at_most.1 {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "{now:?} descriptors and tasks, not {at_most:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn usage() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (descriptors, Handle::current().metrics().num_alive_tasks())
}

async fn echo_over_spdy(node: &Node, text: &str) {
    let mut client = Spdy::connect(&node.exec(&["cat"]), V4).await;
    let streams = client.command(&STREAMS).await;
    client.data(streams["stdin"], text.as_bytes(), true).await;
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), text);
}

async fn echo_over_websocket(node: &Node, text: &str) {
    let mut client = WebSocket::connect(&node.exec(&["cat"]), V5).await;
    client.send(0, text.as_bytes()).await;
    client.send(255, &[0]).await;
    client
        .until("the close", |client| client.close.is_some())
        .await;
    assert_eq!(client.channel(1), text.as_bytes());
}

async fn abandon(node: &Node, at: usize) {
    let url = node.exec(&["pour", "10000000"]);
    match at % 3 {
        0 => drop(WebSocket::connect(&url, V5).await),
        1 => {
            let mut client = Spdy::connect(&url, V4).await;
            client.command(&STREAMS[..at % 4]).await;
        }
        _ => {
            let mut client = Spdy::connect(&url, V4).await;
            client.command(&STREAMS).await;
            client.step().await;
        }
    }
}

/// One test, so that nothing else of this process opens files meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_over() {
    let node = Node::start().await;
    let before = usage();
    short_sessions(&node).await;
    node.settles(before).await;
    sessions_at_once(&node).await;
    node.settles(before).await;
    a_slow_client_slows_itself(&node).await;
    node.settles(before).await;
}

async fn short_sessions(node: &Arc<Node>) {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let node = node.clone();
        clients.spawn(async move {
            for at in (client..SHORT_SESSIONS).step_by(CLIENTS) {
                let text = format!("session {at}");
                match at % 8 {
                    0 => abandon(&node, at / 8).await,
                    1..4 => echo_over_websocket(&node, &text).await,
                    _ => echo_over_spdy(&node, &text).await,
                }
            }
        });
    }
    while let Some(result) = clients.join_next().await {
        result.unwrap();
    }
}

async fn sessions_at_once(node: &Arc<Node>) {
    let mut sessions = Vec::new();
    for at in 0..200 {
        let mut client = Spdy::connect(&node.exec(&["cat"]), V4).await;
        let streams = client.command(&STREAMS).await;
        client
            .data(streams["stdin"], format!("{at} ").as_bytes(), false)
            .await;
        sessions.push((client, streams));
    }
    node.backend.lives(200).await;
    for round in 0..3 {
        for (at, (client, streams)) in sessions.iter_mut().enumerate() {
            let wanted = format!("{at} ").repeat(round + 1);
            client
                .until("the echo", |client| {
                    client.text(streams["stdout"]) == wanted
                })
                .await;
            client
                .data(streams["stdin"], format!("{at} ").as_bytes(), round == 2)
                .await;
        }
    }
    for (client, streams) in &mut sessions {
        client.end().await;
        assert!(client.text(streams["error"]).contains("Success"));
    }
}

/// A client that reads nothing holds up its own command, in bounded memory, and nobody else's.
async fn a_slow_client_slows_itself(node: &Arc<Node>) {
    const LENGTH: usize = 200_000_000;
    let mut slow = Spdy::connect(&node.exec(&["pour", &LENGTH.to_string()]), V4).await;
    slow.command(&STREAMS).await;
    let mut stuck = Spdy::connect(&node.exec(&["hang"]), V4).await;
    let stuck_streams = stuck.command(&STREAMS).await;
    stuck
        .until("the replies", |client| client.streams.len() == 4)
        .await;
    let input = Frame::Data {
        stream: stuck_streams["stdin"],
        bytes: vec![0; 1 << 20].into(),
        fin: false,
    };
    let input = stuck.encode(&input);
    let push = async {
        while tokio::time::timeout(Duration::from_millis(300), stuck.connection.send(&input))
            .await
            .is_ok()
        {}
    };
    push.await;
    let memory = resident();
    for at in 0..100 {
        echo_over_spdy(node, &format!("past the slow {at}")).await;
    }
    assert_eq!(node.backend.live(), 2, "the slow ones still run");
    let grown = resident().saturating_sub(memory);
    assert!(
        grown < 32 << 20,
        "{grown} bytes more for clients that do not read"
    );
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
