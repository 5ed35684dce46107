//! Registries behind TLS: which certificates are believed, and which are shown.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use zcri_image::{Endpoint, ImageError};
use zcri_test_registry::{Fault, Image};

use crate::access::{Endpoints, endpoint};
use crate::fixture::{Node, basic, layer};

const AUTHORITY: &str = include_str!("tls/authority.crt");
const SERVER: &str = include_str!("tls/server.crt");
const SERVER_KEY: &str = include_str!("tls/server.key");
const CLIENT: &str = include_str!("tls/client.crt");
const CLIENT_KEY: &str = include_str!("tls/client.key");

/// TLS in front of a plain registry, for as long as the test runs.
async fn terminate(registry: SocketAddr, wants_client: bool) -> SocketAddr {
    let builder = ServerConfig::builder();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_slice(SERVER.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let config = builder.with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not believe us goes away here.
                let Ok(mut outer) = acceptor.accept(stream).await else {
                    return;
                };
                let mut inner = TcpStream::connect(registry).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut outer, &mut inner).await);
            });
        }
    });
    address
}

async fn use_endpoint(node: &mut Node, endpoint: Endpoint) {
    node.set_hosts(Endpoints(vec![endpoint]));
    node.reopen().await;
}

fn assert_unreachable(error: &ImageError) {
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn certificates_of_a_directory_are_used() {
    let mut node = Node::new().await;
    let image = Image::builder("linux/amd64").layer(layer("a", "1")).build();
    node.registry.push("x", "latest", image);
    let certs = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(certs.path().join(name), text).unwrap();
    let https = |host| Endpoint {
        plain_http: false,
        ..endpoint(host, "x")
    };

    let server = terminate(node.registry.addr(), false).await;
    use_endpoint(&mut node, https(server)).await;
    assert_unreachable(&node.fails("x").await);
    use_endpoint(
        &mut node,
        Endpoint {
            insecure: true,
            ..https(server)
        },
    )
    .await;
    node.pull("x").await.unwrap();
    let with_certs = |host| Endpoint {
        certs_dir: Some(certs.path().to_owned()),
        ..https(host)
    };
    use_endpoint(&mut node, with_certs(server)).await;
    assert_unreachable(&node.pull("x").await.unwrap_err());
    // Files are read for each pull: no restart is needed.
    write("ca.crt", AUTHORITY);
    node.pull("x").await.unwrap();

    let mutual = terminate(node.registry.addr(), true).await;
    use_endpoint(&mut node, with_certs(mutual)).await;
    assert_unreachable(&node.pull("x").await.unwrap_err());
    write("client.cert", CLIENT);
    write("client.key", CLIENT_KEY);
    node.pull("x").await.unwrap();
    write("client.key", "no key");
    let error = node.pull("x").await.unwrap_err();
    assert!(matches!(error, ImageError::BadEndpoint { .. }), "{error}");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_password_does_not_leave_https() {
    let mut node = Node::new().await;
    let image = Image::builder("linux/amd64").layer(layer("a", "1")).build();
    node.registry.push("x", "latest", image);
    let user = Some(("me".to_owned(), "secret".to_owned()));
    let token = Fault::Token {
        user,
        identity_token: None,
    };
    node.registry.set_fault("x", token);
    let server = terminate(node.registry.addr(), false).await;
    let certs = tempfile::tempdir().unwrap();
    std::fs::write(certs.path().join("ca.crt"), AUTHORITY).unwrap();
    let https = Endpoint {
        plain_http: false,
        certs_dir: Some(certs.path().to_owned()),
        credentials: Some(basic("me", "secret")),
        ..endpoint(server, "x")
    };
    use_endpoint(&mut node, https).await;
    // The registry names a token service of plain HTTP.
    let error = node.fails("x").await;
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("not HTTPS"), "{error}");
    assert_eq!(node.registry.requests("/token"), 0);
}
