//! The plugin's binary in real network namespaces, with real sockets. Needs root.

#![forbid(unsafe_code)]

mod kill;
mod lab;
mod leases;
mod netns;
mod node;
mod protocol;
mod stack;
mod stress;
