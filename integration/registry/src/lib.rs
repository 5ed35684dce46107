//! An OCI distribution registry inside the process, for tests and the demo.
//!
//! It serves the pull side of the OCI distribution specification 1.1 over plain HTTP on a free port of 127.0.0.1,
//! with content built in memory ([`LayerBuilder`], [`ImageBuilder`], [`Index`]), and misbehaves on demand
//! ([`Fault`], per repository, at any moment). It remembers every request, so that a test can count them.
//!
//! ```no_run
//! # async fn example() {
//! use zcri_test_registry::{Compression, Image, LayerBuilder, Registry};
//! let registry = Registry::start().await;
//! let layer = LayerBuilder::new().dir("etc", 0o755).file("etc/motd", 0o644, "hello\n").build(Compression::Gzip);
//! let digest = registry.push("library/hello", "v1", Image::builder("linux/amd64").layer(layer).cmd(["/hello"]).build());
//! println!("{}/library/hello@{digest}", registry.addr());
//! # }
//! ```
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    reason = "test support: a broken fixture has to stop the test, and writing to memory does not fail"
)]

mod auth;
mod body;
mod fault;
mod image;
mod layer;
mod registry;
mod server;

pub use fault::{FOREVER, Fault};
pub use image::{Content, Image, ImageBuilder, Index, ManifestKind};
pub use layer::{Blob, Compression, Layer, LayerBuilder, digest_of};
pub use registry::{Registry, RequestRecord};
