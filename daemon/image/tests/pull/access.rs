//! Getting at a registry: credentials, mirrors, rates, redirects.

use std::time::{Duration, Instant};

use zcri_image::{Credentials, Endpoint, ImageError, ImageReference, RegistryHosts, Timeouts};
use zcri_test_registry::{FOREVER, Fault, Image, Registry};

use crate::fixture::{Node, basic, layer};

fn image() -> Image {
    Image::builder("linux/amd64").layer(layer("a", "1")).build()
}

fn token(user: Option<(&str, &str)>, identity_token: Option<&str>) -> Fault {
    Fault::Token {
        user: user.map(|(name, word)| (name.to_owned(), word.to_owned())),
        identity_token: identity_token.map(str::to_owned),
    }
}

/// A node whose registry has `x` behind `fault`.
async fn guarded(fault: Fault) -> Node {
    let node = Node::new().await;
    node.registry.push("x", "latest", image());
    node.registry.set_fault("x", fault);
    node
}

fn assert_unauthorized(error: &ImageError, node: &Node) {
    let text = error.to_string();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{text}");
    assert!(text.contains(&node.registry.addr().to_string()), "{text}");
}

#[tokio::test]
async fn anonymous_tokens() {
    let node = guarded(token(None, None)).await;
    node.pull("x").await.unwrap();
    assert_eq!(
        node.registry.requests("/token"),
        1,
        "one token for all requests of a pull"
    );
}

#[tokio::test]
async fn tokens_for_a_user() {
    let node = guarded(token(Some(("me", "secret")), None)).await;
    assert_unauthorized(&node.fails("x").await, &node);
    let wrong = node.pull_as("x", basic("me", "guess")).await.unwrap_err();
    assert_unauthorized(&wrong, &node);
    node.pull_as("x", basic("me", "secret")).await.unwrap();
    // Once an image is here, who may not have it still may not.
    assert_unauthorized(&node.pull("x").await.unwrap_err(), &node);
}

#[tokio::test]
async fn basic_credentials() {
    let fault = Fault::Basic {
        user: "me".to_owned(),
        password: "a:b".to_owned(),
    };
    let node = guarded(fault).await;
    assert_unauthorized(&node.fails("x").await, &node);
    let wrong = node.pull_as("x", basic("me", "guess")).await.unwrap_err();
    assert_unauthorized(&wrong, &node);
    let encoded = Credentials {
        auth: "bWU6YTpi".to_owned(),
        ..Credentials::default()
    };
    node.pull_as("x", encoded).await.unwrap();
    node.pull_as("x", basic("me", "a:b")).await.unwrap();
}

#[tokio::test]
async fn identity_tokens() {
    let node = guarded(token(None, Some("refresh-me"))).await;
    let identity = |text: &str| Credentials {
        identity_token: text.to_owned(),
        ..Credentials::default()
    };
    let wrong = node.pull_as("x", identity("other")).await.unwrap_err();
    assert_unauthorized(&wrong, &node);
    node.pull_as("x", identity("refresh-me")).await.unwrap();
}

#[tokio::test]
async fn registry_tokens_are_sent_as_they_are() {
    let node = guarded(token(None, None)).await;
    let bearer = |text: &str| Credentials {
        registry_token: text.to_owned(),
        ..Credentials::default()
    };
    let wrong = node.pull_as("x", bearer("forged")).await.unwrap_err();
    assert_unauthorized(&wrong, &node);
    assert_eq!(node.registry.requests("/token"), 0);
    // Any other pull makes the registry issue a token; it numbers them.
    node.pull("x").await.unwrap();
    node.pull_as("x", bearer("token-1")).await.unwrap();
    assert_eq!(node.registry.requests("/token"), 1);
}

#[tokio::test]
async fn credentials_for_another_server_are_kept_back() {
    let node = guarded(token(Some(("me", "secret")), None)).await;
    let elsewhere = Credentials {
        server_address: "https://registry.example/v2/".to_owned(),
        ..basic("me", "secret")
    };
    assert_unauthorized(&node.pull_as("x", elsewhere).await.unwrap_err(), &node);
    let here = Credentials {
        server_address: format!("http://{}/", node.registry.addr()),
        ..basic("me", "secret")
    };
    node.pull_as("x", here).await.unwrap();
}

