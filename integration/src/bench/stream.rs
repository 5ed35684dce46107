//! What exec sessions cost: how soon one is over, how much goes through, and what is left of many.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};

use super::endpoint::{Endpoint, Running, bounded};
use super::process;
use super::work::{mebibytes, turn};
use crate::stream_client::{Refused, Remote, SPDY, Streams, Transport, WEBSOCKET};

/// A terminal is slower: so much less goes through it.
const TERMINAL_SHARE: u64 = 16;
/// Sessions that are open at the same time.
const CROWD: usize = 200;
/// How long what has ended may take to be closed.
const SETTLE: Duration = Duration::from_secs(15);

/// How much is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sessions one after the other, for the latency.
    pub iterations: usize,
    /// Transfers.
    pub transfers: usize,
    /// Bytes of each.
    pub transfer_bytes: u64,
    /// Short sessions, after which nothing may be left.
    pub sessions: usize,
    /// How many of them are open at the same time.
    pub parallel: usize,
}

/// Measures all of it on each endpoint, with one pod each.
///
/// # Errors
/// A session failed.
pub async fn measure(endpoints: &mut [Endpoint], image: &str, plan: &Plan) -> Result<()> {
    let mut pods = Vec::new();
    for endpoint in endpoints.iter_mut() {
        pods.push(endpoint.run(image, false).await?);
    }
    for round in 0..plan.iterations {
        for index in turn(round, endpoints.len()) {
            latency(&mut endpoints[index], &pods[index]).await?;
        }
    }
    for round in 0..plan.transfers {
        for index in turn(round, endpoints.len()) {
            transfers(&mut endpoints[index], &pods[index], plan.transfer_bytes).await?;
        }
    }
    for (endpoint, pod) in endpoints.iter_mut().zip(&pods) {
        crowd(endpoint, pod).await?;
        many(endpoint, pod, plan)
            .await
            .with_context(|| endpoint.name.clone())?;
        bounded("StopPodSandbox", endpoint.cri.stop_pod(&pod.pod)).await?;
        bounded("RemovePodSandbox", endpoint.cri.remove_pod(&pod.pod)).await?;
    }
    Ok(())
}

async fn open(
    endpoint: &Endpoint,
    pod: &Running,
    script: &str,
    transport: Transport,
    streams: Streams,
) -> Result<Remote> {
    let cmd = ["/bin/sh", "-c", script];
    let url = bounded("Exec", endpoint.cri.exec_url(&pod.container, cmd, streams)).await?;
    Remote::open(&url, transport, streams).await
}

async fn latency(endpoint: &mut Endpoint, pod: &Running) -> Result<()> {
    for (name, streams) in [
        ("exec session", Streams::OUTPUT),
        ("exec session, terminal", Streams::TTY),
    ] {
        let start = Instant::now();
        let session = open(endpoint, pod, "exit 0", SPDY, streams).await?;
        let (_, code) = session.measure().await?;
        endpoint.record(name, start.elapsed().as_secs_f64() * 1e3);
        ensure!(code == 0, "{name} ended with {code}");
    }
    Ok(())
}

async fn transfers(endpoint: &mut Endpoint, pod: &Running, size: u64) -> Result<()> {
    // A file of zeros that takes no room.
    let sparse = format!("dd of=/tmp/zeros bs=1 count=0 seek={size} 2>/dev/null");
    let made = open(endpoint, pod, &sparse, SPDY, Streams::OUTPUT).await?;
    ensure!(made.measure().await?.1 == 0, "no file of zeros");
    let terminal_bytes = size / TERMINAL_SHARE;
    let terminal = format!("stty -opost; head -c {terminal_bytes} /tmp/zeros");
    let rows = [
        (
            SPDY,
            Streams::OUTPUT,
            "cat /tmp/zeros",
            size,
            ["exec cat", "exec cat, CPU"],
        ),
        (
            WEBSOCKET,
            Streams::OUTPUT,
            "cat /tmp/zeros",
            size,
            ["exec cat, WebSocket", "exec cat, WebSocket, CPU"],
        ),
        (
            SPDY,
            Streams::TTY,
            terminal.as_str(),
            terminal_bytes,
            ["exec, terminal output", "exec, terminal output, CPU"],
        ),
    ];
    for (transport, streams, script, bytes, [speed, work]) in rows {
        let servers = endpoint.servers(pod)?;
        let (before, start) = (process::cpu(&servers)?, Instant::now());
        let session = match open(endpoint, pod, script, transport, streams).await {
            Ok(session) => session,
            // A server that does not speak it has no row.
            Err(error) if error.is::<Refused>() => continue,
            Err(error) => return Err(error),
        };
        let (count, code) = session.measure().await?;
        let took = start.elapsed();
        ensure!(
            count == bytes && code == 0,
            "{speed}: {count} bytes, {code}"
        );
        let size = mebibytes(bytes);
        endpoint.record(speed, size / took.as_secs_f64());
        let spent = process::cpu(&servers)?.saturating_sub(before);
        endpoint.record(work, spent.as_secs_f64() / (size / 1024.0));
    }
    Ok(())
}

