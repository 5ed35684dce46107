//! WebSocket (RFC 6455) and the Kubernetes channel protocols on it.
//!
//! [`frame`] and [`channel`] are codecs and do no I/O; `connection` drives a socket with them, `tunnel` carries SPDY.

pub mod channel;
pub(crate) mod connection;
pub mod frame;
pub(crate) mod tunnel;
