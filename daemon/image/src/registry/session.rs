//! The conversation of one pull with one endpoint: scheme, credentials, retries, and errors with names.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_client::errors::OciEnvelope;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;
use tracing::debug;

use super::auth::{Challenge, TokenAnswer};
use super::http::{HttpClients, chain};
use super::{DOCKER_HUB_HOST, Endpoint, Login, Timeouts, is_loopback};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest;
use crate::reference::DEFAULT_REGISTRY;

/// Repetitions of a request after a broken connection or a 5xx answer.
const MAX_REPEATS: u32 = 3;
/// Repetitions of a request after 429.
const MAX_RATE_LIMITED: u32 = 5;
/// The first wait between repetitions; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);
/// The first wait after a 429 that does not say how long.
const RATE_BACKOFF: Duration = Duration::from_secs(1);
/// Bytes of an error document that are read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Characters of a registry's words that are repeated.
const MAX_MESSAGE_CHARS: usize = 300;
/// Bytes of a token service's answer.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// How often one request may be answered 401: once without a token, once with one that has expired.
const MAX_CHALLENGES: u32 = 2;
/// Name of this client at token services, which some log.
const CLIENT_ID: &str = "zcri";

/// What is fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resource<'a> {
    /// By tag or digest.
    Manifest(&'a str),
    Blob(&'a Digest),
}

/// One endpoint during one pull.
#[derive(Debug)]
pub(crate) struct Session {
    endpoint: Endpoint,
    login: LoginState,
    clients: Arc<HttpClients>,
    timeouts: Arc<Timeouts>,
    transport: OnceCell<Transport>,
    /// Whether other endpoints are left: then nobody waits for this one.
    has_alternative: bool,
}

#[derive(Debug)]
struct Transport {
    client: Client,
    /// `https://host`
    base: String,
}

struct LoginState {
    login: Login,
    current: Mutex<Authorization>,
}

impl std::fmt::Debug for LoginState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginState")
    }
}

/// The header that requests carry, numbered so that of several requests refused at once only one renews it.
#[derive(Clone, Default)]
struct Authorization {
    header: Option<HeaderValue>,
    generation: u64,
}

