//! The runtime side of the Container Network Interface, specification 1.1.0.
//!
//! [`Cni::load`] finds the network that the administrator configured, [`NetworkList::add`] attaches a pod to it,
//! and [`Cni::delete`] detaches the pod again, with the very configuration and result of its attachment: both are
//! kept in a file per attachment, written before the first plugin runs.
//!
//! ```text
//!   add:     validate -> find plugins -> record -> plugin 1 .. n -> record with result
//!                                                     | error
//!                                                     v
//!                            DEL of what ran, in reverse -> record removed (kept when a DEL failed)
//!   delete:  record -> plugin n .. 1, going on after errors -> record removed when all succeeded
//! ```
//!
//! Each plugin is started once per operation: VERSION is asked for only by [`NetworkList::versions`]. The loopback
//! interface is the caller's business.
//!
//! Source of all rules: <https://github.com/containernetworking/cni>, `SPEC.md` and `CONVENTIONS.md`.

#![forbid(unsafe_code)]

mod attachment;
mod cache;
mod capability;
mod chain;
mod conf;
mod error;
mod exec;
mod leftover;
mod network;
mod result;
mod turn;
mod version;
mod watch;

pub use attachment::{Attachment, AttachmentKey, InvalidAttachment, pod_args};
pub use cache::CacheError;
pub use capability::{Bandwidth, IpRange, PortMapping, Protocol, RuntimeConfig, RuntimeDns};
pub use conf::{LoadError, SkippedFile};
pub use error::{
    AddError, CheckError, Command, DelError, DelErrors, Failure, GcError, NetworkError, PluginError,
};
pub use network::{Cni, CniDirs, NetworkList};
pub use result::{AddResult, Cidr, Dns, Interface, IpConfig, MalformedResult, Route};
pub use version::SpecVersion;
pub use watch::ConfWatcher;
