//! The parts of a run: single calls, many pods at once, a node that is full and idle.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use zcri_proto::v1::ListContainerStatsRequest;

use super::endpoint::{Endpoint, Running, bounded};
use super::process;

/// How much of everything is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Pods made one after the other, for the latency of each call.
    pub iterations: usize,
    /// Pods that stand at the same time.
    pub pods: usize,
    /// How many of them are made at the same time.
    pub parallel: usize,
    /// How long the full node is watched doing nothing.
    pub idle: Duration,
    /// Calls for each figure of the full node.
    pub relists: usize,
}

/// The calls of a pod's life, one after the other, on each endpoint in turn.
///
/// # Errors
/// A call failed.
pub async fn latencies(endpoints: &mut [Endpoint], image: &str, plan: &Plan) -> Result<()> {
    // What is only slow the first time (connections, caches) is not what a kubelet sees.
    for endpoint in endpoints.iter_mut() {
        let warm = endpoint.run(image, false).await?;
        end(endpoint, &warm, false).await?;
    }
    for round in 0..plan.iterations {
        for index in turn(round, endpoints.len()) {
            let endpoint = &mut endpoints[index];
            let running = endpoint.run(image, true).await?;
            let cri = endpoint.cri.clone();
            let answer = endpoint
                .time(
                    "ExecSync(true)",
                    cri.exec(&running.container, ["/bin/true"], 10),
                )
                .await?;
            anyhow::ensure!(
                answer.exit_code == 0,
                "ExecSync ended with {}",
                answer.exit_code
            );
            endpoint
                .time("ContainerStatus", cri.status(&running.container))
                .await?;
            endpoint
                .time("PodSandboxStatus", cri.pod_status(&running.pod))
                .await?;
            end(endpoint, &running, true).await?;
        }
    }
    Ok(())
}

async fn end(endpoint: &mut Endpoint, running: &Running, record: bool) -> Result<()> {
    let cri = endpoint.cri.clone();
    if !record {
        bounded("StopPodSandbox", cri.stop_pod(&running.pod)).await?;
        return bounded("RemovePodSandbox", cri.remove_pod(&running.pod)).await;
    }
    let start = std::time::Instant::now();
    endpoint
        .time("StopContainer(0)", cri.stop(&running.container, 0))
        .await?;
    endpoint
        .time("RemoveContainer", cri.remove(&running.container))
        .await?;
    endpoint
        .time("StopPodSandbox", cri.stop_pod(&running.pod))
        .await?;
    endpoint
        .time("RemovePodSandbox", cri.remove_pod(&running.pod))
        .await?;
    endpoint.record("stop and remove all", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Fills each node in turn with pods, looks at it, and empties it again.
///
/// # Errors
/// A call failed.
pub async fn full_nodes(endpoints: &mut [Endpoint], image: &str, plan: &Plan) -> Result<()> {
    for endpoint in endpoints.iter_mut() {
        let done = full_node(endpoint, image, plan).await;
        // Also after a failure: the node is somebody's.
        let cleaned = endpoint.clean().await;
        done.with_context(|| endpoint.name.clone())?;
        cleaned.with_context(|| endpoint.name.clone())?;
    }
    Ok(())
}

async fn full_node(endpoint: &mut Endpoint, image: &str, plan: &Plan) -> Result<()> {
    let daemon = process::server_of(&endpoint.socket)?;
    endpoint.record("daemon, empty", mebibytes(process::pss(daemon)?));
    let (running, took) = endpoint.run_many(image, plan.pods, plan.parallel).await?;
    endpoint.record("pods per second", count(plan.pods) / took.as_secs_f64());
    let ids: BTreeSet<String> = running
        .iter()
        .flat_map(|r| [r.pod.clone(), r.container.clone()])
        .collect();
    let monitors = process::monitors_of(&ids);
    endpoint.record("daemon, full", mebibytes(process::pss(daemon)?));
    let mut sum = 0;
    for pid in &monitors {
        sum += process::pss(*pid)?;
    }
    if !monitors.is_empty() {
        endpoint.record("monitors per pod", mebibytes(sum) / count(plan.pods));
    }
    let servers = [&[daemon], monitors.as_slice()].concat();
    idle_cpu(endpoint, &servers, plan.idle).await?;
    let cri = endpoint.cri.clone();
    for _ in 0..plan.relists {
        let relist = async {
            cri.list_pods(Default::default()).await?;
            cri.list_containers(Default::default()).await
        };
        endpoint.time("list pods and containers", relist).await?;
        let stats = async {
            cri.runtime()
                .list_container_stats(ListContainerStatsRequest::default())
                .await
        };
        endpoint.time("ListContainerStats", stats).await?;
    }
    Ok(())
}

/// CPU that daemon and monitors use while nothing is asked, in percent of one CPU.
async fn idle_cpu(endpoint: &mut Endpoint, servers: &[u32], window: Duration) -> Result<()> {
    // The end of the last start is not idleness.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = process::cpu(servers)?;
    tokio::time::sleep(window).await;
    let spent = process::cpu(servers)?.saturating_sub(before);
    endpoint.record(
        "CPU, full and idle",
        spent.as_secs_f64() / window.as_secs_f64() * 100.0,
    );
    Ok(())
}

/// The endpoints' order in a round: each is first in its turn.
pub fn turn(round: usize, endpoints: usize) -> impl Iterator<Item = usize> {
    (0..endpoints).map(move |n| (n + round) % endpoints)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::turn;

    #[test]
    fn everyone_is_first_in_turn() {
        assert_eq!(turn(0, 2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(turn(1, 2).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(turn(7, 1).collect::<Vec<_>>(), [0]);
    }
}
