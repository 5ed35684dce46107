//! HTTP clients: one per way of trusting a server, kept for their connections.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity};

use super::{Endpoint, Timeouts, is_loopback};
use crate::error::ImageError;

/// Redirects that are followed: a registry to its object store takes one or two.
const MAX_REDIRECTS: usize = 8;
/// Bytes of one certificate or key file.
const MAX_PEM_BYTES: u64 = 4 << 20;
/// Different sets of certificates that are kept; beyond it all are dropped and made again.
const MAX_CLIENTS: usize = 64;
const USER_AGENT: &str = concat!("zcri/", env!("CARGO_PKG_VERSION"));

/// What makes one client different from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tls: bool,
    insecure: bool,
    direct: bool,
    authorities: Vec<u8>,
    identity: Vec<u8>,
}

/// The clients so far.
#[derive(Debug)]
pub(crate) struct HttpClients {
    clients: Mutex<HashMap<Key, Client>>,
    timeouts: Arc<Timeouts>,
}

impl HttpClients {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self {
            clients: Mutex::default(),
            timeouts: Arc::new(timeouts),
        }
    }

    pub(crate) fn timeouts(&self) -> Arc<Timeouts> {
        Arc::clone(&self.timeouts)
    }

    /// The client for `endpoint`, for HTTPS or (cheaper, it reads no root certificates) for plain HTTP.
    pub(crate) fn get(&self, endpoint: &Endpoint, tls: bool) -> Result<Client, ImageError> {
        let bad = |reason: String| ImageError::BadEndpoint {
            host: endpoint.host.clone(),
            reason,
        };
        let mut key = Key {
            tls,
            insecure: tls && endpoint.insecure,
            direct: is_loopback(&endpoint.host),
            authorities: Vec::new(),
            identity: Vec::new(),
        };
        if let (true, Some(dir)) = (tls, &endpoint.certs_dir) {
            read_certs_dir(dir, &mut key)
                .map_err(|error| bad(format!("certificates in {}: {error}", dir.display())))?;
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key, &self.timeouts).map_err(|error| bad(chain(&error)))?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// Files as containers-certs.d(5) names them. A directory that does not exist means nothing.
fn read_certs_dir(dir: &Path, key: &mut Key) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut files: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    for file in files {
        let into = match file.extension().and_then(|text| text.to_str()) {
            Some("crt") => &mut key.authorities,
            Some("cert" | "key") => &mut key.identity,
            _ => continue,
        };
        if std::fs::metadata(&file)?.len() > MAX_PEM_BYTES {
            return Err(std::io::Error::other(format!(
                "{} is too large",
                file.display()
            )));
        }
        into.extend(std::fs::read(&file)?);
        into.push(b'\n');
    }
    Ok(())
}

fn build(key: &Key, timeouts: &Timeouts) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(timeouts.connect)
        .referer(false)
        .redirect(redirects(key.insecure || !key.tls));
    if key.direct {
        builder = builder.no_proxy();
    }
    if !key.tls {
        return builder.tls_certs_only([]).build();
    }
    if key.insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if !key.authorities.is_empty() {
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&key.authorities)?);
    }
    if !key.identity.is_empty() {
        builder = builder.identity(Identity::from_pem(&key.identity)?);
    }
    builder.build()
}

/// What was asked for by HTTPS is not taken from plain HTTP, wherever a redirect leads. (reqwest itself drops
/// `Authorization` when the host changes.)
fn redirects(plain_allowed: bool) -> Policy {
    Policy::custom(move |attempt| {
        let was_tls = attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if was_tls && attempt.url().scheme() != "https" && !plain_allowed {
            attempt.error("redirect from HTTPS to plain HTTP")
        } else {
            attempt.follow()
        }
    })
}

/// An error with its causes in one line, for places that keep text only.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::ImageReference;

    fn endpoint(certs_dir: Option<&Path>) -> Endpoint {
        let reference: ImageReference = "registry.example/x".parse().unwrap();
        Endpoint {
            certs_dir: certs_dir.map(Path::to_owned),
            ..Endpoint::of(&reference)
        }
    }

    #[test]
    fn clients_are_shared_and_follow_their_files() {
        let clients = HttpClients::new(Timeouts::default());
        let dir = tempfile::tempdir().unwrap();
        clients.get(&endpoint(None), false).unwrap();
        clients.get(&endpoint(Some(dir.path())), false).unwrap();
        clients
            .get(&endpoint(Some(&dir.path().join("absent"))), false)
            .unwrap();
        assert_eq!(clients.clients.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_bad_authority_names_host_and_directory() {
        let clients = HttpClients::new(Timeouts::default());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("client.cert"), "nonsense").unwrap();
        let error = clients
            .get(&endpoint(Some(dir.path())), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("registry.example"), "{error}");
    }
}
