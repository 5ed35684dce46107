//! A CRI socket under measurement, and the pods that the benchmark makes there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use zcri_proto::v1::{
    ContainerConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata,
};

use super::process;
use super::samples::Samples;
use crate::client::Cri;
use crate::pod::{container_config, words};

/// No call of the benchmark may take longer.
const DEADLINE: Duration = Duration::from_secs(120);
/// The label by which its pods are found again.
const LABEL: &str = "zcri.bench";

/// `NAME=SOCKET` of the command line.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name in the report.
    pub name: String,
    /// Path of the socket.
    pub socket: PathBuf,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, socket) = text.split_once('=').context("an endpoint is NAME=SOCKET")?;
        let socket = socket.strip_prefix("unix://").unwrap_or(socket);
        ensure!(
            !name.is_empty() && socket.starts_with('/'),
            "an endpoint is NAME=SOCKET, with an absolute path"
        );
        Ok(Self {
            name: name.to_owned(),
            socket: PathBuf::from(socket),
        })
    }
}

/// A connected target with what was measured there.
#[derive(Debug)]
pub struct Endpoint {
    /// Name in the report.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
    /// The client.
    pub cri: Cri,
    /// Runtime and version as it tells.
    pub version: String,
    /// The runtime handler of its pods.
    handler: String,
    samples: BTreeMap<&'static str, Samples>,
    logs: tempfile::TempDir,
    next: u64,
}

/// A pod with one container, running.
#[derive(Debug, Clone)]
pub struct Running {
    /// The pod's id.
    pub pod: String,
    /// The container's id.
    pub container: String,
}

impl Endpoint {
    /// Connects.
    ///
    /// # Errors
    /// Nobody serves CRI there.
    pub async fn connect(target: &Target, handler: &str) -> Result<Self> {
        let cri = Cri::connect(&target.socket)
            .await
            .with_context(|| format!("{} at {}", target.name, target.socket.display()))?;
        let version = cri.version().await.with_context(|| target.name.clone())?;
        Ok(Self {
            name: target.name.clone(),
            socket: target.socket.clone(),
            version: format!("{} {}", version.runtime_name, version.runtime_version),
            handler: handler.to_owned(),
            cri,
            samples: BTreeMap::new(),
            logs: tempfile::tempdir().context("a directory for logs")?,
            next: 0,
        })
    }

