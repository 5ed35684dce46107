//! Registries: where they are, who we are to them, and the pull side of the OCI distribution specification 1.1.
//!
//! # oci-client
//!
//! oci-client 0.18 was weighed as the client. Its manifest and index types, media types and error envelope are
//! used. Its transport is not, for these reasons, each checked in its source:
//!
//! - the answer to 429 becomes an error without `Retry-After`, and 401, 403 and 404 are not told apart;
//! - identity tokens (OAuth2 refresh tokens) cannot be exchanged, and refused credentials fall back to none;
//! - manifests and configurations are read into memory however long they are;
//! - one client has one set of root certificates and one scheme per host, with no fall-back to plain HTTP;
//! - a broken download cannot go on at an offset with the digest computed so far, or at another mirror;
//! - each pull asks `/v2/` first, which costs a round trip that a 401 on the manifest makes needless.
//!
//! So this module speaks HTTP with reqwest, which oci-client stands on as well (no further dependency).

mod auth;
mod blob;
mod http;
mod session;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::error::ImageError;
use crate::reference::{DEFAULT_REGISTRY, ImageReference};

pub(crate) use blob::BlobReader;
pub(crate) use http::HttpClients;
pub(crate) use session::{Resource, Session};

/// Where docker.io really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// One place that serves a repository: the registry itself or a mirror of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and optional port.
    pub host: String,
    /// The path of the repository there; mirrors and rewritten locations have their own.
    pub repository: String,
    /// Certificates are not verified.
    pub insecure: bool,
    /// Plain HTTP may be spoken: on loopback before HTTPS is tried, elsewhere after.
    pub plain_http: bool,
    /// A directory of `*.crt` (authorities), `*.cert` and `*.key` (this client), as in containers-certs.d(5).
    pub certs_dir: Option<PathBuf>,
    /// Credentials for this place. Those of a pull go only to the registry that the reference names.
    pub credentials: Option<Credentials>,
}

impl Endpoint {
    /// The registry that a reference names, with no configuration: HTTPS, but on loopback plain HTTP as well.
    pub fn of(reference: &ImageReference) -> Self {
        let host = match reference.registry() {
            DEFAULT_REGISTRY => DOCKER_HUB_HOST,
            host => host,
        };
        Self {
            host: host.to_owned(),
            repository: reference.repository().to_owned(),
            insecure: false,
            plain_http: is_loopback(host),
            certs_dir: None,
            credentials: None,
        }
    }
}

/// What the daemon knows of registries: for a reference, the places to try in this order.
pub trait RegistryHosts: fmt::Debug + Send + Sync {
    /// The endpoints of the repository of `reference`, best first.
    ///
    /// # Errors
    /// [`ImageError::Blocked`] when the registry must not be used.
    fn endpoints(&self, reference: &ImageReference) -> Result<Vec<Endpoint>, ImageError>;
}

/// Every registry is where its name says.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultHosts;

impl RegistryHosts for DefaultHosts {
    fn endpoints(&self, reference: &ImageReference) -> Result<Vec<Endpoint>, ImageError> {
        Ok(vec![Endpoint::of(reference)])
    }
}

/// How long a registry may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub response: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// The longest `Retry-After` that is waited for; a longer one is an error that says so.
    pub retry_after: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            // Pull-through caches fetch a blob before they answer.
            response: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            retry_after: Duration::from_secs(60),
        }
    }
}

/// The credentials of a pull: CRI's `AuthConfig`, empty strings where nothing is given.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `name:password` in base64, instead of both.
    pub auth: String,
    /// The registry they are for, as a host or URL; empty: the one that the reference names.
    pub server_address: String,
    /// An OAuth2 refresh token, exchanged for a bearer token.
    pub identity_token: String,
    /// A bearer token to be sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Credentials in the form in which they are used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Anonymous,
    Basic { username: String, password: String },
    Identity { token: String },
    Bearer { token: String },
}

