//! The library behind `zcrid`. ARCHITECTURE.md has the map.
#![forbid(unsafe_code)]

mod check;
pub mod cli;
pub mod compose;
pub mod confinement;
pub mod console;
pub mod container;
pub mod cri;
pub mod deprecation;
pub mod error;
pub mod events;
pub mod health;
pub mod id;
pub mod images;
pub mod messages;
pub mod metrics;
pub mod network;
pub mod node;
pub mod platform;
pub mod pod;
pub mod reload;
pub mod runtime;
pub mod state;
pub mod stats;
pub mod streaming;
mod time;
