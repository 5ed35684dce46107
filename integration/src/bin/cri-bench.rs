//! Measures CRI sockets: `cri-bench --endpoint NAME=SOCKET [--endpoint NAME=SOCKET]`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use zcri_integration::bench::endpoint::{Target, bounded};
use zcri_integration::bench::report::Machine;
use zcri_integration::bench::work::{self, Plan};
use zcri_integration::bench::{Endpoint, Report, log, pull, stream, svg};

/// Latency, throughput, memory and idle cost of CRI daemons. Several endpoints are measured in turn.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A socket under a name for the report; the ratio is the first one's figure divided by the second one's.
    #[arg(long = "endpoint", value_name = "NAME=SOCKET", required = true)]
    endpoints: Vec<Target>,
    /// Runtime handler of the pods; the default handler if not given.
    #[arg(long, default_value = "")]
    handler: String,
    /// Pods made one after the other on each endpoint.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    iterations: u16,
    /// Pods that stand at the same time; 0 leaves that part out.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=500))]
    pods: u16,
    /// How many of them are made at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    parallel: u16,
    /// Seconds for which the full node is watched doing nothing.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    idle: u16,
    /// Rounds of pulls; 0 leaves them out.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=100))]
    pulls: u16,
    /// Small files in the image of small files.
    #[arg(long, default_value_t = 40_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pull_files: u32,
    /// Rounds of transfers through exec sessions; 0 leaves the sessions out.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=100))]
    transfers: u16,
    /// MiB of each transfer.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=8192))]
    transfer_mib: u16,
    /// MiB that a container writes into its log, as often as there are rounds of transfers; 0 leaves that out.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(0..=8192))]
    log_mib: u16,
    /// Short exec sessions after which nothing may be left; 0 leaves them out.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    sessions: u32,
    /// Pull these images instead of those of the registry in this process.
    #[arg(long = "pull-image", value_name = "REFERENCE")]
    pull_images: Vec<String>,
    /// Image of the pods, with /bin/sleep and /bin/true; if not given, busybox from a registry in this process.
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Port of that registry on 127.0.0.1; 0 is any.
    #[arg(long, default_value_t = 0)]
    registry_port: u16,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page.
    #[arg(long, value_name = "FILE", requires = "svg")]
    markdown: Option<PathBuf>,
    /// Write the plot.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let machine = Machine::here();
    let plan = Plan {
        iterations: arguments.iterations.into(),
        pods: arguments.pods.into(),
        parallel: arguments.parallel.into(),
        idle: Duration::from_secs(arguments.idle.into()),
        relists: 20,
    };
    let mut endpoints = Vec::new();
    for target in &arguments.endpoints {
        endpoints.push(Endpoint::connect(target, &arguments.handler).await?);
    }
    let measured = measure(&arguments, &plan, &mut endpoints).await;
    for endpoint in &endpoints {
        if let Err(error) = endpoint.clean().await {
            eprintln!("cri-bench: {} is not clean: {error:#}", endpoint.name);
        }
    }
    measured?;
    let report = Report::new(&endpoints, machine, &plan);
    print!("{}", report.table()?);
    write(&arguments, &report)
}

async fn measure(arguments: &Arguments, plan: &Plan, endpoints: &mut [Endpoint]) -> Result<()> {
    let files = usize::try_from(arguments.pull_files)?;
    let images = pull::Images::serve(arguments.registry_port, files).await?;
    let image = arguments.image.clone().unwrap_or_else(|| images.busybox());
    for endpoint in endpoints.iter() {
        bounded("PullImage", endpoint.cri.pull(&image))
            .await
            .with_context(|| format!("{image} on {}", endpoint.name))?;
    }
    eprintln!("cri-bench: {} pods one after the other", plan.iterations);
    work::latencies(endpoints, &image, plan).await?;
    if plan.pods > 0 {
        eprintln!("cri-bench: {} pods, {} at a time", plan.pods, plan.parallel);
        work::full_nodes(endpoints, &image, plan).await?;
    }
    if arguments.transfers > 0 {
        eprintln!(
            "cri-bench: exec sessions, {} short ones",
            arguments.sessions
        );
        let plan = stream::Plan {
            iterations: plan.iterations,
            transfers: arguments.transfers.into(),
            transfer_bytes: u64::from(arguments.transfer_mib) << 20,
            sessions: usize::try_from(arguments.sessions)?,
            parallel: 8,
        };
        stream::measure(endpoints, &image, &plan).await?;
    }
    if arguments.log_mib > 0 {
        eprintln!("cri-bench: logs, {} MiB each", arguments.log_mib);
        let plan = log::Plan {
            rounds: arguments.transfers.into(),
            bytes: u64::from(arguments.log_mib) << 20,
        };
        log::measure(endpoints, &image, plan).await?;
    }
    let pulls = usize::from(arguments.pulls);
    eprintln!("cri-bench: pulls, {pulls} rounds");
    if arguments.pull_images.is_empty() {
        images.measure(endpoints, pulls).await
    } else {
        pull::given(endpoints, &arguments.pull_images, pulls).await
    }
}

fn write(arguments: &Arguments, report: &Report) -> Result<()> {
    let save = |path: &PathBuf, text: String| {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    };
    if let Some(path) = &arguments.json {
        save(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(path) = &arguments.svg {
        save(path, svg::plot(report)?)?;
    }
    if let Some(path) = &arguments.markdown {
        let plot = arguments
            .svg
            .as_deref()
            .and_then(|svg| svg.file_name())
            .context("--svg names no file")?;
        ensure!(
            arguments
                .svg
                .as_ref()
                .is_some_and(|svg| svg.parent() == path.parent()),
            "--svg and --markdown belong into one directory"
        );
        save(path, report.markdown(&plot.to_string_lossy())?)?;
    }
    Ok(())
}
