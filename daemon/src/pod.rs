//! Pod sandboxes: their configuration, their making and unmaking, and the task that owns each.
//!
//! A sandbox has no process of its own but its shim:
//!
//! ```text
//!   RunPodSandbox --> creating --> ready --stop--> stopped --remove--> (gone)
//!                        |  (failure: unmade)         ^
//!                        v                            |
//!                      (gone)        shim lost -------+
//! ```
//!
//! [`Pods`] is the way in. Lists and statuses read [`PodView`]s, which the owning task publishes; requests that
//! change something reach that task as messages.

mod actor;
pub mod config;
mod create;
mod files;
mod handle;
mod pods;
mod port;
mod recovery;
mod teardown;
mod view;

pub(crate) use actor::Owned;
pub(crate) use files::{PodFiles, host_name};
pub use handle::PodHandle;
pub use pods::{Pods, StopSignal};
pub(crate) use port::connect;
pub use view::{PodKey, PodState, PodView};
