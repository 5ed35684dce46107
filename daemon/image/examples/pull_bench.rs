//! How long a pull takes: 40,000 small files in one layer, and 8 layers of 25 MiB, from a registry in the process
//! into a store on /dev/shm (or the directory given as argument).
//!
//! `cargo run --release -p zcri-image --example pull_bench [DIRECTORY] [ROUNDS]`
#![allow(clippy::expect_used, reason = "a benchmark that cannot go on stops")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use zcri_image::{DefaultHosts, ImageStore, Limits, Platform, PullRequest, StoreConfig, Timeouts};
use zcri_test_registry::{Compression, Image, Layer, LayerBuilder, Registry};

const SMALL_FILES: usize = 40_000;
const FILES_IN_A_DIRECTORY: usize = 100;
const SMALL_SIZE: usize = 1500;
const LARGE_LAYERS: usize = 8;
const LARGE_SIZE: usize = 25 << 20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().unwrap_or_else(|| "/dev/shm".to_owned()));
    let rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(parent, rounds));
}

async fn run(parent: PathBuf, rounds: usize) {
    let registry = Registry::start().await;
    let small = Image::builder("linux/amd64").layer(small_files()).build();
    registry.push("small", "latest", small);
    let large = (0..LARGE_LAYERS).fold(Image::builder("linux/amd64"), |image, n| {
        image.layer(large_file(n))
    });
    registry.push("large", "latest", large.build());
    for name in ["small", "large"] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(pull(&registry, &parent, name).await);
        }
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        println!("{name}: median {median:.3} s, best {best:.3} s of {rounds}");
    }
}

async fn pull(registry: &Registry, parent: &std::path::Path, name: &str) -> f64 {
    let dir = tempfile::tempdir_in(parent).expect("a directory");
    let store = ImageStore::open(StoreConfig {
        root: dir.path().join("images"),
        trash: dir.path().join("trash"),
        platform: "linux/amd64".parse::<Platform>().expect("a platform"),
        hosts: Arc::new(DefaultHosts),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        pinned: Vec::new(),
    })
    .await
    .expect("a store");
    let reference = registry.reference(name, "latest").parse().expect("a name");
    let start = Instant::now();
    let image = store.pull(PullRequest::new(reference)).await;
    let elapsed = start.elapsed().as_secs_f64();
    image.expect("a pull");
    elapsed
}

/// Text-like files, which compress as source code does.
fn small_files() -> Layer {
    let mut layer = LayerBuilder::new();
    for n in 0..SMALL_FILES {
        let directory = n / FILES_IN_A_DIRECTORY;
        if n % FILES_IN_A_DIRECTORY == 0 {
            layer = layer.dir(&format!("usr/share/d{directory}"), 0o755);
        }
        let line = format!(
            "line of file {n} in directory {directory}, {:x}\n",
            n * 2_654_435_761
        );
        let content = line.repeat(SMALL_SIZE / line.len());
        layer = layer.file(
            &format!("usr/share/d{directory}/file{n}.txt"),
            0o644,
            content,
        );
    }
    layer.build(Compression::Gzip)
}

/// Half noise, half text: as programs compress.
fn large_file(number: usize) -> Layer {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 + number as u64;
    let mut content = Vec::with_capacity(LARGE_SIZE);
    while content.len() < LARGE_SIZE {
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend(state.to_le_bytes());
        }
        content.extend([b'x'; 64]);
    }
    let name = format!("opt/large{number}");
    LayerBuilder::new()
        .file(&name, 0o755, content)
        .build(Compression::Gzip)
}
