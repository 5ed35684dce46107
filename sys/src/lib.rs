//! Everything of zcri that talks to the kernel in raw form: namespaces, mounts, cgroups, processes.
//!
//! This is the only crate with `unsafe`. What it offers is safe to call, owns what it opens and names the
//! path in every error.

pub mod bpf;
pub mod cgroup;
pub mod console;
mod error;
pub mod file_tag;
pub mod filesystem;
pub mod fork;
pub mod listeners;
pub mod mount;
pub mod namespace;
pub mod net_usage;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod open_files;
pub mod pod_init;
pub mod process;
pub mod signal;
pub mod vipa;
#[cfg(any(target_os = "zos", feature = "zos-stub"))]
mod zos;

pub use error::{Error, Result};
