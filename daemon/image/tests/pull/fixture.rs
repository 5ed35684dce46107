//! A store on its own directory, a registry in the process, and the check that nothing is left over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zcri_image::{
    Credentials, DefaultHosts, Digest, Image, ImageError, ImageStore, Limits, PullRequest,
    RegistryHosts, StoreConfig, Timeouts,
};
use zcri_test_registry::{Compression, Layer, LayerBuilder, Registry};

/// What everything in a test has to be over by.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) registry: Registry,
    pub(crate) store: ImageStore,
    pub(crate) config: StoreConfig,
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A node whose configuration is changed first.
    pub(crate) async fn with(change: impl FnOnce(&mut StoreConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig {
            root: dir.path().join("images"),
            trash: dir.path().join("trash"),
            platform: "linux/amd64".parse().unwrap(),
            hosts: Arc::new(DefaultHosts),
            timeouts: Timeouts {
                response: Duration::from_secs(2),
                stall: Duration::from_millis(300),
                ..Timeouts::default()
            },
            limits: Limits::default(),
            pinned: Vec::new(),
        };
        change(&mut config);
        Self {
            registry: Registry::start().await,
            store: ImageStore::open(config.clone()).await.unwrap(),
            config,
            dir,
        }
    }

    /// As after a restart of the daemon.
    pub(crate) async fn reopen(&mut self) {
        self.store = ImageStore::open(self.config.clone()).await.unwrap();
    }

    pub(crate) fn set_hosts(&mut self, hosts: impl RegistryHosts + 'static) {
        self.config.hosts = Arc::new(hosts);
    }

    pub(crate) fn request(&self, name: &str) -> PullRequest {
        PullRequest::new(format!("{}/{name}", self.registry.addr()).parse().unwrap())
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Arc<Image>, ImageError> {
        self.store.pull(self.request(name)).await
    }

    pub(crate) async fn pull_as(
        &self,
        name: &str,
        credentials: Credentials,
    ) -> Result<Arc<Image>, ImageError> {
        let mut request = self.request(name);
        request.credentials = Some(credentials);
        self.store.pull(request).await
    }

    /// Where a layer's files are.
    pub(crate) fn diff(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir().join(diff_id.hex()).join("diff")
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.config.root.join("layers")
    }

    pub(crate) fn record(&self, image: &Image) -> PathBuf {
        let name = format!("{}.json", image.id.hex());
        self.config.root.join("records").join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The leak check: the layers on disk are those of the images, nothing is half done, the figures are those of
    /// the disk. What goes on in the background is given time.
    pub(crate) async fn assert_clean(&self) {
        let wanted: BTreeSet<String> = self
            .store
            .list()
            .iter()
            .flat_map(|image| image.layers.iter().map(|l| l.diff_id.hex().to_owned()))
            .collect();
        let empty = |path: &Path| names(path).is_empty();
        wait_until("the store to be clean", || {
            empty(&self.config.root.join("tmp"))
                && empty(&self.config.trash)
                && names(&self.layers_dir()) == wanted
        })
        .await;
        assert_eq!(
            names(&self.config.root.join("records")).len(),
            self.store.list().len()
        );
        let (mut bytes, mut inodes) = (0, 0);
        for layer in wanted {
            let (b, i) = disk_use(&self.layers_dir().join(layer).join("diff"));
            (bytes, inodes) = (bytes + b, inodes + i);
        }
        let usage = self.store.usage();
        assert_eq!((usage.bytes, usage.inodes), (bytes, inodes));
    }

    /// A pull that must fail, and leave nothing.
    pub(crate) async fn fails(&self, name: &str) -> ImageError {
        let error = self.pull(name).await.unwrap_err();
        assert!(names(&self.config.root.join("tmp")).is_empty());
        self.assert_clean().await;
        error
    }
}

pub(crate) fn names(path: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits for a state that comes by itself.
pub(crate) async fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < DEADLINE, "waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes and inodes as `du` has them, by an independent count.
pub(crate) fn disk_use(root: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if seen.insert(metadata.ino()) {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            todo.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    (bytes, seen.len() as u64)
}

/// A layer with one file.
pub(crate) fn layer(path: &str, content: &str) -> Layer {
    LayerBuilder::new()
        .file(path, 0o644, content)
        .build(Compression::Gzip)
}

/// A layer whose blob has some `size` bytes, which do not compress.
pub(crate) fn noise(path: &str, size: usize) -> Layer {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ path.len() as u64;
    let mut data = Vec::with_capacity(size);
    while data.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    LayerBuilder::new()
        .file(path, 0o644, data)
        .build(Compression::Gzip)
}

/// Credentials with a name and a password.
pub(crate) fn basic(username: &str, password: &str) -> Credentials {
    Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
        ..Credentials::default()
    }
}
