//! containers-auth.json(5) and the `config.json` of Docker: credentials for registries.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose as engines};
use serde::Deserialize;
use thiserror::Error;

/// What to identify oneself with. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password, for basic authentication and for asking for a token.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token, to ask for a token with.
    IdentityToken(String),
}

impl Credentials {
    /// From the base64 of `user:password`, as in auth.json and in the field `auth` of a CRI AuthConfig. NUL bytes
    /// at the end of the password are left out, as Docker pads with them.
    ///
    /// # Errors
    /// When it is not base64, not UTF-8 or has no colon. The text itself is not repeated.
    pub fn from_base64(text: &str) -> Result<Self, MalformedAuth> {
        let text = text.trim().trim_end_matches('=');
        let bytes = engines::STANDARD_NO_PAD
            .decode(text)
            .map_err(|_| MalformedAuth {
                reason: "not base64",
            })?;
        let plain = String::from_utf8(bytes).map_err(|_| MalformedAuth {
            reason: "not UTF-8",
        })?;
        let (username, password) = plain.split_once(':').ok_or(MalformedAuth {
            reason: "no colon between user name and password",
        })?;
        Ok(Self::Basic {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, ...)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(...)"),
        }
    }
}

/// The base64 of `user:password` is not that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed auth: {reason}")]
pub struct MalformedAuth {
    reason: &'static str,
}

/// Why a file of credentials could not be read.
#[derive(Debug, Error)]
pub enum AuthFileError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not JSON of the right form. The content is not repeated.
    #[error("{}:{line}: not a containers-auth.json(5) file", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// An entry of `auths` is malformed.
    #[error("{}: auths[{key:?}]", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// What is wrong with it.
        #[source]
        source: MalformedAuth,
    },
}

/// The credentials for a registry are with a program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the credentials for {registry} are with the helper docker-credential-{helper} ({}), which is not supported yet: \
     put them into auths, or into the request", path.display()
)]
pub struct HelperUnsupported {
    /// The registry.
    pub registry: String,
    /// Its helper.
    pub helper: String,
    /// The file that says so.
    pub path: PathBuf,
}

/// A parsed auth.json.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuthFile {
    path: PathBuf,
    /// By `host[:port][/path]`.
    auths: BTreeMap<String, Credentials>,
    /// By host.
    helpers: BTreeMap<String, String>,
    /// For every host without a helper of its own.
    store: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl AuthFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not in the format.
    pub fn load(path: &Path) -> Result<Self, AuthFileError> {
        let text = fs::read_to_string(path).map_err(|source| AuthFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(&text, path)
    }

    /// Parses a text; `path` stands for it in errors.
    ///
    /// # Errors
    /// When it is not in the format.
    pub fn from_json(text: &str, path: &Path) -> Result<Self, AuthFileError> {
        // The parser's message may quote the text, which is secret: only the line goes on.
        let file: File = serde_json::from_str(text).map_err(|e| AuthFileError::Syntax {
            path: path.to_owned(),
            line: e.line(),
        })?;
        let mut auths = BTreeMap::new();
        for (key, entry) in file.auths {
            let credentials = if !entry.identity_token.is_empty() {
                Credentials::IdentityToken(entry.identity_token)
            } else if entry.auth.is_empty() {
                // `login` with a helper leaves an empty entry behind.
                continue;
            } else {
                Credentials::from_base64(&entry.auth).map_err(|source| AuthFileError::Entry {
                    path: path.to_owned(),
                    key: key.clone(),
                    source,
                })?
            };
            auths.insert(canonical(&key), credentials);
        }
        let helpers = file
            .helpers
            .into_iter()
            .map(|(host, helper)| (canonical(&host), helper))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            auths,
            helpers,
            store: Some(file.store).filter(|store| !store.is_empty()),
        })
    }

    /// The credentials for a repository: those of the longest key that is the repository or a parent of it.
    ///
    /// # Errors
    /// When a credential helper is named for the registry, which takes precedence over `auths` as the format says.
    pub fn credentials(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<&Credentials>, HelperUnsupported> {
        let host = docker_hub(registry);
        if let Some(helper) = self.helpers.get(host) {
            return Err(self.unsupported(registry, helper));
        }
        let full = format!("{host}/{repository}");
        let mut key = full.as_str();
        loop {
            if let Some(found) = self.auths.get(key) {
                return Ok(Some(found));
            }
            match key.rsplit_once('/') {
                Some((parent, _)) => key = parent,
                None => break,
            }
        }
        match &self.store {
            Some(helper) => Err(self.unsupported(registry, helper)),
            None => Ok(None),
        }
    }

    fn unsupported(&self, registry: &str, helper: &str) -> HelperUnsupported {
        HelperUnsupported {
            registry: registry.to_owned(),
            helper: helper.to_owned(),
            path: self.path.clone(),
        }
    }
}

/// Docker writes keys such as `https://index.docker.io/v1/`: scheme, API version and slashes go. A path with a
/// scheme was never a namespace, so all of it goes.
fn canonical(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    match bare {
        Some(bare) => docker_hub(bare.split('/').next().unwrap_or(bare)).to_owned(),
        None => match key.split_once('/') {
            Some((host, path)) => format!("{}/{}", docker_hub(host), path.trim_end_matches('/')),
            None => docker_hub(key).to_owned(),
        },
    }
}

/// The hosts of Docker Hub are one registry.
fn docker_hub(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}
