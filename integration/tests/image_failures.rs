//! Pulls that fail: every one is a clear error, leaves nothing in the store, and touches nothing outside of it.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::{Code, Status};
use zcri_integration::images::{self, noise, small_layer};
use zcri_integration::registry::{
    Compression, Content, FOREVER, Fault, Image, Index, Layer, digest_of,
};
use zcri_integration::{Test, TestNode, wait};

fn one_layer(layer: Layer) -> Image {
    Image::builder(&images::host_platform())
        .layer(layer)
        .build()
}

/// A node whose image store is compared before and after.
struct Store {
    node: TestNode,
    before: Vec<String>,
}

impl Store {
    async fn start() -> Result<Self> {
        let node = TestNode::builder().allow_log("PullImage").start().await?;
        // A first image makes the store's own directories.
        node.registry.push(
            "base",
            "1",
            one_layer(small_layer("base", "base", Compression::None)),
        );
        node.cri()
            .pull(&node.registry.reference("base", "1"))
            .await?;
        let before = images::tree(&node.image_root())?;
        Ok(Self { node, before })
    }

    /// The pull of `repo` fails, and nothing is left of it.
    async fn refuses(&self, repo: &str) -> Result<Status> {
        let name = self.node.registry.reference(repo, "1");
        let status = self
            .node
            .cri()
            .pull(&name)
            .await
            .err()
            .with_context(|| format!("{repo} was pulled"))?;
        ensure!(
            status.message().contains(repo),
            "the error does not name the image: {status:?}"
        );
        self.is_unchanged(repo).await?;
        Ok(status)
    }

    async fn is_unchanged(&self, after: &str) -> Result<()> {
        let root = self.node.image_root();
        let same = wait::until(
            "the store to be as before",
            Duration::from_secs(10),
            async || Ok((images::tree(&root)? == self.before).then_some(())),
        );
        if same.await.is_err() {
            let now = images::tree(&root)?;
            let new: Vec<_> = now
                .iter()
                .filter(|path| !self.before.contains(path))
                .collect();
            anyhow::bail!("{after} left {new:?}");
        }
        ensure!(
            self.node.cri().list_images().await?.len() == 1,
            "{after} is listed"
        );
        Ok(())
    }

    /// The repository behaves again: the same pull succeeds.
    async fn then_succeeds(&self, repo: &str) -> Result<()> {
        self.node.registry.clear_faults(repo);
        let name = self.node.registry.reference(repo, "1");
        self.node
            .cri()
            .pull(&name)
            .await
            .with_context(|| format!("{repo} after its trouble"))?;
        let image = self
            .node
            .cri()
            .image_status(&name)
            .await?
            .context("the image")?;
        self.node.cri().remove_image(&image.id).await?;
        self.is_unchanged(repo).await
    }
}

fn big_image(seed: u64) -> Image {
    one_layer(small_layer("big", noise(seed, 300_000), Compression::Gzip))
}

#[tokio::test]
async fn registries_that_refuse_are_told_apart() -> Test {
    let store = Store::start().await?;
    let busy = Fault::TooManyRequests {
        times: FOREVER,
        retry_after: Duration::from_secs(0),
    };
    let cases = [
        ("unauthorized", Fault::Unauthorized, "401"),
        ("forbidden", Fault::Forbidden, "403"),
        ("absent", Fault::NotFound, "404"),
        ("busy", busy, "429"),
        ("broken", Fault::ServerError { times: FOREVER }, "500"),
    ];
    for (repo, fault, number) in cases {
        store.node.registry.push(repo, "1", big_image(1));
        store.node.registry.set_fault(repo, fault);
        let status = store.refuses(repo).await?;
        let words: &[&str] = match number {
            "401" => &["401", "nauthorized", "redential", "uthenticat"],
            "403" => &["403", "orbidden", "enied"],
            "404" => &["404", "not found", "Not Found", "unknown", "no such"],
            "429" => &["429", "oo many", "rate"],
            _ => &["500", "nternal"],
        };
        assert!(
            words.iter().any(|word| status.message().contains(word)),
            "{number}: {status:?}"
        );
        if number == "404" {
            assert_eq!(status.code(), Code::NotFound, "{status:?}");
        }
        store.then_succeeds(repo).await?;
    }
    store.node.finish().await
}

#[tokio::test]
async fn an_unreachable_registry_is_named_at_once() -> Test {
    let node = TestNode::builder().allow_log("PullImage").start().await?;
    // Bound and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let name = format!("127.0.0.1:{port}/r:1");
    let pull = tokio::time::timeout(Duration::from_secs(20), node.cri().pull(&name))
        .await
        .context("it hangs")?;
    let status = pull.err().context("pulled from nowhere")?;
    assert!(
        status.message().contains(&format!("127.0.0.1:{port}")),
        "{status:?}"
    );
    node.finish().await
}

