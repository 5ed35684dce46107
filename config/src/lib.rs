//! The configuration of zcrid: text to typed, validated values.
//!
//! - [`Config`] is `zcri.toml` with its drop-ins. Every key has a default, unknown keys are errors with file and
//!   line, and a value that exists as a domain type here is valid.
//! - [`registries`] is containers-registries.conf(5): where an image may be fetched from.
//! - [`auth`] is containers-auth.json(5): what to say at that door.
//!
//! Nothing here keeps state, opens a socket or starts a process; files are read when asked, once.

#![forbid(unsafe_code)]

pub mod auth;
mod check;
mod config;
mod error;
mod platform;
pub mod policy;
mod read;
pub mod registries;
mod render;
mod rlimit;
mod schema;
mod source;
mod wlm;

pub use check::Problem;
pub use config::{
    Api, CgroupManager, Config, Console, ConsoleOutput, DEFAULT_PATH, Handler, HandlerType, Image,
    Log, LogFormat, LogLevel, Metrics, Network, NetworkIsolation, Platform, PlatformKind, Runtime,
    Storage, Stream, StreamTls, Switch, TlsVersion, default_toml,
};
pub use error::{ConfigError, Fault, Origin};
pub use platform::{ImagePlatform, OciPlatform};
pub use rlimit::Rlimit;
pub use wlm::{QosClass, Wlm, WlmMapping, WlmRule, WlmSubject, WlmTarget};
