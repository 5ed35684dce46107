//! Containers: their configuration, their state, and what is done to them.
//!
//! ```text
//!   CreateContainer --> created --start--> running --exit--> exited --remove--> (gone)
//!                          |                                   ^
//!                          +--start failed (code 128)----------+
//! ```

mod cdi;
pub mod config;
mod confine;
mod create;
mod exec;
mod host;
mod output;
mod prepared;
mod record_view;
mod session;
pub mod spec;
mod state;
mod user_files;
mod volumes;

pub(crate) use create::{check_unified, prepare, rewrite_resources, unmake};
pub(crate) use exec::start_error;
pub use exec::{ExecOutput, exec_sync};
pub(crate) use prepared::{ranges as id_ranges, release as release_mounts};
pub(crate) use record_view::view_of;
pub(crate) use session::{Busy, attach, close_taken_stdin, exec, refused, remove_left_fifos};
pub use state::{ContainerState, ContainerView, Exited};
