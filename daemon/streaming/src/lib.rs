//! The streaming server: exec, attach and port-forward sessions of `kubectl` and `crictl`, over SPDY/3.1 and over
//! WebSocket.
//!
//! A client first asks the daemon for a URL ([`Server::exec_url`] and its siblings: one token, one use, one minute),
//! then connects to it, upgrades the connection and speaks one of the remote command or port-forward protocols. What
//! is behind a session is a [`Backend`], which the daemon implements: this crate knows nothing of CRI, pods or
//! runtimes.
#![forbid(unsafe_code)]

mod backend;
mod config;
mod server;

pub use backend::{
    AttachRequest, Backend, Duplex, ExecRequest, ExitStatus, Input, Output, Session,
    SessionControl, SessionError, TerminalSize,
};
pub use config::{ServerConfig, TlsConfig, TlsVersion};
pub use server::{BindError, Server, UrlError};
