//! What can go wrong, in kinds that the daemon maps to gRPC codes. Every error names the host, digest or path that
//! it is about, and can be handed to all who wait for one pull.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::digest::Digest;

/// A cause of any kind that several waiters share.
pub type SharedError = Arc<dyn StdError + Send + Sync + 'static>;

/// Errors of this crate.
#[derive(Debug, Clone, Error)]
pub enum ImageError {
    /// The text is no image reference.
    #[error("invalid image reference `{reference}`: {reason}")]
    InvalidReference {
        /// The text.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The start of an id fits several images.
    #[error("`{prefix}` is the start of the ids of {count} images")]
    AmbiguousId {
        /// The start.
        prefix: String,
        /// How many images.
        count: usize,
    },
    /// The credentials of the request cannot be used.
    #[error("invalid registry credentials: {reason}")]
    InvalidCredentials {
        /// Why; without any secret.
        reason: String,
    },
    /// Configuration forbids this registry.
    #[error("registry of `{reference}` is blocked: {reason}")]
    Blocked {
        /// The reference.
        reference: String,
        /// Which rule.
        reason: String,
    },
    /// The administrator's policy does not let the image in.
    #[error("`{reference}` is not let in: {reason}")]
    Refused {
        /// The reference.
        reference: String,
        /// Which file, and which rule of it.
        reason: Arc<str>,
    },
    /// What configuration gives for a registry cannot be used.
    #[error("registry {host} is configured wrongly: {reason}")]
    BadEndpoint {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// 404: the registry does not know the repository, tag or digest.
    #[error("{host} has no {what}: {message}")]
    NotFound {
        /// Host and port.
        host: String,
        /// Repository and tag or digest.
        what: String,
        /// The registry's words.
        message: String,
    },
    /// 401 or 403.
    #[error("{host} refuses access to {repository} (HTTP {status}): {message}")]
    Unauthorized {
        /// Host and port.
        host: String,
        /// The repository.
        repository: String,
        /// The HTTP status.
        status: u16,
        /// The registry's words, or what is missing.
        message: String,
    },
    /// 429, for longer or more often than a pull waits.
    #[error("{host} limits the rate of requests{}", after(.retry_after))]
    RateLimited {
        /// Host and port.
        host: String,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, no answer in time, or a connection that keeps breaking.
    #[error("registry {host} cannot be reached ({what})")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: SharedError,
    },
    /// An answer that makes no sense here.
    #[error("{host} answers HTTP {status} to {what}: {message}")]
    RegistryFailed {
        /// Host and port.
        host: String,
        /// The request.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's words.
        message: String,
    },
    /// Content is not what its digest says.
    #[error("{what} from {host} has digest {actual}, not {expected}")]
    DigestMismatch {
        /// Manifest, configuration, layer or diff id.
        what: &'static str,
        /// Host and port.
        host: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Content is shorter or longer than its descriptor says.
    #[error("{digest} from {host} has {actual} bytes, not {expected}")]
    WrongSize {
        /// Host and port.
        host: String,
        /// Which content.
        digest: Digest,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes that came (at least).
        actual: u64,
    },
    /// A manifest, index or configuration that is not well formed.
    #[error("invalid {what}: {reason}")]
    InvalidManifest {
        /// Which, with its digest.
        what: String,
        /// Why.
        reason: String,
    },
    /// A media type that is not an image's.
    #[error("unsupported media type `{media_type}` of {what}")]
    UnsupportedMediaType {
        /// Manifest, configuration or layer, with its digest.
        what: String,
        /// The type.
        media_type: String,
    },
    /// The image is not for this platform.
    #[error("{reference} is for {found}, this node runs {wanted}")]
    WrongPlatform {
        /// The reference.
        reference: String,
        /// The node's platform.
        wanted: String,
        /// The platforms that the image is for.
        found: String,
    },
    /// A limit of [`Limits`](crate::Limits) or of [`limits`](crate::limits).
    #[error("{what} is over the limit of {limit}")]
    LimitExceeded {
        /// What, with its digest.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// A path of a layer that leads out of it or cannot be one.
    #[error("layer {layer}: unsafe path `{path}`: {reason}")]
    UnsafePath {
        /// The layer's diff id.
        layer: Digest,
        /// The path, escaped.
        path: String,
        /// Why.
        reason: String,
    },
    /// An archive or compression that is not well formed, or an entry that cannot be unpacked.
    #[error("layer {layer} is invalid: {reason}")]
    InvalidLayer {
        /// The layer's diff id.
        layer: Digest,
        /// Why, with the path where there is one.
        reason: String,
    },
    /// An extended attribute that this file system or kernel does not take.
    #[error("layer {layer}: attribute {name} of `{path}` cannot be set")]
    Attribute {
        /// The layer's diff id.
        layer: Digest,
        /// The path, escaped.
        path: String,
        /// The attribute.
        name: String,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk, or a quota on it, is full.
    #[error("no space left for images: {path}")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// Any other failure of the store's file system.
    #[error("cannot {action} {path}")]
    Io {
        /// The verb.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A record on disk that is damaged.
    #[error("damaged record {path}: {reason}")]
    BrokenRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The image is another program's, in a store that is only read.
    #[error("image {image} is in the additional store of another program, which has to remove it")]
    ReadOnly {
        /// The id.
        image: String,
    },
    /// The image to be leased is not here.
    #[error("image {image} is not in the store")]
    UnknownImage {
        /// The id.
        image: String,
    },
    /// The layer to be leased is not here.
    #[error("layer {diff_id} is not in the store")]
    UnknownLayer {
        /// Its diff id.
        diff_id: Digest,
    },
    /// The pull was stopped, with the runtime or by a panic.
    #[error("the pull of {reference} was interrupted")]
    Interrupted {
        /// The reference.
        reference: String,
    },
}

impl ImageError {
    /// An I/O error on `path`, with a full disk told apart.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        let source = Arc::new(source);
        if is_disk_full(&source) {
            Self::DiskFull { path, source }
        } else {
            Self::Io {
                action,
                path,
                source,
            }
        }
    }

    /// Whether another endpoint of the same registry may do better.
    pub(crate) const fn is_endpoints_fault(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Unauthorized { .. }
                | Self::RateLimited { .. }
                | Self::Unreachable { .. }
                | Self::RegistryFailed { .. }
                | Self::DigestMismatch { .. }
                | Self::WrongSize { .. }
                | Self::BadEndpoint { .. }
        )
    }
}

/// ENOSPC and EDQUOT.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(" and wants to be asked again in {} s", wait.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_its_own_kind() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert!(matches!(
            ImageError::io("write", "/x", full),
            ImageError::DiskFull { .. }
        ));
        let quota = io::Error::from_raw_os_error(rustix::io::Errno::DQUOT.raw_os_error());
        assert!(matches!(
            ImageError::io("write", "/x", quota),
            ImageError::DiskFull { .. }
        ));
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(matches!(
            ImageError::io("write", "/x", other),
            ImageError::Io { .. }
        ));
    }

    #[test]
    fn rate_limit_says_when() {
        let error = ImageError::RateLimited {
            host: "r.example".to_owned(),
            retry_after: Some(Duration::from_secs(90)),
        };
        assert!(error.to_string().ends_with("in 90 s"));
    }
}
