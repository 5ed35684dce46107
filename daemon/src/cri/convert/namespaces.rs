//! Namespace options and id mappings.

use zcri_proto::v1;

use super::{ConvertError, known};
use crate::container::config::PidMode;
use crate::pod::config::{IdMapping, PodPid, PodScope, UserNamespace};

/// Network or IPC: CRI offers the pod's and the node's.
pub(super) fn scope(field: &str, value: i32) -> Result<PodScope, ConvertError> {
    match known(field, value)? {
        v1::NamespaceMode::Pod => Ok(PodScope::Pod),
        v1::NamespaceMode::Node => Ok(PodScope::Node),
        other => Err(ConvertError::invalid(
            field,
            other.as_str_name(),
            "must be POD or NODE",
        )),
    }
}

/// PID namespace of a pod.
pub(super) fn pod_pid(field: &str, value: i32) -> Result<PodPid, ConvertError> {
    match known(field, value)? {
        v1::NamespaceMode::Pod => Ok(PodPid::Pod),
        v1::NamespaceMode::Container => Ok(PodPid::Container),
        v1::NamespaceMode::Node => Ok(PodPid::Node),
        v1::NamespaceMode::Target => Err(ConvertError::invalid(
            field,
            "TARGET",
            "is possible for containers only",
        )),
    }
}

/// PID namespace of a container.
pub(super) fn container_pid(
    at: &str,
    options: &v1::NamespaceOption,
) -> Result<PidMode, ConvertError> {
    let target = || {
        if options.target_id.is_empty() {
            return Err(ConvertError::missing(format!("{at}.target_id")));
        }
        Ok(PidMode::Target(options.target_id.clone()))
    };
    match known(&format!("{at}.pid"), options.pid)? {
        v1::NamespaceMode::Pod => Ok(PidMode::Pod),
        v1::NamespaceMode::Container => Ok(PidMode::Container),
        v1::NamespaceMode::Node => Ok(PidMode::Node),
        v1::NamespaceMode::Target => target(),
    }
}

/// The user namespace. CRI lets it be the pod's or the node's; absent it is the node's, as for kubelets before KEP-127.
pub(super) fn user(
    at: &str,
    given: Option<&v1::UserNamespace>,
) -> Result<Option<UserNamespace>, ConvertError> {
    let Some(given) = given else { return Ok(None) };
    let uids = id_mappings(&format!("{at}.uids"), &given.uids)?;
    let gids = id_mappings(&format!("{at}.gids"), &given.gids)?;
    let field = format!("{at}.mode");
    match known(&field, given.mode)? {
        v1::NamespaceMode::Node if uids.is_empty() && gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => {
            Err(ConvertError::invalid(field, "NODE", "takes no id mappings"))
        }
        v1::NamespaceMode::Pod if uids.is_empty() => {
            Err(ConvertError::missing(format!("{at}.uids")))
        }
        v1::NamespaceMode::Pod if gids.is_empty() => {
            Err(ConvertError::missing(format!("{at}.gids")))
        }
        v1::NamespaceMode::Pod => {
            whole(&format!("{at}.uids"), &uids)?;
            whole(&format!("{at}.gids"), &gids)?;
            Ok(Some(UserNamespace { uids, gids }))
        }
        other => Err(ConvertError::invalid(
            field,
            other.as_str_name(),
            "must be POD or NODE",
        )),
    }
}

/// The kernel refuses ranges that overlap, and without id 0 nothing in the pod could set itself up.
fn whole(field: &str, mappings: &[IdMapping]) -> Result<(), ConvertError> {
    let shown = |m: &IdMapping| format!("{}:{}:{}", m.container_id, m.host_id, m.length);
    let overlap = |first: u32, length: u32, other: u32, other_length: u32| {
        u64::from(first) < u64::from(other) + u64::from(other_length)
            && u64::from(other) < u64::from(first) + u64::from(length)
    };
    for (at, a) in mappings.iter().enumerate() {
        let meets = |b: &&IdMapping| {
            overlap(a.container_id, a.length, b.container_id, b.length)
                || overlap(a.host_id, a.length, b.host_id, b.length)
        };
        if let Some(b) = mappings.iter().skip(at + 1).find(meets) {
            return Err(ConvertError::invalid(
                field,
                shown(b),
                "overlaps another range",
            ));
        }
    }
    if mappings.iter().any(|mapping| mapping.container_id == 0) {
        return Ok(());
    }
    let all: Vec<String> = mappings.iter().map(shown).collect();
    Err(ConvertError::invalid(field, all.join(","), "must map id 0"))
}

/// Ranges of ids, none empty and none past the end of the id space.
pub(super) fn id_mappings(
    field: &str,
    given: &[v1::IdMapping],
) -> Result<Vec<IdMapping>, ConvertError> {
    given
        .iter()
        .enumerate()
        .map(|(at, mapping)| id_mapping(&format!("{field}[{at}]"), mapping))
        .collect()
}

fn id_mapping(field: &str, given: &v1::IdMapping) -> Result<IdMapping, ConvertError> {
    let shown = || format!("{}:{}:{}", given.container_id, given.host_id, given.length);
    if given.length == 0 {
        return Err(ConvertError::invalid(field, shown(), "has length 0"));
    }
    // The last id of a range may be u32::MAX - 1: u32::MAX is no id.
    let fits = |first: u32| u64::from(first) + u64::from(given.length) <= u64::from(u32::MAX);
    if !fits(given.container_id) || !fits(given.host_id) {
        return Err(ConvertError::invalid(
            field,
            shown(),
            "runs past the last id",
        ));
    }
    Ok(IdMapping {
        container_id: given.container_id,
        host_id: given.host_id,
        length: given.length,
    })
}
