//! Containers.

pub mod config;
pub mod host;
pub mod spec;
