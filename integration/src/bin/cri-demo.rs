//! The demo: a registry, a node, a kubelet's calls one after the other, and a look at what is left. Each step tells
//! what came of it and how long it took; the first failure ends the demo with its cause.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use zcri_integration::pod::{container_config, words};
use zcri_integration::registry::{Compression, Image, Index, LayerBuilder, Registry};
use zcri_integration::v1::{ContainerStatsRequest, PodSandboxConfig};
use zcri_integration::{TestNode, binaries, cri_log, images, plugin, wait};

const REPOSITORY: &str = "zcri/demo";
/// What the index offers. Every entry has the same content, a program for this machine: only its own entry runs.
const PLATFORMS: [&str; 4] = ["linux/amd64", "linux/arm64", "linux/s390x", "zos/s390x"];
/// Bytes of the second layer, so that a pull has something to do.
const BALLAST: usize = 24 << 20;
/// Lines of the log that are shown.
const LOG_LINES: usize = 4;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(demo()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    binaries::check()?;
    let begin = Instant::now();
    let registry = serve_images().await?;
    let start = Instant::now();
    let node = TestNode::builder()
        .config("[log]\nlevel = \"info\"")
        .registry(registry)
        .start()
        .await?;
    plugin::sample(&node, "10-dvipa.conflist")?;
    done(
        "zcrid",
        start,
        &format!("serves on {}", node.files().socket().display()),
    );
    let image = pull(&node).await?;
    run(&node, &image).await?;

    let start = Instant::now();
    let id = node
        .cri()
        .image_status(&image)
        .await?
        .context("the image")?
        .id;
    node.cri().remove_image(&id).await.context("RemoveImage")?;
    done("RemoveImage", start, "");
    let start = Instant::now();
    node.finish().await.context("leak check")?;
    done(
        "stop, leak check",
        start,
        "no mount, process, cgroup, address, interface or directory is left",
    );
    println!("\ndone in {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Fills a registry with an index of all platforms.
async fn serve_images() -> Result<Registry> {
    let start = Instant::now();
    let path = binaries::payload()?;
    let program = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        is_static(&program),
        "{} is not linked statically; `make build` builds it so",
        path.display()
    );
    let layer = LayerBuilder::new()
        .file("demo", 0o755, &program)
        .build(Compression::Gzip);
    let ballast = LayerBuilder::new()
        .file("ballast", 0o644, images::noise(1, BALLAST))
        .build(Compression::Zstd);
    let host = images::host_platform();
    let mut platforms: Vec<&str> = PLATFORMS.to_vec();
    if !platforms.contains(&host.as_str()) {
        platforms.push(&host);
    }
    let image = |platform: &&str| {
        // Process 1 of a PID namespace ignores SIGTERM unless it has a handler; this program has nothing to save.
        let builder = Image::builder(platform)
            .layer(layer.clone())
            .layer(ballast.clone());
        builder.entrypoint(["/demo"]).stop_signal("SIGKILL").build()
    };
    let entries: Vec<Image> = platforms.iter().map(image).collect();
    println!(
        "image index {REPOSITORY}:latest, the same static program in every entry; this machine is {host}"
    );
    for (platform, image) in platforms.iter().zip(&entries) {
        let runs = if **platform == host {
            "  <- runs here"
        } else {
            ""
        };
        println!("    {platform:12} {}{runs}", short(image.digest()));
    }
    let registry = Registry::start().await;
    registry.push(REPOSITORY, "latest", Index::oci(entries));
    done(
        "registry",
        start,
        &format!("serves on http://{}", registry.addr()),
    );
    Ok(registry)
}

async fn pull(node: &TestNode) -> Result<String> {
    let image = node.registry.reference(REPOSITORY, "latest");
    let start = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let reference = {
        let pull = node.cri().pull(&image);
        tokio::pin!(pull);
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                pulled = &mut pull => break pulled.context("PullImage")?,
                _ = ticks.tick() => if terminal {
                    print!("\r  PullImage            {}", rate(node.registry.bytes_sent(), start.elapsed()));
                    std::io::stdout().flush()?;
                },
            }
        }
    };
    if terminal {
        print!("\r{:78}\r", "");
    }
    done(
        "PullImage",
        start,
        &rate(node.registry.bytes_sent(), start.elapsed()),
    );
    let status = node
        .cri()
        .image_status(&image)
        .await?
        .context("the image that was pulled")?;
    println!(
        "    {} size {} id {}",
        image,
        mebibytes(status.size),
        short(&status.id)
    );
    ensure!(!reference.is_empty(), "PullImage gave no reference");
    Ok(image)
}

