//! Why no specification can be built.

use std::path::PathBuf;

/// What was asked for cannot be had, or contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the request nor the image says what to run.
    #[error(
        "no command: neither command nor args is set, and the image has no entrypoint and no default arguments"
    )]
    NoCommand,
    /// The specification is JSON, which has no place for such a value.
    #[error("the value of environment variable {name:?} is not UTF-8")]
    EnvironmentNotText {
        /// The variable.
        name: String,
    },
    /// A working directory that is no absolute path.
    #[error("working directory {path:?} of the image is not usable")]
    WorkingDirectory {
        /// As the image has it.
        path: String,
    },
    /// CRI: a sandbox must be privileged for privileged containers.
    #[error(
        "config.linux.security_context.privileged: a privileged container cannot run in a pod sandbox that is not privileged"
    )]
    PrivilegedInUnprivilegedPod,
    /// A user that the image does not have.
    #[error("{of}: unable to find user {name}: no users found")]
    NoSuchUser {
        /// Field of the request, or the image's.
        of: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// A group that the image does not have.
    #[error("user of the image: unable to find group {name}: no groups found")]
    NoSuchGroup {
        /// As it was asked for.
        name: String,
    },
    /// A capability that the kernel does not know.
    #[error("config.linux.security_context.capabilities.{list}: unknown capability {name:?}")]
    UnknownCapability {
        /// Field with the name.
        list: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// A capability that the daemon does not have and so cannot give.
    #[error(
        "config.linux.security_context.capabilities.{list}: {name} cannot be added: it is not in the bounding set of this node's daemon"
    )]
    CapabilityNotHeld {
        /// Field with the name.
        list: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// A namespace of the pod that is not there.
    #[error("the pod's {kind} namespace is not there")]
    NamespaceMissing {
        /// "network", "IPC", ...
        kind: &'static str,
    },
    /// Seccomp was asked for on a kernel without it.
    #[error(
        "config.linux.security_context.seccomp: a profile is asked for, but this kernel has no seccomp filters"
    )]
    SeccompUnavailable,
    /// A profile file that cannot be used.
    #[error("config.linux.security_context.seccomp: profile {path:?}: {reason}")]
    SeccompProfile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The source of a mount does not propagate as asked.
    #[error(
        "config.mounts.propagation: mount of {path:?} with {asked} propagation: it is on a mount that is not {needed}"
    )]
    Propagation {
        /// Path on the node.
        path: PathBuf,
        /// As CRI names it.
        asked: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
}
