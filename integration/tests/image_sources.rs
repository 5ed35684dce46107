//! Where an image comes from: credentials, mirrors, redirects, busy registries, and the platform out of many.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use zcri_integration::images::{self, small, small_layer};
use zcri_integration::registry::{Compression, Fault, Image, Index, ManifestKind, Registry};
use zcri_integration::v1::AuthConfig;
use zcri_integration::{Test, TestNode};

#[tokio::test]
async fn indexes_and_manifest_lists_give_the_host_platform() -> Test {
    let node = TestNode::start().await?;
    let host = small("host");
    let others = || {
        ["zos/s390x", "linux/s390x", "linux/riscv64"].map(|platform| {
            Image::builder(platform)
                .layer(small_layer(platform, platform, Compression::None))
                .build()
        })
    };
    let docker = Image::builder(&images::host_platform())
        .kind(ManifestKind::Docker)
        .layer(small_layer("docker", "docker", Compression::Gzip))
        .build();
    node.registry.push(
        "oci",
        "1",
        Index::oci(others().into_iter().chain([host.clone()])),
    );
    node.registry.push(
        "docker",
        "1",
        Index::docker([docker.clone()].into_iter().chain(others())),
    );
    for (repo, image) in [("oci", host), ("docker", docker)] {
        let name = node.registry.reference(repo, "1");
        node.cri().pull(&name).await?;
        let status = node.cri().image_status(&name).await?.context("the image")?;
        assert_eq!(status.id, image.config_digest(), "{repo}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_zos_node_pulls_zos_images() -> Test {
    let node = TestNode::builder()
        .config("[platform]\nimage = \"zos/s390x\"")
        .start()
        .await?;
    let zos = Image::builder("zos/s390x")
        .layer(small_layer("zos", "zos", Compression::Gzip))
        .build();
    node.registry
        .push("multi", "1", Index::oci([small("host"), zos.clone()]));
    node.registry.push("linux-only", "1", small("host"));
    let name = node.registry.reference("multi", "1");
    node.cri().pull(&name).await?;
    assert_eq!(
        node.cri()
            .image_status(&name)
            .await?
            .context("the image")?
            .id,
        zos.config_digest()
    );
    let refusal = node
        .cri()
        .pull(&node.registry.reference("linux-only", "1"))
        .await;
    let message = refusal
        .err()
        .context("an image for another platform was pulled")?
        .message()
        .to_owned();
    assert!(
        message.contains("zos/s390x") && message.contains(&images::host_platform()),
        "{message}"
    );
    assert_eq!(node.cri().list_images().await?.len(), 1);
    node.allow_log("multi");
    node.allow_log("linux-only");
    node.finish().await
}

#[tokio::test]
async fn credentials_of_every_kind_are_used() -> Test {
    let node = TestNode::start().await?;
    let user = || Some(("joe".to_owned(), "secret".to_owned()));
    let basic = AuthConfig {
        username: "joe".into(),
        password: "secret".into(),
        ..Default::default()
    };
    // joe:secret
    let encoded = AuthConfig {
        auth: "am9lOnNlY3JldA==".into(),
        ..Default::default()
    };
    let identity = AuthConfig {
        identity_token: "refresh-me".into(),
        ..Default::default()
    };
    let token = |user| Fault::Token {
        user,
        identity_token: Some("refresh-me".to_owned()),
    };
    let cases = [
        (
            "anonymous-token",
            Fault::Token {
                user: None,
                identity_token: None,
            },
            None,
        ),
        ("token", token(user()), Some(basic.clone())),
        ("token-auth", token(user()), Some(encoded.clone())),
        ("identity", token(user()), Some(identity)),
        (
            "basic",
            Fault::Basic {
                user: "joe".into(),
                password: "secret".into(),
            },
            Some(basic),
        ),
        (
            "basic-auth",
            Fault::Basic {
                user: "joe".into(),
                password: "secret".into(),
            },
            Some(encoded),
        ),
    ];
    for (repo, fault, auth) in cases {
        node.registry.push(repo, "1", small(repo));
        node.registry.set_fault(repo, fault);
        let name = node.registry.reference(repo, "1");
        if auth.is_some() {
            let wrong = AuthConfig {
                username: "joe".into(),
                password: "wrong".into(),
                ..Default::default()
            };
            for auth in [None, Some(wrong)] {
                let refusal = node
                    .cri()
                    .pull_with(&name, auth)
                    .await
                    .err()
                    .context("pulled without credentials")?;
                assert!(
                    !refusal.message().contains("wrong"),
                    "a password is in an error: {refusal:?}"
                );
            }
            assert_eq!(node.cri().image_status(&name).await?, None);
        }
        node.cri()
            .pull_with(&name, auth)
            .await
            .with_context(|| repo.to_owned())?;
    }
    assert!(!node.log().contains("secret"), "a password is in the log");
    node.allow_log("PullImage");
    node.finish().await
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_fail() -> Test {
    let registry = Registry::start().await;
    let addr = registry.addr();
    let rules = format!(
        "[[registry]]\nprefix = \"example.test\"\nlocation = \"{addr}/origin\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{addr}/mirror\"\ninsecure = true\n\
         [[registry]]\nprefix = \"blocked.test\"\nlocation = \"{addr}\"\nblocked = true\n"
    );
    let (both, only_origin) = (small("both"), small("only-origin"));
    registry.push("mirror/app", "1", both.clone());
    registry.push("origin/app", "1", both.clone());
    registry.push("origin/other", "1", only_origin.clone());
    registry.push("app", "1", both.clone());
    let node = TestNode::builder()
        .registry(registry)
        .registries(&rules)
        .start()
        .await?;
    node.cri().pull("example.test/app:1").await?;
    assert_eq!(
        node.registry.requests("/v2/origin/app"),
        0,
        "the mirror has it"
    );
    let status = node
        .cri()
        .image_status("example.test/app:1")
        .await?
        .context("by its own name")?;
    assert_eq!(
        (status.id.as_str(), status.repo_tags),
        (both.config_digest(), vec!["example.test/app:1".to_owned()])
    );
    node.cri().pull("example.test/other:1").await?;
    assert!(
        node.registry.requests("/v2/mirror/other") > 0,
        "the mirror is asked first"
    );
    assert!(
        node.cri()
            .image_status("example.test/other:1")
            .await?
            .is_some()
    );
    let blocked = node
        .cri()
        .pull("blocked.test/app:1")
        .await
        .err()
        .context("a blocked registry")?;
    assert!(blocked.message().contains("blocked"), "{blocked:?}");
    node.allow_log("example.test");
    node.allow_log("blocked.test");
    node.finish().await
}

/// Plain HTTP is for loopback, and for registries that the configuration calls insecure.
#[tokio::test]
async fn plain_http_is_for_loopback_and_insecure_registries() -> Test {
    let mut node = TestNode::start().await?;
    // The first pod's bridge gives this machine an address that is not loopback.
    let pod = node.pod("p").await?.id;
    let gateway: std::net::IpAddr = node.slot().subnet().replace(".0/24", ".1").parse()?;
    let elsewhere = Registry::bind_to((gateway, 0).into()).await?;
    elsewhere.push("r", "1", small("a"));
    let plain = elsewhere.reference("r", "1");
    let refused = node.cri().pull(&plain).await.err();
    let refused = refused.context("plain HTTP to a registry that nobody called insecure")?;
    assert!(
        refused.message().contains(&elsewhere.addr().to_string()),
        "{refused:?}"
    );
    assert!(
        elsewhere.request_log().is_empty(),
        "it was asked without TLS"
    );
    let rule = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n",
        elsewhere.addr()
    );
    node.stop_daemon().await?;
    std::fs::write(node.files().dir.join("etc/registries.conf"), rule)?;
    node.start_daemon().await?;
    node.cri().pull(&plain).await?;
    assert!(node.cri().image_status(&plain).await?.is_some());
    node.cri().remove_pod(&pod).await?;
    node.allow_log("PullImage");
    node.finish().await
}

#[tokio::test]
async fn redirected_blobs_are_followed_without_credentials() -> Test {
    let node = TestNode::start().await?;
    node.registry.push("r", "1", small("a"));
    node.registry.set_fault(
        "r",
        Fault::Token {
            user: None,
            identity_token: None,
        },
    );
    node.registry.add_fault("r", Fault::RedirectBlobs);
    node.cri().pull(&node.registry.reference("r", "1")).await?;
    let stored = node
        .registry
        .request_log()
        .into_iter()
        .filter(|r| r.path.starts_with("/blob-store/"));
    assert!(stored.clone().count() > 0 && stored.into_iter().all(|r| !r.authorized));
    node.finish().await
}

#[tokio::test]
async fn a_busy_registry_is_given_the_time_it_asks_for() -> Test {
    let node = TestNode::start().await?;
    node.registry.push("r", "1", small("a"));
    node.registry.set_fault(
        "r",
        Fault::TooManyRequests {
            times: 1,
            retry_after: Duration::from_secs(1),
        },
    );
    let start = Instant::now();
    node.cri().pull(&node.registry.reference("r", "1")).await?;
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "asked again after {:?}",
        start.elapsed()
    );
    node.finish().await
}
