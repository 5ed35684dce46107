//! Capabilities of a container's first process.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use super::{NodeFacts, SpecError};
use crate::container::config::Security;

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers get when nothing is said: Docker's set, which is containerd's too. CRI-O leaves out NET_RAW,
/// SYS_CHROOT, MKNOD, AUDIT_WRITE and SETFCAP; images exist that need them, none that mind them.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// CRI's word for every capability.
const ALL: &str = "ALL";

/// Fields of CRI's `Capability`.
const ADD: &str = "add_capabilities";
const ADD_AMBIENT: &str = "add_ambient_capabilities";

/// A set of capabilities: bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// The set whose bit n stands for capability n, as in `/proc/PID/status`. Capabilities that have no name here
    /// are left out.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << NAMES.len()) - 1))
    }

    /// Whether a capability is in the set. The name may have the prefix `CAP_` and is in upper case.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }

    fn named(names: &[&str]) -> Self {
        Self(
            names
                .iter()
                .filter_map(|name| bit(name))
                .fold(0, |bits, bit| bits | bit),
        )
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn oci(self) -> Capabilities {
        NAMES
            .iter()
            .filter(|name| self.has(name))
            .filter_map(|name| name.parse().ok())
            .collect()
    }
}

fn bit(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES
        .iter()
        .position(|known| *known == name)
        .map(|number| 1 << number)
}

/// The sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessCapabilities {
    /// What it and its children can ever have: bounding, effective and permitted set.
    pub(super) bounding: CapabilitySet,
    /// What non-root programs keep over execve: ambient set, and inheritable as the kernel demands.
    pub(super) ambient: CapabilitySet,
}

impl ProcessCapabilities {
    /// The inheritable set is empty but for ambient ones: a full one let programs of any user in the container gain
    /// capabilities through file capabilities (CVE-2022-24769).
    pub(super) fn oci(self) -> LinuxCapabilities {
        let mut oci = LinuxCapabilities::default();
        oci.set_bounding(Some(self.bounding.oci()))
            .set_effective(Some(self.bounding.oci()))
            .set_permitted(Some(self.bounding.oci()))
            .set_inheritable(Some(self.ambient.oci()))
            .set_ambient(Some(self.ambient.oci()));
        oci
    }
}

/// Adds and drops as containerd does: first `ALL` of add, then `ALL` of drop, then single additions, then single
/// drops. So `drop: ALL, add: NET_BIND_SERVICE` leaves that one, whatever the order in the manifest.
///
/// The daemon's own bounding set limits all of it. Defaults and `ALL` shrink to it silently: they ask for what there
/// is. A capability that is asked for by name and cannot be given is an error, because a program that was promised it
/// would fail later and in the dark.
pub(super) fn capabilities(
    security: &Security,
    facts: &NodeFacts,
) -> Result<ProcessCapabilities, SpecError> {
    let available = CapabilitySet::from_bits(facts.bounding_capabilities);
    if security.privileged {
        return Ok(ProcessCapabilities {
            bounding: available,
            ambient: CapabilitySet::default(),
        });
    }
    let given = &security.capabilities;
    let (add_all, add) = split(ADD, &given.add)?;
    let (drop_all, drop) = split("drop_capabilities", &given.drop)?;
    let (ambient_all, ambient) = split(ADD_AMBIENT, &given.add_ambient)?;

    let start = match (add_all, drop_all) {
        (_, true) => CapabilitySet::default(),
        (true, false) => available,
        (false, false) => CapabilitySet::named(&DEFAULT).and(available),
    };
    let bounding = start.or(add).or(ambient).without(drop);
    if let Some(name) = NAMES
        .iter()
        .find(|name| bounding.without(available).has(name))
    {
        return Err(SpecError::CapabilityNotHeld {
            list: if add.has(name) { ADD } else { ADD_AMBIENT },
            name: (*name).to_owned(),
        });
    }
    let ambient = if ambient_all {
        bounding
    } else {
        ambient.and(bounding)
    };
    Ok(ProcessCapabilities { bounding, ambient })
}

