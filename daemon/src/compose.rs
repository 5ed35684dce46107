//! The composition root: builds every concrete part from the configuration, serves, and shuts down in order.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use zcri_config::{CgroupManager, Config, HandlerType, NetworkIsolation, PlatformKind};
use zcri_streaming::{Server, ServerConfig, TlsConfig, TlsVersion};
use zcri_sys::console::system as system_console;
use zcri_sys::namespace::user::{self, IdMaps, IdRange};
use zcri_sys::{cgroup, mount, node as facts, open_files};

use crate::confinement::Confinement;
use crate::console::{self, Operator, admin::Admin};
use crate::container::spec::NodeFacts;
use crate::cri::server::{self, DirLock, SocketOptions};
use crate::cri::{Services, convert};
use crate::deprecation::Deprecations;
use crate::events::Events;
use crate::health::Health;
use crate::images::Images;
use crate::messages;
use crate::metrics::http;
use crate::network::{Isolation, Network};
use crate::node::{CgroupDriver, Node};
use crate::platform::{Platform, zos};
use crate::pod::Pods;
use crate::reload::{Reloader, Source};
use crate::runtime::{Handler, Handlers, ShimLauncher};
use crate::state::RecordStore;
use crate::stats::Readers;
use crate::streaming::Sessions;

/// Threads for work that blocks (mounts, files, unpacking). Creation of pods is short work on them; a pull keeps a
/// few busy for long, so that there must be more than pulls can take.
pub const BLOCKING_THREADS: usize = 64;

/// Serves until told to stop (SIGTERM, SIGINT). Shims and their containers go on.
///
/// # Errors
/// The daemon cannot start: another one runs, or what it needs is missing.
pub async fn serve(config: Config, source: Source) -> anyhow::Result<()> {
    tracing::info!(
        zcr = messages::STARTING,
        version = env!("CARGO_PKG_VERSION"),
        "zcrid is starting"
    );
    let _root = DirLock::acquire(&config.storage.root)?;
    let _state = DirLock::acquire(&config.storage.state)?;
    let socket = SocketOptions {
        path: config.api.listen.clone(),
        mode: config.api.socket_mode,
        group: config.api.socket_group.clone().unwrap_or_default(),
        max_message_bytes: config.api.max_message_bytes,
    };
    let node = Arc::new(build(&config).await?);
    // Before anybody is told that this process is ready for signals.
    let signals = Signals::watch()?;
    let pods = Pods::recover(node.clone()).await?;
    let reloader = Reloader::new(source, node, config.clone());
    let operator = Operator::new(pods.clone(), reloader);
    let sessions = Sessions::new(pods.clone());
    let streams = Arc::new(Server::bind(stream_config(&config.stream), sessions.clone()).await?);
    let mut endpoint = serve_metrics(&config, &pods).await?;
    let listener = server::bind(&socket)?;
    let admin =
        Admin::start(&config.storage.state, operator.clone()).context("serve console commands")?;
    if let Some((console, requests)) = system_console() {
        console::listen_to_system(operator.clone(), requests, console)
            .context("listen to the system's console")?;
    }
    tracing::info!(zcr = messages::SERVING, socket = %socket.path.display(), streams = %streams.local_addr(), version = env!("CARGO_PKG_VERSION"),
        "zcrid is serving");
    notify(&[sd_notify::NotifyState::Ready]);
    let node = pods.node().clone();
    // So that the first pod and the first status need not wait for it.
    let asking = tokio::spawn(async move { node.handlers.ask_all().await });
    let (end_streams, end_of_streams) = oneshot::channel::<()>();
    let streaming = tokio::spawn({
        let streams = streams.clone();
        async move { streams.serve(async { drop(end_of_streams.await) }).await }
    });
    let stop = async {
        told_to_stop(signals, &operator).await;
        // A subscription has no end of its own.
        pods.node().events.close();
    };
    let services = Services::new(pods.clone(), streams);
    let served = server::serve(services, listener, &socket, stop).await;
    endpoint.shutdown().await;
    // What it would find out of a daemon that is going down is nothing.
    asking.abort();
    // No call gives out a URL any more: now the sessions, then the commands that they were about.
    drop(end_streams);
    streaming.await.context("serve sessions")?;
    sessions.drain().await;
    drop(admin);
    served?;
    tracing::info!(zcr = messages::STOPPED, "zcrid has stopped; pods go on");
    Ok(())
}

