//! The daemon's process: start, readiness, end, log.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::files::Files;
use crate::binaries;
use crate::client::Cri;
use crate::wait;

/// Lines of the log that go into a message.
const TAIL: usize = 60;

/// What a daemon is started with and without.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Variables of its environment.
    pub(super) env: Vec<(String, String)>,
    /// Capabilities that it and all that it starts lack, as setpriv(1) has them.
    pub(super) lacking: Vec<String>,
}

/// A running `zcrid`.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts the daemon and waits until it serves.
    pub(super) async fn start(
        files: &Files,
        surroundings: &Surroundings,
        stack: Option<PathBuf>,
    ) -> Result<(Self, Cri)> {
        let mut daemon = Self {
            child: command(files, surroundings, stack)?
                .spawn()
                .context("starting zcrid")?,
        };
        let ready = wait::until("zcrid to serve", wait::PATIENCE, async || {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("zcrid ended at once ({status}):\n{}", tail(&files.log));
            }
            let Ok(cri) = Cri::connect(&files.socket()).await else {
                return Ok(None);
            };
            Ok(cri.version().await.ok().map(|_| cri))
        });
        let cri = ready
            .await
            .with_context(|| format!("log of zcrid:\n{}", tail(&files.log)))?;
        Ok((daemon, cri))
    }

    pub(super) fn pid(&self) -> Result<Pid> {
        let id = self.child.id().context("zcrid has ended")?;
        Pid::from_raw(id.cast_signed()).context("a process id")
    }

    /// Sends `signal` and waits for the end.
    pub(super) async fn end(mut self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        kill_process(self.pid()?, signal)?;
        let ended = tokio::time::timeout(patience, self.child.wait()).await;
        ended
            .with_context(|| format!("zcrid did not end within {patience:?} of {signal:?}"))?
            .context("waiting for zcrid")
    }
}

/// The command of a daemon on these files, its output appended to the log, in the network namespace that is its stack
/// if it has one of its own. It dies with the harness.
pub(super) fn command(
    files: &Files,
    surroundings: &Surroundings,
    stack: Option<PathBuf>,
) -> Result<Command> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&files.log)?;
    let mut command = Command::from(program(files, surroundings, stack)?);
    command
        .env("NO_COLOR", "1")
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

/// `zcrid` on these files.
pub(super) fn program(
    files: &Files,
    surroundings: &Surroundings,
    stack: Option<PathBuf>,
) -> Result<std::process::Command> {
    // Each word becomes the next one's program.
    let mut words: Vec<OsString> = Vec::new();
    if let Some(stack) = stack {
        // `ip netns exec` would hide the control groups.
        let mut net = OsString::from("--net=");
        net.push(stack);
        words.extend([binaries::system("nsenter", "util-linux")?.into(), net]);
    }
    if !surroundings.lacking.is_empty() {
        words.push(binaries::system("setpriv", "util-linux")?.into());
        let lacking = surroundings.lacking.join(",-");
        for set in ["--inh-caps", "--bounding-set"] {
            words.push(format!("{set}=-{lacking}").into());
        }
    }
    words.push(binaries::ours("zcrid")?.into());
    let mut command = std::process::Command::new(words.remove(0));
    command
        .args(words)
        .arg("--config")
        .arg(&files.config)
        .envs(surroundings.env.iter().map(|(key, value)| (key, value)));
    Ok(command)
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// The lines of level WARN or ERROR that hold none of the `allowed` texts, and panics.
pub(super) fn complaints(log: &Path, allowed: &[String]) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let loud = [
        " WARN ",
        " ERROR ",
        "\"level\":\"WARN\"",
        "\"level\":\"ERROR\"",
        "panicked at",
    ];
    text.lines()
        .filter(|line| loud.iter().any(|level| line.contains(level)))
        .filter(|line| !allowed.iter().any(|known| line.contains(known.as_str())))
        .map(str::to_owned)
        .collect()
}
