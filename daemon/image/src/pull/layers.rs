//! The layers of a pull: several at a time, each once in the store however many pulls want it.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};

use super::Meter;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::{self, Job, LayerError};
use crate::manifest::Descriptor;
use crate::reference::ImageReference;
use crate::registry::{BlobReader, Session};
use crate::store::{Inner, LayerHold, TempLayer};

/// Pieces of a blob between the network and the decoder. A piece has at most some 400 KiB (hyper's read buffer).
const PIECES: usize = 8;

/// A layer to be there.
#[derive(Debug, Clone)]
pub(super) struct LayerPull {
    pub(super) blob: Descriptor,
    pub(super) diff_id: Digest,
}

/// What one layer's work needs besides the layer.
struct Context<'a> {
    store: &'a Arc<Inner>,
    sessions: &'a Arc<[Arc<Session>]>,
    first: usize,
    meter: &'a Meter,
    reference: &'a ImageReference,
    /// Clones of it live as long as work on a layer does.
    working: mpsc::Sender<()>,
}

/// Fetches and unpacks the layers that are not there, and holds all of them. After an error nothing of this pull
/// is left when this returns.
///
/// # Cancel safety
/// When dropped, the threads that unpack end by themselves, and remove what they did.
pub(super) async fn fetch_layers(
    store: &Arc<Inner>,
    layers: &[LayerPull],
    sessions: &Arc<[Arc<Session>]>,
    first: usize,
    meter: &Meter,
    reference: &ImageReference,
) -> Result<Vec<LayerHold>, ImageError> {
    let (working, mut all_done) = mpsc::channel(1);
    let context = Context {
        store,
        sessions,
        first,
        meter,
        reference,
        working,
    };
    let at_a_time = store.config.limits.layers_per_pull.max(1);
    let work: Vec<_> = layers.iter().map(|layer| context.ensure(layer)).collect();
    let result = futures::stream::iter(work)
        .buffered(at_a_time)
        .try_collect()
        .await;
    drop(context);
    // Nothing is ever sent: this waits until the last sender is gone.
    while all_done.recv().await.is_some() {}
    result
}

impl Context<'_> {
    async fn ensure(&self, layer: &LayerPull) -> Result<LayerHold, ImageError> {
        let lock = self.store.layer_lock(&layer.diff_id).lock_owned().await;
        let hold = match self.store.hold(&layer.diff_id) {
            Some(hold) => {
                self.meter.add_bytes(layer.blob.size);
                hold
            }
            None => self.fetch(layer, lock).await?,
        };
        self.meter.finish_layer();
        Ok(hold)
    }

    async fn fetch(
        &self,
        layer: &LayerPull,
        lock: OwnedMutexGuard<()>,
    ) -> Result<LayerHold, ImageError> {
        let interrupted = || ImageError::Interrupted {
            reference: self.reference.to_string(),
        };
        let permits = Arc::clone(&self.store.layer_permits);
        let permit = permits.acquire_owned().await.map_err(|_| interrupted())?;
        let sessions = Arc::clone(self.sessions);
        let mut reader = BlobReader::new(sessions, self.first, layer.blob.clone());
        let job = Job {
            digest: layer.blob.digest.clone(),
            size: layer.blob.size,
            diff_id: layer.diff_id.clone(),
            host: reader.host().to_owned(),
            limits: self.store.config.limits.clone(),
        };
        let (sender, pieces) = mpsc::channel(PIECES);
        let work = Work {
            store: Arc::clone(self.store),
            job,
            _lock: lock,
            _permit: permit,
            _working: self.working.clone(),
        };
        let unpacking = tokio::task::spawn_blocking(move || work.run(pieces));
        let mut download = Ok(());
        loop {
            match reader.chunk().await {
                Ok(Some(piece)) => {
                    self.meter.add_bytes(piece.len() as u64);
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    download = Err(error);
                    break;
                }
            }
        }
        drop(sender);
        let unpacked = unpacking.await.map_err(|_| interrupted())?;
        download?;
        unpacked.map_err(|error| match error {
            LayerError::Failed(error) => error,
            LayerError::Interrupted => interrupted(),
        })
    }
}

/// A layer on its thread, with all that is given back when it ends, in whatever way.
struct Work {
    store: Arc<Inner>,
    job: Job,
    _lock: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
    _working: mpsc::Sender<()>,
}

impl Work {
    fn run(self, pieces: mpsc::Receiver<bytes::Bytes>) -> Result<LayerHold, LayerError> {
        let failed = LayerError::Failed;
        let temporary = TempLayer::create(&self.store, &self.job.diff_id).map_err(failed)?;
        let root = temporary.open().map_err(failed)?;
        let disk = layer::unpack(&self.job, pieces, root)?;
        temporary.install(disk).map_err(failed)
    }
}
