//! The HTTP side: routes, answers, and the faults on their way.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::auth::{self, Refusal};
use crate::body::ServedBody;
use crate::fault::Fault;
use crate::registry::{RequestRecord, Shared, State};

type Answer = Response<ServedBody>;

/// Where redirected blobs are.
const STORE: &str = "/blob-store/";

/// Accepts connections on both sockets until the task is aborted, which ends them too.
pub(crate) async fn accept(registry: TcpListener, store: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = registry.accept() => accepted,
            accepted = store.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| handle(Arc::clone(&shared), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // An error here is a client that went away or a body cut off on purpose.
            drop(connection.await);
        });
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let number = record(&shared, &request);
    let answer = respond(&shared, request).await;
    // A test may have reset the record meanwhile.
    if let Some(entry) = shared.state().requests.get_mut(number) {
        entry.status = Some(answer.status());
    }
    Ok(answer)
}

fn record(shared: &Shared, request: &Request<Incoming>) -> usize {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let entry = RequestRecord {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().map(str::to_owned),
        range: text(header::RANGE),
        accept: text(header::ACCEPT),
        user_agent: text(header::USER_AGENT),
        authorized: request.headers().contains_key(header::AUTHORIZATION),
        status: None,
    };
    let mut state = shared.state();
    state.requests.push(entry);
    state.requests.len() - 1
}

async fn respond(shared: &Shared, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    if path == "/token" {
        return token(shared, request).await;
    }
    if path == "/v2" || path == "/v2/" {
        return text(shared, StatusCode::OK, "{}");
    }
    let (head, _) = request.into_parts();
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return text(
            shared,
            StatusCode::METHOD_NOT_ALLOWED,
            "this registry serves pulls only",
        );
    }
    if let Some(rest) = path.strip_prefix(STORE) {
        if head.headers.contains_key(header::AUTHORIZATION) {
            return text(
                shared,
                StatusCode::BAD_REQUEST,
                "one authorization mechanism only",
            );
        }
        let (repo, digest) = rest.rsplit_once('/').unwrap_or_default();
        return blob(shared, repo, digest, &head.method, &head.headers);
    }
    let Some(route) = Route::parse(&path) else {
        return error(shared, StatusCode::NOT_FOUND, "NAME_UNKNOWN", &path);
    };
    if let Some(answer) = fail_early(shared, &route, &head.headers).await {
        return answer;
    }
    match route.kind {
        Kind::Manifest => manifest(shared, route.repo, route.target, &head.method),
        Kind::Blob => {
            if shared
                .state()
                .has_fault(route.repo, |fault| *fault == Fault::RedirectBlobs)
            {
                let location = format!(
                    "http://{}{STORE}{}/{}",
                    shared.store, route.repo, route.target
                );
                let mut answer = text(shared, StatusCode::TEMPORARY_REDIRECT, "");
                set(&mut answer, header::LOCATION, &location);
                return answer;
            }
            blob(
                shared,
                route.repo,
                route.target,
                &head.method,
                &head.headers,
            )
        }
        Kind::Tags => tags(shared, route.repo),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Blob,
    Tags,
}

#[derive(Debug)]
struct Route<'a> {
    repo: &'a str,
    kind: Kind,
    target: &'a str,
}

impl<'a> Route<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2/")?;
        let (front, target) = rest.rsplit_once('/')?;
        let (repo, word) = front.rsplit_once('/')?;
        let kind = match (word, target) {
            ("manifests", _) => Kind::Manifest,
            ("blobs", _) => Kind::Blob,
            ("tags", "list") => Kind::Tags,
            _ => return None,
        };
        Some(Self { repo, kind, target })
    }
}

