//! zcri-config by its public interface.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod auth;
mod documentation;
mod files;
mod kubernetes;
mod registries;
mod started_task;
mod values;