/// Many sessions that are open at the same time, each with input and output.
async fn crowd(endpoint: &mut Endpoint, pod: &Running) -> Result<()> {
    let start = Instant::now();
    let here: &Endpoint = endpoint;
    let mut sessions: Vec<Remote> = futures::stream::iter(0..CROWD)
        .map(async |_| {
            let mut session = open(here, pod, "echo up; read x", SPDY, Streams::ALL).await?;
            session.expect("up").await?;
            anyhow::Ok(session)
        })
        .buffer_unordered(CROWD)
        .try_collect()
        .await?;
    for session in &mut sessions {
        session.input.write(b"x\n").await?;
    }
    for session in sessions {
        let code = session.finish().await?.code()?;
        ensure!(code == 0, "a session of the crowd ended with {code}");
    }
    endpoint.record("200 exec sessions at once", start.elapsed().as_secs_f64());
    Ok(())
}

/// Descriptors and threads of the servers, and processes of the container.
fn held(servers: &[u32], pod: &Running, cri_container: u32) -> Result<[usize; 3]> {
    let entries = |dir: &str| -> Result<usize> {
        let mut sum = 0;
        for pid in servers {
            let path = PathBuf::from(format!("/proc/{pid}/{dir}"));
            sum += std::fs::read_dir(&path)
                .with_context(|| format!("reading {}", path.display()))?
                .count();
        }
        Ok(sum)
    };
    ensure!(cri_container > 0, "{} does not run", pod.container);
    // Everything in the container's PID namespace.
    let own = std::fs::read_link(format!("/proc/{cri_container}/ns/pid"))?;
    let processes = std::fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|l| l == own))
        .count();
    Ok([entries("fd")?, entries("task")?, processes])
}

/// The container's first process: of a monitor's children the one that sleeps.
async fn first_process(endpoint: &Endpoint, pod: &Running) -> Result<u32> {
    let request = crate::v1::ContainerStatusRequest {
        container_id: pod.container.clone(),
        verbose: true,
    };
    let mut runtime = endpoint.cri.runtime();
    let answer = bounded("ContainerStatus", runtime.container_status(request)).await?;
    let info = answer.into_inner().info;
    let info = info.get("info").context("no verbose status")?;
    let info: serde_json::Value = serde_json::from_str(info)?;
    let pid = info["pid"].as_u64().context("no pid in the status")?;
    Ok(u32::try_from(pid)?)
}

async fn many(endpoint: &mut Endpoint, pod: &Running, plan: &Plan) -> Result<()> {
    if plan.sessions == 0 {
        return Ok(());
    }
    let servers = endpoint.servers(pod)?;
    let first = first_process(endpoint, pod).await?;
    let before = held(&servers, pod, first)?;
    let start = Instant::now();
    let here: &Endpoint = endpoint;
    let run = futures::stream::iter(0..plan.sessions).map(async |n| {
        let streams = if n % 10 == 0 {
            Streams::TTY
        } else {
            Streams::ALL
        };
        let session = open(here, pod, "exit 0", SPDY, streams).await?;
        session.measure().await.map(drop)
    });
    run.buffer_unordered(plan.parallel)
        .try_collect::<()>()
        .await?;
    let took = start.elapsed();
    let mut after = held(&servers, pod, first)?;
    let began = Instant::now();
    while began.elapsed() < SETTLE && after.iter().zip(before).any(|(now, then)| *now > then) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = held(&servers, pod, first)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let count = |number: usize| number as f64;
    endpoint.record(
        "short exec sessions per second",
        count(plan.sessions) / took.as_secs_f64(),
    );
    let names = [
        "left: file descriptors",
        "left: threads",
        "left: processes in the container",
    ];
    for (name, (now, then)) in names.into_iter().zip(after.iter().zip(before)) {
        endpoint.record(name, count(now.saturating_sub(then)));
    }
    Ok(())
}
