//! The benchmark: what a kubelet's calls cost on any CRI socket. Two sockets are measured in turn within one run, so
//! that whatever else the machine does concerns both.

pub mod endpoint;
pub mod log;
pub mod process;
pub mod pull;
pub mod report;
pub mod samples;
pub mod stream;
pub mod svg;
pub mod work;

pub use endpoint::Endpoint;
pub use report::{Report, Row};
pub use samples::Samples;
