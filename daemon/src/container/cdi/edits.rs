//! From a description to the OCI specification.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hook as OciHook, HookBuilder, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType,
    Mount as OciMount, Spec,
};

use super::file::{DeviceNode, Edits, Hook, Mount};

/// Why a description cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The device is not on the node.
    #[error("device {path}: {source}", path = path.display())]
    Device {
        path: PathBuf,
        source: std::io::Error,
    },
    /// What is on the node is no device, or another one.
    #[error("device {path} is not {wanted}", path = path.display())]
    Kind { path: PathBuf, wanted: String },
    /// A part that is not applied here.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A value that cannot be.
    #[error("{what} {value:?} cannot be")]
    Value { what: &'static str, value: String },
}

pub(super) fn apply(edits: &Edits, spec: &mut Spec) -> Result<(), ApplyError> {
    if edits.intel_rdt.is_some() {
        return Err(ApplyError::Unsupported("intelRdt"));
    }
    if edits.net_devices.is_some() {
        return Err(ApplyError::Unsupported("netDevices"));
    }
    environment(&edits.env, spec)?;
    for node in &edits.device_nodes {
        device(node, spec)?;
    }
    for wanted in &edits.mounts {
        mount(wanted, spec)?;
    }
    for wanted in &edits.hooks {
        hook(wanted, spec)?;
    }
    groups(&edits.additional_gids, spec);
    Ok(())
}

fn environment(pairs: &[String], spec: &mut Spec) -> Result<(), ApplyError> {
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let mut env = process.env().clone().unwrap_or_default();
    for pair in pairs {
        let Some((name, _)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(impossible("environment variable", pair));
        };
        let of_name = |old: &String| old.split_once('=').is_some_and(|(old, _)| old == name);
        env.retain(|old| !of_name(old));
        env.push(pair.clone());
    }
    process.set_env(Some(env));
    Ok(())
}

fn groups(gids: &[u32], spec: &mut Spec) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let mut all = process.user().additional_gids().clone().unwrap_or_default();
    for gid in gids {
        // As the reference implementation: 0 is left out.
        if *gid != 0 && !all.contains(gid) {
            all.push(*gid);
        }
    }
    process.user_mut().set_additional_gids(Some(all));
}

/// A device with what is not said taken from the node.
fn device(node: &DeviceNode, spec: &mut Spec) -> Result<(), ApplyError> {
    let path = absolute("device path", &node.path)?;
    let on_node = node.host_path.as_ref().unwrap_or(&node.path);
    let (kind, major, minor) = identity(node, on_node)?;
    let permissions = node.permissions.clone().unwrap_or_else(|| "rwm".into());
    if permissions.is_empty() || !permissions.chars().all(|c| "rwm".contains(c)) {
        return Err(impossible("permissions", &permissions));
    }
    let owner = std::fs::metadata(on_node).ok();
    let mut device = LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(
            node.file_mode
                .or(owner.as_ref().map(|found| found.mode() & 0o7777)),
        )
        .set_uid(node.uid.or(owner.as_ref().map(MetadataExt::uid)))
        .set_gid(node.gid.or(owner.as_ref().map(MetadataExt::gid)));
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind))
        .set_major(Some(major))
        .set_minor(Some(minor))
        .set_access(Some(permissions));
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|old| old.path() != path);
    devices.push(device);
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux
        .set_devices(Some(devices))
        .set_resources(Some(resources));
    spec.set_linux(Some(linux));
    Ok(())
}

/// Kind and numbers, as said or as found.
fn identity(node: &DeviceNode, path: &Path) -> Result<(LinuxDeviceType, i64, i64), ApplyError> {
    let said = match node.r#type.as_deref() {
        None => None,
        Some("b") => Some(LinuxDeviceType::B),
        Some("c" | "u") => Some(LinuxDeviceType::C),
        Some(other) => return Err(impossible("device type", other)),
    };
    if let (Some(kind), Some(major), Some(minor)) = (said, node.major, node.minor) {
        return Ok((kind, major, minor));
    }
    let found = std::fs::metadata(path).map_err(|source| ApplyError::Device {
        path: path.to_owned(),
        source,
    })?;
    let is = if found.file_type().is_block_device() {
        Some(LinuxDeviceType::B)
    } else if found.file_type().is_char_device() {
        Some(LinuxDeviceType::C)
    } else {
        None
    };
    let wanted = |wanted: &str| ApplyError::Kind {
        path: path.to_owned(),
        wanted: wanted.to_owned(),
    };
    let is = is.ok_or_else(|| wanted("a device"))?;
    if said.is_some_and(|said| said != is) {
        return Err(wanted("of the type that is said"));
    }
    let number = found.rdev();
    let major = node
        .major
        .unwrap_or_else(|| rustix::fs::major(number).into());
    let minor = node
        .minor
        .unwrap_or_else(|| rustix::fs::minor(number).into());
    Ok((is, major, minor))
}

/// In place of one with the same target, and before those below it.
fn mount(wanted: &Mount, spec: &mut Spec) -> Result<(), ApplyError> {
    let target = absolute("containerPath", &wanted.container_path)?;
    let kind = wanted.r#type.clone().unwrap_or_else(|| "bind".into());
    let mut options = wanted.options.clone();
    if kind == "bind" && !options.iter().any(|o| o == "bind" || o == "rbind") {
        options.insert(0, "rbind".into());
    }
    let mut mount = OciMount::default();
    mount
        .set_typ(Some(kind))
        .set_source(Some(wanted.host_path.clone()))
        .set_destination(target.to_owned())
        .set_options(Some(options));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|old| old.destination() != target);
    let below = mounts
        .iter()
        .position(|other| other.destination().starts_with(target));
    mounts.insert(below.unwrap_or(mounts.len()), mount);
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn hook(wanted: &Hook, spec: &mut Spec) -> Result<(), ApplyError> {
    absolute("hook path", &wanted.path)?;
    let mut hook = HookBuilder::default().path(wanted.path.clone());
    if let Some(args) = &wanted.args {
        hook = hook.args(args.clone());
    }
    if let Some(env) = &wanted.env {
        hook = hook.env(env.clone());
    }
    if let Some(timeout) = wanted.timeout {
        hook = hook.timeout(timeout);
    }
    let hook = hook
        .build()
        .map_err(|_| impossible("hook", &wanted.hook_name))?;
    let mut hooks: Hooks = spec.hooks().clone().unwrap_or_default();
    let with = |list: &Option<Vec<OciHook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(hook.clone());
        Some(list)
    };
    match wanted.hook_name.as_str() {
        "prestart" => hooks.set_prestart(with(hooks.prestart())),
        "createRuntime" => hooks.set_create_runtime(with(hooks.create_runtime())),
        "createContainer" => hooks.set_create_container(with(hooks.create_container())),
        "startContainer" => hooks.set_start_container(with(hooks.start_container())),
        "poststart" => hooks.set_poststart(with(hooks.poststart())),
        "poststop" => hooks.set_poststop(with(hooks.poststop())),
        other => return Err(impossible("hookName", other)),
    };
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn absolute<'a>(what: &'static str, path: &'a Path) -> Result<&'a Path, ApplyError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(impossible(what, &path.display().to_string()))
    }
}

fn impossible(what: &'static str, value: &str) -> ApplyError {
    ApplyError::Value {
        what,
        value: value.to_owned(),
    }
}
