//! The gRPC edge: the only place that knows the types of the interface.
//!
//! A request is converted to domain types, given to the domain, and the answer converted back. Requests that change
//! something run on tasks of their own, so that a client that gives up does not cut them short.

mod call;
mod containers;
pub mod convert;
mod deadline;
mod deprecated;
mod events;
mod filter;
mod image_service;
mod images;
mod info;
mod metrics;
mod node_status;
mod pods;
mod runtime_service;
pub mod server;
mod stats;
mod status;
mod streaming;
mod streams;

use std::sync::Arc;

use zcri_streaming::Server;

use crate::pod::Pods;

/// What both services stand on.
#[derive(Clone)]
pub struct Services {
    pods: Arc<Pods>,
    streaming: Arc<Server>,
}

impl Services {
    /// Over all pods of the node, and the server of their sessions.
    pub fn new(pods: Arc<Pods>, streaming: Arc<Server>) -> Self {
        Self { pods, streaming }
    }
}