/// The endpoint for Prometheus, if one is configured; it ends with what is returned.
async fn serve_metrics(config: &Config, pods: &Arc<Pods>) -> anyhow::Result<JoinSet<()>> {
    let mut endpoint = JoinSet::new();
    if let Some(address) = config.metrics.listen {
        let listener = http::bind(address).await;
        let listener = listener.with_context(|| format!("bind metrics.listen {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics are served");
        endpoint.spawn(http::serve(listener, pods.clone()));
    }
    Ok(endpoint)
}

fn stream_config(stream: &zcri_config::Stream) -> ServerConfig {
    ServerConfig {
        address: stream.address,
        port: stream.port,
        tls: stream.tls.as_ref().map(|tls| TlsConfig {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            minimum_version: match tls.min_version {
                zcri_config::TlsVersion::Tls12 => TlsVersion::Tls12,
                zcri_config::TlsVersion::Tls13 => TlsVersion::Tls13,
            },
        }),
        idle_timeout: stream.idle_timeout.unwrap_or_default(),
        base_url: stream.base_url.clone(),
    }
}

/// Builds the parts in the order in which they need each other.
async fn build(config: &Config) -> anyhow::Result<Node> {
    let platform = Platform::new(config);
    let cgroups = platform.cgroups()?;
    let (node_facts, confinement) = match &platform {
        Platform::Linux => (
            node_facts(&cgroups, &config.storage.root)?,
            Confinement::of_node(),
        ),
        Platform::Zos(_) => (zos::facts(&cgroups), Confinement::default()),
    };
    let images = Images::open(config).await?;
    let node = Node {
        root: config.storage.root.clone(),
        state: config.storage.state.clone(),
        boot_id: facts::boot_id()?,
        records: RecordStore::open(&config.storage.root)?,
        handlers: handlers(config),
        launcher: ShimLauncher {
            program: shim_program(config)?,
            open_files: open_files::raise_soft_limit().context("raise the limit of open files")?,
        },
        network: Network::new(
            &config.network,
            config
                .network
                .gc
                .or(config.platform.kind == PlatformKind::Linux),
            &config.storage.root,
        ),
        isolation: match config.network.isolation {
            NetworkIsolation::Namespace => Isolation::Namespace,
            NetworkIsolation::Stack => Isolation::Stack,
            NetworkIsolation::Auto => match config.platform.kind {
                PlatformKind::Linux => Isolation::Namespace,
                PlatformKind::Zos => Isolation::Stack,
            },
        },
        images,
        stack_groups: platform.stack_groups(&cgroups),
        platform,
        facts: node_facts,
        confinement,
        cgroups,
        cgroup_driver: match config.runtime.cgroup_manager {
            CgroupManager::Cgroupfs => CgroupDriver::Cgroupfs,
            CgroupManager::Systemd => CgroupDriver::Systemd,
        },
        cgroup_parent: config.runtime.cgroup_parent.clone(),
        pids_limit: match (config.runtime.pids_limit, config.runtime.cgroup_manager) {
            (Some(limit), _) => Some(u32::from(limit).into()),
            // It has a limit of its own (`DefaultTasksMax`).
            (None, CgroupManager::Systemd) => Some(-1),
            (None, CgroupManager::Cgroupfs) => None,
        },
        rlimits: config.runtime.rlimits.clone(),
        cdi_spec_dirs: config.runtime.cdi_spec_dirs.clone(),
        health: Health::default(),
        deprecations: Deprecations::default(),
        config: toml::from_str(&config.to_toml()).context("read the configuration back")?,
        operations: Arc::default(),
        events: Events::default(),
        readers: Readers::default(),
        wire: convert::WIRE_FORMAT,
    };
    for dir in [
        node.root.join("overlay"),
        node.state.join("pods"),
        node.state.join("containers"),
    ] {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    node.confinement.label_layers(&node.root);
    node.empty_trash().context("empty the trash")?;
    Ok(node)
}

fn node_facts(cgroups: &cgroup::Tree, root: &Path) -> anyhow::Result<NodeFacts> {
    let lowest = facts::lowest_oom_score_adj()?;
    if lowest > -1000 {
        tracing::info!(
            lowest,
            "this node may not lower oom_score_adj: containers get at least this value"
        );
    }
    Ok(NodeFacts {
        cgroup_version: cgroups.version(),
        bounding_capabilities: facts::bounding_capabilities()?,
        lowest_oom_score_adj: lowest,
        seccomp: facts::has_seccomp(),
        user_namespaces: has_user_namespaces(root),
        swap: cgroups.accounts_for_swap(),
        hugetlb: cgroups.has_controller("hugetlb"),
    })
}

/// Found out by trying, on the file system that has the images: no table of kernels and file systems is ever whole.
fn has_user_namespaces(root: &Path) -> bool {
    let all = IdRange {
        inside: 0,
        outside: 1,
        length: 1,
    };
    let maps = IdMaps {
        users: vec![all],
        groups: vec![all],
    };
    user::with_maps(&maps).is_ok_and(|namespace| mount::maps_ids(root, namespace.as_fd()))
}

/// The OCI runtimes.
pub(crate) fn handlers(config: &Config) -> Handlers {
    let systemd_cgroup = config.runtime.cgroup_manager == CgroupManager::Systemd;
    let all = config
        .runtime
        .handlers
        .iter()
        .filter_map(|(name, handler)| match handler.kind {
            HandlerType::Oci => Some(Handler {
                name: name.clone(),
                path: handler.path.clone(),
                root: Some(
                    handler
                        .root
                        .clone()
                        .unwrap_or_else(|| config.storage.state.join("oci").join(name)),
                ),
                systemd_cgroup,
                output: handler.output,
            }),
            HandlerType::Shim => {
                tracing::warn!(
                    handler = name,
                    "handlers of type \"shim\" come with a later version; it is left out"
                );
                None
            }
        });
    Handlers::new(all, config.runtime.default_handler.clone())
}

/// The configured shim, or the one beside this program.
pub(crate) fn shim_program(config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &config.runtime.shim {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("find the path of this program")?;
    Ok(own.with_file_name("zcri-shim"))
}

/// The signals that mean something to the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("watch for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("watch for SIGHUP")?,
        })
    }
}

/// Done when a signal or the operator says so. SIGHUP reloads.
async fn told_to_stop(mut signals: Signals, operator: &Operator) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            () = operator.told_to_stop() => break,
            _ = signals.hangup.recv() => drop(operator.refresh().await),
        }
    }
    tracing::info!(zcr = messages::STOPPING, "zcrid is stopping");
    notify(&[sd_notify::NotifyState::Stopping]);
}

/// Tells the service manager, if there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
