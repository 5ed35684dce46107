//! `zos-runc`: an OCI runtime for the emulated LPAR.
//!
//! It has the command line of an OCI runtime and takes the specifications that a z/OS runtime takes: a `zos` object and
//! no `linux` object. It checks them against the runtime specification, translates them, and lets runc run the result
//! without network, user and cgroup namespaces, as z/OS has none. What z/OS is not known to do, it refuses.

mod args;
mod check;
mod config;
mod translate;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

pub use args::{Arguments, Verb};
pub use check::check;
pub(crate) use config::VARIABLE;
pub use config::{Deny, Settings};
pub use translate::Machine;

/// Does what the command line says. Does not return where the real runtime takes over.
///
/// # Errors
/// What a runtime would write to its log.
pub fn run(arguments: &Arguments) -> Result<()> {
    let settings = Settings::load()?;
    match arguments.verb {
        Verb::Features => {
            let mut out = std::io::stdout().lock();
            return Ok(writeln!(out, "{}", features())?);
        }
        Verb::Create | Verb::Run => {
            settings.authorize(Deny::Clone)?;
            prepare(&settings, arguments)?;
        }
        Verb::Exec => settings.authorize(Deny::Setns)?,
        Verb::Update => {
            bail!("update: z/OS has no control groups; WLM policies are changed by VARY WLM")
        }
        Verb::Delete => return delete(&settings, arguments),
        Verb::Other => {}
    }
    let mut command = real(&settings, arguments);
    // Only a failure comes back.
    Err(command.exec()).with_context(|| format!("run {}", settings.runtime.display()))
}

/// Writes a failure where the caller of a runtime looks for it: in its log, and on standard error.
pub fn report(arguments: &Arguments, error: &anyhow::Error) {
    let text = format!("{error:#}");
    eprintln!("{text}");
    let Some(log) = &arguments.log else {
        return;
    };
    let line = json!({ "level": "error", "msg": text });
    let opened = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log);
    // Standard error has it already.
    if let Ok(mut log) = opened {
        writeln!(log, "{line}").ok();
    }
}

/// What can be said of the runtime by features.md: nothing of `zos`, for which the document has no place.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.2.1",
        "ociVersionMax": "1.2.1",
        "hooks": [],
        "mountOptions": ["bind", "rbind", "ro", "rw", "nosuid", "noexec", "nodev"],
    })
}

/// The bundle of the translated container, beside the state directory of the real runtime, where nothing else is.
fn own_bundle(arguments: &Arguments) -> Result<PathBuf> {
    let root = arguments.root.as_deref().unwrap_or(Path::new("/run/runc"));
    let mut name = root.as_os_str().to_owned();
    name.push("-bundles");
    Ok(Path::new(&name).join(arguments.id.as_deref().context("no container id given")?))
}

fn prepare(settings: &Settings, arguments: &Arguments) -> Result<()> {
    let bundle = arguments.bundle.as_deref().context("no --bundle given")?;
    let file = bundle.join("config.json");
    let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let spec: Value =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
    check(&spec)?;
    let linux = translate::translate(
        &spec,
        bundle,
        arguments.id.as_deref().unwrap_or_default(),
        settings,
        &Machine::here()?,
    )?;
    let own = own_bundle(arguments)?;
    std::fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
    std::fs::write(own.join("config.json"), linux.to_string())?;
    Ok(())
}

/// The real runtime's command, with the translated bundle in the place of the given one.
fn real(settings: &Settings, arguments: &Arguments) -> Command {
    let mut command = Command::new(&settings.runtime);
    let bundle = own_bundle(arguments).ok();
    command.args(arguments.words(bundle.as_deref()));
    command
}

/// First the container, then what was made for it here: a second `delete` finds both or neither.
fn delete(settings: &Settings, arguments: &Arguments) -> Result<()> {
    let status = real(settings, arguments)
        .status()
        .with_context(|| format!("run {}", settings.runtime.display()))?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    match std::fs::remove_dir_all(own_bundle(arguments)?) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
