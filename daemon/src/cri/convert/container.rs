//! `ContainerConfig`.

use zcri_proto::v1;

use super::pod::{groups_policy, optional_id};
use super::{
    ConvertError, absolute, id, ids, mounts, namespaces, profiles, relative_below, required,
    resources, sorted, text,
};
use crate::container::config::{Capabilities, ContainerConfig, Device, Security};

const SECURITY: &str = "config.linux.security_context";

/// Parses the configuration of a container. A missing `linux` section means all defaults.
///
/// # Errors
/// Names the first field that is missing or has an impossible value.
pub fn container_config(given: &v1::ContainerConfig) -> Result<ContainerConfig, ConvertError> {
    let metadata = given
        .metadata
        .as_ref()
        .ok_or_else(|| ConvertError::missing("config.metadata"))?;
    let image = given
        .image
        .as_ref()
        .ok_or_else(|| ConvertError::missing("config.image"))?;
    required("config.image.image", &image.image)?;
    let mut config = ContainerConfig {
        name: super::metadata("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
        image: mounts::image_ref(image),
        command: texts("config.command", &given.command)?,
        args: texts("config.args", &given.args)?,
        working_dir: working_dir(&given.working_dir)?,
        env: env(&given.envs)?,
        mounts: mounts::mounts("config.mounts", &given.mounts)?,
        devices: devices(&given.devices)?,
        cdi_devices: cdi_devices(&given.cdi_devices)?,
        labels: sorted(&given.labels),
        annotations: sorted(&given.annotations),
        stdin: given.stdin,
        stdin_once: given.stdin_once,
        tty: given.tty,
        stop_signal: super::status::stop_signal("config.stop_signal", given.stop_signal)?,
        ..ContainerConfig::default()
    };
    if !given.log_path.is_empty() {
        config.log_path = Some(relative_below("config.log_path", &given.log_path)?);
    }
    if let Some(linux) = &given.linux {
        if let Some(given) = &linux.resources {
            config.resources = resources("config.linux.resources", given)?;
        }
        if let Some(given) = &linux.security_context {
            config.security = security(given)?;
        }
    }
    Ok(config)
}

/// A command to be run in a container.
///
/// # Errors
/// There is none, or it is none that the kernel could run.
pub(in crate::cri) fn command(field: &str, given: &[String]) -> Result<Vec<String>, ConvertError> {
    match given.first() {
        None => Err(ConvertError::missing(field)),
        Some(program) => {
            let first = format!("{field}[0]");
            required(&first, program)?;
            super::short(&first, program, super::PATH_BYTES)?;
            texts(field, given)
        }
    }
}

fn texts(field: &str, given: &[String]) -> Result<Vec<String>, ConvertError> {
    given
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let field = format!("{field}[{at}]");
            super::short(&field, value, super::ARGUMENT_BYTES)?;
            text(&field, value)
        })
        .collect()
}

fn working_dir(given: &str) -> Result<String, ConvertError> {
    if given.is_empty() {
        return Ok(String::new());
    }
    absolute("config.working_dir", given).map(|_| given.to_owned())
}

fn env(given: &[v1::KeyValue]) -> Result<Vec<(String, Vec<u8>)>, ConvertError> {
    let one = |(at, pair): (usize, &v1::KeyValue)| {
        let field = format!("config.envs[{at}].key");
        let key = required(&field, &pair.key)?;
        if key.contains('=') {
            return Err(ConvertError::invalid(field, key, "must not contain `=`"));
        }
        if pair.key.len() + pair.value.len() >= super::ARGUMENT_BYTES {
            let reason = format!(
                "with its value is longer than {} bytes",
                super::ARGUMENT_BYTES
            );
            return Err(ConvertError::invalid(field, key, reason));
        }
        if pair.value.contains(&0) {
            let field = format!("config.envs[{at}].value");
            return Err(ConvertError::invalid(
                field,
                pair.value.escape_ascii(),
                "contains a NUL character",
            ));
        }
        Ok((key, pair.value.to_vec()))
    };
    given.iter().enumerate().map(one).collect()
}

fn devices(given: &[v1::Device]) -> Result<Vec<Device>, ConvertError> {
    let one = |(at, device): (usize, &v1::Device)| {
        let at = format!("config.devices[{at}]");
        Ok(Device {
            container_path: absolute(&format!("{at}.container_path"), &device.container_path)?,
            host_path: absolute(&format!("{at}.host_path"), &device.host_path)?,
            permissions: permissions(&format!("{at}.permissions"), &device.permissions)?,
        })
    };
    given.iter().enumerate().map(one).collect()
}