#[tokio::test]
async fn changed_content_is_found_by_its_digest() -> Test {
    let store = Store::start().await?;
    let image = big_image(2);
    let layer_digest = image.layers()[0].blob.digest.clone();
    store.node.registry.push("layer", "1", image.clone());
    store.node.registry.set_fault(
        "layer",
        Fault::CorruptBlob {
            at: 200_000,
            times: FOREVER,
        },
    );
    let status = store.refuses("layer").await?;
    assert!(
        status.message().contains(&layer_digest),
        "which layer? {status:?}"
    );
    store.then_succeeds("layer").await?;

    store.node.registry.push("config", "1", image.clone());
    // The configuration is shorter than this only by being shorter than the layer: it ends before 200,000.
    store.node.registry.set_fault(
        "config",
        Fault::CorruptBlob {
            at: 20,
            times: FOREVER,
        },
    );
    store.refuses("config").await?;
    store.then_succeeds("config").await?;

    let digest = store.node.registry.push("manifest", "1", image.clone());
    store
        .node
        .registry
        .set_fault("manifest", Fault::CorruptManifest);
    let by_digest = format!("{}/manifest@{digest}", store.node.registry.addr());
    let status = store
        .node
        .cri()
        .pull(&by_digest)
        .await
        .err()
        .context("a changed manifest was taken")?;
    assert!(status.message().contains(&digest), "{status:?}");
    store.refuses("manifest").await?;
    store.then_succeeds("manifest").await?;

    store.node.registry.push("header", "1", image.clone());
    store
        .node
        .registry
        .set_fault("header", Fault::WrongDigestHeader);
    store.refuses("header").await?;
    store.then_succeeds("header").await?;

    let lying = image.layers()[0]
        .clone()
        .with_diff_id(digest_of(b"something else"));
    store.node.registry.push("diff-id", "1", one_layer(lying));
    let status = store.refuses("diff-id").await?;
    assert!(
        status.message().contains(&digest_of(b"something else")),
        "{status:?}"
    );
    store.node.finish().await
}

#[tokio::test]
async fn a_broken_connection_is_resumed_and_a_dead_one_reported() -> Test {
    let store = Store::start().await?;
    let image = big_image(3);
    let digest = image.layers()[0].blob.digest.clone();
    store.node.registry.push("once", "1", image.clone());
    store.node.registry.set_fault(
        "once",
        Fault::TruncateBlob {
            after: 100_000,
            times: 1,
        },
    );
    store.then_resumes("once", &digest).await?;
    // A server without ranges sends the whole again.
    store.node.registry.set_fault(
        "once",
        Fault::TruncateBlob {
            after: 100_000,
            times: 1,
        },
    );
    store.node.registry.add_fault("once", Fault::NoRanges);
    let name = store.node.registry.reference("once", "1");
    store
        .node
        .cri()
        .pull(&name)
        .await
        .context("a registry without ranges")?;
    store.node.cri().remove_image(image.config_digest()).await?;

    store.node.registry.push("always", "1", image);
    store.node.registry.set_fault(
        "always",
        Fault::TruncateBlob {
            after: 0,
            times: FOREVER,
        },
    );
    store.refuses("always").await?;
    store.then_succeeds("always").await?;
    store.node.finish().await
}

impl Store {
    async fn then_resumes(&self, repo: &str, digest: &str) -> Result<()> {
        let name = self.node.registry.reference(repo, "1");
        self.node
            .cri()
            .pull(&name)
            .await
            .context("a connection that broke once")?;
        let requests = self.node.registry.request_log();
        let ranges: Vec<_> = requests
            .iter()
            .filter(|r| r.path.ends_with(digest))
            .filter_map(|r| r.range.clone())
            .collect();
        ensure!(
            ranges.iter().any(|range| range
                .strip_prefix("bytes=")
                .is_some_and(|rest| !rest.starts_with("0-"))),
            "what had arrived was fetched again: {ranges:?}"
        );
        let id = self
            .node
            .cri()
            .image_status(&name)
            .await?
            .context("the image")?
            .id;
        self.node.cri().remove_image(&id).await?;
        self.is_unchanged(repo).await
    }
}

