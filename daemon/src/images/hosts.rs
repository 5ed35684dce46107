//! Where registries are and who we are to them: registries.conf, certificates and auth.json, as the image store asks.

use std::path::PathBuf;

use zcri_config::auth::{AuthFile, Credentials as Known};
use zcri_config::registries::{ImageName, Registries};
use zcri_image::{Credentials, Endpoint, ImageError, ImageReference, RegistryHosts};

/// Where the registry called docker.io is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// The administrator's files.
#[derive(Debug)]
pub(super) struct ConfiguredHosts {
    pub(super) registries: Registries,
    pub(super) auth: Option<AuthFile>,
    /// Directory with a directory of certificates per registry.
    pub(super) certs: PathBuf,
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
        let found = self
            .registries
            .endpoints(name)
            .map_err(|error| ImageError::Blocked {
                reference: reference.name(),
                reason: error.to_string(),
            })?;
        found
            .into_iter()
            .map(|endpoint| self.endpoint(endpoint))
            .collect()
    }
}

impl ConfiguredHosts {
    fn endpoint(&self, found: zcri_config::registries::Endpoint) -> Result<Endpoint, ImageError> {
        let certs_dir = Some(self.certs.join(&found.host)).filter(|dir| dir.is_dir());
        let credentials = match &self.auth {
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