async fn run(node: &TestNode, image: &str) -> Result<()> {
    let cri = node.cri();
    let config = PodSandboxConfig {
        hostname: "demo-pod".to_owned(),
        ..node.pod_config("demo")?
    };
    let start = Instant::now();
    let pod = node.run_pod(config).await?;
    let ip = pod.ip().await?;
    done(
        "RunPodSandbox",
        start,
        &format!("{} at {ip}", short(&pod.id)),
    );

    let config = container_config("demo", image);
    let start = Instant::now();
    let id = pod.create(&config).await?;
    done("CreateContainer", start, short(&id));
    let start = Instant::now();
    cri.start(&id).await.context("StartContainer")?;
    done("StartContainer", start, "");

    let start = Instant::now();
    let path = pod.log_path(&config);
    let enough =
        || std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() >= LOG_LINES);
    wait::until_true("log lines", wait::PATIENCE, enough).await?;
    done("log", start, &path.display().to_string());
    let text = std::fs::read_to_string(&path)?;
    text.lines()
        .take(LOG_LINES)
        .for_each(|line| println!("    {line}"));
    let shown = text
        .lines()
        .take(LOG_LINES)
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    cri_log::parse(&shown).context("the log's format")?;

    let start = Instant::now();
    let answer = ask(&format!("{ip}:8080"))?;
    done("GET from the pod", start, answer.trim());

    let start = Instant::now();
    let output = cri
        .exec(&id, words(["/demo", "say", "hello", "from", "exec"]), 10)
        .await
        .context("ExecSync")?;
    ensure!(
        output.exit_code == 0,
        "the command ended with {}",
        output.exit_code
    );
    done(
        "ExecSync",
        start,
        String::from_utf8_lossy(&output.stdout).trim(),
    );
    stats(node, &id).await?;

    let start = Instant::now();
    cri.stop(&id, 5).await.context("StopContainer")?;
    let status = cri.status(&id).await?;
    done(
        "StopContainer",
        start,
        &format!("exit code {}, reason {}", status.exit_code, status.reason),
    );
    let start = Instant::now();
    cri.remove(&id).await.context("RemoveContainer")?;
    done("RemoveContainer", start, "");
    let start = Instant::now();
    cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
    done("StopPodSandbox", start, "");
    let start = Instant::now();
    cri.remove_pod(&pod.id).await.context("RemovePodSandbox")?;
    done("RemovePodSandbox", start, "");
    Ok(())
}

/// Statistics, where the daemon has them already.
async fn stats(node: &TestNode, id: &str) -> Result<()> {
    let start = Instant::now();
    let request = ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    match node.cri().runtime().container_stats(request).await {
        Ok(answer) => {
            let stats = answer
                .into_inner()
                .stats
                .context("an answer without statistics")?;
            let cpu = stats
                .cpu
                .and_then(|cpu| cpu.usage_core_nano_seconds)
                .map_or(0, |value| value.value);
            let memory = stats
                .memory
                .and_then(|memory| memory.working_set_bytes)
                .map_or(0, |value| value.value);
            done(
                "ContainerStats",
                start,
                &format!("{} us of CPU, {} of memory", cpu / 1000, mebibytes(memory)),
            );
            Ok(())
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            println!("  ContainerStats       not in this version");
            Ok(())
        }
        Err(status) => Err(status).context("ContainerStats"),
    }
}

/// The body of a GET.
fn ask(address: &str) -> Result<String> {
    let address = address
        .parse()
        .with_context(|| format!("address {address}"))?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => bail!("not an HTTP answer: {text:?}"),
    }
}

fn done(step: &str, start: Instant, note: &str) {
    let took = start.elapsed().as_secs_f64() * 1e3;
    println!("  {step:18} {took:9.1} ms  {note}");
}

fn rate(bytes: u64, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_second = bytes as f64 / elapsed.as_secs_f64().max(1e-9) / f64::from(1 << 20);
    format!("{} at {per_second:.0} MiB/s", mebibytes(bytes))
}

fn mebibytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let size = bytes as f64 / f64::from(1 << 20);
    format!("{size:.1} MiB")
}

/// The first digits of a digest or id.
fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    &hex[..hex.len().min(12)]
}

/// Whether an ELF program needs no interpreter: no PT_INTERP among the program headers of a 64-bit file, whose byte order
/// is in its own sixth byte (elf(5)).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    const BIG_ENDIAN: u8 = 2;
    let number = |at: usize, width: usize| -> Option<usize> {
        let mut bytes = elf.get(at..at + width)?.to_vec();
        if elf.get(5) != Some(&BIG_ENDIAN) {
            bytes.reverse();
        }
        Some(
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        )
    };
    let scan = || -> Option<bool> {
        let table = number(32, 8)?;
        let (size, count) = (number(54, 2)?, number(56, 2)?);
        let kinds = (0..count).map(|n| number(table + n * size, 4));
        let kinds = kinds.collect::<Option<Vec<usize>>>()?;
        Some(kinds.into_iter().all(|kind| kind != PT_INTERP))
    };
    elf.starts_with(b"\x7fELF") && scan().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_not_static_and_busybox_is() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own));
        let busybox =
            std::fs::read(binaries::system("busybox", "busybox-static").unwrap()).unwrap();
        assert!(is_static(&busybox));
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