#[tokio::test]
async fn refusals_keep_their_kinds() {
    let node = guarded(Fault::Unauthorized).await;
    assert_unauthorized(&node.fails("x").await, &node);
    node.registry.set_fault("x", Fault::Forbidden);
    assert_unauthorized(&node.fails("x").await, &node);
    node.registry.set_fault("x", Fault::NotFound);
    for name in ["x", "absent", "x:absent"] {
        let error = node.fails(name).await;
        assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_waited_for() {
    let limited = |times, seconds| Fault::TooManyRequests {
        times,
        retry_after: Duration::from_secs(seconds),
    };
    let node = guarded(limited(1, 1)).await;
    let start = Instant::now();
    node.pull("x").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Longer than anybody wants to wait: at once, with the time in the error.
    node.registry.set_fault("x", limited(FOREVER, 3600));
    let start = Instant::now();
    let error = node.pull("x").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));
    let wanted = Duration::from_secs(3600);
    assert!(
        matches!(error, ImageError::RateLimited { retry_after: Some(wait), .. } if wait == wanted),
        "{error}"
    );
    // For ever: a bounded number of times.
    node.registry.set_fault("x", limited(FOREVER, 0));
    node.registry.reset_counters();
    let error = node.pull("x").await.unwrap_err();
    assert!(matches!(error, ImageError::RateLimited { .. }), "{error}");
    assert_eq!(node.registry.requests("/manifests/"), 6);
}

