//! Seccomp filters: none, the daemon's own, or a profile file of the node.

mod default;
mod profile;

use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
};

use super::{CapabilitySet, NodeFacts, SpecError};
use crate::container::config::{SeccompProfile, Security};

/// A profile file of the node that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalProfile {
    /// Where it was.
    pub path: PathBuf,
    /// Its text.
    pub json: String,
    /// Release of the running kernel, major and minor: profiles may depend on it.
    pub kernel: (u32, u32),
}

/// The filter for a container that holds the given capabilities. A privileged one has none (api.proto,
/// `privileged`).
pub(super) fn seccomp(
    security: &Security,
    local: Option<&LocalProfile>,
    held: CapabilitySet,
    facts: &NodeFacts,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    if security.privileged || security.seccomp == SeccompProfile::Unconfined {
        return Ok(None);
    }
    if !facts.seccomp {
        return Err(SpecError::SeccompUnavailable);
    }
    match (&security.seccomp, local) {
        (SeccompProfile::Unconfined, _) => Ok(None),
        (SeccompProfile::RuntimeDefault, _) => Ok(Some(default::profile(Machine::HOST, held))),
        (SeccompProfile::Localhost(path), Some(local)) if local.path == *path => {
            let parsed = profile::parse(&local.json).and_then(|profile| {
                profile.resolve(&profile::Context {
                    machine: Machine::HOST,
                    held,
                    kernel: local.kernel,
                })
            });
            let named = |reason: profile::ProfileError| SpecError::SeccompProfile {
                path: path.clone(),
                reason: reason.to_string(),
            };
            Ok(Some(parsed.map_err(named)?))
        }
        (SeccompProfile::Localhost(path), _) => Err(SpecError::SeccompProfile {
            path: path.clone(),
            reason: "was not read".to_owned(),
        }),
    }
}

/// A machine architecture, as far as filters differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    X86_64,
    Aarch64,
    S390x,
    /// Only the native calls are allowed there.
    Other,
}

impl Machine {
    const HOST: Self = if cfg!(target_arch = "x86_64") {
        Self::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else if cfg!(target_arch = "s390x") {
        Self::S390x
    } else {
        Self::Other
    };

    /// Go's name of the architecture, which profiles use in `arches`.
    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::S390x => "s390x",
            Self::Other => std::env::consts::ARCH,
        }
    }

    /// The native architecture.
    fn native(self) -> Arch {
        match self {
            Self::X86_64 => Arch::ScmpArchX86_64,
            Self::Aarch64 => Arch::ScmpArchAarch64,
            Self::S390x => Arch::ScmpArchS390x,
            Self::Other => Arch::ScmpArchNative,
        }
    }

    /// The native one first, then the 32-bit one: without it in the filter the kernel would kill 32-bit programs.
    ///
    /// x32 is left out, unlike in Docker's profile: distributions have it turned off, attacks on kernels have come
    /// through it, and each architecture costs runc about 6 ms of CPU time per container for compiling the filter.
    fn architectures(self) -> Vec<Arch> {
        match self {
            Self::X86_64 => vec![self.native(), Arch::ScmpArchX86],
            Self::Aarch64 => vec![self.native(), Arch::ScmpArchArm],
            Self::S390x => vec![self.native(), Arch::ScmpArchS390],
            Self::Other => vec![self.native()],
        }
    }
}

fn argument(index: usize, op: LinuxSeccompOperator, value: u64, value_two: u64) -> LinuxSeccompArg {
    let built = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(value_two)
        .build();
    // Every field is set above; the type has a builder and no setters.
    built.unwrap_or_default()
}