/// Whether `ALL` is among the names, and the others. Kubernetes users write names without `CAP_`, in either case.
fn split(list: &'static str, names: &[String]) -> Result<(bool, CapabilitySet), SpecError> {
    let mut all = false;
    let mut set = CapabilitySet::default();
    for given in names {
        let name = given.to_ascii_uppercase();
        if name == ALL {
            all = true;
            continue;
        }
        let bit = bit(&name).ok_or_else(|| SpecError::UnknownCapability {
            list,
            name: given.clone(),
        })?;
        set = set.or(CapabilitySet(bit));
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::Capabilities as Changes;

    const EVERYTHING: u64 = u64::MAX;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn facts(bounding_capabilities: u64) -> NodeFacts {
        NodeFacts {
            bounding_capabilities,
            ..super::super::tests::facts()
        }
    }

    fn sets(
        add: &[&str],
        drop: &[&str],
        ambient: &[&str],
        bounding: u64,
    ) -> Result<ProcessCapabilities, SpecError> {
        let capabilities = Changes {
            add: names(add),
            drop: names(drop),
            add_ambient: names(ambient),
        };
        capabilities_of(
            Security {
                capabilities,
                ..Security::default()
            },
            bounding,
        )
    }

    fn capabilities_of(
        security: Security,
        bounding: u64,
    ) -> Result<ProcessCapabilities, SpecError> {
        capabilities(&security, &facts(bounding))
    }

    fn bounding(add: &[&str], drop: &[&str]) -> CapabilitySet {
        sets(add, drop, &[], EVERYTHING).unwrap().bounding
    }

    #[test]
    fn every_name_is_one_that_the_specification_knows() {
        assert_eq!(
            CapabilitySet::from_bits(EVERYTHING).oci().len(),
            NAMES.len()
        );
        for name in NAMES.iter() {
            assert_eq!(
                name.parse::<oci_spec::runtime::Capability>()
                    .unwrap()
                    .to_string(),
                *name
            );
        }
    }

    #[test]
    fn additions_and_drops() {
        let default = CapabilitySet::named(&DEFAULT);
        let all = CapabilitySet::from_bits(EVERYTHING);
        assert_eq!(bounding(&[], &[]), default);
        assert_eq!(
            bounding(&["NET_ADMIN"], &[]),
            default.or(CapabilitySet::named(&["NET_ADMIN"]))
        );
        assert_eq!(
            bounding(&["cap_net_admin"], &[]),
            default.or(CapabilitySet::named(&["NET_ADMIN"]))
        );
        assert_eq!(
            bounding(&[], &["CHOWN"]),
            default.without(CapabilitySet::named(&["CHOWN"]))
        );
        assert_eq!(bounding(&["ALL"], &[]), all);
        assert_eq!(
            bounding(&["ALL"], &["SYS_ADMIN"]),
            all.without(CapabilitySet::named(&["SYS_ADMIN"]))
        );
        assert_eq!(bounding(&[], &["ALL"]), CapabilitySet::default());
        assert_eq!(
            bounding(&["NET_BIND_SERVICE"], &["ALL"]),
            CapabilitySet::named(&["NET_BIND_SERVICE"])
        );
        assert_eq!(
            bounding(&["ALL", "KILL"], &["ALL"]),
            CapabilitySet::named(&["KILL"])
        );
        assert_eq!(
            bounding(&["NET_ADMIN"], &["NET_ADMIN"]),
            default,
            "a drop by name wins"
        );
    }

    #[test]
    fn unknown_names_are_refused() {
        for (add, drop) in [
            (&["NET_ADMINN"][..], &[][..]),
            (&[], &["FOO"]),
            (&[""], &[]),
        ] {
            assert!(matches!(
                sets(add, drop, &[], EVERYTHING),
                Err(SpecError::UnknownCapability { .. })
            ));
        }
    }

    #[test]
    fn nothing_exceeds_what_the_daemon_has() {
        let lacking = CapabilitySet::named(&["SYS_RESOURCE", "MKNOD"]);
        let have = CapabilitySet::from_bits(EVERYTHING).without(lacking);
        assert_eq!(sets(&["ALL"], &[], &[], have.0).unwrap().bounding, have);
        assert!(!sets(&[], &[], &[], have.0).unwrap().bounding.has("MKNOD"));
        let privileged = Security {
            privileged: true,
            ..Security::default()
        };
        assert_eq!(capabilities_of(privileged, have.0).unwrap().bounding, have);
        let error = sets(&["SYS_RESOURCE"], &[], &[], have.0).unwrap_err();
        assert!(error.to_string().contains("SYS_RESOURCE"), "{error}");
        assert!(sets(&["SYS_RESOURCE"], &["SYS_RESOURCE"], &[], have.0).is_ok());
    }

    #[test]
    fn ambient_ones_are_in_every_set_and_nothing_else_is_inheritable() {
        let oci = sets(&[], &["ALL"], &["NET_RAW"], EVERYTHING).unwrap().oci();
        let only = CapabilitySet::named(&["NET_RAW"]).oci();
        for set in [
            oci.bounding(),
            oci.effective(),
            oci.permitted(),
            oci.inheritable(),
            oci.ambient(),
        ] {
            assert_eq!(set.as_ref().unwrap(), &only);
        }
        assert!(
            sets(&["ALL"], &[], &[], EVERYTHING)
                .unwrap()
                .oci()
                .inheritable()
                .as_ref()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn bits_beyond_the_names_are_ignored() {
        assert_eq!(CapabilitySet::from_bits(1 << 63), CapabilitySet::default());
        assert!(CapabilitySet::from_bits(1 << 21).has("CAP_SYS_ADMIN"));
    }
}