impl Session {
    pub(crate) fn new(
        mut endpoint: Endpoint,
        login: Login,
        clients: &Arc<HttpClients>,
        has_alternative: bool,
    ) -> Self {
        if endpoint.host == DEFAULT_REGISTRY {
            DOCKER_HUB_HOST.clone_into(&mut endpoint.host);
        }
        // A given token is sent at once, everything else waits for a challenge.
        let header = match &login {
            Login::Bearer { token } => secret(&format!("Bearer {token}")),
            _ => None,
        };
        let current = Authorization {
            header,
            generation: 0,
        };
        Self {
            endpoint,
            login: LoginState {
                login,
                current: Mutex::new(current),
            },
            timeouts: clients.timeouts(),
            clients: Arc::clone(clients),
            transport: OnceCell::new(),
            has_alternative,
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.endpoint.host
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        self.timeouts.stall
    }

    /// Requests `resource` from byte `from` on.
    ///
    /// # Errors
    /// Everything but a 2xx answer, after the repetitions that make sense.
    pub(crate) async fn get(
        &self,
        resource: Resource<'_>,
        from: u64,
    ) -> Result<Response, ImageError> {
        let transport = self.transport().await?;
        let what = self.describe(resource);
        let path = match resource {
            Resource::Manifest(target) => format!("manifests/{target}"),
            Resource::Blob(digest) => format!("blobs/{digest}"),
        };
        let url = format!("{}/v2/{}/{path}", transport.base, self.endpoint.repository);
        let mut challenges = 0;
        loop {
            let authorization = self.login.current.lock().await.clone();
            let build = || {
                let mut request = transport.client.get(&url);
                if let Resource::Manifest(_) = resource {
                    request = request.header(ACCEPT, manifest::ACCEPT);
                }
                if from > 0 {
                    request = request.header(RANGE, format!("bytes={from}-"));
                }
                match &authorization.header {
                    Some(header) => request.header(AUTHORIZATION, header.clone()),
                    None => request,
                }
            };
            let answer = self.send(build, &what).await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            if status == StatusCode::UNAUTHORIZED && challenges < MAX_CHALLENGES {
                challenges += 1;
                if let Some(challenge) = Challenge::from_headers(answer.headers())
                    && self.answer(challenge, &authorization).await?
                {
                    continue;
                }
            }
            return Err(self.refusal(answer, what).await);
        }
    }

    fn describe(&self, resource: Resource<'_>) -> String {
        let repository = &self.endpoint.repository;
        match resource {
            Resource::Manifest(target) if target.contains(':') => {
                format!("manifest {repository}@{target}")
            }
            Resource::Manifest(target) => format!("manifest {repository}:{target}"),
            Resource::Blob(digest) => format!("blob {repository}@{digest}"),
        }
    }

    /// The client and scheme. Where both schemes may be spoken, `/v2/` tells which one is.
    async fn transport(&self) -> Result<&Transport, ImageError> {
        self.transport
            .get_or_try_init(|| async {
                let endpoint = &self.endpoint;
                let tls_first = !is_loopback(&endpoint.host) || endpoint.certs_dir.is_some();
                let order: &[bool] = match (endpoint.plain_http, tls_first) {
                    (false, _) => &[true],
                    (true, true) => &[true, false],
                    (true, false) => &[false, true],
                };
                let mut failure = None;
                for &tls in order {
                    let transport = self.open(tls)?;
                    if order.len() == 1 {
                        return Ok(transport);
                    }
                    match self.probe(&transport, tls).await {
                        Ok(()) => return Ok(transport),
                        Err(error) => {
                            debug!(host = endpoint.host, tls, error = %chain(&error), "scheme refused");
                            failure.get_or_insert(error);
                        }
                    }
                }
                Err(failure.unwrap_or_else(|| self.unreachable("connecting", "no scheme is left")))
            })
            .await
    }

    fn open(&self, tls: bool) -> Result<Transport, ImageError> {
        let scheme = if tls { "https" } else { "http" };
        Ok(Transport {
            client: self.clients.get(&self.endpoint, tls)?,
            base: format!("{scheme}://{}", self.endpoint.host),
        })
    }

    async fn probe(&self, transport: &Transport, tls: bool) -> Result<(), ImageError> {
        let what = "GET /v2/";
        let request = transport.client.get(format!("{}/v2/", transport.base));
        match timeout(self.timeouts.response, request.send()).await {
            // Servers of HTTPS answer plain requests with 400.
            Ok(Ok(answer)) if !tls && answer.status() == StatusCode::BAD_REQUEST => {
                Err(self.unreachable(what, "it does not speak plain HTTP"))
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.unreachable(what, error.without_url())),
            Err(_) => Err(self.timed_out(what)),
        }
    }

    /// Sends a request, again after a broken connection, a 5xx answer or 429. Gives any other answer.
    async fn send(
        &self,
        build: impl Fn() -> RequestBuilder,
        what: &str,
    ) -> Result<Response, ImageError> {
        let (mut repeats, mut limited) = (0, 0);
        loop {
            let answer = match timeout(self.timeouts.response, build().send()).await {
                Err(_) => return Err(self.timed_out(what)),
                Ok(Err(error)) => {
                    let pointless = error.is_redirect() || error.is_timeout();
                    if repeats < MAX_REPEATS && !self.has_alternative && !pointless {
                        self.back_off(&mut repeats).await;
                        continue;
                    }
                    return Err(self.unreachable(what, error.without_url()));
                }
                Ok(Ok(answer)) => answer,
            };
            match answer.status() {
                StatusCode::TOO_MANY_REQUESTS => {
                    self.wait_for_rate(&answer, &mut limited).await?;
                }
                status if status.is_server_error() && !self.has_alternative => {
                    if repeats >= MAX_REPEATS {
                        return Ok(answer);
                    }
                    self.back_off(&mut repeats).await;
                }
                _ => return Ok(answer),
            }
        }
    }

    async fn back_off(&self, repeats: &mut u32) {
        let wait = jittered(BACKOFF * 2_u32.pow(*repeats));
        *repeats += 1;
        tokio::time::sleep(wait).await;
    }

    /// Waits as a 429 answer wants, unless that is too long, too often, or another endpoint may be asked.
    async fn wait_for_rate(&self, answer: &Response, limited: &mut u32) -> Result<(), ImageError> {
        let wanted = retry_after(answer);
        let wait = wanted.unwrap_or_else(|| RATE_BACKOFF * 2_u32.pow(*limited));
        if self.has_alternative || *limited >= MAX_RATE_LIMITED || wait > self.timeouts.retry_after
        {
            return Err(ImageError::RateLimited {
                host: self.endpoint.host.clone(),
                retry_after: wanted,
            });
        }
        debug!(host = self.endpoint.host, ?wait, "registry limits the rate");
        *limited += 1;
        tokio::time::sleep(jittered(wait)).await;
        Ok(())
    }

    /// Finds an authorization for `challenge`. False: there is none to offer.
    async fn answer(
        &self,
        challenge: Challenge,
        refused: &Authorization,
    ) -> Result<bool, ImageError> {
        let mut current = self.login.current.lock().await;
        if current.generation != refused.generation {
            return Ok(true);
        }
        let header = match (challenge, &self.login.login) {
            (_, Login::Bearer { .. }) => None,
            (Challenge::Basic, Login::Basic { username, password }) if refused.header.is_none() => {
                let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
                secret(&format!("Basic {pair}"))
            }
            (Challenge::Basic, _) => None,
            (Challenge::Bearer { realm, service }, _) => {
                let token = self.fetch_token(&realm, service.as_deref()).await?;
                secret(&format!("Bearer {token}"))
            }
        };
        let Some(header) = header else {
            return Ok(false);
        };
        *current = Authorization {
            header: Some(header),
            generation: current.generation + 1,
        };
        Ok(true)
    }

    async fn fetch_token(&self, realm: &str, service: Option<&str>) -> Result<String, ImageError> {
        let transport = self.transport().await?;
        let denied = |message: String| ImageError::Unauthorized {
            host: self.endpoint.host.clone(),
            repository: self.endpoint.repository.clone(),
            status: StatusCode::UNAUTHORIZED.as_u16(),
            message,
        };
        let plain_allowed = self.endpoint.plain_http || self.endpoint.insecure;
        let acceptable =
            realm.starts_with("https://") || plain_allowed && realm.starts_with("http://");
        if !acceptable {
            return Err(denied(format!("its token service `{realm}` is not HTTPS")));
        }
        let client = if realm.starts_with("https://") && transport.base.starts_with("http://") {
            self.clients.get(&self.endpoint, true)?
        } else {
            transport.client.clone()
        };
        let scope = format!("repository:{}:pull", self.endpoint.repository);
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.map(|service| ("service", service)));
        let build = || match &self.login.login {
            Login::Identity { token } => {
                let mut form = fields.clone();
                form.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("refresh_token", token.as_str()),
                ]);
                client.post(realm).form(&form)
            }
            Login::Basic { username, password } => client
                .get(realm)
                .query(&fields)
                .query(&[("account", username)])
                .basic_auth(username, Some(password)),
            Login::Anonymous | Login::Bearer { .. } => client.get(realm).query(&fields),
        };
        let what = "the token request";
        let answer = self.send(build, what).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer, what.to_owned()).await);
        }
        let body = self.body(answer, MAX_TOKEN_BYTES, what).await?;
        let token = serde_json::from_slice::<TokenAnswer>(&body)
            .ok()
            .and_then(TokenAnswer::into_token);
        token.ok_or_else(|| denied(format!("its token service `{realm}` gives no token")))
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(crate) async fn body(
        &self,
        mut answer: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        let mut body = Vec::new();
        loop {
            let piece = match timeout(self.timeouts.stall, answer.chunk()).await {
                Err(_) => return Err(self.timed_out(what)),
                Ok(Err(error)) => return Err(self.unreachable(what, error.without_url())),
                Ok(Ok(None)) => return Ok(body),
                Ok(Ok(Some(piece))) => piece,
            };
            if (body.len() + piece.len()) as u64 > limit {
                return Err(ImageError::LimitExceeded {
                    what: format!("{what} from {}", self.endpoint.host),
                    limit: format!("{limit} bytes"),
                });
            }
            body.extend_from_slice(&piece);
        }
    }

    /// The error for an answer that is not 2xx.
    async fn refusal(&self, answer: Response, what: String) -> ImageError {
        let status = answer.status();
        let host = self.endpoint.host.clone();
        let body = self.body(answer, MAX_ERROR_BYTES, &what).await;
        let message = words(&body.unwrap_or_default(), status);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ImageError::Unauthorized {
                host,
                repository: self.endpoint.repository.clone(),
                status: status.as_u16(),
                message,
            },
            StatusCode::NOT_FOUND => ImageError::NotFound {
                host,
                what,
                message,
            },
            _ => ImageError::RegistryFailed {
                host,
                what,
                status: status.as_u16(),
                message,
            },
        }
    }

    pub(crate) fn unreachable(
        &self,
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ImageError {
        ImageError::Unreachable {
            host: self.endpoint.host.clone(),
            what: what.to_owned(),
            source: Arc::from(source.into()),
        }
    }

    pub(crate) fn timed_out(&self, what: &str) -> ImageError {
        self.unreachable(what, "no answer in time")
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The wait of a `Retry-After` header: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // An HTTP date is the date of a mail, but for the name of the zone.
    let date = OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()?;
    let left = SystemTime::from(date).duration_since(SystemTime::now());
    Some(left.unwrap_or_default())
}

/// Up to an eighth longer, so that nodes that were refused together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(0_u8) % 1000).unwrap_or_default();
    wait + wait / 8 * random / 1000
}

