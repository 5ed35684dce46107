//! Mandatory access control: what the security modules of this node's kernel make of containers.

mod apparmor;
mod relabel;
mod selinux;

pub use apparmor::AppArmor;
pub(crate) use apparmor::try_default as try_apparmor;
pub(crate) use relabel::file as label_file;
pub use selinux::{Labels, PodLabel, Selinux};
pub(crate) use selinux::{is_on as selinux_is_on, try_contexts as try_selinux};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use relabel::RelabelError;

use crate::container::config::{AppArmorProfile, Security, SelinuxLabel};
use crate::error::{Chain, Error, Result};
use crate::id::PodId;
use crate::node::blocking;
use crate::runtime::HandlerFeatures;

const APPARMOR_FIELD: &str = "config.linux.security_context.apparmor";

/// The security modules of the kernel. By default it has none.
#[derive(Debug)]
pub struct Confinement {
    /// AppArmor, where it is enabled.
    pub apparmor: Option<AppArmor>,
    /// SELinux, where it is enabled.
    pub selinux: Option<Selinux>,
    /// Volumes that may be relabelled at the same time, each on a thread of those that all other work needs too.
    walks: Arc<Semaphore>,
}

/// A volume may have any size, and be of a server that is dead: more at the same time would not be faster.
const WALKS: usize = 4;

impl Default for Confinement {
    fn default() -> Self {
        Self {
            apparmor: None,
            selinux: None,
            walks: Arc::new(Semaphore::new(WALKS)),
        }
    }
}

/// What they make of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confined {
    /// AppArmor profile, by its name in the kernel.
    pub apparmor: Option<String>,
    /// SELinux labels.
    pub selinux: Labels,
}

impl Confinement {
    /// Finds out what this node has. The default profile is loaded into the kernel.
    #[must_use]
    pub fn of_node() -> Self {
        Self {
            apparmor: AppArmor::of_node(),
            selinux: Selinux::of_node(),
            ..Self::default()
        }
    }

    /// Gives the layers of images their label, below `<root>/images` and `<root>/overlay`. What is made there later has it
    /// by itself; layers that were there before the label was are walked in the background.
    pub(crate) fn label_layers(&self, root: &Path) {
        let Some(label) = self.selinux.as_ref().and_then(Selinux::layers) else {
            return;
        };
        let images = root.join("images");
        let directories = [root.join("overlay"), images.clone()];
        for directory in directories.into_iter().chain(directories_in(&images)) {
            if let Err(error) = relabel::file(&directory, &label) {
                tracing::warn!(path = %directory.display(), %error, "SELinux: not labelled");
            }
        }
        tokio::task::spawn_blocking(move || {
            for layer in directories_in(&images.join("layers")) {
                if let Err(error) = relabel::tree_once(&layer, &label) {
                    tracing::warn!(error = %Chain(&error), "SELinux: a layer is not labelled");
                }
            }
        });
    }

    /// What becomes of a container in a pod that has this label, if `runtime` does it. Nothing that is asked for is left
    /// out, except where the module is off, and there only a label: manifests name one for all kinds of nodes.
    ///
    /// # Errors
    /// What the request asks for cannot be had.
    pub(crate) fn confine(
        &self,
        pod: Option<&PodLabel>,
        security: &Security,
        runtime: &HandlerFeatures,
    ) -> Result<Confined> {
        let apparmor = self.apparmor_profile(&security.apparmor, security.privileged)?;
        let selinux = match &self.selinux {
            Some(module) => module.labels(pod, security.selinux.as_ref(), security.privileged)?,
            None => Labels::default(),
        };
        let lacks = |module: Option<bool>| module == Some(false);
        if lacks(runtime.apparmor) && names_a_profile(&security.apparmor) && !security.privileged {
            return lacking(APPARMOR_FIELD, "AppArmor");
        }
        if lacks(runtime.selinux) && selinux.process.is_some() && security.selinux.is_some() {
            return lacking(selinux::FIELD, "SELinux");
        }
        let apparmor = apparmor.filter(|_| !lacks(runtime.apparmor));
        let selinux = if lacks(runtime.selinux) {
            Labels::default()
        } else {
            selinux
        };
        Ok(Confined { apparmor, selinux })
    }

    /// Gives volumes the label of a container's files.
    ///
    /// # Cancel safety
    /// What was begun goes on to its end.
    ///
    /// # Errors
    /// A volume is none for containers, its pod is being stopped, or the kernel refused.
    pub(crate) async fn relabel(&self, wanted: Relabelling) -> Result<()> {
        let (pod, mut stopping) = (wanted.pod.clone(), wanted.stopping.clone());
        let walk = async {
            let walks = Arc::clone(&self.walks).acquire_owned().await;
            let permit = walks.map_err(|e| Error::node("wait for a walk", e))?;
            blocking(move || {
                let _held = permit;
                wanted.walk()
            })
            .await
        };
        tokio::select! {
            walked = walk => walked,
            // The walk sees it too, but it may be stuck.
            _ = stopping.wait_for(|stopping| *stopping) => Err(being_stopped(&pod)),
        }
    }

