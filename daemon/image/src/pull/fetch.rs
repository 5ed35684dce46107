//! The steps of a pull: endpoints, manifest, platform, configuration, layers, record.

use std::sync::Arc;

use reqwest::header::CONTENT_TYPE;

use super::Meter;
use super::layers::{LayerPull, fetch_layers};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageConfig, LayerInfo};
use crate::limits::{Limits, MAX_INDEX_DEPTH};
use crate::manifest::{self, Descriptor, Document, ImageManifest};
use crate::platform::describe;
use crate::reference::ImageReference;
use crate::registry::{BlobReader, Credentials, Login, Resource, Session};
use crate::store::{Inner, Pulled};

/// The header by which a registry names what it sends.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// A manifest or index, verified.
struct Fetched {
    document: Document,
    digest: Digest,
}

/// What is being pulled, and from where.
struct Puller<'a> {
    store: &'a Arc<Inner>,
    reference: &'a ImageReference,
    sessions: Arc<[Arc<Session>]>,
    /// The session that had the last document.
    current: usize,
}

/// Pulls an image.
pub(super) async fn pull(
    store: &Arc<Inner>,
    reference: &ImageReference,
    credentials: Option<&Credentials>,
    meter: &Meter,
) -> Result<Arc<Image>, ImageError> {
    let mut puller = Puller {
        sessions: sessions(store, reference, credentials)?,
        store,
        reference,
        current: 0,
    };
    let asked = puller
        .document(reference.target(), reference.digest())
        .await?;
    let asked_digest = asked.digest.clone();
    let (manifest, manifest_digest, by_index) = puller.for_platform(asked).await?;
    let (raw_config, config) = puller.config(&manifest.config).await?;
    if !by_index {
        puller.check_platform(&config)?;
    }
    let diff_ids = diff_ids(&manifest, &config)?;
    meter.begin(
        manifest.layers.len(),
        manifest.layers.iter().map(|layer| layer.size).sum(),
    );
    let pulls = manifest.layers.iter().zip(diff_ids);
    let pulls: Vec<LayerPull> = pulls
        .map(|(blob, diff_id)| LayerPull {
            blob: blob.clone(),
            diff_id,
        })
        .collect();
    let holds = fetch_layers(
        store,
        &pulls,
        &puller.sessions,
        puller.current,
        meter,
        reference,
    )
    .await?;
    let layers = pulls.into_iter().zip(&holds).map(|(layer, hold)| {
        let disk = hold.disk_use();
        LayerInfo {
            diff_id: layer.diff_id,
            digest: layer.blob.digest,
            compressed_size: layer.blob.size,
            bytes: disk.bytes,
            inodes: disk.inodes,
        }
    });
    let pulled = Pulled {
        reference: reference.clone(),
        id: manifest.config.digest,
        manifest_digest,
        asked_digest,
        config,
        raw_config,
        layers: layers.collect(),
        holds,
    };
    // The record is written to its end even if nobody waits any more.
    let writer = Arc::clone(store);
    tokio::task::spawn_blocking(move || writer.commit(pulled))
        .await
        .map_err(|_| ImageError::Interrupted {
            reference: reference.to_string(),
        })?
}

/// A session for each endpoint.
fn sessions(
    store: &Arc<Inner>,
    reference: &ImageReference,
    credentials: Option<&Credentials>,
) -> Result<Arc<[Arc<Session>]>, ImageError> {
    let endpoints = store.config.hosts.endpoints(reference)?;
    if endpoints.is_empty() {
        return Err(ImageError::BadEndpoint {
            host: reference.registry().to_owned(),
            reason: "it has no endpoint".to_owned(),
        });
    }
    let last = endpoints.len() - 1;
    let sessions = endpoints.into_iter().enumerate().map(|(index, endpoint)| {
        let given = credentials.filter(|given| given.are_for(reference, &endpoint));
        let login = match given.or(endpoint.credentials.as_ref()) {
            Some(credentials) => credentials.login()?,
            None => Login::Anonymous,
        };
        let session = Session::new(endpoint, login, &store.clients, index < last);
        Ok(Arc::new(session))
    });
    sessions.collect()
}

