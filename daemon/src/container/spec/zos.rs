//! The specification of a container on z/OS (runtime-spec, config-zos.md): a `zos` object and no `linux` object.
//!
//! The pod's IPC and UTS namespaces are not in it. "If a namespace type is not specified in the namespaces array, the
//! container MUST inherit the runtime namespace of that type", and the OCI runtime is a child of the pod's shim, which
//! lives in them. So nothing relies on `setns` for an IPC namespace, of which it is not known that z/OS can do it.

use oci_spec::runtime::{
    Mount as OciMount, Process, Root, Spec, ZOS, ZOSNamespace, ZOSNamespaceBuilder,
    ZOSNamespaceType,
};
use zcri_config::{WlmMapping, WlmTarget};

use super::{SpecError, SpecInput, annotations, mounts, process};
use crate::container::config::PidMode;
use crate::pod::config::PodPid;

/// The first version with namespaces in the `zos` object (runtime-spec 1.2.1; those before had devices there).
pub const OCI_VERSION: &str = "1.2.1";

/// What new files of a container may not have. Without it the container had that of the daemon's started task.
const UMASK: u32 = 0o022;

/// Annotation of ours with the service class, whatever the runtime is told by.
pub const CLASS: &str = "zcri.io/wlm.class";
/// Annotation of ours with the container qualifier.
pub const QUALIFIER: &str = "zcri.io/wlm.qualifier";

/// Builds the specification of a container.
///
/// # Errors
/// What was asked for contradicts itself.
pub fn build(
    input: &SpecInput<'_>,
    wlm: Option<&WlmTarget>,
    mapping: &WlmMapping,
) -> Result<Spec, SpecError> {
    let security = &input.container.security;
    if security.privileged && !input.pod.security.privileged {
        return Err(SpecError::PrivilegedInUnprivilegedPod);
    }
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned())
        .set_readonly(Some(security.readonly_rootfs));
    let mut zos = ZOS::default();
    zos.set_namespaces(Some(namespaces(input)?));
    let mut annotations = annotations::annotations(input);
    annotations.extend(wlm_annotations(wlm, mapping));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(zos_process(input, wlm, mapping)?))
        .set_mounts(Some(mounts::portable(input, defaults())?))
        .set_annotations(Some(annotations))
        .set_linux(None)
        .set_zos(Some(zos));
    Ok(spec)
}

/// User, arguments, environment, directory, terminal and no_new_privs. What remains of `process` is Linux's alone.
fn zos_process(
    input: &SpecInput<'_>,
    wlm: Option<&WlmTarget>,
    mapping: &WlmMapping,
) -> Result<Process, SpecError> {
    let mut process = process::portable(input)?;
    let mut user = process.user().clone();
    user.set_umask(Some(UMASK));
    process.set_user(user);
    let mut env = process.env().clone().unwrap_or_default();
    for (name, value) in told(wlm, &mapping.class_env, &mapping.qualifier_env) {
        env.retain(|pair| pair.split_once('=').is_none_or(|(key, _)| key != name));
        env.push(format!("{name}={value}"));
    }
    process.set_env(Some(env));
    Ok(process)
}

/// A mount namespace of its own, and a PID namespace as asked for.
fn namespaces(input: &SpecInput<'_>) -> Result<Vec<ZOSNamespace>, SpecError> {
    let one = |kind, path: Option<&std::path::PathBuf>| {
        let builder = ZOSNamespaceBuilder::default().typ(kind);
        let builder = match path {
            Some(path) => builder.path(path.clone()),
            None => builder,
        };
        // Every field has a value or a default.
        builder.build().unwrap_or_default()
    };
    let mut namespaces = vec![one(ZOSNamespaceType::Mount, None)];
    match (&input.container.security.pid, input.pod.namespaces.pid) {
        (PidMode::Target(_), _) | (PidMode::Pod, PodPid::Pod) => {
            let path = input.namespaces.pid.as_ref();
            let path = path.ok_or(SpecError::NamespaceMissing { kind: "PID" })?;
            namespaces.push(one(ZOSNamespaceType::Pid, Some(path)));
        }
        (PidMode::Container, _) | (PidMode::Pod, PodPid::Container) => {
            namespaces.push(one(ZOSNamespaceType::Pid, None));
        }
        (PidMode::Node, _) | (PidMode::Pod, PodPid::Node) => {}
    }
    Ok(namespaces)
}

/// The mounts of the specification's own example for z/OS (schema/test/config/good/zos-example.json): `/proc` SHOULD be
/// there, and `/dev` is a temporary file system (TFS) with its own options.
fn defaults() -> Vec<OciMount> {
    vec![
        mounts::mount("proc", "proc", "/proc", &[]),
        mounts::mount("tfs", "tmpfs", "/dev", &["nosuid", "-p 1755", "-s 64"]),
    ]
}

fn wlm_annotations(wlm: Option<&WlmTarget>, mapping: &WlmMapping) -> Vec<(String, String)> {
    let own = told(wlm, &Some(CLASS.to_owned()), &Some(QUALIFIER.to_owned()));
    let runtime = told(
        wlm,
        &mapping.class_annotation,
        &mapping.qualifier_annotation,
    );
    own.into_iter().chain(runtime).collect()
}

/// Class and qualifier under the names given, where there is both a name and a value.
fn told(
    wlm: Option<&WlmTarget>,
    class: &Option<String>,
    qualifier: &Option<String>,
) -> Vec<(String, String)> {
    let Some(wlm) = wlm else { return Vec::new() };
    [(class, &wlm.class), (qualifier, &wlm.qualifier)]
        .into_iter()
        .filter_map(|(name, value)| name.clone().zip(value.clone()))
        .collect()
}

/// What [`build`] wrote about WLM into a specification.
#[must_use]
pub fn wlm_of(spec: &Spec) -> Option<WlmTarget> {
    spec.zos().as_ref()?;
    let annotations = spec.annotations().as_ref()?;
    Some(WlmTarget {
        class: annotations.get(CLASS).cloned(),
        qualifier: annotations.get(QUALIFIER).cloned(),
    })
}

#[cfg(test)]
mod tests;
