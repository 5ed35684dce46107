//! The real monitor with a real OCI runtime on a busybox root, driven over its socket. Needs root, runc and busybox.

#![allow(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod attach;
mod exec;
mod lifecycle;
mod logs;
mod pod;
mod protocol;
mod sharing;
mod signals;
mod terminal;
