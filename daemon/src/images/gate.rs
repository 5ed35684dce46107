//! Which images are let in: containers-policy.json(5), before anything of an image is asked for.
//!
//! The file is read for each pull, as every program of its family does: what an administrator changes holds at once, and
//! a file that cannot be read refuses pulls and nothing else. Containers that run, and images that are here, are not its
//! business.

use std::path::PathBuf;
use std::sync::Arc;

use zcri_config::policy::{Policy, PolicyError};
use zcri_config::{Config, PlatformKind};
use zcri_image::{ImageError, ImageReference};

use crate::error::Chain;

/// The gate that every image passes.
#[derive(Debug)]
pub(super) struct Gate {
    file: PathBuf,
    /// What holds where there is no file: z/OS Container Platform comes with one that rejects everything.
    open_without_file: bool,
}

impl Gate {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            file: config.image.policy.clone(),
            open_without_file: config.platform.kind == PlatformKind::Linux,
        }
    }

    /// # Errors
    /// [`ImageError::Refused`], with the file.
    pub(super) async fn admit(&self, reference: &ImageReference) -> Result<(), ImageError> {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || Policy::load(&file));
        let read = read.await.unwrap_or_else(|error| {
            let (path, source) = (self.file.clone(), std::io::Error::other(error));
            Err(PolicyError::Read { path, source })
        });
        let refused = |reason: &(dyn std::error::Error + 'static)| ImageError::Refused {
            reference: reference.to_string(),
            reason: Arc::from(Chain(reason).to_string()),
        };
        let policy = read
            .map_err(|error| refused(&error))?
            .unwrap_or_else(|| Policy::without_file(&self.file, self.open_without_file));
        policy
            .check(&reference.name(), &reference.to_string())
            .map_err(|refusal| refused(&refusal))
    }
}
