//! Pulling: who asks, who waits, and how far it is.

mod fetch;
mod flight;
mod layers;

use std::sync::Arc;

use tokio::sync::watch;

use crate::reference::ImageReference;
use crate::registry::Credentials;

pub(crate) use flight::Flights;

/// A wish for an image.
#[derive(Debug)]
pub struct PullRequest {
    /// Which.
    pub reference: ImageReference,
    /// Who asks. Pulls with other credentials are other pulls.
    pub credentials: Option<Credentials>,
    /// Where to tell how far the pull is; nobody has to listen.
    pub progress: Option<watch::Sender<Progress>>,
}

impl PullRequest {
    /// A pull without credentials.
    pub const fn new(reference: ImageReference) -> Self {
        Self {
            reference,
            credentials: None,
            progress: None,
        }
    }
}

/// How far a pull is. All zeros until the manifest is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Compressed bytes of layers that have arrived or were there before.
    pub bytes_done: u64,
    /// Compressed bytes of all layers.
    pub bytes_total: u64,
    /// Layers that are complete.
    pub layers_done: usize,
    /// All layers.
    pub layers_total: usize,
}

/// The side of a pull that makes progress.
#[derive(Debug, Clone)]
struct Meter(Arc<watch::Sender<Progress>>);

impl Meter {
    fn begin(&self, layers: usize, bytes: u64) {
        self.0.send_modify(|progress| {
            progress.layers_total = layers;
            progress.bytes_total = bytes;
        });
    }

    fn add_bytes(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.bytes_done += bytes);
    }

    fn finish_layer(&self) {
        self.0.send_modify(|progress| progress.layers_done += 1);
    }
}
