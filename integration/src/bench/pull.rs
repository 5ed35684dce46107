//! Pulls: of an image of many small files, and of one of few large layers, from a registry in this process.

use std::time::Instant;

use anyhow::{Context as _, Result};
use zcri_test_registry::{Compression, Image, LayerBuilder, Registry};

use super::endpoint::{Endpoint, bounded};
use super::work::turn;
use crate::images::{self, noise};

/// Bytes of a large layer.
const LARGE: usize = 25 << 20;
/// Large layers of an image.
const LAYERS: u64 = 8;
/// Bytes of a small file: those of a source tree are about so.
const SMALL: usize = 1_500;
/// Small files in a directory.
const DIRECTORY: usize = 100;

/// The repositories of the benchmark.
#[derive(Debug)]
pub struct Images {
    registry: Registry,
    files: usize,
}

impl Images {
    /// Fills a registry; `port` 0 is any.
    ///
    /// # Errors
    /// busybox-static is missing, or the port is taken.
    pub async fn serve(port: u16, files: usize) -> Result<Self> {
        let registry = Registry::bind(port)
            .await
            .with_context(|| format!("port {port} of 127.0.0.1"))?;
        let busybox = images::busybox()?;
        registry.push("bench/busybox", "1", busybox.build());
        Ok(Self { registry, files })
    }

    /// The image that the pods run.
    pub fn busybox(&self) -> String {
        self.registry.reference("bench/busybox", "1")
    }

    /// Measures pulls, `rounds` of each image, each endpoint in turn.
    ///
    /// # Errors
    /// A pull failed.
    pub async fn measure(&self, endpoints: &mut [Endpoint], rounds: usize) -> Result<()> {
        if rounds == 0 {
            return Ok(());
        }
        self.registry
            .push("bench/small-files", "1", small_files(self.files));
        self.registry
            .push("bench/large-layers", "1", large_layers());
        for round in 0..rounds {
            for (repo, figure) in [
                ("small-files", "pull: small files"),
                ("large-layers", "pull: large layers"),
            ] {
                let name = self.registry.reference(&format!("bench/{repo}"), "1");
                for index in turn(round, endpoints.len()) {
                    pull(&mut endpoints[index], &name, figure).await?;
                }
            }
        }
        Ok(())
    }
}

/// Pulls given images of a registry elsewhere.
///
/// # Errors
/// A pull failed.
pub async fn given(endpoints: &mut [Endpoint], names: &[String], rounds: usize) -> Result<()> {
    for round in 0..rounds {
        for name in names {
            for index in turn(round, endpoints.len()) {
                pull(&mut endpoints[index], name, "pull: given images").await?;
            }
        }
    }
    Ok(())
}

/// One pull, in seconds, of an image that is not there; and its removal.
async fn pull(endpoint: &mut Endpoint, name: &str, figure: &'static str) -> Result<()> {
    let cri = endpoint.cri.clone();
    remove(endpoint, name).await?;
    let start = Instant::now();
    bounded("PullImage", cri.pull(name))
        .await
        .with_context(|| format!("{name} on {}", endpoint.name))?;
    endpoint.record(figure, start.elapsed().as_secs_f64());
    remove(endpoint, name).await
}

async fn remove(endpoint: &Endpoint, name: &str) -> Result<()> {
    if let Some(image) = bounded("ImageStatus", endpoint.cri.image_status(name)).await? {
        bounded("RemoveImage", endpoint.cri.remove_image(&image.id)).await?;
    }
    Ok(())
}

fn small_files(count: usize) -> Image {
    // Text-like: half of each file compresses.
    let content = [noise(7, SMALL / 2), vec![b' '; SMALL / 2]].concat();
    let mut layer = LayerBuilder::new();
    for n in 0..count {
        if n % DIRECTORY == 0 {
            layer = layer.dir(&format!("d{}", n / DIRECTORY), 0o755);
        }
        layer = layer.file(&format!("d{}/f{n}", n / DIRECTORY), 0o644, &content);
    }
    Image::builder(&images::host_platform())
        .layer(layer.build(Compression::Gzip))
        .build()
}

fn large_layers() -> Image {
    let layer = |seed| {
        LayerBuilder::new()
            .file(&format!("large{seed}"), 0o644, noise(seed, LARGE))
            .build(Compression::Gzip)
    };
    (1..=LAYERS)
        .fold(Image::builder(&images::host_platform()), |image, seed| {
            image.layer(layer(seed))
        })
        .build()
}