/// What a registry says in an error document (distribution specification, "error codes"), else its text.
fn words(body: &[u8], status: StatusCode) -> String {
    let from_envelope = serde_json::from_slice::<OciEnvelope>(body)
        .ok()
        .map(|envelope| {
            let messages: Vec<_> = envelope
                .errors
                .into_iter()
                .map(|error| error.message)
                .filter(|message| !message.is_empty())
                .collect();
            messages.join("; ")
        })
        .filter(|text| !text.is_empty());
    let text = from_envelope.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let text: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_MESSAGE_CHARS)
        .collect();
    if text.is_empty() || text.starts_with('<') {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(retry_after: &str) -> Response {
        let answer = http_answer(retry_after);
        Response::from(answer)
    }

    fn http_answer(retry_after: &str) -> http::Response<Vec<u8>> {
        http::Response::builder()
            .header(RETRY_AFTER, retry_after)
            .body(Vec::new())
            .unwrap()
    }

    #[test]
    fn retry_after_in_both_forms() {
        let wait = |text: &str| retry_after(&answer(text));
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(wait("Wed, 21 Oct 2115 07:28:00 GMT").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn the_default_registry_is_elsewhere() {
        let clients = Arc::new(HttpClients::new(Timeouts::default()));
        let endpoint = Endpoint {
            host: DEFAULT_REGISTRY.to_owned(),
            repository: "library/x".to_owned(),
            insecure: false,
            plain_http: false,
            certs_dir: None,
            credentials: None,
        };
        let session = Session::new(endpoint, Login::Anonymous, &clients, false);
        assert_eq!(session.host(), "registry-1.docker.io");
    }

    #[test]
    fn jitter_is_bounded() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(8));
            assert!((Duration::from_secs(8)..=Duration::from_secs(9)).contains(&wait));
        }
    }

    #[test]
    fn words_of_registries() {
        let status = StatusCode::FORBIDDEN;
        let json = br#"{"errors":[{"code":"DENIED","message":"no  way"},{"code":"X","message":"at all"}]}"#;
        assert_eq!(words(json, status), "no way; at all");
        assert_eq!(words(b"plain\x1b text", status), "plain text");
        assert_eq!(words(b"<html>long</html>", status), "Forbidden");
        assert_eq!(words(b"", status), "Forbidden");
    }
}
