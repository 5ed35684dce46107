//! The gRPC edge.

pub mod convert;
