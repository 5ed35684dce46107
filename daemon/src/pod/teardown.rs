//! Taking a pod down: every step may be repeated, and finds nothing to do when it was done before.
//!
//! The same steps undo a pod that could not be made, stop and remove one on request, and clear what a crash left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
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
pub(crate) async fn remove_pod(node: &Arc<Node>, id: &PodId, record: &PodRecord) -> Result<()> {
    clear_bundle(node, id, record).await?;
    forget(node, record).await
}

async fn forget(node: &Arc<Node>, record: &PodRecord) -> Result<()> {
    let (node, id) = (node.clone(), record.id.clone());
    blocking(move || {
        let removed = node.records.remove_pod(&id);
        removed.map_err(|e| Error::node("forget a pod", e))
    })
    .await
}

/// Its mounts and its directory.
async fn clear_bundle(node: &Arc<Node>, id: &PodId, record: &PodRecord) -> Result<()> {
    let files = PodFiles::new(node.pod_bundle(id.as_str()));
    stop_namespaces(&files, record).await?;
    if let Some(cgroup) = &record.stack_cgroup {
        isolation::remove(node, cgroup).await?;
    }
    let node = node.clone();
    blocking(move || {
        zcri_sys::mount::unmount(&files.shm())
            .map_err(|e| Error::node("unmount /dev/shm of a pod", e))?;
        node.discard(&files.bundle)
    })
    .await
}

/// Takes down a pod that was not finished, from whatever step it reached.
///
/// Goes on after an error, and gives the first one.
pub(crate) async fn unmake(
    node: &Arc<Node>,
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
    forget(node, record).await
}

/// Ends a container whose shim died: its processes, and what the OCI runtime keeps of it.
///
/// # Errors
/// The OCI runtime's words; asking again tries again.
pub(crate) async fn end_orphan(
    node: &Arc<Node>,
    handler: Option<&Handler>,
    container: &Arc<ContainerView>,
) -> Result<()> {
    let found = {
        let (node, container, handler) = (node.clone(), container.clone(), handler.cloned());
        blocking(move || {
            // Before the runtime, which waits for the end of the first process only.
            kill_all(&node, &container);
            Ok(OrphanRuntime::of(&container.bundle, handler.as_ref()))
        })
        .await?
    };
    let failed = |source: crate::error::Source| Error::Runtime {
        action: "delete",
        id: container.id.to_string(),
        source,
    };
    let Some(runtime) = found else {
        let missing = "its OCI runtime is not known: the handler that it was made with is not configured any more";
        return Err(failed(missing.into()));
    };
    let mut command = Command::new(&runtime.binary);
    if !runtime.root.as_os_str().is_empty() {
        command.arg("--root").arg(&runtime.root);
    }
    // With --force, a container that the runtime does not know is deleted already.
    command.args(["delete", "--force", container.id.as_str()]);
    let output = command.output().await.map_err(|e| failed(e.into()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().into(),
    ))
}

/// [`end_orphan`] where nobody waits for the result: the container's removal tries again.
pub(crate) async fn kill_orphan(
    node: &Arc<Node>,
    handler: Option<&Handler>,
    container: &Arc<ContainerView>,
) {
    if let Err(error) = end_orphan(node, handler, container).await {
        tracing::warn!(container = %container.id, error = %Chain(&error), "an orphan was not deleted");
    }
}

/// The program that keeps something of a container.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct OrphanRuntime {
    binary: PathBuf,
    /// Empty leaves it to the program.
    root: PathBuf,
}

impl OrphanRuntime {
    /// The shim's note in the bundle has what the container was started with. The handler may be configured anew
    /// since, or not at all any more.
    fn of(bundle: &Path, handler: Option<&Handler>) -> Option<Self> {
        let noted = std::fs::read(bundle.join("runtime.json")).ok();
        noted
            .and_then(|text| serde_json::from_slice::<Self>(&text).ok())
            .filter(|noted| noted.binary.exists())
            .or_else(|| {
                handler.map(|handler| Self {
                    binary: handler.path.clone(),
                    root: handler.root.clone().unwrap_or_default(),
                })
            })
    }
}

fn kill_all(node: &Node, container: &ContainerView) {
    match node.cgroups.processes(&container.cgroup) {
        Ok(pids) => pids.into_iter().for_each(kill),
        Err(error) => {
            tracing::warn!(container = %container.id, error = %Chain(&error), "its cgroup was not read")
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_deleted_by_what_started_it() {
        let bundle = tempfile::tempdir().unwrap();
        let handler = Handler {
            name: "h".into(),
            path: "/handler".into(),
            root: None,
            output: None,
            systemd_cgroup: false,
        };
        let of = |handler| OrphanRuntime::of(bundle.path(), handler);
        assert_eq!(of(None), None);
        let by_handler = OrphanRuntime {
            binary: "/handler".into(),
            root: PathBuf::new(),
        };
        assert_eq!(of(Some(&handler)), Some(by_handler));
        let note = |binary: &str| {
            let note =
                serde_json::json!({ "binary": binary, "root": "/r", "systemd_cgroup": false });
            std::fs::write(bundle.path().join("runtime.json"), note.to_string()).unwrap();
        };
        note("/proc/self/exe");
        let noted = of(None).unwrap();
        assert_eq!(noted.root, Path::new("/r"));
        assert_eq!(of(Some(&handler)), Some(noted));
        // A program that was replaced by another one since.
        note("/none/such");
        assert_eq!(of(Some(&handler)).unwrap().binary, Path::new("/handler"));
        assert_eq!(of(None), None);
    }
}
