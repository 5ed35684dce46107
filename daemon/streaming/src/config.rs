//! What the server is told by its owner.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where and how the server listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The address to listen on.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// None: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Sessions in which nothing moved for so long are ended; zero: never.
    pub idle_timeout: Duration,
    /// What the URLs begin with (`https://node.example:10010`), for clients that reach the server under another
    /// address than it listens on. None: `http(s)://ADDRESS:PORT`, which is of no
    /// use to clients if the address is the unspecified one.
    pub base_url: Option<String>,
}

/// The server's certificate and the demands on the client.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate and its chain (PEM). Read again when the file changes.
    pub certificate: PathBuf,
    /// The private key (PEM: PKCS#8, PKCS#1 or SEC1). Read again when the file changes.
    pub key: PathBuf,
    /// Clients must show a certificate of one of these authorities (PEM). None: no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
    /// Older versions are refused.
    pub minimum_version: TlsVersion,
}

/// A version of TLS that the server can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}
