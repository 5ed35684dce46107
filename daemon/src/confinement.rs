//! Mandatory access control: what the security modules of this node's kernel make of containers.

mod apparmor;
mod relabel;
mod selinux;

pub use apparmor::AppArmor;
pub(crate) use apparmor::try_default as try_apparmor;
pub(crate) use relabel::{RelabelError, file as label_file, tree as label_tree};
pub(crate) use selinux::try_contexts as try_selinux;
pub use selinux::{Labels, PodLabel, Selinux};

use std::path::PathBuf;

use crate::container::config::{AppArmorProfile, Security, SelinuxLabel};
use crate::error::{Error, Result};
use crate::runtime::HandlerFeatures;

const APPARMOR_FIELD: &str = "config.linux.security_context.apparmor";

/// The security modules of the kernel. By default it has none.
#[derive(Debug, Default)]
pub struct Confinement {
    /// AppArmor, where it is enabled.
    pub apparmor: Option<AppArmor>,
    /// SELinux, where it is enabled.
    pub selinux: Option<Selinux>,
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
        }
    }

    /// Labels the directories that hold layers; what is made in them later has their label by itself.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn label_layers(&self, directories: &[PathBuf]) -> Result<(), RelabelError> {
        let Some(label) = self.selinux.as_ref().and_then(Selinux::layers) else {
            return Ok(());
        };
        directories
            .iter()
            .try_for_each(|directory| relabel::tree_once(directory, &label))
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
        let profile = apparmor
            .as_ref()
            .filter(|name| *name != apparmor::UNCONFINED);
        if profile.is_some() && runtime.apparmor == Some(false) {
            if security.apparmor != AppArmorProfile::Unspecified {
                return lacking(APPARMOR_FIELD, "AppArmor");
            }
            return Ok(Confined {
                apparmor: None,
                selinux,
            });
        }
        if selinux.process.is_some() && runtime.selinux == Some(false) {
            if security.selinux.is_some() {
                return lacking(selinux::FIELD, "SELinux");
            }
            return Ok(Confined {
                apparmor,
                selinux: Labels::default(),
            });
        }
        Ok(Confined { apparmor, selinux })
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

    /// The SELinux label of the files that zcrid makes for a pod.
    pub(crate) fn files_of(&self, pod: Option<&PodLabel>) -> Option<String> {
        self.selinux.as_ref()?.files_of(pod?)
    }
}

fn lacking(what: &'static str, module: &str) -> Result<Confined> {
    Err(Error::Unsupported {
        what,
        reason: format!("the runtime of this handler was built without {module}"),
    })
}

#[cfg(test)]
mod tests;
