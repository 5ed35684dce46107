//! Parts of statuses: signals, users, namespaces.

use zcri_proto::v1;

use super::mounts::id_mappings_to_proto;
use super::{ConvertError, known};
use crate::container::config::signal;
use crate::pod::config::{PodNamespaces, PodPid, PodScope};

/// `SIGNAL_SIGRTMINPLUS3` is how the protocol spells `SIGRTMIN+3`.
const PROTO_PREFIX: &str = "SIGNAL_";

pub(super) fn stop_signal(field: &str, value: i32) -> Result<Option<String>, ConvertError> {
    match known(field, value)? {
        v1::Signal::RuntimeDefault => Ok(None),
        other => {
            let name = other.as_str_name().trim_start_matches(PROTO_PREFIX);
            Ok(Some(name.replace("PLUS", "+").replace("MINUS", "-")))
        }
    }
}

/// A stop signal for ContainerStatus, from any form that image configurations use (`SIGTERM`, `TERM`, `15`).
#[must_use]
pub fn stop_signal_to_proto(name: &str) -> v1::Signal {
    let Some(name) = signal::canonical(name) else {
        return v1::Signal::RuntimeDefault;
    };
    let name = format!(
        "{PROTO_PREFIX}{}",
        name.replace('+', "PLUS").replace('-', "MINUS")
    );
    v1::Signal::from_str_name(&name).unwrap_or(v1::Signal::RuntimeDefault)
}

/// The identities of a container's first process.
#[must_use]
pub fn user_to_proto(uid: u32, gid: u32, supplemental_groups: &[u32]) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: uid.into(),
            gid: gid.into(),
            supplemental_groups: supplemental_groups
                .iter()
                .map(|gid| i64::from(*gid))
                .collect(),
        }),
    }
}

/// The namespaces of a pod, for PodSandboxStatus.
#[must_use]
pub fn namespaces_to_proto(namespaces: &PodNamespaces) -> v1::NamespaceOption {
    let scope = |scope| match scope {
        PodScope::Pod => v1::NamespaceMode::Pod.into(),
        PodScope::Node => v1::NamespaceMode::Node.into(),
    };
    v1::NamespaceOption {
        network: scope(namespaces.network),
        pid: match namespaces.pid {
            PodPid::Pod => v1::NamespaceMode::Pod.into(),
            PodPid::Container => v1::NamespaceMode::Container.into(),
            PodPid::Node => v1::NamespaceMode::Node.into(),
        },
        ipc: scope(namespaces.ipc),
        target_id: String::new(),
        userns_options: namespaces.user.as_ref().map(|user| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: id_mappings_to_proto(&user.uids),
            gids: id_mappings_to_proto(&user.gids),
        }),
    }
}
