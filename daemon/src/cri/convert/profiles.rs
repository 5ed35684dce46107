//! Seccomp, AppArmor and SELinux, each also in its deprecated form.

use std::path::PathBuf;

use zcri_proto::v1::{self, security_profile::ProfileType};

use super::{ConvertError, known};
use crate::container::config::{AppArmorProfile, SeccompProfile, SelinuxLabel};

const LOCALHOST: &str = "localhost/";
/// Characters in a part of an SELinux label: the longest levels of the field have a few dozen.
const LABEL_PART_MAX: usize = 255;

/// Seccomp: `profile` wins over the deprecated `legacy` path; neither means unconfined.
pub(super) fn seccomp(
    at: &str,
    profile: Option<&v1::SecurityProfile>,
    legacy: &str,
) -> Result<SeccompProfile, ConvertError> {
    let Some(profile) = profile else {
        return legacy_seccomp(&format!("{at}.seccomp_profile_path"), legacy);
    };
    let field = format!("{at}.seccomp");
    match kind(&field, profile)? {
        ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
        ProfileType::Localhost => {
            seccomp_file(&format!("{field}.localhost_ref"), &profile.localhost_ref)
        }
    }
}

fn legacy_seccomp(field: &str, legacy: &str) -> Result<SeccompProfile, ConvertError> {
    match legacy {
        "" | "unconfined" => Ok(SeccompProfile::Unconfined),
        "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
        other if other.starts_with(LOCALHOST) => seccomp_file(field, other),
        other => Err(ConvertError::invalid(
            field,
            other,
            "must be runtime/default, unconfined or localhost/PATH",
        )),
    }
}

/// Both forms may carry the prefix `localhost/`: kubelets before 1.24 sent it in the new field too.
fn seccomp_file(field: &str, given: &str) -> Result<SeccompProfile, ConvertError> {
    let path = PathBuf::from(given.strip_prefix(LOCALHOST).unwrap_or(given));
    if path.as_os_str().is_empty() {
        return Err(ConvertError::missing(field));
    }
    if !path.is_absolute() {
        return Err(ConvertError::invalid(
            field,
            given,
            "must be the absolute path of a profile",
        ));
    }
    Ok(SeccompProfile::Localhost(path))
}

/// AppArmor: `profile` wins over the deprecated `legacy` name; neither is no word about it.
pub(super) fn apparmor(
    at: &str,
    profile: Option<&v1::SecurityProfile>,
    legacy: &str,
) -> Result<AppArmorProfile, ConvertError> {
    let Some(profile) = profile else {
        return legacy_apparmor(&format!("{at}.apparmor_profile"), legacy);
    };
    let field = format!("{at}.apparmor");
    match kind(&field, profile)? {
        ProfileType::RuntimeDefault => Ok(AppArmorProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(AppArmorProfile::Unconfined),
        ProfileType::Localhost => {
            apparmor_name(&format!("{field}.localhost_ref"), &profile.localhost_ref)
        }
    }
}

fn legacy_apparmor(field: &str, legacy: &str) -> Result<AppArmorProfile, ConvertError> {
    match legacy {
        "" => Ok(AppArmorProfile::Unspecified),
        "runtime/default" => Ok(AppArmorProfile::RuntimeDefault),
        "unconfined" => Ok(AppArmorProfile::Unconfined),
        other if other.starts_with(LOCALHOST) => apparmor_name(field, other),
        other => Err(ConvertError::invalid(
            field,
            other,
            "must be runtime/default, unconfined or localhost/NAME",
        )),
    }
}

fn apparmor_name(field: &str, given: &str) -> Result<AppArmorProfile, ConvertError> {
    match given.strip_prefix(LOCALHOST).unwrap_or(given) {
        "" => Err(ConvertError::missing(field)),
        name => Ok(AppArmorProfile::Localhost(name.to_owned())),
    }
}

/// CRI: `localhost_ref` must only be set if the type is Localhost.
fn kind(field: &str, profile: &v1::SecurityProfile) -> Result<ProfileType, ConvertError> {
    let kind = known(&format!("{field}.profile_type"), profile.profile_type)?;
    if kind != ProfileType::Localhost && !profile.localhost_ref.is_empty() {
        return Err(ConvertError::invalid(
            format!("{field}.localhost_ref"),
            &profile.localhost_ref,
            "is allowed with the profile type Localhost only",
        ));
    }
    Ok(kind)
}

/// An SELinux label; all parts empty means none.
pub(super) fn selinux(
    at: &str,
    given: Option<&v1::SeLinuxOption>,
) -> Result<Option<SelinuxLabel>, ConvertError> {
    let Some(given) = given else { return Ok(None) };
    for (part, value) in [
        ("user", &given.user),
        ("role", &given.role),
        ("type", &given.r#type),
        ("level", &given.level),
    ] {
        // A level has ranges and lists besides (selinux(8)). It goes into mount options, whatever the kernel says.
        let level = |c: char| part == "level" && matches!(c, ':' | ',');
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') || level(c);
        if value.len() > LABEL_PART_MAX || !value.chars().all(known) {
            return Err(ConvertError::invalid(
                format!("{at}.selinux_options.{part}"),
                value,
                "is no part of a label",
            ));
        }
    }
    let label = SelinuxLabel {
        user: given.user.clone(),
        role: given.role.clone(),
        kind: given.r#type.clone(),
        level: given.level.clone(),
    };
    Ok((label != SelinuxLabel::default()).then_some(label))
}
