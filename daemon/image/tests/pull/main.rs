//! Pulls from a registry in the process, into stores of their own. Needs root: layers have owners and devices.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test stops where something is not as it should be, and is a list of steps"
)]

mod access;
mod failures;
mod fixture;
mod images;
mod overlay;
mod sharing;
mod store;
mod tls;
