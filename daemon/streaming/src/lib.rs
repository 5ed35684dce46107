//! The streaming server: exec, attach and port-forward sessions of `kubectl` and `crictl`, over SPDY/3.1 and over
//! WebSocket.
//!
//! A client first asks the daemon for a URL ([`Server::exec_url`] and its siblings: one token, one use, one minute),
//! then connects to it, upgrades the connection and speaks one of the remote command or port-forward protocols. What
//! is behind a session is a [`Backend`], which the daemon implements: this crate knows nothing of CRI, pods or
//! runtimes.
//!
//! The codecs do no I/O and are public, for tests and fuzzing: [`spdy::frame`], [`spdy::header`],
//! [`websocket::frame`], [`websocket::channel`], [`upgrade`]. Every limit is in [`limits`].
#![forbid(unsafe_code)]

mod activity;
mod backend;
mod channel;
mod config;
mod forward;
pub mod limits;
mod queue;
mod remote;
mod server;
mod session;
pub mod spdy;
mod status;
mod tls;
mod token;
mod transport;
pub mod upgrade;
pub mod websocket;
mod writer;

pub use backend::{
    AttachRequest, Backend, Duplex, ExecRequest, ExitStatus, Input, Output, Session,
    SessionControl, SessionError, TerminalSize,
};
pub use config::{ServerConfig, TlsConfig, TlsVersion};
pub use server::{BindError, Server, UrlError};
pub use tls::TlsError;
