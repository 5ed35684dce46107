//! The server: its socket, the URLs it gives out, the connections it accepts.

use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::net::TcpListener;

use crate::backend::{AttachRequest, Backend, ExecRequest};
use crate::config::ServerConfig;

/// A bound streaming server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: ServerConfig,
    backend: Arc<dyn Backend>,
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
        let listen = |source| BindError::Listen {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self {
            listener,
            address,
            config,
            backend,
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
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, UrlError> {
        drop(request);
        Err(UrlError::NoRandomness)
    }

    /// A URL for one attach.
    ///
    /// # Errors
    /// [`UrlError::Full`] when too many URLs wait for their client.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, UrlError> {
        drop(request);
        Err(UrlError::NoRandomness)
    }

    /// A URL for one port-forward session. `ports` limits the ports that the client may ask for; empty: any.
    ///
    /// # Errors
    /// [`UrlError::Full`] when too many URLs wait for their client.
    pub fn port_forward_url(&self, pod_id: &str, ports: &[u16]) -> Result<String, UrlError> {
        let _ = (pod_id, ports, &self.config, &self.backend);
        Err(UrlError::NoRandomness)
    }

    /// Serves until `shutdown` resolves, then ends all sessions and returns when they are gone.
    pub async fn serve(&self, shutdown: impl Future<Output = ()>) {
        let _ = &self.listener;
        shutdown.await;
    }
}
