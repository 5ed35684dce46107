//! The server: its socket, the URLs it gives out, the connections it accepts.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::backend::{AttachRequest, Backend, ExecRequest};
use crate::config::ServerConfig;
use crate::limits::{FAREWELL, MAX_CONNECTIONS};
use crate::remote::Command;
use crate::tls::{Acceptors, TlsError};
use crate::token::Tokens;

mod connection;

/// The wait after an accept that failed: the usual reason is that there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound streaming server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    base_url: String,
    shared: Arc<Shared>,
}

/// What the connections need of the server.
struct Shared {
    backend: Arc<dyn Backend>,
    tokens: Tokens<Target>,
    tls: Option<Acceptors>,
    idle_timeout: Duration,
}

/// What a token stands for.
#[derive(Debug)]
enum Target {
    Command(Command),
    Forward { pod_id: String, ports: Vec<u16> },
}

/// The server cannot listen.
#[derive(Debug, Error)]
pub enum BindError {
    /// The address is taken, or not this host's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("no TLS")]
    Tls {
        /// Why.
        #[from]
        source: TlsError,
    },
}

/// No URL can be given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Too many URLs wait for their client.
    #[error("{pending} streaming sessions wait for their client, no more are possible")]
    Full {
        /// How many wait.
        pending: usize,
    },
    /// The system has no random bytes.
    #[error("no random bytes for a token")]
    NoRandomness,
}

impl Server {
    /// Binds the socket and reads the certificates; serves nobody yet.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificates cannot be used.
    pub async fn bind(config: ServerConfig, backend: Arc<dyn Backend>) -> Result<Self, BindError> {
        let wanted = SocketAddr::new(config.address, config.port);
        let tls = config.tls.map(Acceptors::new).transpose()?;
        let listen = |source| BindError::Listen {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let base_url = match config.base_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!(
                "{}://{address}",
                if tls.is_some() { "https" } else { "http" }
            ),
        };
        let shared = Shared {
            backend,
            tokens: Tokens::new(),
            tls,
            idle_timeout: config.idle_timeout,
        };
        Ok(Self {
            listener,
            address,
            base_url,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens, with the port that was really taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A URL for one exec.
    ///
    /// # Errors
    /// [`UrlError::Full`] when too many URLs wait for their client.
    pub fn exec_url(&self, mut request: ExecRequest) -> Result<String, UrlError> {
        request.stderr &= !request.tty;
        self.url("exec", Target::Command(Command::Exec(request)))
    }

    /// A URL for one attach.
    ///
    /// # Errors
    /// [`UrlError::Full`] when too many URLs wait for their client.
    pub fn attach_url(&self, mut request: AttachRequest) -> Result<String, UrlError> {
        request.stderr &= !request.tty;
        self.url("attach", Target::Command(Command::Attach(request)))
    }

    /// A URL for one port-forward session. `ports` limits the ports that the client may ask for; empty: any.
    ///
    /// # Errors
    /// [`UrlError::Full`] when too many URLs wait for their client.
    pub fn port_forward_url(&self, pod_id: &str, ports: &[u16]) -> Result<String, UrlError> {
        self.url(
            "portforward",
            Target::Forward {
                pod_id: pod_id.to_owned(),
                ports: ports.to_vec(),
            },
        )
    }

    fn url(&self, path: &str, target: Target) -> Result<String, UrlError> {
        let token = self.shared.tokens.insert(target)?;
        Ok(format!("{}/{path}/{token}", self.base_url))
    }

    /// Serves until `shutdown` resolves, then ends all sessions and returns when they are gone.
    pub async fn serve(&self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::select! {
            () = self.accept(&mut connections, &stopped) => {}
            () = shutdown => {}
        }
        stop.send_replace(true);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(2 * FAREWELL, all).await.is_err() {
            tracing::debug!(
                left = connections.len(),
                "streaming connections are cut off"
            );
        }
        connections.shutdown().await;
    }

    async fn accept(&self, connections: &mut JoinSet<()>, stopped: &watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut failing = false;
        loop {
            // What cannot be served yet waits in the kernel's queue.
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            let stream = loop {
                tokio::select! {
                    accepted = self.listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            failing = false;
                            break stream;
                        }
                        // The client went away before it was accepted.
                        Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                        Err(error) => {
                            // Once, not ten times a second.
                            if !std::mem::replace(&mut failing, true) {
                                tracing::warn!(%error, "streaming connections are not accepted");
                            }
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            };
            let (shared, stopped) = (self.shared.clone(), stopped.clone());
            connections.spawn(async move {
                connection::serve(shared, stream, stopped).await;
                drop(permit);
            });
        }
    }
}