#[tokio::test]
async fn server_errors_are_repeated_some_times() {
    let node = guarded(Fault::ServerError { times: 2 }).await;
    node.pull("x").await.unwrap();
    node.registry
        .set_fault("x", Fault::ServerError { times: FOREVER });
    let error = node.pull("x").await.unwrap_err();
    assert!(
        matches!(error, ImageError::RegistryFailed { status: 500, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn unreachable_or_silent() {
    let node = guarded(Fault::Silent).await;
    let error = node.fails("x").await;
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    node.registry.set_fault("x", Fault::SilentBlobs);
    let error = node.fails("x").await;
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = closed.local_addr().unwrap();
    drop(closed);
    let reference = format!("{host}/x").parse().unwrap();
    let error = node
        .store
        .pull(zcri_image::PullRequest::new(reference))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&host.to_string()), "{error}");
}

#[tokio::test]
async fn redirects_do_not_take_the_token_to_another_host() {
    let node = guarded(token(None, None)).await;
    node.registry.add_fault("x", Fault::RedirectBlobs);
    // The redirect leads to 127.0.0.1, another name, where the test registry refuses the header.
    let port = node.registry.addr().port();
    let reference = format!("localhost:{port}/x").parse().unwrap();
    let request = zcri_image::PullRequest::new(reference);
    node.store.pull(request).await.unwrap();
    assert_eq!(node.registry.requests("/blob-store/"), 2);
}

/// Endpoints as a registries.conf would give them.
#[derive(Debug)]
pub(crate) struct Endpoints(pub(crate) Vec<Endpoint>);

impl RegistryHosts for Endpoints {
    fn endpoints(&self, _: &ImageReference) -> Result<Vec<Endpoint>, ImageError> {
        Ok(self.0.clone())
    }
}

pub(crate) fn endpoint(host: impl ToString, repository: &str) -> Endpoint {
    Endpoint {
        host: host.to_string(),
        repository: repository.to_owned(),
        insecure: false,
        plain_http: true,
        certs_dir: None,
        credentials: None,
    }
}

#[tokio::test]
async fn mirrors_in_their_order() {
    let mirror = Registry::start().await;
    let mut node = Node::new().await;
    let main = endpoint(node.registry.addr(), "x");
    let mirrored = endpoint(mirror.addr(), "cache/x");
    let dead = endpoint("127.0.0.1:1", "x");
    node.set_hosts(Endpoints(vec![dead, mirrored, main]));
    node.reopen().await;
    mirror.push("cache/x", "latest", image());
    let digest = node.registry.push("x", "latest", image());
    let pulled = node.pull("x").await.unwrap();
    assert_eq!(
        node.registry.request_log().len(),
        0,
        "the mirror has all of it"
    );
    let names = format!("{}/x", node.registry.addr());
    assert_eq!(
        pulled.repo_tags,
        [format!("{names}:latest")],
        "known by the registry's name"
    );
    assert_eq!(pulled.repo_digests, [format!("{names}@{digest}")]);
    node.store.remove(pulled.id.as_str()).await.unwrap();

    // A mirror that lacks a blob, breaks, limits, refuses or lies is passed over.
    let blob = pulled.layers[0].digest.as_str();
    mirror.remove_blob("cache/x", blob);
    node.pull("x").await.unwrap();
    assert_eq!(node.registry.blob_downloads(blob), 1);
    node.store.remove(pulled.id.as_str()).await.unwrap();
    for fault in [
        Fault::ServerError { times: FOREVER },
        Fault::TooManyRequests {
            times: FOREVER,
            retry_after: Duration::from_secs(30),
        },
        Fault::Unauthorized,
        Fault::NotFound,
        Fault::WrongDigestHeader,
    ] {
        mirror.set_fault("cache/x", fault.clone());
        let start = Instant::now();
        node.pull("x").await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{fault:?}");
        node.store.remove(pulled.id.as_str()).await.unwrap();
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn credentials_of_a_pull_do_not_go_to_mirrors() {
    let mirror = Registry::start().await;
    let mut node = Node::new().await;
    let own = Endpoint {
        credentials: Some(basic("mirror", "word")),
        ..endpoint(mirror.addr(), "x")
    };
    node.set_hosts(Endpoints(vec![
        endpoint(mirror.addr(), "x"),
        own.clone(),
        endpoint(node.registry.addr(), "x"),
    ]));
    node.reopen().await;
    mirror.push("x", "latest", image());
    node.registry.push("x", "latest", image());
    let needs = |user: &str, word: &str| Fault::Basic {
        user: user.to_owned(),
        password: word.to_owned(),
    };
    // A mirror that wants the pull's credentials does not get them.
    mirror.set_fault("x", needs("me", "secret"));
    node.registry.set_fault("x", needs("me", "secret"));
    node.pull_as("x", basic("me", "secret")).await.unwrap();
    assert_eq!(mirror.requests("/blobs/"), 0);
    assert_eq!(node.registry.requests("/blobs/"), 2);
    // One that has its own gets those.
    node.registry.reset_counters();
    mirror.set_fault("x", needs("mirror", "word"));
    node.pull_as("x", basic("me", "secret")).await.unwrap();
    assert_eq!(node.registry.requests("/"), 0);
}

#[tokio::test]
async fn blocked_and_plain_registries() {
    #[derive(Debug)]
    struct Blocked;
    impl RegistryHosts for Blocked {
        fn endpoints(&self, reference: &ImageReference) -> Result<Vec<Endpoint>, ImageError> {
            Err(ImageError::Blocked {
                reference: reference.to_string(),
                reason: "a test says so".to_owned(),
            })
        }
    }
    let mut node = Node::new().await;
    node.registry.push("x", "latest", image());
    node.set_hosts(Blocked);
    node.reopen().await;
    let error = node.fails("x").await;
    assert!(matches!(error, ImageError::Blocked { .. }), "{error}");
    // HTTPS only: a plain registry is not spoken to, credentials or not.
    let strict = Endpoint {
        plain_http: false,
        ..endpoint(node.registry.addr(), "x")
    };
    node.config.timeouts = Timeouts {
        response: Duration::from_secs(1),
        ..Timeouts::default()
    };
    node.set_hosts(Endpoints(vec![strict.clone()]));
    node.reopen().await;
    let error = node.fails("x").await;
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    // Where both may be spoken and HTTPS is preferred, plain HTTP is found.
    let certs = tempfile::tempdir().unwrap();
    let lenient = Endpoint {
        plain_http: true,
        certs_dir: Some(certs.path().to_owned()),
        ..strict
    };
    node.set_hosts(Endpoints(vec![lenient]));
    node.reopen().await;
    node.pull("x").await.unwrap();
    node.set_hosts(Endpoints(Vec::new()));
    node.reopen().await;
    let error = node.pull("x").await.unwrap_err();
    assert!(matches!(error, ImageError::BadEndpoint { .. }), "{error}");
}