    /// Before a process is started under a profile: it may have been unloaded since the container was made.
    ///
    /// # Errors
    /// It is zcrid's own, and cannot be loaded.
    pub(crate) fn keep_loaded(&self, profile: Option<&str>) -> Result<()> {
        match (&self.apparmor, profile) {
            (Some(module), Some(profile)) => module.keep_loaded(profile),
            _ => Ok(()),
        }
    }

    /// The same before a container is started, by what it was made from.
    ///
    /// # Errors
    /// As [`Self::keep_loaded`], if the profile was asked for.
    pub(crate) fn keep_loaded_for(&self, security: &Security) -> Result<()> {
        let kept = self.apparmor_profile(&security.apparmor, security.privileged);
        kept.map(|_profile| ())
    }

    /// Name of the AppArmor profile of a container. `None` leaves it to the kernel, which is right where AppArmor is
    /// off.
    fn apparmor_profile(
        &self,
        asked: &AppArmorProfile,
        privileged: bool,
    ) -> Result<Option<String>> {
        match (&self.apparmor, asked) {
            // The privilege includes it (api.proto, `LinuxContainerSecurityContext.privileged`).
            (Some(_), _) if privileged => Ok(Some(apparmor::UNCONFINED.to_owned())),
            (Some(module), asked) => module.profile(asked),
            (None, _) if privileged => Ok(None),
            (None, AppArmorProfile::Unspecified | AppArmorProfile::Unconfined) => Ok(None),
            (None, AppArmorProfile::RuntimeDefault | AppArmorProfile::Localhost(_)) => {
                Err(Error::Unsupported {
                    what: APPARMOR_FIELD,
                    reason: "a profile is asked for, but AppArmor is not enabled on this node"
                        .into(),
                })
            }
        }
    }

    /// The SELinux label of a new pod, if it gets one.
    ///
    /// # Errors
    /// The policy has no such label as the request asks for.
    pub(crate) fn pod_label(
        &self,
        asked: Option<&SelinuxLabel>,
        shares_processes_with_node: bool,
    ) -> Result<Option<PodLabel>> {
        match &self.selinux {
            Some(module) => module.pod_label(asked, shares_processes_with_node),
            None => Ok(None),
        }
    }

    /// The label of a pod that an earlier daemon made, as it was recorded.
    pub(crate) fn recall(&self, recorded: Option<&str>) -> Option<PodLabel> {
        self.selinux.as_ref()?.recall(recorded?)
    }

    /// The SELinux label of files that zcrid makes for the containers of a pod that has a label.
    pub(crate) fn shared_files(&self, pod: Option<&PodLabel>) -> Option<String> {
        pod.and(self.selinux.as_ref()?.shared_files())
    }

    /// The SELinux label of a pod's own file systems.
    pub(crate) fn files_of(&self, pod: Option<&PodLabel>) -> Option<String> {
        self.selinux.as_ref()?.files_of(pod?)
    }
}

/// Volumes of a container that shall get the label of its files.
#[derive(Debug)]
pub(crate) struct Relabelling {
    /// Their paths, free of links.
    pub(crate) volumes: Vec<PathBuf>,
    /// What may not be relabelled, beside the directories of the system.
    pub(crate) others: Vec<PathBuf>,
    /// The label.
    pub(crate) label: String,
    /// The container's pod.
    pub(crate) pod: PodId,
    /// Becomes true when that shall be stopped.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Relabelling {
    fn walk(&self) -> Result<()> {
        let stopping = || *self.stopping.borrow();
        let mut volumes = self.volumes.iter();
        let walked = volumes
            .try_for_each(|volume| relabel::tree(volume, &self.label, &self.others, &stopping));
        walked.map_err(|error| match error {
            RelabelError::File { .. } => Error::node("relabel a volume", error),
            RelabelError::Cancelled { .. } => being_stopped(&self.pod),
            RelabelError::OfTheSystem { ref path } => Error::Invalid {
                field: "config.mounts.selinux_relabel",
                value: path.display().to_string(),
                reason: error.to_string(),
            },
        })
    }
}

fn being_stopped(pod: &PodId) -> Error {
    Error::State {
        what: "pod sandbox",
        id: pod.to_string(),
        state: "being stopped",
        action: "relabel a volume for a container",
    }
}

fn directories_in(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

fn names_a_profile(asked: &AppArmorProfile) -> bool {
    matches!(
        asked,
        AppArmorProfile::RuntimeDefault | AppArmorProfile::Localhost(_)
    )
}

fn lacking(what: &'static str, module: &str) -> Result<Confined> {
    Err(Error::Unsupported {
        what,
        reason: format!("the runtime of this handler was built without {module}"),
    })
}

#[cfg(test)]
mod tests;
