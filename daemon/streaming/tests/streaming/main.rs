//! The server with a fake backend, over real sockets on the loopback, by both transports.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "a test"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zcri_streaming::{AttachRequest, ExecRequest, Server, ServerConfig};

mod backend;
mod client;
mod codec;
mod command;
mod forward;
mod golden;
mod handshake;
mod hostile;
mod tls;
mod websocket;

use backend::Fake;

/// What every wait of a test has to be over by.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Node {
    pub(crate) server: Arc<Server>,
    pub(crate) backend: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        tls: None,
        idle_timeout: Duration::ZERO,
        base_url: None,
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: ServerConfig) -> Self {
        let backend = Arc::new(Fake::default());
        let server = Arc::new(Server::bind(config, backend.clone()).await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn({
            let server = server.clone();
            async move {
                server
                    .serve(async {
                        stopped.await.ok();
                    })
                    .await;
            }
        });
        Self {
            server,
            backend,
            stop: Some(stop),
            serving: Some(serving),
        }
    }

    /// A URL for a command, with all streams, or with a terminal.
    pub(crate) fn exec(&self, command: &[&str], tty: bool) -> String {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let container_id = "c".to_owned();
        let request = ExecRequest {
            container_id,
            command,
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        self.server.exec_url(request).unwrap()
    }

    pub(crate) fn attach(&self, container: &str) -> String {
        let container_id = container.to_owned();
        let request = AttachRequest {
            container_id,
            tty: false,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        self.server.attach_url(request).unwrap()
    }

    pub(crate) fn forward(&self, ports: &[u16]) -> String {
        self.server.port_forward_url("pod", ports).unwrap()
    }

    /// Stops the server; nothing is left.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        client::within("stop", self.serving.take().unwrap())
            .await
            .unwrap();
        self.backend.lives(0).await;
    }
}
