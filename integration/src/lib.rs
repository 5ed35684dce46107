//! What the integration tests, the demo and the benchmark share: a node to run `zcrid` on, a client that plays the
//! kubelet, and an audit of what is left behind.
//!
//! Nothing here links the daemon: it is reached through its socket, its files and its binary only.
#![forbid(unsafe_code)]

pub mod bench;
pub mod binaries;
pub mod client;
pub mod cri_log;
pub mod images;
pub mod leaks;
pub mod lpar;
pub mod node;
pub mod plugin;
pub mod pod;
pub mod session;
pub mod stream_client;
pub mod usage;
pub mod wait;
pub mod zos_runc;

pub use client::Cri;
pub use node::{Builder, TestNode};
pub use pod::{Output, Pod};
pub use zcri_proto::v1;
pub use zcri_test_registry as registry;

/// What a test gives back.
pub type Test = anyhow::Result<()>;
