//! Images: pull, verify, unpack, store.
//!
//! [`ImageStore`] is the whole of it: it resolves references, pulls from registries, unpacks each layer once into
//! the form that overlayfs takes as a lower directory, keeps one record per image, and knows to the byte what it
//! uses. It knows nothing of CRI, of containers or of configuration files: the daemon says by [`RegistryHosts`]
//! where the registries are and by leases which layers are in use.
//!
//! - [`mod@reference`], [`digest`], [`platform`]: the names of things.
//! - [`registry`]: HTTP, credentials, retries, resumed downloads.
//! - `manifest`, `image`: what registries describe images with.
//! - `layer`: a compressed stream into a directory, nothing outside of it touched.
//! - `store`: what is on disk, [`pull`]: the way there.
#![forbid(unsafe_code)]

pub mod digest;
pub mod error;
pub mod image;
mod layer;
pub mod limits;
mod manifest;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;
mod tree;

pub use digest::Digest;
pub use error::ImageError;
pub use image::{Image, ImageConfig, LayerInfo};
pub use limits::Limits;
pub use platform::Platform;
pub use pull::{Progress, PullRequest};
pub use reference::ImageReference;
pub use registry::{Credentials, DefaultHosts, Endpoint, RegistryHosts, Timeouts};
pub use store::{AdditionalStores, BrokenRecord, ImageStore, StoreConfig, Usage};
