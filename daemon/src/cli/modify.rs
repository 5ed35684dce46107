//! `zcrid modify`: has the running daemon obey a console command, by its admin socket.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::console::admin;

/// Sends the command to the daemon with that state directory and prints its answer; the exit code says whether it was
/// obeyed.
pub(super) fn send(state: &Path, command: &str) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let socket = admin::path(state);
    let asked = runtime.block_on(admin::ask(&socket, command));
    let answer = asked.with_context(|| format!("no zcrid answers on {}", socket.display()))?;
    for line in &answer.lines {
        println!("{line}");
    }
    Ok(if answer.done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
