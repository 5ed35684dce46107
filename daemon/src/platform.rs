//! What differs between the systems that a node may be, cut by capability: isolation, root file system, limits and
//! usage, pod network, identity.
//!
//! Which one it is says the configuration (`platform.kind`), not the compiler: the daemon of a z/OS node runs on
//! Linux too, on an emulated LPAR, and that is how it is tested. Only where z/OS itself is called there is
//! `#[cfg(target_os = "zos")]`, and that is in `zcri-sys`.

pub mod zos;

use oci_spec::runtime::Spec;
use zcri_config::{Config, PlatformKind, WlmTarget};
use zcri_sys::cgroup;

use crate::container::config::ContainerConfig;
use crate::container::spec::{self, SpecError, SpecInput};
use crate::error::{Error, Result};
use crate::pod::config::PodConfig;
use crate::runtime::HandlerFeatures;

pub use zos::Zos;

/// The system that this node is, as far as the rest of the daemon must know.
#[derive(Debug)]
pub enum Platform {
    /// Linux, with everything that it has.
    Linux,
    /// z/OS.
    Zos(Zos),
}

impl Platform {
    /// The platform that the configuration names.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        match config.platform.kind {
            PlatformKind::Linux => Self::Linux,
            PlatformKind::Zos => Self::Zos(Zos {
                wlm: config.wlm.clone(),
            }),
        }
    }

    // Isolation.

    /// Whether zcrid makes a pod's IPC, UTS and network namespaces and pins them on files, with a `/dev/shm` that
    /// belongs to them. Otherwise the pod's shim
    /// is started in namespaces of the pod's own, and the OCI runtime inherits them from it.
    #[must_use]
    pub fn pins_namespaces(&self) -> bool {
        matches!(self, Self::Linux)
    }

    /// A pod's configuration as this platform understands it: also that of a pod which an earlier daemon made.
    ///
    /// # Errors
    /// [`Error::Invalid`] with an annotation that makes no sense.
    pub fn adopt_pod(&self, mut config: PodConfig) -> Result<PodConfig> {
        if let Self::Zos(_) = self {
            zos::adopt_pod(&mut config)?;
        }
        Ok(config)
    }

    /// Whether a pod can be what it is asked to be.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the field that cannot be had here.
    pub fn check_pod(&self, config: &PodConfig) -> Result<()> {
        match self {
            Self::Linux => Ok(()),
            Self::Zos(_) => zos::check_pod(config),
        }
    }

    /// Whether a runtime can run containers of this platform, as far as it says what it can.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with what it lacks.
    pub fn check_runtime(&self, handler: &str, features: &HandlerFeatures) -> Result<()> {
        match self {
            Self::Linux => Ok(()),
            Self::Zos(_) => zos::check_runtime(handler, features),
        }
    }

    /// A container's configuration with what it inherits from its pod.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the field that cannot be had here.
    pub fn adopt(&self, pod: &PodConfig, config: ContainerConfig) -> Result<ContainerConfig> {
        match self {
            Self::Linux => Ok(config),
            Self::Zos(_) => zos::adopt(pod, config),
        }
    }

    /// The OCI specification of a container.
    ///
    /// # Errors
    /// What was asked for cannot be had, or contradicts itself.
    pub fn spec(&self, input: &SpecInput<'_>, wlm: Option<&WlmTarget>) -> Result<Spec, SpecError> {
        match self {
            Self::Linux => spec::build(input),
            Self::Zos(zos) => spec::zos::build(input, wlm, &zos.wlm.mapping),
        }
    }

    // Limits and usage.

    /// The node's control groups; none where limits are another's business.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn cgroups(&self) -> Result<cgroup::Tree> {
        match self {
            Self::Linux => cgroup::Tree::detect().map_err(|e| Error::node("find cgroups", e)),
            Self::Zos(_) => Ok(cgroup::Tree::none()),
        }
    }

    /// The control groups to which pods on the node's stack are confined. z/OS needs none; an emulated LPAR, which is
    /// a z/OS node on Linux, does.
    #[must_use]
    pub fn stack_groups(&self, cgroups: &cgroup::Tree) -> Option<cgroup::Tree> {
        match self {
            Self::Linux => Some(cgroups.clone()),
            Self::Zos(_) => cgroup::Tree::detect()
                .ok()
                .filter(|tree| tree.unified().is_some()),
        }
    }

    /// Whether limits are set on a running container by its OCI runtime. Otherwise they are recorded only.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        matches!(self, Self::Linux)
    }

    /// Whether there is a workload manager that containers are classified for.
    #[must_use]
    pub fn has_workload_manager(&self) -> bool {
        matches!(self, Self::Zos(_))
    }

    /// What a container is to the system's workload manager, where there is one.
    #[must_use]
    pub fn classify(
        &self,
        pod: &PodConfig,
        container: &ContainerConfig,
        handler: &str,
    ) -> Option<WlmTarget> {
        match self {
            Self::Linux => None,
            Self::Zos(zos) => Some(zos.classify(pod, container, handler)),
        }
    }

    // Identity.

    /// An error of a privileged operation, with the authority to grant where that is what is missing.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        match self {
            Self::Linux => error,
            Self::Zos(_) => zos::authority::explain(error),
        }
    }
}
