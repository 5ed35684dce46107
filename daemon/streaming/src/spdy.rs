//! SPDY/3.1, as far as the Kubernetes streaming protocols use it
//! (<https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>).
//!
//! [`frame`] and [`header`] are codecs and do no I/O; `connection` and `stream` drive a socket with them.

pub(crate) mod connection;
pub mod frame;
pub mod header;
pub(crate) mod stream;
pub(crate) mod window;
