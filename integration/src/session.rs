//! Exec sessions with a shell in a container, and what a test looks for when they are over.

use anyhow::{Result, ensure};

use crate::stream_client::{Remote, Streams, Transport};
use crate::{TestNode, images, wait};

/// Begins a session that runs a shell script.
///
/// # Errors
/// As the daemon says.
pub async fn open(
    node: &TestNode,
    id: &str,
    script: &str,
    transport: Transport,
    streams: Streams,
) -> Result<Remote> {
    let url = node
        .cri()
        .exec_url(id, ["/bin/sh", "-c", script], streams)
        .await?;
    Remote::open(&url, transport, streams).await
}

/// Programs in a container whose arguments hold `text`.
///
/// # Errors
/// As the daemon says.
pub async fn count(node: &TestNode, id: &str, text: &str) -> Result<usize> {
    let found = node
        .exec(
            id,
            "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null",
        )
        .await?;
    // The program that looks has the text nowhere.
    Ok(found
        .stdout
        .lines()
        .filter(|line| line.contains(text))
        .count())
}

/// Waits until a container has no program whose arguments hold `text`.
///
/// # Errors
/// They do not end, or as the daemon says.
pub async fn gone(node: &TestNode, id: &str, text: &str) -> Result<()> {
    wait::until("the processes to end", wait::PATIENCE, async || {
        Ok((count(node, id, text).await? == 0).then_some(()))
    })
    .await
}

/// FIFOs in the container's bundle.
///
/// # Errors
/// It is missing or cannot be read.
pub fn fifos(node: &TestNode, id: &str) -> Result<Vec<String>> {
    let bundle = node.files().state.join("containers").join(id);
    ensure!(bundle.is_dir(), "{} is missing", bundle.display());
    let mut found = images::tree(&bundle.join("."))?;
    found.retain(|path| {
        ["exec-", "sync-", "attach-"]
            .iter()
            .any(|p| path.starts_with(p))
    });
    Ok(found)
}

/// How many descriptors the daemon has open.
///
/// # Errors
/// It does not run.
pub fn descriptors(node: &TestNode) -> Result<usize> {
    let pid = node.daemon_pid()?.as_raw_nonzero();
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
