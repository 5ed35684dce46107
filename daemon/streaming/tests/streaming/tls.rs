//! TLS: certificates that change, versions, clients without a certificate.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use zcri_streaming::{BindError, Server, ServerConfig, TlsConfig, TlsVersion};

use crate::client::{Connection, Spdy, split};
use crate::command::V4;
use crate::{Node, config};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key, in PEM.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.0).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    fn write(&self, dir: &Path) {
        let (certificate, key) = self.issue();
        for (name, text) in [("tls.crt", certificate), ("tls.key", key)] {
            let temporary = dir.join("temporary");
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(&temporary, dir.join(name)).unwrap();
        }
    }
}

fn tls(dir: &Path) -> TlsConfig {
    TlsConfig {
        certificate: dir.join("tls.crt"),
        key: dir.join("tls.key"),
        client_ca: None,
        minimum_version: TlsVersion::Tls12,
    }
}

fn connector(
    roots: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<(String, String)>,
) -> TlsConnector {
    let mut store = RootCertStore::empty();
    store
        .add(CertificateDer::from_pem_slice(roots.pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(
                    chain,
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// Runs a command; an error if there is no TLS.
async fn echo(node: &Node, connector: &TlsConnector) -> std::io::Result<()> {
    let url = node.exec(&["echo", "secret"], false);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let stream = TcpStream::connect(split(&url).0).await?;
    let mut stream = connector
        .connect("127.0.0.1".try_into().unwrap(), stream)
        .await?;
    // With TLS 1.3 a server that refuses the client's certificate says so only now.
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"").await?;
    let mut connection = Connection {
        io: Box::new(stream),
        buffer: BytesMut::new(),
    };
    let headers = [
        crate::client::SPDY[0],
        crate::client::SPDY[1],
        ("X-Stream-Protocol-Version", V4),
    ];
    let path = split(&url).1;
    let mut text = format!("POST {path} HTTP/1.1\r\nHost: x\r\n");
    headers
        .iter()
        .for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    connection.send(format!("{text}\r\n").as_bytes()).await;
    if connection.fill().await == 0 {
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    assert_eq!(connection.response().await.status, 101);
    let mut client = Spdy::over(connection);
    let streams = client
        .command(&["error", "stdin", "stdout", "stderr"])
        .await;
    client.end().await;
    assert_eq!(client.text(streams["stdout"]), "secret");
    Ok(())
}

#[tokio::test]
async fn changed_certificates_are_used_and_broken_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    old.write(dir.path());
    let node = Node::with(ServerConfig {
        tls: Some(tls(dir.path())),
        ..config()
    })
    .await;
    let (trusts_old, trusts_new) = (
        connector(&old, &[&TLS13], None),
        connector(&new, &[&TLS12], None),
    );
    echo(&node, &trusts_old).await.unwrap();
    echo(&node, &trusts_new).await.unwrap_err();
    new.write(dir.path());
    echo(&node, &trusts_new).await.unwrap();
    echo(&node, &trusts_old).await.unwrap_err();
    std::fs::write(dir.path().join("tls.crt"), "half of a file").unwrap();
    echo(&node, &trusts_new).await.unwrap();
    old.write(dir.path());
    echo(&node, &trusts_old).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn older_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(dir.path());
    let tls = TlsConfig {
        minimum_version: TlsVersion::Tls13,
        ..tls(dir.path())
    };
    let node = Node::with(ServerConfig {
        tls: Some(tls),
        ..config()
    })
    .await;
    echo(&node, &connector(&authority, &[&TLS12], None))
        .await
        .unwrap_err();
    echo(&node, &connector(&authority, &[&TLS13], None))
        .await
        .unwrap();
    node.stop().await;
}

#[tokio::test]
async fn clients_need_a_certificate_where_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    authority.write(dir.path());
    let client_ca = dir.path().join("ca.crt");
    std::fs::write(&client_ca, authority.pem()).unwrap();
    let tls = TlsConfig {
        client_ca: Some(client_ca),
        ..tls(dir.path())
    };
    let node = Node::with(ServerConfig {
        tls: Some(tls),
        ..config()
    })
    .await;
    for versions in [&TLS12, &TLS13] {
        echo(&node, &connector(&authority, &[versions], None))
            .await
            .unwrap_err();
        echo(
            &node,
            &connector(&authority, &[versions], Some(other.issue())),
        )
        .await
        .unwrap_err();
        echo(
            &node,
            &connector(&authority, &[versions], Some(authority.issue())),
        )
        .await
        .unwrap();
    }
    node.stop().await;
}

#[tokio::test]
async fn a_server_without_usable_files_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let bind = async || {
        let config = ServerConfig {
            tls: Some(tls(dir.path())),
            ..config()
        };
        Server::bind(config, Arc::new(crate::backend::Fake::default())).await
    };
    assert!(
        matches!(bind().await, Err(BindError::Tls { .. })),
        "no files"
    );
    Authority::new().write(dir.path());
    assert!(bind().await.is_ok());
    std::fs::write(dir.path().join("tls.key"), Authority::new().issue().1).unwrap();
    assert!(
        matches!(bind().await, Err(BindError::Tls { .. })),
        "the key of another"
    );
}

#[tokio::test]
async fn a_base_url_replaces_the_address() {
    let config = ServerConfig {
        base_url: Some("https://node.example:8443/".to_owned()),
        ..config()
    };
    let node = Node::with(config).await;
    assert!(
        node.exec(&["cat"], false)
            .starts_with("https://node.example:8443/exec/")
    );
    assert!(
        node.attach("c")
            .starts_with("https://node.example:8443/attach/")
    );
    assert!(
        node.forward(&[])
            .starts_with("https://node.example:8443/portforward/")
    );
    node.stop().await;
}
