//! zcri-cni against external programs: scripts that fail in every way, and Debian's plugins in real namespaces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod add;
mod del;
mod network;
mod process;
mod real;
mod scripted;