#[tokio::test]
async fn what_is_no_image_for_this_node_is_refused() -> Test {
    let store = Store::start().await?;
    let registry = &store.node.registry;
    let layer = || small_layer("x", "x", Compression::Gzip);
    let host = images::host_platform();

    registry.push(
        "platform",
        "1",
        Image::builder("zos/s390x").layer(layer()).build(),
    );
    registry.push(
        "index",
        "1",
        Index::oci(["zos/s390x", "linux/mips64"].map(|p| Image::builder(p).layer(layer()).build())),
    );
    for repo in ["platform", "index"] {
        let status = store.refuses(repo).await?;
        assert!(
            status.message().contains("zos/s390x") && status.message().contains(&host),
            "both platforms: {status:?}"
        );
    }
    registry.push(
        "media",
        "1",
        Image::builder(&host)
            .layer(layer())
            .layer_media_type("application/x-lzma")
            .build(),
    );
    let status = store.refuses("media").await?;
    assert!(
        status.message().contains("application/x-lzma"),
        "{status:?}"
    );

    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.push(
        "schema1",
        "1",
        Content::raw(schema1, r#"{"schemaVersion":1,"fsLayers":[]}"#, []),
    );
    store.refuses("schema1").await?;
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    registry.push(
        "garbage",
        "1",
        Content::raw(manifest, "<html>hello</html>", []),
    );
    store.refuses("garbage").await?;

    let gap = one_layer(small_layer("gap", "gap", Compression::Gzip));
    registry.push("gap", "1", gap.clone());
    registry.remove_blob("gap", &gap.layers()[0].blob.digest);
    let status = store.refuses("gap").await?;
    assert!(
        status.message().contains(&gap.layers()[0].blob.digest),
        "{status:?}"
    );
    store.node.finish().await
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() -> Test {
    let store = Store::start().await?;
    store.node.registry.push("slow", "1", big_image(4));
    // Ten minutes for the layer: only a cancellation ends it in time.
    store.node.registry.set_fault(
        "slow",
        Fault::SlowBlobs {
            bytes_per_second: 500,
        },
    );
    let name = store.node.registry.reference("slow", "1");
    let pull = tokio::spawn({
        let cri = store.node.cri().clone();
        async move { cri.pull(&name).await }
    });
    wait::until_true("the pull to begin", wait::PATIENCE, || {
        store.node.registry.bytes_sent() > 2_000
    })
    .await?;
    pull.abort();
    store.is_unchanged("slow").await?;
    store.then_succeeds("slow").await?;
    store.node.finish().await
}

#[tokio::test]
async fn a_killed_pull_leaves_nothing_after_the_restart() -> Test {
    let mut store = Store::start().await?;
    store.node.registry.push("slow", "1", big_image(5));
    store.node.registry.set_fault(
        "slow",
        Fault::SlowBlobs {
            bytes_per_second: 100_000,
        },
    );
    let name = store.node.registry.reference("slow", "1");
    let pull = tokio::spawn({
        let cri = store.node.cri().clone();
        async move { cri.pull(&name).await }
    });
    wait::until_true("the pull to begin", wait::PATIENCE, || {
        store.node.registry.bytes_sent() > 60_000
    })
    .await?;
    store.node.kill_daemon().await?;
    assert!(pull.await?.is_err());
    store.node.start_daemon().await?;
    store.is_unchanged("slow").await?;
    store.then_succeeds("slow").await?;
    store.node.finish().await
}

#[tokio::test]
async fn a_full_disk_fails_the_pull_and_nothing_else() -> Test {
    let node = TestNode::builder()
        .root_size("24m")
        .allow_log("PullImage")
        .start()
        .await?;
    node.registry.push(
        "huge",
        "1",
        one_layer(small_layer("huge", noise(9, 40 << 20), Compression::None)),
    );
    node.registry.push("fits", "1", big_image(6));
    let status = node
        .cri()
        .pull(&node.registry.reference("huge", "1"))
        .await
        .err()
        .context("40 MiB went into 24")?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let fits = node.registry.reference("fits", "1");
    // What the failed pull held is removed in the background.
    wait::until("space for an image that fits", wait::PATIENCE, async || {
        Ok(node.cri().pull(&fits).await.ok())
    })
    .await?;
    assert_eq!(node.cri().list_images().await?.len(), 1);
    let id = node.pod("p").await?.sleeper("c").await?;
    assert_eq!(node.exec(&id, "echo fine").await?.success()?, "fine");
    node.finish().await
}

/// The kubelet's garbage collection begins when it is nearly too late.
#[tokio::test]
async fn an_image_can_be_removed_when_no_byte_is_free() -> Test {
    let node = TestNode::builder().root_size("24m").start().await?;
    node.registry.push("fits", "1", big_image(6));
    let reference = node.registry.reference("fits", "1");
    let id = node.cri().pull(&reference).await?;
    let filler = node.files().root.join("filler");
    let mut file = std::fs::File::create(&filler)?;
    let block = vec![0; 4096];
    let full = loop {
        if let Err(error) = std::io::Write::write_all(&mut file, &block) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    node.cri().remove_image(&id).await?;
    assert_eq!(node.cri().list_images().await?.len(), 0);
    // What it held is removed in the background.
    wait::until("space for the same image", wait::PATIENCE, async || {
        Ok(node.cri().pull(&reference).await.ok())
    })
    .await?;
    node.allow_log("PullImage");
    drop(file);
    std::fs::remove_file(filler)?;
    node.finish().await
}
