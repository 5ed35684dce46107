//! Where registries are and who we are to them: registries.conf, certificates and auth.json, as the image store asks.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use zcri_config::ConfigError;
use zcri_config::auth::{AuthFile, AuthFileError, Credentials as Known};
use zcri_config::registries::{ImageName, Registries};
use zcri_image::{Credentials, Endpoint, ImageError, ImageReference, RegistryHosts};

/// Where the registry called docker.io is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// The administrator's files, as they were read last.
#[derive(Debug)]
pub struct Files {
    pub(super) registries: Registries,
    pub(super) auth: Option<AuthFile>,
}

/// A file of the administrator that is not valid.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// registries.conf or a drop-in of it.
    #[error("image.registries_conf")]
    Registries(#[source] ConfigError),
    /// auth.json.
    #[error("image.auth_file")]
    Auth(#[source] AuthFileError),
}

impl Files {
    /// Reads those that the configuration names.
    ///
    /// # Errors
    /// One is not valid.
    pub fn load(config: &zcri_config::Image) -> Result<Self, FilesError> {
        let registries = Registries::load(&config.registries_conf);
        let auth = config.auth_file.as_deref().map(AuthFile::load).transpose();
        Ok(Self {
            registries: registries.map_err(FilesError::Registries)?,
            auth: auth.map_err(FilesError::Auth)?,
        })
    }
}

/// The administrator's files, replaced as a whole when they are read anew.
#[derive(Debug)]
pub(super) struct ConfiguredHosts {
    files: RwLock<Arc<Files>>,
    /// Directory with a directory of certificates per registry.
    certs: PathBuf,
}

impl ConfiguredHosts {
    pub(super) fn new(files: Files, certs: PathBuf) -> Self {
        Self {
            files: RwLock::new(Arc::new(files)),
            certs,
        }
    }

    pub(super) fn files(&self) -> Arc<Files> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&files)
    }

    pub(super) fn set_files(&self, files: Files) {
        let mut current = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(files);
    }
}

impl RegistryHosts for ConfiguredHosts {
    fn endpoints(&self, reference: &ImageReference) -> Result<Vec<Endpoint>, ImageError> {
        let digest = reference.digest().map(|digest| digest.as_str().to_owned());
        let name = ImageName {
            registry: reference.registry(),
            repository: reference.repository(),
            tag: reference.tag(),
            digest: digest.as_deref(),
        };
        let files = self.files();
        let found = files
            .registries
            .endpoints(name)
            .map_err(|error| ImageError::Blocked {
                reference: reference.name(),
                reason: error.to_string(),
            })?;
        found
            .into_iter()
            .map(|endpoint| self.endpoint(&files, endpoint))
            .collect()
    }
}

impl ConfiguredHosts {
    fn endpoint(
        &self,
        files: &Files,
        found: zcri_config::registries::Endpoint,
    ) -> Result<Endpoint, ImageError> {
        let certs_dir = Some(self.certs.join(&found.host)).filter(|dir| dir.is_dir());
        let credentials = match &files.auth {
            Some(auth) => auth
                .credentials(&found.host, &found.repository)
                .map_err(|error| ImageError::InvalidCredentials {
                    reason: error.to_string(),
                })?,
            None => None,
        };
        let plain_http = found.allows_plain_http();
        // docker.io is a name; its registry is at another host.
        let host = match found.host.as_str() {
            "docker.io" => DOCKER_HUB.to_owned(),
            _ => found.host,
        };
        Ok(Endpoint {
            host,
            repository: found.repository,
            insecure: found.insecure,
            plain_http,
            certs_dir,
            credentials: credentials.map(credentials_of),
        })
    }
}

fn credentials_of(known: &Known) -> Credentials {
    match known {
        Known::Basic { username, password } => Credentials {
            username: username.clone(),
            password: password.clone(),
            ..Credentials::default()
        },
        Known::IdentityToken(token) => Credentials {
            identity_token: token.clone(),
            ..Credentials::default()
        },
    }
}
