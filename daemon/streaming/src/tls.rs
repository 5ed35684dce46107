//! The server's certificate, read again when its files change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error as RustlsError, RootCertStore, ServerConfig};

use crate::config::{TlsConfig, TlsVersion};

/// The files do not make a TLS server.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or has not what it is to have.
    #[error("cannot read {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate authority that cannot be trusted.
    #[error("cannot use the authorities of {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
    /// Certificate and key are not of one kind, or not of one pair.
    #[error("cannot use {} with {}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: RustlsError,
    },
}

/// Makes acceptors of what is on disk now.
pub(crate) struct Acceptors {
    config: TlsConfig,
    current: Mutex<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    stamps: Vec<Option<Stamp>>,
}

/// What tells a file from its next version, whether that was written over it or renamed in its place.
type Stamp = (SystemTime, u64, u64);

impl Acceptors {
    /// Reads the files for the first time.
    pub(crate) fn new(config: TlsConfig) -> Result<Self, TlsError> {
        let stamps = stamps(&config);
        let acceptor = load(&config)?;
        Ok(Self {
            config,
            current: Mutex::new(Current { acceptor, stamps }),
        })
    }

    /// For the next connection. Files that changed and cannot be used are reported once; the old ones stay.
    pub(crate) fn get(&self) -> TlsAcceptor {
        let stamps = stamps(&self.config);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != current.stamps {
            current.stamps = stamps;
            match load(&self.config) {
                Ok(acceptor) => current.acceptor = acceptor,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "the changed certificates of the streaming server are not used");
                }
            }
        }
        current.acceptor.clone()
    }
}

fn stamps(config: &TlsConfig) -> Vec<Option<Stamp>> {
    let files = [
        Some(&config.certificate),
        Some(&config.key),
        config.client_ca.as_ref(),
    ];
    files
        .into_iter()
        .flatten()
        .map(|path| stamp(path).ok())
        .collect()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let stat = rustix::fs::stat(path)?;
    Ok((
        std::fs::metadata(path)?.modified()?,
        stat.st_ino,
        stat.st_size.unsigned_abs(),
    ))
}

fn load(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let versions: &[_] = match config.minimum_version {
        TlsVersion::Tls12 => &[&TLS12, &TLS13],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let provider = Arc::new(default_provider());
    let pair = |source| TlsError::Pair {
        certificate: config.certificate.clone(),
        key: config.key.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(pair)?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(path)?);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|source| TlsError::Authority {
                path: path.clone(),
                source,
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| TlsError::Pem {
        path: config.key.clone(),
        source,
    })?;
    let server = builder
        .with_single_cert(certificates(&config.certificate)?, key)
        .map_err(pair)?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(error)?
        .collect::<Result<_, _>>()
        .map_err(error)?;
    if certificates.is_empty() {
        Err(error(pem::Error::NoItemsFound))
    } else {
        Ok(certificates)
    }
}
