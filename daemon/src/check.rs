//! `zcrid check`: is this node fit to run pods? The installation verification.
//!
//! Everything is tried for real, in directories of the check's own below `[storage]`: an overlay is mounted, namespaces
//! are made, the configured network attaches and detaches, and a container runs from an image that is built into the
//! binary, through the shim and the OCI runtime. Nothing of it is left, also when the check is interrupted; what a check
//! left that was killed is removed by the next one. It neither needs a running zcrid nor disturbs one.

mod clock;
mod groups;
mod hello;
mod images;
mod kernel;
mod limits;
mod namespaces;
mod network;
mod policy;
mod program;
mod report;
mod scratch;
mod socket;
mod storage;
mod zos;

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use zcri_config::{Config, ConfigError, PlatformKind};

use self::report::Report;
use self::scratch::Scratch;
use crate::error::Chain;
use crate::platform::zos::authority;

/// Checks the node and prints what was found. The exit code is 0 when nothing failed.
///
/// # Errors
/// The check itself could not be made.
pub(crate) fn run(config: Result<Config, ConfigError>, json: bool) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    match config {
        Err(error) => report.area("configuration").fail(
            "zcri.toml",
            Chain(&error).to_string(),
            "mend it; `zcrid config --default` explains every key",
        ),
        Ok(config) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the async runtime")?;
            runtime.block_on(check_all(&config, &mut report))?;
        }
    }
    if json {
        print!("{}", report.to_json());
    } else {
        print!("{}", report.to_table());
    }
    Ok(if report.is_fit() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn check_all(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut scratch = Scratch::new();
    let traces = groups::Traces::before(config, scratch.name());
    let interrupted = tokio::select! {
        () = in_order(config, &mut scratch, report) => false,
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
    };
    if interrupted {
        network::undo(config, &scratch).await;
    }
    let removed = scratch.remove().await;
    traces.remove();
    let left = "what the check made";
    match removed {
        Ok(()) => report.area("cleaning").pass(left, "all removed"),
        Err(what) => report.area("cleaning").fail(
            left,
            what,
            "remove it by hand, and look why it was refused",
        ),
    }
    if interrupted {
        anyhow::bail!("interrupted; all that the check had made was removed");
    }
    Ok(())
}

/// The checks, from the ground up: what fails early explains what fails late.
async fn in_order(config: &Config, scratch: &mut Scratch, report: &mut Report) {
    let mut area = report.area("configuration");
    match config.sources.as_slice() {
        [] => area.pass("zcri.toml", "no file: the defaults"),
        files => {
            let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
            area.pass("zcri.toml", names.join(", "));
        }
    }
    clock::check(&mut report.area("clock"));
    kernel::check(config, &mut report.area("kernel"));
    limits::check(config, &mut report.area("limits"));
    storage::check(config, scratch, &mut report.area("storage")).await;
    namespaces::check(config, scratch, &mut report.area("namespaces"));
    groups::check(config, scratch.name(), &mut report.area("resources"));
    socket::check(config, &mut report.area("socket"));
    images::check(config, &mut report.area("images"));
    network::check(config, scratch, &mut report.area("network")).await;
    let usable = program::check(config, &mut report.area("runtime")).await;
    hello::check(config, scratch, &usable, &mut report.area("hello")).await;
}

/// What to do about words of a plugin or an OCI runtime: on z/OS the profile to grant, where authority is what lacks.
fn advice_on(kind: PlatformKind, words: &str, otherwise: &str) -> String {
    let grant = match kind {
        PlatformKind::Linux => None,
        PlatformKind::Zos => authority::grant(words),
    };
    grant.map_or(otherwise.to_owned(), |grant| {
        format!("permit the started task's user {grant}")
    })
}

/// Whose authority a privileged call needs, for the advice when it was refused.
#[derive(Debug, Clone, Copy)]
enum Privilege {
    Namespaces,
    Mounts,
    Network,
}

impl Privilege {
    fn advice(self, kind: PlatformKind) -> &'static str {
        match (kind, self) {
            (PlatformKind::Linux, Self::Namespaces | Self::Mounts) => {
                "run as root, with CAP_SYS_ADMIN, and not confined by a container's seccomp profile or AppArmor"
            }
            (PlatformKind::Linux, Self::Network) => {
                "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
            }
            (PlatformKind::Zos, Self::Namespaces) => {
                "permit the started task's user READ to CONTAINERS in class UNIXPRIV"
            }
            (PlatformKind::Zos, Self::Mounts) => {
                "permit the started task's user READ to SUPERUSER.FILESYS.MOUNT in class UNIXPRIV, or give it UID 0"
            }
            (PlatformKind::Zos, Self::Network) => {
                "permit the started task's user READ to EZB.MODDVIPA.sysname.tcpname in class SERVAUTH, and make the plugin \
                 APF-authorized (extattr +a)"
            }
        }
    }
}
