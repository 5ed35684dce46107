//! Device nodes and the rules of the device controller.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// A device of the node with all that it takes to make it again in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: PathBuf,
    /// Block or character device.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block device.
    Block,
    /// Character device.
    Character,
}

impl From<DeviceKind> for LinuxDeviceType {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Block => Self::B,
            DeviceKind::Character => Self::C,
        }
    }
}

pub(super) fn nodes(devices: &[DeviceNode]) -> Vec<LinuxDevice> {
    let one = |device: &DeviceNode| {
        let mut oci = LinuxDevice::default();
        oci.set_path(device.path.clone())
            .set_typ(device.kind.into())
            .set_major(device.major.into())
            .set_minor(device.minor.into())
            .set_file_mode(Some(device.mode))
            .set_uid(Some(device.uid))
            .set_gid(Some(device.gid));
        oci
    };
    devices.iter().map(one).collect()
}

/// Nothing, then what is asked for. The runtime itself adds the devices that every container has
/// (config-linux.md, "Default Devices").
pub(super) fn rules(privileged: bool, devices: &[DeviceNode]) -> Vec<LinuxDeviceCgroup> {
    let mut everything = LinuxDeviceCgroup::default();
    everything
        .set_allow(privileged)
        .set_access(Some("rwm".to_owned()));
    if privileged {
        return vec![everything];
    }
    let one = |device: &DeviceNode| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(device.kind.into()))
            .set_major(Some(device.major.into()))
            .set_minor(Some(device.minor.into()))
            .set_access(Some(device.permissions.clone()));
        rule
    };
    std::iter::once(everything)
        .chain(devices.iter().map(one))
        .collect()
}
