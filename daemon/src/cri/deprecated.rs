//! Fields of requests that api.proto marks as deprecated. They work; who sends one without its successor is told so
//! in the status.

use zcri_proto::v1 as api;

use crate::deprecation::{Deprecated, Deprecations};

const POD_SECCOMP: Deprecated = Deprecated {
    name: "PodSandboxConfig.linux.security_context.seccomp_profile_path",
    instead: "PodSandboxConfig.linux.security_context.seccomp",
};
const SECCOMP: Deprecated = Deprecated {
    name: "ContainerConfig.linux.security_context.seccomp_profile_path",
    instead: "ContainerConfig.linux.security_context.seccomp",
};
const APPARMOR: Deprecated = Deprecated {
    name: "ContainerConfig.linux.security_context.apparmor_profile",
    instead: "ContainerConfig.linux.security_context.apparmor",
};

/// Notes the deprecated fields of a pod.
#[expect(deprecated, reason = "they are looked for")]
pub(super) fn of_pod(config: &api::PodSandboxConfig, used: &Deprecations) {
    let linux = config.linux.as_ref();
    let Some(security) = linux.and_then(|linux| linux.security_context.as_ref()) else {
        return;
    };
    if !security.seccomp_profile_path.is_empty() && security.seccomp.is_none() {
        used.note(POD_SECCOMP);
    }
}

/// Notes the deprecated fields of a container.
#[expect(deprecated, reason = "they are looked for")]
pub(super) fn of_container(config: &api::ContainerConfig, used: &Deprecations) {
    let linux = config.linux.as_ref();
    let Some(security) = linux.and_then(|linux| linux.security_context.as_ref()) else {
        return;
    };
    if !security.seccomp_profile_path.is_empty() && security.seccomp.is_none() {
        used.note(SECCOMP);
    }
    // Kubelets send both for a while: only the old one alone is a use of it.
    if !security.apparmor_profile.is_empty() && security.apparmor.is_none() {
        used.note(APPARMOR);
    }
}
