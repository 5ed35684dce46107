//! What all pods of a node share: directories, records, handlers, images, network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zcri_sys::cgroup;

use crate::confinement::Confinement;
use crate::container::ContainerView;
use crate::container::config::{ContainerConfig, Resources};
use crate::container::spec::NodeFacts;
use crate::deprecation::Deprecations;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::health::Health;
use crate::images::Images;
use crate::metrics::Operations;
use crate::network::{Isolation, Network};
use crate::platform::Platform;
use crate::pod::config::PodConfig;
use crate::runtime::{Handlers, ShimLauncher};
use crate::state::{ContainerRecord, PodRecord, RecordStore};
use crate::stats::Readers;

/// The concrete parts that the composition root built.
pub struct Node {
    /// Durable files.
    pub root: PathBuf,
    /// Files that end with the boot.
    pub state: PathBuf,
    /// Identity of this boot.
    pub boot_id: String,
    /// Records of pods and containers.
    pub records: RecordStore,
    /// Runtime handlers.
    pub handlers: Handlers,
    /// Starts shims.
    pub launcher: ShimLauncher,
    /// Pod network.
    pub network: Network,
    /// What keeps the networks of pods apart.
    pub isolation: Isolation,
    /// Images.
    pub images: Images,
    /// Facts that decide what a container may have.
    pub facts: NodeFacts,
    /// What the kernel's security modules make of containers.
    pub confinement: Confinement,
    /// What kind of system this is.
    pub platform: Platform,
    /// Control groups.
    pub cgroups: cgroup::Tree,
    /// Control groups to which pods on the node's stack are confined; none where the stack itself knows a pod's
    /// processes, as on z/OS.
    pub stack_groups: Option<cgroup::Tree>,
    /// How control groups are named.
    pub cgroup_driver: CgroupDriver,
    /// Parent of the control groups of pods that name none.
    pub cgroup_parent: String,
    /// Limit of processes in a container, -1 for none; `None` leaves it to whoever makes control groups.
    pub pids_limit: Option<i64>,
    /// Limits of the processes of every container.
    pub rlimits: Vec<zcri_config::Rlimit>,
    /// Directories with descriptions of CDI devices, of which later ones win.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Checks whether containers could run.
    pub health: Health,
    /// Deprecated fields that were used.
    pub deprecations: Deprecations,
    /// The configuration in force, as JSON.
    pub config: serde_json::Value,
    /// What calls did.
    pub operations: Arc<Operations>,
    /// Tells what happens.
    pub events: Events,
    /// Who may read usage.
    pub readers: Readers,
    /// Between records and configurations.
    pub wire: WireFormat,
}

/// How configurations are written into records: as the interface encodes them. Only the gRPC edge knows that
/// encoding, so it lends its functions.
#[derive(Clone, Copy)]
pub struct WireFormat {
    /// Reads a pod's configuration.
    pub decode_pod: fn(&[u8]) -> Result<PodConfig>,
    /// Reads a container's configuration.
    pub decode_container: fn(&[u8]) -> Result<ContainerConfig>,
    /// Reads resources.
    pub decode_resources: fn(&[u8]) -> Result<Resources>,
    /// Writes resources.
    pub encode_resources: fn(&Resources) -> Vec<u8>,
    /// A pod's configuration with other overhead and resources, in this order; `None` is none.
    pub with_pod_resources: fn(&[u8], PodResources<'_>) -> Result<Vec<u8>>,
}

/// Overhead and resources of a pod.
pub type PodResources<'a> = (Option<&'a Resources>, Option<&'a Resources>);

/// Who makes control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The OCI runtime, by mkdir.
    Cgroupfs,
    /// systemd, asked by the OCI runtime.
    Systemd,
}

impl Node {
    /// Bundle of a pod.
    pub fn pod_bundle(&self, id: &str) -> PathBuf {
        self.state.join("pods").join(id)
    }

    /// Bundle of a container.
    pub fn container_bundle(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// Writable layer of a container, with the directory the kernel works in.
    pub fn overlay(&self, id: &str) -> PathBuf {
        self.root.join("overlay").join(id)
    }

    /// Where the kernel counts what a container uses: its control group, or the one in it that crun makes for it in a
    /// scope of systemd's.
    pub(crate) fn group_of(&self, container: &ContainerView) -> String {
        let inner = format!("{}/container", container.cgroup);
        let by_crun = self.cgroup_driver == CgroupDriver::Systemd && self.cgroups.has_group(&inner);
        if by_crun {
            inner
        } else {
            container.cgroup.clone()
        }
    }

    /// Writes a pod's record over the one before, off the async threads.
    ///
    /// # Errors
    /// The file system refused; the record before is still there.
    pub(crate) async fn record_pod(self: &Arc<Self>, record: PodRecord) -> Result<()> {
        let node = self.clone();
        blocking(move || {
            let written = node.records.put_pod(&record);
            written.map_err(|e| Error::node("record a pod", e))
        })
        .await
    }

    /// Writes a container's record, as [`Node::record_pod`].
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn record_container(self: &Arc<Self>, record: ContainerRecord) -> Result<()> {
        let node = self.clone();
        blocking(move || {
            let written = node.records.put_container(&record);
            written.map_err(|e| Error::node("record a container", e))
        })
        .await
    }

    /// Makes the directories that [`Node::discard`] needs, and empties them of what a crash left.
    ///
    /// # Errors
    /// The file system refused.
    pub fn empty_trash(&self) -> std::io::Result<()> {
        for under in [&self.root, &self.state] {
            let trash = under.join("trash");
            std::fs::create_dir_all(&trash)?;
            for entry in std::fs::read_dir(&trash)? {
                let path = entry?.path();
                // A tree or a file.
                std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path))?;
            }
        }
        Ok(())
    }

    /// Removes a directory tree: first out of the way by rename, so that a crash leaves nothing half removed
    /// under its name, then for good, in the background.
    ///
    /// # Errors
    /// It could not be renamed. Nothing there is no error.
    pub fn discard(&self, dir: &Path) -> Result<()> {
        let name = dir.file_name().unwrap_or_default();
        // `<root>/overlay/ID` goes to `<root>/trash`, `<state>/pods/ID` to `<state>/trash`: a rename stays on its
        // file system.
        let under = if dir.starts_with(&self.state) {
            &self.state
        } else {
            &self.root
        };
        let trash = under.join("trash");
        // Unique, because a name that failed half way may come again.
        let target = trash.join(format!(
            "{}-{}",
            name.to_string_lossy(),
            crate::time::now_ns()
        ));
        match std::fs::rename(dir, &target) {
            Ok(()) => {
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = std::fs::remove_dir_all(&target) {
                        tracing::warn!(path = %target.display(), %error, "what was discarded could not be removed");
                    }
                });
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::node(format!("discard {}", dir.display()), e)),
        }
    }
}

/// Runs file system work off the async threads.
///
/// # Errors
/// Those of the work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::node("run a task on the node", error)),
    }
}
