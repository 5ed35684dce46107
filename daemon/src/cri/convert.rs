//! Between CRI's protobuf types and the daemon's domain types: "parse, don't validate".
//!
//! What comes out of [`pod_config`] and [`container_config`] is checked as far as the request alone allows; what
//! depends on the node (a missing device, a capability outside the bounding set) is found later.

mod container;
mod mounts;
mod namespaces;
mod pod;
mod profiles;
mod resources;
mod status;
mod wire;

pub(super) use container::command;
pub use container::container_config;
pub(crate) use mounts::image_ref_to_proto;
pub use mounts::mounts_to_proto;
pub(super) use pod::config_of_pod;
pub use pod::pod_config;
pub use resources::{resources, resources_to_proto};
pub use status::{namespaces_to_proto, stop_signal_to_proto, user_to_proto};
pub use wire::WIRE_FORMAT;

/// A request that cannot be understood. All variants are `INVALID_ARGUMENT` at the gRPC edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be set is not.
    #[error("{field}: is required")]
    Missing {
        /// Path of the field in the request.
        field: String,
    },
    /// A field has a value that cannot be.
    #[error("{field}: invalid value {value:?}: {reason}")]
    Invalid {
        /// Path of the field in the request.
        field: String,
        /// The value given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConvertError {
    /// For a field that is called like another one with something before it.
    pub(super) fn within(self, prefix: &str) -> Self {
        match self {
            Self::Missing { field } => Self::missing(format!("{prefix}{field}")),
            Self::Invalid {
                field,
                value,
                reason,
            } => Self::invalid(format!("{prefix}{field}"), value, reason),
        }
    }

    fn missing(field: impl Into<String>) -> Self {
        Self::Missing {
            field: field.into(),
        }
    }

    fn invalid(field: impl Into<String>, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            value: value.to_string(),
            reason: reason.into(),
        }
    }
}

/// A string that must not be empty.
fn required(field: &str, value: &str) -> Result<String, ConvertError> {
    if value.is_empty() {
        Err(ConvertError::missing(field))
    } else {
        text(field, value)
    }
}

/// A string that goes to the kernel, which ends strings at NUL.
fn text(field: &str, value: &str) -> Result<String, ConvertError> {
    if value.contains('\0') {
        return Err(ConvertError::invalid(
            field,
            value.escape_default(),
            "contains a NUL character",
        ));
    }
    Ok(value.to_owned())
}

/// The kernel's limits of a path and of a part of it (PATH_MAX with the byte that ends it, NAME_MAX; limits.h).
const PATH_BYTES: usize = 4095;
const NAME_BYTES: usize = 255;
/// The kernel's limit of an argument and of a variable (MAX_ARG_STRLEN, binfmts.h).
const ARGUMENT_BYTES: usize = 131_071;
/// Limit of names of pods and containers, uids and namespaces. Kubernetes' own is 253.
const METADATA_BYTES: usize = 1024;

fn short(field: &str, value: &str, limit: usize) -> Result<(), ConvertError> {
    if value.len() > limit {
        let reason = format!("is longer than {limit} bytes");
        return Err(ConvertError::invalid(field, value, reason));
    }
    Ok(())
}

/// A name of a pod or container, or a part of it.
fn metadata(field: &str, value: &str) -> Result<String, ConvertError> {
    short(field, value, METADATA_BYTES)?;
    required(field, value)
}

/// A path of a length that the kernel takes.
fn short_path(field: &str, value: &str) -> Result<(), ConvertError> {
    short(field, value, PATH_BYTES)?;
    match value.split('/').find(|part| part.len() > NAME_BYTES) {
        Some(_) => {
            let reason = format!("has a part that is longer than {NAME_BYTES} bytes");
            Err(ConvertError::invalid(field, value, reason))
        }
        None => Ok(()),
    }
}

/// An absolute path.
fn absolute(field: &str, value: &str) -> Result<std::path::PathBuf, ConvertError> {
    short_path(field, value)?;
    let path = std::path::PathBuf::from(required(field, value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ConvertError::invalid(
            field,
            value,
            "must be an absolute path",
        ))
    }
}

/// An absolute path that does not step upwards.
fn absolute_without_parent(field: &str, value: &str) -> Result<std::path::PathBuf, ConvertError> {
    let path = absolute(field, value)?;
    refuse_parent(field, value, &path)?;
    Ok(path)
}

/// A relative path that stays below where it starts.
fn relative_below(field: &str, value: &str) -> Result<std::path::PathBuf, ConvertError> {
    short_path(field, value)?;
    let path = std::path::PathBuf::from(text(field, value)?);
    if path.is_absolute() {
        return Err(ConvertError::invalid(
            field,
            value,
            "must be a relative path",
        ));
    }
    refuse_parent(field, value, &path)?;
    Ok(path)
}

fn refuse_parent(field: &str, value: &str, path: &std::path::Path) -> Result<(), ConvertError> {
    if path
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return Err(ConvertError::invalid(field, value, "must not contain `..`"));
    }
    Ok(())
}

/// A user or group id, which CRI carries as `int64`.
fn id(field: &str, value: i64) -> Result<u32, ConvertError> {
    // (uid_t)-1 means "no change" to the kernel and is no id.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| ConvertError::invalid(field, value, "must be between 0 and 4294967294"))
}

fn ids(field: &str, values: &[i64]) -> Result<Vec<u32>, ConvertError> {
    values
        .iter()
        .enumerate()
        .map(|(at, value)| id(&format!("{field}[{at}]"), *value))
        .collect()
}

/// A time in seconds.
///
/// # Errors
/// It is negative.
pub(super) fn seconds(field: &str, value: i64) -> Result<std::time::Duration, ConvertError> {
    u64::try_from(value)
        .map(std::time::Duration::from_secs)
        .map_err(|_| ConvertError::invalid(field, value, "must not be negative"))
}

/// A protobuf enum value.
pub(super) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, ConvertError> {
    T::try_from(value)
        .map_err(|_| ConvertError::invalid(field, value, "is no value of this enumeration"))
}

fn sorted(
    map: &std::collections::HashMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
