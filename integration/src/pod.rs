//! Pods and containers as tests describe them: the configuration that a kubelet would send, and the usual steps.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Pid;
use serde_json::Value;
use zcri_proto::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest,
};

use crate::cri_log::{self, Line};
use crate::node::TestNode;
use crate::wait;

/// A running pod of a node.
#[derive(Debug)]
pub struct Pod<'n> {
    node: &'n TestNode,
    /// The id that the daemon gave.
    pub id: String,
    /// The configuration that it was made of.
    pub config: PodSandboxConfig,
    next: AtomicU32,
}

/// What a program wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 and the signal's number for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output without the white space around it, of a program that ended with 0.
    ///
    /// # Errors
    /// It ended with something else.
    pub fn success(&self) -> Result<&str> {
        ensure!(
            self.code == 0,
            "exit code {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout.trim())
    }
}

/// A container that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The container's id.
    pub id: String,
    /// Its status after the end.
    pub status: ContainerStatus,
    /// Its log.
    pub lines: Vec<Line>,
}

impl Ended {
    /// Exit code and streams.
    pub fn output(&self) -> Output {
        Output {
            code: self.status.exit_code,
            stdout: cri_log::stream(&self.lines, "stdout"),
            stderr: cri_log::stream(&self.lines, "stderr"),
        }
    }
}

/// The process of a pod's shim, by its command line.
///
/// # Errors
/// There is none.
pub fn shim_of(pod: &str) -> Result<Pid> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let text = String::from_utf8_lossy(&command);
        if text.contains("zcri-shim") && text.contains(pod) {
            let id = entry.file_name().to_string_lossy().parse()?;
            return Pid::from_raw(id).context("a process id");
        }
    }
    anyhow::bail!("pod {pod} has no zcri-shim")
}

/// Owned words of a command line.
pub fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// Labels, annotations, or whatever else the interface has as a map.
pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The variables of a container.
pub fn envs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<KeyValue> {
    pairs
        .map(|(key, value)| KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
        })
        .to_vec()
}

impl TestNode {
    /// The configuration of a pod as a kubelet sends it; its log directory is made.
    ///
    /// # Errors
    /// The log directory cannot be made.
    pub fn pod_config(&self, name: &str) -> Result<PodSandboxConfig> {
        let log_directory = self.files().pod_logs.join(name);
        std::fs::create_dir_all(&log_directory)?;
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{name}", self.slot().cgroup()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// The configuration of a container on the busybox image as a kubelet sends it. Its command sleeps.
    ///
    /// # Errors
    /// The image cannot be pulled.
    pub async fn container_config(&self, name: &str) -> Result<ContainerConfig> {
        Ok(container_config(name, &self.busybox().await?))
    }

    /// Runs a pod of this configuration.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn run_pod(&self, config: PodSandboxConfig) -> Result<Pod<'_>> {
        self.run_pod_with(config, "").await
    }

    /// Runs a pod of this configuration with a runtime handler.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn run_pod_with(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod<'_>> {
        let id = self
            .cri()
            .run_pod_with(&config, handler)
            .await
            .context("RunPodSandbox")?;
        Ok(Pod {
            node: self,
            id,
            config,
            next: AtomicU32::new(0),
        })
    }

    /// Runs a pod like any other.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn pod(&self, name: &str) -> Result<Pod<'_>> {
        self.run_pod(self.pod_config(name)?).await
    }

    /// What a verbose ContainerStatus shows beside the status.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn info(&self, id: &str) -> Result<Value> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.cri().runtime().container_status(request).await?;
        parse_info(&answer.into_inner().info)
    }

    /// What a verbose PodSandboxStatus shows beside the status.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn pod_info(&self, id: &str) -> Result<Value> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.cri().runtime().pod_sandbox_status(request).await?;
        parse_info(&answer.into_inner().info)
    }

    /// Waits until a container has ended.
    ///
    /// # Errors
    /// It does not.
    pub async fn exited(&self, id: &str) -> Result<ContainerStatus> {
        wait::until("the container to end", wait::PATIENCE, async || {
            let status = self.cri().status(id).await?;
            Ok((status.state == i32::from(ContainerState::ContainerExited)).then_some(status))
        })
        .await
    }

    /// Runs a shell command in a running container by ExecSync.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn exec(&self, id: &str, script: &str) -> Result<Output> {
        let answer = self
            .cri()
            .exec(id, ["/bin/sh", "-c", script], 30)
            .await
            .context("ExecSync")?;
        Ok(Output {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }
}

impl Pod<'_> {
    /// CreateContainer.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn create(&self, config: &ContainerConfig) -> Result<String> {
        self.node
            .cri()
            .create(&self.id, config, &self.config)
            .await
            .context("CreateContainer")
    }

    /// CreateContainer and StartContainer.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn start(&self, config: &ContainerConfig) -> Result<String> {
        let id = self.create(config).await?;
        self.node.cri().start(&id).await.context("StartContainer")?;
        Ok(id)
    }

    /// A container that sleeps, for execs.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn sleeper(&self, name: &str) -> Result<String> {
        self.start(&self.node.container_config(name).await?).await
    }

    /// Runs a container until it ends by itself.
    ///
    /// # Errors
    /// As the daemon says; it does not end; its log is not of the format.
    pub async fn run(&self, config: &ContainerConfig) -> Result<Ended> {
        // A log is appended to; the kubelet's names hold the attempt, the names here do not.
        std::fs::remove_file(self.log_path(config)).ok();
        let id = self.start(config).await?;
        let status = self.node.exited(&id).await?;
        let lines = self.log(config)?;
        Ok(Ended { id, status, lines })
    }

    /// Runs a shell script in a container of its own, which `change` may configure.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn sh_with(
        &self,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Output> {
        let name = format!("sh-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut config = self.node.container_config(&name).await?;
        config.command = words(["/bin/sh", "-c", script]);
        change(&mut config);
        let ended = self.run(&config).await?;
        self.node
            .cri()
            .remove(&ended.id)
            .await
            .context("RemoveContainer")?;
        Ok(ended.output())
    }

    /// Runs a shell script in a container of its own.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn sh(&self, script: &str) -> Result<Output> {
        self.sh_with(script, |_| ()).await
    }

    /// The log file of a container.
    pub fn log_path(&self, config: &ContainerConfig) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(&config.log_path)
    }

    /// The log of a container.
    ///
    /// # Errors
    /// It cannot be read or is not of the format.
    pub fn log(&self, config: &ContainerConfig) -> Result<Vec<Line>> {
        let path = self.log_path(config);
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        cri_log::parse(&String::from_utf8_lossy(&text))
    }

    /// The first address of the pod.
    ///
    /// # Errors
    /// It has none.
    pub async fn ip(&self) -> Result<String> {
        let status = self.node.cri().pod_status(&self.id).await?;
        status
            .network
            .map(|network| network.ip)
            .filter(|ip| !ip.is_empty())
            .context("the pod has no address")
    }
}

/// The verbose part of a status.
fn parse_info(info: &HashMap<String, String>) -> Result<Value> {
    let text = info.get("info").context("an answer without info")?;
    Ok(serde_json::from_str(text)?)
}

/// The configuration of a container of `image` as a kubelet sends it.
pub fn container_config(name: &str, image: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        }),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(own_pid()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The security context of a container.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// The resources of a container.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config
        .linux
        .get_or_insert_default()
        .resources
        .get_or_insert_default()
}

/// The security context of a pod.
pub fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// The namespaces that a kubelet asks for when the pod says nothing: a PID namespace per container, the rest per pod.
fn own_pid() -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}