/// The diff ids of the layers, which the configuration has in the order of the manifest.
fn diff_ids(manifest: &ImageManifest, config: &ImageConfig) -> Result<Vec<Digest>, ImageError> {
    let invalid = |reason: String| ImageError::InvalidManifest {
        what: format!("configuration {}", manifest.config.digest),
        reason,
    };
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(invalid(format!(
            "it has {} diff ids for {} layers",
            config.diff_ids.len(),
            manifest.layers.len()
        )));
    }
    let parsed = config.diff_ids.iter().map(|text| text.parse::<Digest>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(error.to_string()))
}

impl Puller<'_> {
    fn limits(&self) -> &Limits {
        &self.store.config.limits
    }

    /// Fetches a manifest or index from the first endpoint that has it. The error of the last one counts: it is
    /// the registry that the reference names, those before it are mirrors.
    async fn document(
        &mut self,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, ImageError> {
        let count = self.sessions.len();
        let mut failure = None;
        for step in 0..count {
            let index = (self.current + step) % count;
            match self.document_at(index, target, expected).await {
                Ok(fetched) => {
                    self.current = index;
                    return Ok(fetched);
                }
                Err(error) if error.is_endpoints_fault() => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| ImageError::Interrupted {
            reference: self.reference.to_string(),
        }))
    }

    async fn document_at(
        &self,
        index: usize,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, ImageError> {
        let session = &self.sessions[index];
        let answer = session.get(Resource::Manifest(target), 0).await?;
        let header = |name: &str| {
            let value = answer.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let stated = header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
        let content_type = header(CONTENT_TYPE.as_str())
            .map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        let what = format!("manifest {target}");
        let body = session
            .body(answer, self.limits().manifest_bytes, &what)
            .await?;
        let digest = match expected.or(stated.as_ref()) {
            None => Digest::sha256(&body),
            Some(expected) => {
                let actual = expected.of_same_kind(&body);
                if actual != *expected {
                    return Err(ImageError::DigestMismatch {
                        what: "manifest",
                        host: session.host().to_owned(),
                        expected: expected.clone(),
                        actual,
                    });
                }
                actual
            }
        };
        let document = Document::parse(&body, content_type.as_deref(), &digest, self.limits())?;
        Ok(Fetched { document, digest })
    }

    /// Goes through indexes to the manifest for this node's platform. Gives its digest, and whether an index
    /// named its platform.
    async fn for_platform(
        &mut self,
        asked: Fetched,
    ) -> Result<(ImageManifest, Digest, bool), ImageError> {
        let mut fetched = asked;
        for depth in 0..=MAX_INDEX_DEPTH {
            let index = match fetched.document {
                Document::Image(manifest) => return Ok((manifest, fetched.digest, depth > 0)),
                Document::Index(index) => index,
            };
            let platform = &self.store.config.platform;
            let reference = self.reference.to_string();
            let entry = manifest::pick(&index, platform, &fetched.digest, &reference)?;
            let target = entry.digest.to_string();
            fetched = self.document(&target, Some(&entry.digest)).await?;
        }
        Err(ImageError::LimitExceeded {
            what: format!("indexes within indexes of {}", self.reference),
            limit: MAX_INDEX_DEPTH.to_string(),
        })
    }

    async fn config(&self, blob: &Descriptor) -> Result<(Arc<str>, ImageConfig), ImageError> {
        let mut reader = BlobReader::new(Arc::clone(&self.sessions), self.current, blob.clone());
        let mut bytes = Vec::new();
        while let Some(piece) = reader.chunk().await? {
            bytes.extend_from_slice(&piece);
        }
        let actual = blob.digest.of_same_kind(&bytes);
        if actual != blob.digest {
            return Err(ImageError::DigestMismatch {
                what: "configuration",
                host: reader.host().to_owned(),
                expected: blob.digest.clone(),
                actual,
            });
        }
        let invalid = |reason: String| ImageError::InvalidManifest {
            what: format!("configuration {}", blob.digest),
            reason,
        };
        let text = String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
        let config = ImageConfig::parse(&text).map_err(|error| invalid(error.to_string()))?;
        Ok((text.into(), config))
    }

    /// For a manifest that no index vouches for.
    fn check_platform(&self, config: &ImageConfig) -> Result<(), ImageError> {
        let variant = config.variant.as_deref();
        let platform = &self.store.config.platform;
        if platform
            .rank(&config.os, &config.architecture, variant)
            .is_some()
        {
            return Ok(());
        }
        Err(ImageError::WrongPlatform {
            reference: self.reference.to_string(),
            wanted: platform.to_string(),
            found: describe(&config.os, &config.architecture, variant),
        })
    }
}
