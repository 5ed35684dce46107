//! The registry over real connections: what a client sees of content and faults.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zcri_test_registry::{
    Compression, FOREVER, Fault, Image, Index, LayerBuilder, ManifestKind, Registry, digest_of,
};

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

async fn call(registry: &Registry, method: &str, path: &str, headers: &str) -> Reply {
    let mut stream = TcpStream::connect(registry.addr()).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("an HTTP head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head[9..12].parse().unwrap();
    Reply {
        status,
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

fn image(platform: &str) -> Image {
    let layer = LayerBuilder::new()
        .file("data", 0o644, platform.repeat(5_000))
        .build(Compression::None);
    Image::builder(platform).layer(layer).cmd(["/data"]).build()
}

#[tokio::test]
async fn manifests_have_type_and_digest_by_tag_and_digest() {
    let registry = Registry::start().await;
    let inner = Image::builder("zos/s390x")
        .kind(ManifestKind::Docker)
        .build();
    let digest = registry.push(
        "a/b",
        "v1",
        Index::oci([image("linux/amd64"), inner.clone()]),
    );
    assert_eq!(call(&registry, "GET", "/v2/", "").await.status, 200);
    let by_tag = call(&registry, "GET", "/v2/a/b/manifests/v1", "").await;
    assert_eq!(
        by_tag.header("content-type"),
        Some("application/vnd.oci.image.index.v1+json")
    );
    assert_eq!(
        by_tag.header("docker-content-digest"),
        Some(digest.as_str())
    );
    assert_eq!(digest_of(&by_tag.body), digest);
    let child = call(
        &registry,
        "HEAD",
        &format!("/v2/a/b/manifests/{}", inner.digest()),
        "",
    )
    .await;
    assert_eq!(
        child.header("content-type"),
        Some("application/vnd.docker.distribution.manifest.v2+json")
    );
    assert!(child.body.is_empty() && child.header("content-length") != Some("0"));
    assert_eq!(
        call(&registry, "GET", "/v2/a/b/manifests/v2", "")
            .await
            .status,
        404
    );
    assert_eq!(registry.requests("/manifests/v1"), 1);
}

#[tokio::test]
async fn blobs_come_whole_in_ranges_cut_and_corrupt() {
    let registry = Registry::start().await;
    let image = image("linux/amd64");
    registry.push("r", "v1", image.clone());
    let blob = &image.layers()[0].blob;
    let path = format!("/v2/r/blobs/{}", blob.digest);
    assert_eq!(call(&registry, "GET", &path, "").await.body, blob.data);
    let part = call(&registry, "GET", &path, "range: bytes=10-19\r\n").await;
    assert_eq!((part.status, &part.body[..]), (206, &blob.data[10..20]));
    let total = blob.data.len();
    assert_eq!(
        part.header("content-range"),
        Some(format!("bytes 10-19/{total}").as_str())
    );
    assert_eq!(
        call(
            &registry,
            "GET",
            &path,
            &format!("range: bytes={total}-\r\n")
        )
        .await
        .status,
        416
    );
    registry.set_fault(
        "r",
        Fault::TruncateBlob {
            after: 1_000,
            times: 1,
        },
    );
    let cut = call(&registry, "GET", &path, "").await;
    assert_eq!(
        (cut.body.len(), cut.header("content-length")),
        (1_000, Some(total.to_string().as_str()))
    );
    let rest = call(&registry, "GET", &path, "range: bytes=1000-\r\n").await;
    assert_eq!([cut.body, rest.body].concat(), blob.data);
    registry.set_fault(
        "r",
        Fault::CorruptBlob {
            at: 5,
            times: FOREVER,
        },
    );
    let broken = call(&registry, "GET", &path, "").await;
    assert_eq!(
        broken
            .body
            .iter()
            .zip(&blob.data[..])
            .filter(|(a, b)| a != b)
            .count(),
        1
    );
    assert_eq!(registry.blob_downloads(&blob.digest), 5);
}

#[tokio::test]
async fn counted_faults_end_and_redirects_want_no_credentials() {
    let registry = Registry::start().await;
    let image = image("linux/amd64");
    registry.push("r", "v1", image.clone());
    registry.set_fault(
        "r",
        Fault::TooManyRequests {
            times: 1,
            retry_after: Duration::from_secs(3),
        },
    );
    let busy = call(&registry, "GET", "/v2/r/manifests/v1", "").await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("3")));
    assert_eq!(
        call(&registry, "GET", "/v2/r/manifests/v1", "")
            .await
            .status,
        200
    );
    registry.set_fault("r", Fault::RedirectBlobs);
    let moved = call(
        &registry,
        "GET",
        &format!("/v2/r/blobs/{}", image.config_digest()),
        "",
    )
    .await;
    assert_eq!(moved.status, 307);
    let location = moved.header("location").unwrap();
    assert!(
        !location.contains(&registry.addr().to_string()),
        "{location}"
    );
    let path = location[location.find("/blob-store/").unwrap()..].to_owned();
    assert_eq!(
        digest_of(&call(&registry, "GET", &path, "").await.body),
        image.config_digest()
    );
    assert_eq!(
        call(&registry, "GET", &path, "authorization: Bearer x\r\n")
            .await
            .status,
        400
    );
    registry.set_fault("r", Fault::WrongDigestHeader);
    let lie = call(&registry, "GET", "/v2/r/manifests/v1", "").await;
    assert_ne!(lie.header("docker-content-digest"), Some(image.digest()));
}

#[tokio::test]
async fn tokens_are_for_those_who_may() {
    let registry = Registry::start().await;
    registry.push("r", "v1", image("linux/amd64"));
    let user = Some(("joe".to_owned(), "pass".to_owned()));
    registry.set_fault(
        "r",
        Fault::Token {
            user,
            identity_token: None,
        },
    );
    let refused = call(&registry, "GET", "/v2/r/manifests/v1", "").await;
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(
        refused.status == 401 && challenge.starts_with("Bearer realm="),
        "{challenge}"
    );
    let scope = "/token?service=x&scope=repository%3Ar%3Apull";
    assert_eq!(call(&registry, "GET", scope, "").await.status, 401);
    // joe:pass
    let granted = call(
        &registry,
        "GET",
        scope,
        "authorization: Basic am9lOnBhc3M=\r\n",
    )
    .await;
    let body = String::from_utf8(granted.body).unwrap();
    let token = body
        .split("\"token\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let with = format!("authorization: Bearer {token}\r\n");
    assert_eq!(
        call(&registry, "GET", "/v2/r/manifests/v1", &with)
            .await
            .status,
        200
    );
    registry.set_fault("r", Fault::Unauthorized);
    assert_eq!(
        call(&registry, "GET", "/v2/r/manifests/v1", &with)
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn silence_and_slowness_hold_a_client() {
    let registry = Registry::start().await;
    let image = image("linux/amd64");
    registry.push("r", "v1", image.clone());
    registry.set_fault("r", Fault::SilentBlobs);
    assert_eq!(
        call(&registry, "GET", "/v2/r/manifests/v1", "")
            .await
            .status,
        200
    );
    let path = format!("/v2/r/blobs/{}", image.layers()[0].blob.digest);
    let waited = tokio::time::timeout(
        Duration::from_millis(200),
        call(&registry, "GET", &path, ""),
    )
    .await;
    assert!(waited.is_err(), "a silent repository answered");
    let size = image.layers()[0].blob.data.len();
    registry.set_fault(
        "r",
        Fault::SlowBlobs {
            bytes_per_second: size * 4,
        },
    );
    let start = std::time::Instant::now();
    assert_eq!(call(&registry, "GET", &path, "").await.body.len(), size);
    assert!(
        start.elapsed() >= Duration::from_millis(150),
        "{:?}",
        start.elapsed()
    );
}
