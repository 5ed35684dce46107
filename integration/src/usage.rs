//! What tests of statistics and metrics share: a container with a known use, and other ways to know what it uses.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use zcri_proto::v1::{LinuxContainerResources, UInt64Value};

use crate::node::TestNode;
use crate::pod::{Pod, words};
use crate::wait;

/// Bytes.
const MIB: i64 = 1 << 20;

/// Whether the controllers are in version 2 of cgroups.
pub fn cgroups_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A number that must be there.
///
/// # Errors
/// It is absent.
pub fn number(value: Option<UInt64Value>, what: &str) -> Result<u64> {
    Ok(value.with_context(|| format!("{what} is absent"))?.value)
}

/// What du(1) says of a directory.
///
/// # Errors
/// It says nothing.
pub fn du(option: &str, dir: &Path) -> Result<u64> {
    let output = std::process::Command::new("du")
        .args(["-s", option])
        .arg(dir)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .split_whitespace()
        .next()
        .context("du says nothing")?
        .parse()?)
}

/// The writable layer of a container.
pub fn upper(node: &TestNode, id: &str) -> PathBuf {
    node.files().root.join("overlay").join(id).join("upper")
}

/// A container with limits that has written 5 MB under two names, and waits.
///
/// # Errors
/// As the daemon says.
pub async fn writer(pod: &Pod<'_>, node: &TestNode, name: &str) -> Result<String> {
    let mut config = node.container_config(name).await?;
    let script = "mkdir /d && head -c 5000000 /dev/zero > /d/written && ln /d/written /d/same && echo ready; exec sleep 1000";
    config.command = words(["/bin/sh", "-c", script]);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        ..Default::default()
    });
    config.labels = [("app".to_owned(), name.to_owned())].into();
    let id = pod.start(&config).await?;
    let ready = || pod.log(&config).is_ok_and(|lines| !lines.is_empty());
    wait::until_true("the container to have written", wait::PATIENCE, ready).await?;
    Ok(id)
}