    /// The configuration of a new pod: no two of this run are the same.
    ///
    /// # Errors
    /// Its log directory cannot be made.
    pub fn pod_config(&mut self) -> Result<PodSandboxConfig> {
        self.next += 1;
        let name = format!("bench-{}-{}", std::process::id(), self.next);
        let log_directory = self.logs.path().join(&name);
        std::fs::create_dir_all(&log_directory)?;
        let namespaces = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        };
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: name.clone(),
                namespace: "bench".to_owned(),
                attempt: 0,
                name: name.clone(),
            }),
            hostname: name.clone(),
            log_directory: log_directory.display().to_string(),
            labels: HashMap::from([(LABEL.to_owned(), std::process::id().to_string())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/cri-bench/{name}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Runs a pod with one container, taking the time of each step where `record` is set.
    ///
    /// # Errors
    /// A call failed.
    pub async fn run(&mut self, image: &str, record: bool) -> Result<Running> {
        let config = self.pod_config()?;
        let container = sleeper(image);
        let (running, times) = run_pod(&self.cri, &config, &container, &self.handler).await?;
        if record {
            for (name, took) in ["RunPodSandbox", "CreateContainer", "StartContainer"]
                .into_iter()
                .zip(times)
            {
                self.record(name, took.as_secs_f64() * 1e3);
            }
            self.record(
                "pod ready",
                times.iter().sum::<Duration>().as_secs_f64() * 1e3,
            );
        }
        Ok(running)
    }

    /// Runs a pod with a container of this configuration: what came up, and the container's log.
    ///
    /// # Errors
    /// A call failed.
    pub async fn run_with_log(
        &mut self,
        container: &ContainerConfig,
    ) -> Result<(Running, PathBuf)> {
        let config = self.pod_config()?;
        let (running, _) = run_pod(&self.cri, &config, container, &self.handler).await?;
        let log = PathBuf::from(&config.log_directory).join(&container.log_path);
        Ok((running, log))
    }

    /// A number of pods at a given parallelism: what came up, and the time for all.
    ///
    /// # Errors
    /// A call failed.
    pub async fn run_many(
        &mut self,
        image: &str,
        count: usize,
        parallel: usize,
    ) -> Result<(Vec<Running>, Duration)> {
        use futures::{StreamExt as _, TryStreamExt as _};
        let configs = (0..count)
            .map(|_| self.pod_config())
            .collect::<Result<Vec<_>>>()?;
        let (cri, handler, container) = (&self.cri, &self.handler, &sleeper(image));
        let start = Instant::now();
        let running = futures::stream::iter(&configs)
            .map(async |config| {
                run_pod(cri, config, container, handler)
                    .await
                    .map(|(running, _)| running)
            })
            .buffer_unordered(parallel)
            .try_collect()
            .await?;
        Ok((running, start.elapsed()))
    }

    /// Takes the time of a call.
    ///
    /// # Errors
    /// The call failed or did not answer.
    pub async fn time<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        let start = Instant::now();
        let answer = bounded(name, call).await?;
        self.record(name, start.elapsed().as_secs_f64() * 1e3);
        Ok(answer)
    }

    /// Adds a sample.
    pub fn record(&mut self, name: &'static str, sample: f64) {
        self.samples.entry(name).or_default().push(sample);
    }

    /// Whether it is zcrid that serves there.
    pub fn is_zcri(&self) -> bool {
        self.version.starts_with("zcri ")
    }

    /// The processes whose work a pod is: the daemon and the pod's monitors.
    ///
    /// # Errors
    /// Nobody listens on the socket.
    pub fn servers(&self, running: &Running) -> Result<Vec<u32>> {
        let mut all = vec![process::server_of(&self.socket)?];
        let ids = BTreeSet::from([running.pod.clone(), running.container.clone()]);
        all.extend(process::monitors_of(&ids));
        Ok(all)
    }

    /// The samples of a figure.
    pub fn samples(&self, name: &str) -> Option<&Samples> {
        self.samples.get(name)
    }

    /// Stops and removes every pod that this run made, some at a time.
    ///
    /// # Errors
    /// A call failed; the other pods are removed all the same.
    pub async fn clean(&self) -> Result<()> {
        use futures::StreamExt as _;
        let filter = PodSandboxFilter {
            label_selector: HashMap::from([(LABEL.to_owned(), std::process::id().to_string())]),
            ..Default::default()
        };
        let pods = bounded("ListPodSandbox", self.cri.list_pods(filter)).await?;
        let results: Vec<Result<()>> = futures::stream::iter(pods)
            .map(async |pod| {
                bounded("StopPodSandbox", self.cri.stop_pod(&pod.id)).await?;
                bounded("RemovePodSandbox", self.cri.remove_pod(&pod.id)).await
            })
            .buffer_unordered(4)
            .collect()
            .await;
        results.into_iter().collect()
    }
}

/// A container that does nothing.
fn sleeper(image: &str) -> ContainerConfig {
    let mut container = container_config("bench", image);
    container.command = words(["/bin/sleep", "1000000"]);
    container
}

async fn run_pod(
    cri: &Cri,
    config: &PodSandboxConfig,
    container: &ContainerConfig,
    handler: &str,
) -> Result<(Running, [Duration; 3])> {
    let start = Instant::now();
    let pod = bounded("RunPodSandbox", cri.run_pod_with(config, handler)).await?;
    let made = start.elapsed();
    let id = bounded("CreateContainer", cri.create(&pod, container, config)).await?;
    let created = start.elapsed();
    bounded("StartContainer", cri.start(&id)).await?;
    let started = start.elapsed();
    Ok((
        Running { pod, container: id },
        [
            made,
            created.saturating_sub(made),
            started.saturating_sub(created),
        ],
    ))
}

/// A call with the benchmark's deadline.
///
/// # Errors
/// It failed or did not answer.
pub async fn bounded<T>(
    name: &str,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T> {
    let answer = tokio::time::timeout(DEADLINE, call)
        .await
        .with_context(|| format!("{name} did not answer in {DEADLINE:?}"))?;
    answer.with_context(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_names_with_sockets() {
        let target: Target = "zcri=unix:///run/zcri.sock".parse().unwrap();
        assert_eq!(
            (target.name.as_str(), target.socket),
            ("zcri", PathBuf::from("/run/zcri.sock"))
        );
        for wrong in ["zcri", "=x", "a=relative", ""] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?}");
        }
    }
}
