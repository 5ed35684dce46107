//! The composition root: builds every concrete part from the configuration, serves, and shuts down in order.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use zcri_config::{CgroupManager, Config, HandlerType, PlatformKind};
use zcri_sys::{cgroup, node as facts};

use crate::container::spec::NodeFacts;
use crate::cri::server::{self, DirLock, SocketOptions};
use crate::cri::{Services, convert};
use crate::images::Images;
use crate::network::Network;
use crate::node::{CgroupDriver, Node};
use crate::pod::Pods;
use crate::runtime::{Handler, Handlers, ShimLauncher};
use crate::state::RecordStore;
use crate::stats::LastReadings;

/// Threads for work that blocks (mounts, files, unpacking). Creation of pods is short work on them; a pull keeps a
/// few busy for long, so that there must be more than pulls can take.
pub const BLOCKING_THREADS: usize = 64;

/// Serves until told to stop (SIGTERM, SIGINT). Shims and their containers go on.
///
/// # Errors
/// The daemon cannot start: another one runs, or what it needs is missing.
pub async fn serve(config: Config) -> anyhow::Result<()> {
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
    let stop = told_to_stop()?;
    let pods = Pods::recover(node).await?;
    let listener = server::bind(&socket)?;
    tracing::info!(socket = %socket.path.display(), version = env!("CARGO_PKG_VERSION"), "zcrid is serving");
    notify(&[sd_notify::NotifyState::Ready]);
    server::serve(Services::new(pods), listener, &socket, stop).await?;
    tracing::info!("zcrid has stopped; pods go on");
    Ok(())
}

/// Builds the parts in the order in which they need each other.
async fn build(config: &Config) -> anyhow::Result<Node> {
    if config.platform.kind != PlatformKind::Linux {
        anyhow::bail!(
            "platform.kind = \"{}\" comes with a later version",
            config.platform.kind
        );
    }
    let cgroups = cgroup::Tree::detect()?;
    let node_facts = node_facts(&cgroups)?;
    let images = Images::open(config).await?;
    let node = Node {
        root: config.storage.root.clone(),
        state: config.storage.state.clone(),
        boot_id: facts::boot_id()?,
        records: RecordStore::open(&config.storage.root)?,
        handlers: handlers(config),
        launcher: ShimLauncher {
            program: shim_program(config)?,
        },
        network: Network::new(
            &config.network,
            config
                .network
                .gc
                .or(config.platform.kind == PlatformKind::Linux),
            &config.storage.root,
        ),
        images,
        facts: node_facts,
        cgroups,
        cgroup_driver: match config.runtime.cgroup_manager {
            CgroupManager::Cgroupfs => CgroupDriver::Cgroupfs,
            CgroupManager::Systemd => CgroupDriver::Systemd,
        },
        cgroup_parent: config.runtime.cgroup_parent.clone(),
        pids_limit: config.runtime.pids_limit.map(u32::from),
        last_readings: LastReadings::default(),
        wire: convert::WIRE_FORMAT,
    };
    for dir in [
        node.root.join("overlay"),
        node.state.join("pods"),
        node.state.join("containers"),
    ] {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    node.empty_trash().context("empty the trash")?;
    Ok(node)
}

fn node_facts(cgroups: &cgroup::Tree) -> anyhow::Result<NodeFacts> {
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
        apparmor: facts::security_module("apparmor"),
        selinux: facts::security_module("selinux"),
        swap: cgroups.accounts_for_swap(),
        hugetlb: cgroups.has_controller("hugetlb"),
    })
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

/// Done when a signal says so. SIGHUP is taken note of: it will reload what can be reloaded.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("watch for SIGHUP")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => tracing::info!("SIGHUP: nothing is reloaded yet, restart zcrid instead"),
            }
        }
        tracing::info!("zcrid is stopping");
        notify(&[sd_notify::NotifyState::Stopping]);
    })
}

/// Tells the service manager, if there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
