//! Containers: their configuration, their state, and what is done to them.
//!
//! ```text
//!   CreateContainer --> created --start--> running --exit--> exited --remove--> (gone)
//!                          |                                   ^
//!                          +--start failed (code 128)----------+
//! ```

mod cdi;
pub mod config;
mod create;
mod exec;
mod host;
mod output;
mod prepared;
mod session;
pub mod spec;
mod state;
mod user_files;
mod volumes;

pub(crate) use create::{check_unified, prepare, rewrite_resources, unmake, view_of};
pub use exec::{ExecOutput, exec_sync};
pub(crate) use prepared::{ranges as id_ranges, release as release_mounts};
pub(crate) use session::{Busy, attach, close_taken_stdin, exec, refused, remove_left_fifos};
pub use state::{ContainerState, ContainerView, Exited};
