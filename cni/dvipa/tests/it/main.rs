//! The plugin's binary in real network namespaces, with real sockets. Needs root.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says where"
)]

mod chain;
mod kill;
mod lab;
mod leases;
mod netns;
mod node;
mod probe;
mod protocol;
mod stack;
mod stress;
#[cfg(feature = "zos-stub")]
mod zos;
