//! The programs that run containers: OCI runtimes and the shim.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use zcri_config::{Config, HandlerType};

use super::report::Area;
use crate::compose;
use crate::error::Chain;
use crate::platform::Platform;
use crate::runtime::{Handler, HandlerFeatures};

/// A runtime that does not tell its version in this time would start no container either.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at every handler and the shim; gives the handlers that a container can be tried with.
pub(super) async fn check(config: &Config, area: &mut Area<'_>) -> Vec<Handler> {
    let mut usable = Vec::new();
    let known = compose::handlers(config);
    for (name, handler) in &config.runtime.handlers {
        if handler.kind == HandlerType::Shim {
            area.skip(name, "a shim of its own: it is only started for a pod");
            continue;
        }
        let version = version(&handler.path).await;
        let path = handler.path.display();
        match version {
            Ok(version) => {
                area.pass(name, format!("{path}, {version}"));
                if features(config, name, &handler.path, area).await {
                    usable.extend(known.get(name).ok().cloned());
                }
            }
            Err(error) if *name == config.runtime.default_handler => area.fail(
                name,
                error,
                format!("install it, or set [runtime.handlers.{name}] path"),
            ),
            Err(error) => area.warn(
                name,
                error,
                format!(
                    "install it, or remove [runtime.handlers.{name}]: pods that ask for it fail"
                ),
            ),
        }
    }
    if shim(config, area) {
        usable
    } else {
        Vec::new()
    }
}

fn shim(config: &Config, area: &mut Area<'_>) -> bool {
    let found = compose::shim_program(config)
        .map_err(|e| format!("{e:#}"))
        .and_then(|path| {
            rustix::fs::access(&path, rustix::fs::Access::EXEC_OK)
                .map(|()| path.display().to_string())
                .map_err(|e| format!("{}: {e}", path.display()))
        });
    let there = found.is_ok();
    area.verdict(
        "zcri-shim",
        found,
        "install zcri-shim beside zcrid, or set [runtime] shim",
    );
    there
}

async fn version(path: &Path) -> Result<String, String> {
    let output = run(path, "--version").await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default().trim();
    if output.status.success() && !first.is_empty() {
        Ok(first.to_owned())
    } else {
        let words = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{} --version: {}: {}",
            path.display(),
            output.status,
            words.trim()
        ))
    }
}

/// What the runtime says of itself (runtime-spec, features.md); older ones say nothing. Gives whether it may be able to
/// run containers of this platform.
async fn features(config: &Config, name: &str, path: &Path, area: &mut Area<'_>) -> bool {
    let what = format!("{name} features");
    let answer = match run(path, "features").await {
        Ok(output) if output.status.success() => output.stdout,
        _ => Vec::new(),
    };
    let Ok(said) = serde_json::from_slice::<Value>(&answer) else {
        area.skip(what, "this runtime does not tell them");
        return true;
    };
    let able = Platform::new(config).check_runtime(name, &HandlerFeatures::parse(&answer));
    if let Err(error) = able {
        let found = Chain(&error).to_string();
        let advice =
            format!("set [runtime.handlers.{name}] path to the runC of z/OS Container Platform");
        if name == config.runtime.default_handler {
            area.fail(what, found, advice);
        } else {
            area.warn(what, found, advice);
        }
        return false;
    }
    let newest = said["ociVersionMax"].as_str().unwrap_or("?");
    let mut more = Vec::new();
    for (word, value) in [
        ("seccomp", &said["linux"]["seccomp"]["enabled"]),
        ("AppArmor", &said["linux"]["apparmor"]["enabled"]),
        ("SELinux", &said["linux"]["selinux"]["enabled"]),
        (
            "id-mapped mounts",
            &said["linux"]["mountExtensions"]["idmap"]["enabled"],
        ),
    ] {
        if value.as_bool() == Some(true) {
            more.push(word);
        }
    }
    more.insert(0, newest);
    area.pass(what, format!("OCI up to {}", more.join(", ")));
    true
}

async fn run(path: &Path, argument: &str) -> Result<Output, String> {
    let command = Command::new(path)
        .arg(argument)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(PATIENCE, command).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("{}: {error}", path.display())),
        Err(_) => Err(format!(
            "{} {argument}: no answer within {} s",
            path.display(),
            PATIENCE.as_secs()
        )),
    }
}
