//! Taking a pod down: every step may be repeated, and finds nothing to do when it was done before.
//!
//! The same steps undo a pod that could not be made, stop and remove one on request, and clear what a crash left.

use tokio::process::Command;

use super::files::PodFiles;
use crate::container::ContainerView;
use crate::error::{Chain, Error, Result};
use crate::id::PodId;
use crate::network::isolation;
use crate::node::{Node, blocking};
use crate::runtime::{Handler, Shim};
use crate::state::PodRecord;

/// Ends the init of the pod's PID namespace, and lets the pod's namespaces go.
pub(crate) async fn stop_namespaces(files: &PodFiles, record: &PodRecord) -> Result<()> {
    let files = files.clone();
    let recorded = record.init_pid;
    blocking(move || {
        // The shim notes the init before the record can.
        let noted = std::fs::read_to_string(files.bundle.join("init.pid")).ok();
        let noted = noted.and_then(|text| text.trim().parse().ok());
        if let Some(pid) = recorded.or(noted) {
            zcri_sys::namespace::kill_init(pid, &files.namespace("pid"))
                .map_err(|e| Error::node("end the init of a pod", e))?;
        }
        for path in &files.namespaces() {
            zcri_sys::namespace::unpin(path).map_err(|e| Error::node("let a namespace go", e))?;
        }
        Ok(())
    })
    .await
}

/// Removes what is left of a stopped pod without containers: its mounts, its directory, its cgroup, its record.
pub(crate) async fn remove_pod(node: &Node, id: &PodId, record: &PodRecord) -> Result<()> {
    clear_bundle(node, id, record).await?;
    node.records
        .remove_pod(&record.id)
        .map_err(|e| Error::node("forget a pod", e))
}

/// Its mounts and its directory.
async fn clear_bundle(node: &Node, id: &PodId, record: &PodRecord) -> Result<()> {
    let files = PodFiles::new(node.pod_bundle(id.as_str()));
    stop_namespaces(&files, record).await?;
    if let Some(cgroup) = &record.stack_cgroup {
        isolation::remove(node, cgroup).await?;
    }
    zcri_sys::mount::unmount(&files.shm())
        .map_err(|e| Error::node("unmount /dev/shm of a pod", e))?;
    node.discard(&files.bundle)
}

/// Takes down a pod that was not finished, from whatever step it reached.
///
/// Goes on after an error, and gives the first one.
pub(crate) async fn unmake(
    node: &Node,
    id: &PodId,
    record: &mut PodRecord,
    shim: Option<Shim>,
) -> Result<()> {
    let bundle = node.pod_bundle(id.as_str());
    let network = if record.network_attached {
        node.network.detach(id.as_str()).await
    } else {
        Ok(())
    };
    let shim = match shim {
        None => Shim::connect(&bundle).await.ok(),
        some => some,
    };
    if let Some(shim) = shim {
        shim.shutdown().await;
    }
    // An address that could not be given back must not be forgotten: the record stays, and with it the retry. All
    // else goes.
    if network.is_ok() {
        record.network_attached = false;
    }
    clear_bundle(node, id, record).await?;
    network?;
    node.records
        .remove_pod(&record.id)
        .map_err(|e| Error::node("forget a pod", e))
}

/// Ends a container whose shim died: its processes, and what the OCI runtime keeps of it.
///
/// # Errors
/// The OCI runtime's words; asking again tries again.
pub(crate) async fn end_orphan(
    node: &Node,
    handler: Option<&Handler>,
    container: &ContainerView,
) -> Result<()> {
    // Before the runtime, which waits for the end of the first process only.
    match node.cgroups.processes(&container.cgroup) {
        Ok(pids) => pids.into_iter().for_each(kill),
        Err(error) => {
            tracing::warn!(container = %container.id, error = %Chain(&error), "its cgroup was not read")
        }
    }
    let Some(handler) = handler else {
        return Ok(());
    };
    let mut command = Command::new(&handler.path);
    if let Some(root) = &handler.root {
        command.arg("--root").arg(root);
    }
    // With --force, a container that the runtime does not know is deleted already.
    command.args(["delete", "--force", container.id.as_str()]);
    let failed = |source: crate::error::Source| Error::Runtime {
        action: "delete",
        id: container.id.to_string(),
        source,
    };
    let output = command.output().await.map_err(|e| failed(e.into()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().into(),
    ))
}

/// [`end_orphan`] where nobody waits for the result: the container's removal tries again.
pub(crate) async fn kill_orphan(node: &Node, handler: Option<&Handler>, container: &ContainerView) {
    if let Err(error) = end_orphan(node, handler, container).await {
        tracing::warn!(container = %container.id, error = %Chain(&error), "an orphan was not deleted");
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // One that is gone is what was wanted.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
}