/// Empty means all, as for the container engines before CRI.
fn permissions(field: &str, given: &str) -> Result<String, ConvertError> {
    match given {
        "" => Ok("rwm".to_owned()),
        _ if given.chars().all(|c| "rwm".contains(c)) => Ok(given.to_owned()),
        _ => Err(ConvertError::invalid(
            field,
            given,
            "must be one or more of r, w, m",
        )),
    }
}

/// CDI specification, "Kind": `vendor/class=name`.
fn cdi_devices(given: &[v1::CdiDevice]) -> Result<Vec<String>, ConvertError> {
    let one = |(at, device): (usize, &v1::CdiDevice)| {
        let field = format!("config.CDI_devices[{at}].name");
        let parts = device
            .name
            .split_once('=')
            .and_then(|(kind, name)| Some((kind.split_once('/')?, name)));
        match parts {
            Some(((vendor, class), name)) if ![vendor, class, name].contains(&"") => {
                Ok(device.name.clone())
            }
            _ => Err(ConvertError::invalid(
                field,
                &device.name,
                "must have the form vendor/class=name",
            )),
        }
    };
    given.iter().enumerate().map(one).collect()
}

#[expect(deprecated, reason = "older kubelets send the profiles as strings")]
fn security(given: &v1::LinuxContainerSecurityContext) -> Result<Security, ConvertError> {
    let mut security = Security {
        capabilities: given
            .capabilities
            .as_ref()
            .map(capabilities)
            .unwrap_or_default(),
        privileged: given.privileged,
        selinux: profiles::selinux(SECURITY, given.selinux_options.as_ref())?,
        supplemental_groups: ids(
            &format!("{SECURITY}.supplemental_groups"),
            &given.supplemental_groups,
        )?,
        supplemental_groups_policy: groups_policy(
            &format!("{SECURITY}.supplemental_groups_policy"),
            given.supplemental_groups_policy,
        )?,
        readonly_rootfs: given.readonly_rootfs,
        no_new_privs: given.no_new_privs,
        masked_paths: Some(absolute_texts("masked_paths", &given.masked_paths)?),
        readonly_paths: Some(absolute_texts("readonly_paths", &given.readonly_paths)?),
        seccomp: profiles::seccomp(
            SECURITY,
            given.seccomp.as_ref(),
            &given.seccomp_profile_path,
        )?,
        apparmor: profiles::apparmor(SECURITY, given.apparmor.as_ref(), &given.apparmor_profile)?,
        ..Security::default()
    };
    identity(given, &mut security)?;
    if let Some(options) = &given.namespace_options {
        container_namespaces(options, &mut security)?;
    }
    Ok(security)
}

fn absolute_texts(name: &str, given: &[String]) -> Result<Vec<String>, ConvertError> {
    let one = |(at, path): (usize, &String)| {
        absolute(&format!("{SECURITY}.{name}[{at}]"), path).map(|_| path.clone())
    };
    given.iter().enumerate().map(one).collect()
}

fn capabilities(given: &v1::Capability) -> Capabilities {
    Capabilities {
        add: given.add_capabilities.clone(),
        drop: given.drop_capabilities.clone(),
        add_ambient: given.add_ambient_capabilities.clone(),
    }
}

/// The rules of `run_as_user`, `run_as_username` and `run_as_group` in api.proto.
fn identity(
    given: &v1::LinuxContainerSecurityContext,
    security: &mut Security,
) -> Result<(), ConvertError> {
    security.run_as_user = optional_id("run_as_user", given.run_as_user.as_ref())?;
    if !given.run_as_username.is_empty() {
        let field = format!("{SECURITY}.run_as_username");
        if security.run_as_user.is_some() {
            return Err(ConvertError::invalid(
                field,
                &given.run_as_username,
                "cannot be combined with run_as_user",
            ));
        }
        security.run_as_username = Some(text(&field, &given.run_as_username)?);
    }
    if let Some(group) = &given.run_as_group {
        let field = format!("{SECURITY}.run_as_group");
        let group = id(&field, group.value)?;
        if security.run_as_user.is_none() && security.run_as_username.is_none() {
            return Err(ConvertError::invalid(
                field,
                group,
                "needs run_as_user or run_as_username",
            ));
        }
        security.run_as_group = Some(group);
    }
    Ok(())
}

fn container_namespaces(
    given: &v1::NamespaceOption,
    security: &mut Security,
) -> Result<(), ConvertError> {
    let at = format!("{SECURITY}.namespace_options");
    security.network = namespaces::scope(&format!("{at}.network"), given.network)?;
    security.ipc = namespaces::scope(&format!("{at}.ipc"), given.ipc)?;
    security.pid = namespaces::container_pid(&at, given)?;
    security.user_namespace = namespaces::user(
        &format!("{at}.userns_options"),
        given.userns_options.as_ref(),
    )?;
    Ok(())
}