impl Credentials {
    /// Which of the fields counts: a bearer token, then a refresh token, then name and password.
    pub(crate) fn login(&self) -> Result<Login, ImageError> {
        if !self.registry_token.is_empty() {
            return Ok(Login::Bearer {
                token: self.registry_token.clone(),
            });
        }
        if !self.identity_token.is_empty() {
            return Ok(Login::Identity {
                token: self.identity_token.clone(),
            });
        }
        if !self.username.is_empty() || !self.password.is_empty() {
            return Ok(Login::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            });
        }
        if self.auth.is_empty() {
            return Ok(Login::Anonymous);
        }
        let invalid = |reason: &str| ImageError::InvalidCredentials {
            reason: format!("field auth {reason}"),
        };
        let bytes = BASE64_STANDARD
            .decode(self.auth.trim())
            .map_err(|_| invalid("is not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| invalid("is not UTF-8"))?;
        let (username, password) = text
            .split_once(':')
            .ok_or_else(|| invalid("has no colon"))?;
        Ok(Login::Basic {
            username: username.to_owned(),
            // Docker pads old entries with NULs.
            password: password.trim_end_matches('\0').to_owned(),
        })
    }

    /// Whether these may be sent to `endpoint` for an image of `reference`.
    pub(crate) fn are_for(&self, reference: &ImageReference, endpoint: &Endpoint) -> bool {
        let named = normal_host(&self.server_address);
        let registry = normal_host(reference.registry());
        let at_registry = normal_host(&endpoint.host) == registry;
        if named.is_empty() {
            at_registry
        } else {
            named == normal_host(&endpoint.host)
        }
    }
}

/// A host out of a host or URL, with one name for docker.io.
fn normal_host(address: &str) -> &str {
    let address = address.strip_prefix("https://").unwrap_or(address);
    let address = address.strip_prefix("http://").unwrap_or(address);
    let host = address.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | DOCKER_HUB_HOST => DEFAULT_REGISTRY,
        other => other,
    }
}

/// Whether `host[:port]` is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(credentials: Credentials) -> Result<Login, ImageError> {
        credentials.login()
    }

    #[test]
    fn the_strongest_field_counts() {
        let all = Credentials {
            username: "u".to_owned(),
            password: "p".to_owned(),
            auth: "eDp5".to_owned(),
            identity_token: "i".to_owned(),
            registry_token: "r".to_owned(),
            server_address: String::new(),
        };
        assert!(
            login(all.clone()).unwrap()
                == Login::Bearer {
                    token: "r".to_owned()
                }
        );
        let identity = Credentials {
            registry_token: String::new(),
            ..all
        };
        assert!(
            login(identity.clone()).unwrap()
                == Login::Identity {
                    token: "i".to_owned()
                }
        );
        let basic = Credentials {
            identity_token: String::new(),
            ..identity
        };
        let is = |name: &str, word: &str| Login::Basic {
            username: name.to_owned(),
            password: word.to_owned(),
        };
        assert!(login(basic.clone()).unwrap() == is("u", "p"));
        let auth = Credentials {
            username: String::new(),
            password: String::new(),
            ..basic
        };
        assert!(login(auth).unwrap() == is("x", "y"));
        assert!(login(Credentials::default()).unwrap() == Login::Anonymous);
    }

    #[test]
    fn bad_auth_is_refused_without_showing_it() {
        for auth in ["***", "eA==", "/w=="] {
            let credentials = Credentials {
                auth: auth.to_owned(),
                ..Credentials::default()
            };
            let error = login(credentials).err().unwrap().to_string();
            assert!(error.contains("auth") && !error.contains(auth), "{error}");
        }
        let secret = Credentials {
            password: "hush".to_owned(),
            ..Credentials::default()
        };
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn credentials_stay_with_their_registry() {
        let reference: ImageReference = "docker.io/a/b".parse().unwrap();
        let hub = Endpoint::of(&reference);
        assert_eq!(hub.host, DOCKER_HUB_HOST);
        let mirror = Endpoint {
            host: "mirror.example".to_owned(),
            ..hub.clone()
        };
        let any = Credentials::default();
        assert!(any.are_for(&reference, &hub) && !any.are_for(&reference, &mirror));
        let named = |address: &str| Credentials {
            server_address: address.to_owned(),
            ..Credentials::default()
        };
        assert!(named("https://index.docker.io/v1/").are_for(&reference, &hub));
        assert!(!named("other.example").are_for(&reference, &hub));
        assert!(named("mirror.example").are_for(&reference, &mirror));
    }

    #[test]
    fn loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "example.com",
            "10.0.0.1:5000",
            "localhost.example",
            "[fe80::1]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