/// The faults that answer instead of the content.
async fn fail_early(shared: &Shared, route: &Route<'_>, headers: &HeaderMap) -> Option<Answer> {
    let repo = route.repo;
    let silent = shared.state().has_fault(repo, |fault| match fault {
        Fault::Silent => true,
        Fault::SilentBlobs => route.kind == Kind::Blob,
        _ => false,
    });
    if silent {
        // Ends with the connection.
        std::future::pending::<()>().await;
    }
    let refused = {
        let state = shared.state();
        let known = |token: &str| state.tokens.contains(&(repo.to_owned(), token.to_owned()));
        let faults = state
            .faults
            .get(repo)
            .map(Vec::as_slice)
            .unwrap_or_default();
        faults
            .iter()
            .find_map(|fault| auth::check(fault, headers, known).err())
    };
    if let Some(refusal) = refused {
        return Some(challenge(shared, repo, &refusal));
    }
    let taken = shared.state().take_fault(repo, |fault| match fault {
        Fault::Forbidden => Some((StatusCode::FORBIDDEN, "DENIED", None)),
        Fault::NotFound => Some((StatusCode::NOT_FOUND, "NAME_UNKNOWN", None)),
        Fault::ServerError { .. } => Some((StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", None)),
        Fault::TooManyRequests { retry_after, .. } => Some((
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            Some(*retry_after),
        )),
        _ => None,
    });
    let (status, code, retry_after): (_, _, Option<Duration>) = taken?;
    let mut answer = error(shared, status, code, repo);
    if let Some(wait) = retry_after {
        set(
            &mut answer,
            header::RETRY_AFTER,
            &wait.as_secs().to_string(),
        );
    }
    Some(answer)
}

fn challenge(shared: &Shared, repo: &str, refusal: &Refusal) -> Answer {
    let mut answer = error(shared, StatusCode::UNAUTHORIZED, "UNAUTHORIZED", repo);
    let scheme = match refusal {
        Refusal::NeedsToken => format!(
            "Bearer realm=\"http://{}/token\",service=\"{}\",scope=\"repository:{repo}:pull\"",
            shared.addr,
            auth::SERVICE
        ),
        Refusal::NeedsBasic => format!("Basic realm=\"{}\"", auth::SERVICE),
    };
    set(&mut answer, header::WWW_AUTHENTICATE, &scheme);
    answer
}

/// The token endpoint: GET with a query and basic credentials, or POST with an OAuth2 form.
async fn token(shared: &Shared, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let mut form = auth::pairs(head.uri.query().unwrap_or_default());
    if head.method == Method::POST {
        let Ok(body) = body.collect().await else {
            return text(shared, StatusCode::BAD_REQUEST, "the form did not arrive");
        };
        form = auth::pairs(&String::from_utf8_lossy(&body.to_bytes()));
    }
    let scope = form
        .iter()
        .find(|(key, _)| key == "scope")
        .map(|(_, value)| value.as_str());
    let repo = scope
        .and_then(|scope| scope.strip_prefix("repository:"))
        .and_then(|rest| rest.rsplit_once(':'));
    let Some((repo, _actions)) = repo else {
        return text(shared, StatusCode::BAD_REQUEST, "no scope");
    };
    let mut state = shared.state();
    let faults = state
        .faults
        .get(repo)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let wanted = faults
        .iter()
        .find(|fault| matches!(fault, Fault::Token { .. }));
    if wanted.is_some_and(|fault| !auth::may_have_token(fault, &head.headers, &form)) {
        drop(state);
        return error(shared, StatusCode::UNAUTHORIZED, "UNAUTHORIZED", repo);
    }
    let token = format!("token-{}", state.tokens.len() + 1);
    state.tokens.insert((repo.to_owned(), token.clone()));
    drop(state);
    let reply = json!({ "token": token, "access_token": token, "expires_in": 300 });
    text(shared, StatusCode::OK, &reply.to_string())
}

fn manifest(shared: &Shared, repo: &str, target: &str, method: &Method) -> Answer {
    let state = shared.state();
    let found = state.repositories.get(repo).and_then(|repository| {
        let digest = repository.tags.get(target).map_or(target, String::as_str);
        repository.manifests.get(digest).cloned()
    });
    let wrong_header = state.has_fault(repo, |fault| *fault == Fault::WrongDigestHeader);
    let corrupt = state.has_fault(repo, |fault| *fault == Fault::CorruptManifest);
    drop(state);
    let Some(manifest) = found else {
        return error(shared, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", target);
    };
    let mut data = manifest.blob.data;
    if corrupt {
        data = [&data[..], b" "].concat().into();
    }
    let length = data.len();
    let body = if method == Method::HEAD {
        Bytes::new()
    } else {
        data
    };
    let mut answer = Response::new(ServedBody::new(body, Arc::clone(&shared.sent)));
    set(&mut answer, header::CONTENT_TYPE, &manifest.media_type);
    set(&mut answer, header::CONTENT_LENGTH, &length.to_string());
    let digest = if wrong_header {
        format!("sha256:{}", "0".repeat(64))
    } else {
        manifest.blob.digest
    };
    set(
        &mut answer,
        header::HeaderName::from_static("docker-content-digest"),
        &digest,
    );
    answer
}

fn blob(shared: &Shared, repo: &str, digest: &str, method: &Method, headers: &HeaderMap) -> Answer {
    let mut state = shared.state();
    let Some(data) = state
        .repositories
        .get(repo)
        .and_then(|found| found.blobs.get(digest))
        .cloned()
    else {
        drop(state);
        return error(shared, StatusCode::NOT_FOUND, "BLOB_UNKNOWN", digest);
    };
    let total = data.len();
    let range = if state.has_fault(repo, |fault| *fault == Fault::NoRanges) {
        None
    } else {
        headers
            .get(header::RANGE)
            .and_then(|value| value.to_str().ok())
    };
    let Some((start, end)) = byte_range(range, total) else {
        drop(state);
        let mut answer = error(
            shared,
            StatusCode::RANGE_NOT_SATISFIABLE,
            "RANGE_INVALID",
            digest,
        );
        set(
            &mut answer,
            header::CONTENT_RANGE,
            &format!("bytes */{total}"),
        );
        return answer;
    };
    let range_asked = range.is_some();
    let part = if method == Method::GET {
        start..end
    } else {
        0..0
    };
    let body = blob_body(&mut state, repo, data, part, Arc::clone(&shared.sent));
    drop(state);
    let mut answer = Response::new(body);
    set(
        &mut answer,
        header::CONTENT_TYPE,
        "application/octet-stream",
    );
    set(
        &mut answer,
        header::CONTENT_LENGTH,
        &(end - start).to_string(),
    );
    set(&mut answer, header::ACCEPT_RANGES, "bytes");
    set(
        &mut answer,
        header::HeaderName::from_static("docker-content-digest"),
        digest,
    );
    if range_asked {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(
            &mut answer,
            header::CONTENT_RANGE,
            &format!("bytes {start}-{}/{total}", end.saturating_sub(1)),
        );
    }
    answer
}

/// The `part` of a blob as the faults of `repo` let it through.
fn blob_body(
    state: &mut State,
    repo: &str,
    mut data: Bytes,
    part: Range<usize>,
    sent: Arc<AtomicU64>,
) -> ServedBody {
    let corrupt = state.take_fault(repo, |fault| match fault {
        Fault::CorruptBlob { at, .. } if part.contains(at) => Some(*at),
        _ => None,
    });
    if let Some(at) = corrupt {
        let mut bytes = data.to_vec();
        bytes[at] ^= 0xff;
        data = bytes.into();
    }
    let cut = state.take_fault(repo, |fault| match fault {
        Fault::TruncateBlob { after, .. } if part.len() > *after => Some(*after),
        _ => None,
    });
    let pace = state.take_fault(repo, |fault| match fault {
        Fault::SlowBlobs { bytes_per_second } => Some(*bytes_per_second),
        _ => None,
    });
    let mut body = ServedBody::new(data.slice(part), sent);
    if let Some(after) = cut {
        body = body.cut_after(after);
    }
    if let Some(pace) = pace {
        body = body.slow(pace);
    }
    body
}

/// The half-open range that a `Range` header asks for; the whole without a header; none where it starts beyond the end.
fn byte_range(header: Option<&str>, total: usize) -> Option<(usize, usize)> {
    let Some(spec) = header.and_then(|text| text.strip_prefix("bytes=")) else {
        return Some((0, total));
    };
    let (start, end) = spec.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if end.is_empty() {
        total
    } else {
        end.parse::<usize>().ok()?.saturating_add(1).min(total)
    };
    (start < end).then_some((start, end))
}

fn tags(shared: &Shared, repo: &str) -> Answer {
    let state = shared.state();
    let names = state
        .repositories
        .get(repo)
        .map(|found| found.tags.keys().cloned().collect::<Vec<_>>());
    drop(state);
    match names {
        Some(tags) => text(
            shared,
            StatusCode::OK,
            &json!({ "name": repo, "tags": tags }).to_string(),
        ),
        None => error(shared, StatusCode::NOT_FOUND, "NAME_UNKNOWN", repo),
    }
}

/// An error in the form of the distribution specification.
fn error(shared: &Shared, status: StatusCode, code: &str, detail: &str) -> Answer {
    let message = status.canonical_reason().unwrap_or_default();
    let body = json!({ "errors": [{ "code": code, "message": message, "detail": detail }] });
    text(shared, status, &body.to_string())
}

fn text(shared: &Shared, status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(ServedBody::new(
        Bytes::copy_from_slice(body.as_bytes()),
        Arc::clone(&shared.sent),
    ));
    *answer.status_mut() = status;
    set(&mut answer, header::CONTENT_TYPE, "application/json");
    answer
}

fn set(answer: &mut Answer, name: header::HeaderName, value: &str) {
    let value =
        header::HeaderValue::from_str(value).expect("headers of this registry are plain text");
    answer.headers_mut().insert(name, value);
}
