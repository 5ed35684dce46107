//! Mounts in both directions.

use zcri_proto::v1;

use super::namespaces::id_mappings;
use super::{ConvertError, absolute, known, relative_below, sorted};
use crate::container::config::{ImageRef, Mount, MountAccess, MountSource, Propagation};
use crate::pod::config::IdMapping;

pub(super) fn mounts(field: &str, given: &[v1::Mount]) -> Result<Vec<Mount>, ConvertError> {
    given
        .iter()
        .enumerate()
        .map(|(at, mount)| parse(&format!("{field}[{at}]"), mount))
        .collect()
}

fn parse(at: &str, given: &v1::Mount) -> Result<Mount, ConvertError> {
    let uid_mappings = id_mappings(&format!("{at}.uidMappings"), &given.uid_mappings)?;
    let gid_mappings = id_mappings(&format!("{at}.gidMappings"), &given.gid_mappings)?;
    if uid_mappings.is_empty() != gid_mappings.is_empty() {
        let lacking = if uid_mappings.is_empty() {
            "uidMappings"
        } else {
            "gidMappings"
        };
        return Err(ConvertError::missing(format!("{at}.{lacking}")));
    }
    let propagation = propagation(&format!("{at}.propagation"), given.propagation)?;
    let options = given
        .mount_options
        .iter()
        .enumerate()
        .map(|(n, option)| mount_option(&format!("{at}.mount_options[{n}]"), option))
        .collect::<Result<_, _>>()?;
    Ok(Mount {
        container_path: absolute(&format!("{at}.container_path"), &given.container_path)?,
        source: source(at, given)?,
        access: access(at, given, propagation)?,
        propagation,
        selinux_relabel: given.selinux_relabel,
        uid_mappings,
        gid_mappings,
        options,
    })
}

fn source(at: &str, given: &v1::Mount) -> Result<MountSource, ConvertError> {
    let image_field = format!("{at}.image.image");
    match &given.image {
        // crictl sends an empty message where the kubelet sends none.
        Some(image) if !image.image.is_empty() => {
            if !given.host_path.is_empty() {
                let field = format!("{at}.host_path");
                return Err(ConvertError::invalid(
                    field,
                    &given.host_path,
                    "must be empty in a mount of an image",
                ));
            }
            let sub_path = relative_below(&format!("{at}.image_sub_path"), &given.image_sub_path)?;
            Ok(MountSource::Image {
                image: image_ref(image),
                sub_path,
            })
        }
        Some(_) if given.host_path.is_empty() => Err(ConvertError::missing(image_field)),
        _ if !given.image_sub_path.is_empty() => Err(ConvertError::missing(image_field)),
        _ => Ok(MountSource::Host(absolute(
            &format!("{at}.host_path"),
            &given.host_path,
        )?)),
    }
}

/// CRI: "when set to true, readonly must be explicitly set to true, and propagation must be PRIVATE". A mounted
/// image is read-only (KEP-4639), and whoever asks for another one must not be left in the belief to have it.
fn access(
    at: &str,
    given: &v1::Mount,
    propagation: Propagation,
) -> Result<MountAccess, ConvertError> {
    let field = || format!("{at}.recursive_read_only");
    let of_image = given.image.as_ref().is_some_and(|i| !i.image.is_empty());
    if of_image && !given.readonly {
        let field = format!("{at}.readonly");
        return Err(ConvertError::invalid(
            field,
            false,
            "must be true in a mount of an image",
        ));
    }
    match (given.recursive_read_only, given.readonly) {
        (true, false) => Err(ConvertError::invalid(
            field(),
            true,
            "needs readonly to be true",
        )),
        (true, _) if propagation != Propagation::Private => Err(ConvertError::invalid(
            field(),
            true,
            "needs PROPAGATION_PRIVATE",
        )),
        (true, _) => Ok(MountAccess::RecursiveReadOnly),
        (false, true) => Ok(MountAccess::ReadOnly),
        (false, false) => Ok(MountAccess::ReadWrite),
    }
}

fn propagation(field: &str, value: i32) -> Result<Propagation, ConvertError> {
    Ok(match known(field, value)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

/// One of the options that a mount of its own can have (KEP-5855 names the first three). They only take away: what
/// would give, or has a field of its own in CRI, is refused.
fn mount_option(field: &str, option: &str) -> Result<String, ConvertError> {
    const KNOWN: [&str; 7] = [
        "noexec",
        "nodev",
        "nosuid",
        "nosymfollow",
        "noatime",
        "nodiratime",
        "relatime",
    ];
    if KNOWN.contains(&option) {
        return Ok(option.to_owned());
    }
    Err(ConvertError::invalid(
        field,
        option.escape_default(),
        format!("must be one of {}", KNOWN.join(", ")),
    ))
}

pub(super) fn image_ref(given: &v1::ImageSpec) -> ImageRef {
    ImageRef {
        image: given.image.clone(),
        user_specified: given.user_specified_image.clone(),
        image_ref: given.image_ref.clone(),
        runtime_handler: given.runtime_handler.clone(),
        annotations: sorted(&given.annotations),
    }
}

pub(crate) fn image_ref_to_proto(image: &ImageRef) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.image.clone(),
        annotations: image.annotations.clone().into_iter().collect(),
        user_specified_image: image.user_specified.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: image.image_ref.clone(),
    }
}

/// Mounts for ContainerStatus.
#[must_use]
pub fn mounts_to_proto(mounts: &[Mount]) -> Vec<v1::Mount> {
    mounts.iter().map(to_proto).collect()
}

fn to_proto(mount: &Mount) -> v1::Mount {
    let (host_path, image, image_sub_path) = match &mount.source {
        MountSource::Host(path) => (path.to_string_lossy().into_owned(), None, String::new()),
        MountSource::Image { image, sub_path } => (
            String::new(),
            Some(image_ref_to_proto(image)),
            sub_path.to_string_lossy().into_owned(),
        ),
    };
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.to_string_lossy().into_owned(),
        host_path,
        readonly: mount.access != MountAccess::ReadWrite,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: id_mappings_to_proto(&mount.uid_mappings),
        gid_mappings: id_mappings_to_proto(&mount.gid_mappings),
        recursive_read_only: mount.access == MountAccess::RecursiveReadOnly,
        image,
        image_sub_path,
        mount_options: mount.options.clone(),
    }
}

pub(super) fn id_mappings_to_proto(mappings: &[IdMapping]) -> Vec<v1::IdMapping> {
    mappings
        .iter()
        .map(|m| v1::IdMapping {
            host_id: m.host_id,
            container_id: m.container_id,
            length: m.length,
        })
        .collect()
}
