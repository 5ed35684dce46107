//! Profile files in the form of Docker and containers-common: OCI's `linux.seccomp` with conditions.
//!
//! The same file serves all machines and containers; [`Profile::resolve`] picks what applies to one.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::{CapabilitySet, Machine};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    /// No JSON, or not of this form.
    #[error("not a seccomp profile: {0}")]
    Json(serde_json::Error),
    /// Two fields that exclude each other.
    #[error("{0} and {1} exclude each other")]
    Conflict(&'static str, &'static str),
    /// A rule for nothing.
    #[error("rule {0} of syscalls names no system call")]
    NoName(usize),
    /// An error number by an unknown name.
    #[error("unknown error name {0:?}")]
    Errno(String),
    /// `minKernel` is no release.
    #[error("minKernel {0:?} is not of the form MAJOR.MINOR")]
    Kernel(String),
}

/// The file. Fields that are not named here (comments, for instance) are ignored, as the field's own readers do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    architectures: Vec<Arch>,
    #[serde(default, deserialize_with = "null_as_empty")]
    arch_map: Vec<ArchFamily>,
    #[serde(default, deserialize_with = "null_as_empty")]
    flags: Vec<LinuxSeccompFilterFlag>,
    listener_path: Option<std::path::PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchFamily {
    architecture: Arch,
    #[serde(default, deserialize_with = "null_as_empty")]
    sub_architectures: Vec<Arch>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// The form of the oldest files.
    name: Option<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    args: Vec<Argument>,
    #[serde(default, deserialize_with = "null_as_empty")]
    includes: Condition,
    #[serde(default, deserialize_with = "null_as_empty")]
    excludes: Condition,
}

/// Of an argument everything but the index may be left out by the tools that write it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: usize,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: oci_spec::runtime::LinuxSeccompOperator,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default, deserialize_with = "null_as_empty")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Go writes an empty list as `null`.
fn null_as_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// What a profile's conditions are about.
pub(super) struct Context {
    /// The node's architecture.
    pub(super) machine: Machine,
    /// The container's capabilities.
    pub(super) held: CapabilitySet,
    /// The running kernel.
    pub(super) kernel: (u32, u32),
}

/// Reads a profile file.
pub(super) fn parse(json: &str) -> Result<Profile, ProfileError> {
    serde_json::from_str(json).map_err(ProfileError::Json)
}

impl Profile {
    /// The filter for one container.
    pub(super) fn resolve(self, context: &Context) -> Result<LinuxSeccomp, ProfileError> {
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(ProfileError::Conflict("architectures", "archMap"));
        }
        let mut syscalls = Vec::new();
        for (at, rule) in self.syscalls.into_iter().enumerate() {
            if rule.includes.includes(context)? && !rule.excludes.excludes(context)? {
                syscalls.push(rule.resolve(at)?);
            }
        }
        let architectures = match self
            .arch_map
            .into_iter()
            .find(|f| f.architecture == context.machine.native())
        {
            Some(family) => [family.architecture]
                .into_iter()
                .chain(family.sub_architectures)
                .collect(),
            None => self.architectures,
        };
        let mut filter = LinuxSeccomp::default();
        filter
            .set_default_action(self.default_action)
            .set_default_errno_ret(errno(self.default_errno_ret, self.default_errno)?)
            .set_architectures((!architectures.is_empty()).then_some(architectures))
            .set_flags((!self.flags.is_empty()).then_some(self.flags))
            .set_listener_path(
                self.listener_path
                    .filter(|path| !path.as_os_str().is_empty()),
            )
            .set_listener_metadata(self.listener_metadata.filter(|text| !text.is_empty()))
            .set_syscalls(Some(syscalls));
        Ok(filter)
    }
}

impl Rule {
    fn resolve(self, at: usize) -> Result<LinuxSyscall, ProfileError> {
        let names = match (self.name.filter(|name| !name.is_empty()), self.names) {
            (Some(_), names) if !names.is_empty() => {
                return Err(ProfileError::Conflict("name", "names"));
            }
            (Some(name), _) => vec![name],
            (None, names) if names.is_empty() => return Err(ProfileError::NoName(at)),
            (None, names) => names,
        };
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(self.action)
            .set_errno_ret(errno(self.errno_ret, self.errno)?)
            .set_args(
                (!self.args.is_empty()).then(|| self.args.iter().map(Argument::resolve).collect()),
            );
        Ok(syscall)
    }
}

impl Argument {
    fn resolve(&self) -> LinuxSeccompArg {
        super::argument(self.index, self.op, self.value, self.value_two)
    }
}

impl Condition {
    /// Every condition must hold, and of capabilities all; an empty list is no condition.
    fn includes(&self, context: &Context) -> Result<bool, ProfileError> {
        let arches = self.arches.is_empty() || self.names_machine(context);
        let caps = self.caps.iter().all(|name| context.held.has(name));
        Ok(arches && caps && self.kernel_reached(context)?.unwrap_or(true))
    }

    /// Any condition suffices.
    fn excludes(&self, context: &Context) -> Result<bool, ProfileError> {
        let caps = self.caps.iter().any(|name| context.held.has(name));
        Ok(self.names_machine(context) || caps || self.kernel_reached(context)?.unwrap_or(false))
    }

    fn names_machine(&self, context: &Context) -> bool {
        self.arches
            .iter()
            .any(|name| name == context.machine.name())
    }

    fn kernel_reached(&self, context: &Context) -> Result<Option<bool>, ProfileError> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let parsed = text
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let minimum: (u32, u32) = parsed.ok_or_else(|| ProfileError::Kernel(text.to_owned()))?;
        Ok(Some(context.kernel >= minimum))
    }
}

/// An error number, given as such or by name (containers-common). The names are those that filters can sensibly
/// answer with.
fn errno(number: Option<u32>, name: Option<String>) -> Result<Option<u32>, ProfileError> {
    const NAMES: &[(&str, u32)] = &[
        ("EPERM", 1),
        ("ENOENT", 2),
        ("EIO", 5),
        ("EBADF", 9),
        ("EAGAIN", 11),
        ("ENOMEM", 12),
        ("EACCES", 13),
        ("EBUSY", 16),
        ("ENODEV", 19),
        ("EINVAL", 22),
        ("ENOSYS", 38),
        ("EOPNOTSUPP", 95),
        ("EAFNOSUPPORT", 97),
    ];
    let Some(name) = name.filter(|name| !name.is_empty() && number.is_none()) else {
        return Ok(number);
    };
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, number)) => Ok(Some(*number)),
        None => Err(ProfileError::Errno(name)),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSeccompOperator;

    use super::*;

    const ADMIN: u64 = 1 << 21;

    fn resolve(
        json: &str,
        machine: Machine,
        caps: u64,
        kernel: (u32, u32),
    ) -> Result<LinuxSeccomp, ProfileError> {
        let held = CapabilitySet::from_bits(caps);
        parse(json)?.resolve(&Context {
            machine,
            held,
            kernel,
        })
    }

    fn names(filter: &LinuxSeccomp) -> Vec<&str> {
        filter
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|call| call.names())
            .map(String::as_str)
            .collect()
    }

    fn conditional(condition: &str) -> String {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {{"names": ["x"], "action": "SCMP_ACT_ALLOW", {condition}}}]}}"#
        )
    }

    fn applies(condition: &str, machine: Machine, caps: u64, kernel: (u32, u32)) -> bool {
        !names(&resolve(&conditional(condition), machine, caps, kernel).unwrap()).is_empty()
    }

    #[test]
    fn a_plain_oci_profile_passes_through() {
        let json = r#"{
            "defaultAction": "SCMP_ACT_LOG", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "comment": "kept by nobody",
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": null},
                {"name": "personality", "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}], "includes": {}, "excludes": null}
            ]}"#;
        let filter = resolve(json, Machine::X86_64, 0, (6, 1)).unwrap();
        assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActLog);
        assert_eq!(filter.default_errno_ret(), Some(38));
        assert_eq!(filter.architectures().as_ref().unwrap().len(), 2);
        assert_eq!(names(&filter), ["mkdir", "mkdirat", "personality"]);
        let calls = filter.syscalls().as_ref().unwrap();
        assert_eq!(calls[0].errno_ret(), Some(13));
        assert_eq!(calls[0].args(), &None);
        let arg = calls[1].args().as_ref().unwrap()[0];
        assert_eq!(
            (arg.index(), arg.value(), arg.op()),
            (0, 8, LinuxSeccompOperator::ScmpCmpEq)
        );
    }

    #[test]
    fn architectures_follow_the_map() {
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}]}"#;
        let of = |machine| {
            resolve(json, machine, 0, (6, 1))
                .unwrap()
                .architectures()
                .clone()
        };
        assert_eq!(
            of(Machine::X86_64),
            Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86])
        );
        assert_eq!(
            of(Machine::S390x),
            Some(vec![Arch::ScmpArchS390x, Arch::ScmpArchS390])
        );
        assert_eq!(of(Machine::Aarch64), None);
    }

    #[test]
    fn includes_need_all_and_excludes_any() {
        let old = (4, 4);
        let new = (6, 18);
        let on = |condition, caps| applies(condition, Machine::X86_64, caps, new);
        assert!(on(r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, ADMIN));
        assert!(!on(r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, 0));
        assert!(!on(
            r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#,
            ADMIN
        ));
        assert!(!on(
            r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#,
            ADMIN
        ));
        assert!(on(r#""excludes": {"caps": ["CAP_BPF"]}"#, ADMIN));
        assert!(on(r#""includes": {"arches": ["amd64", "x32"]}"#, 0));
        assert!(!applies(
            r#""includes": {"arches": ["amd64", "x32"]}"#,
            Machine::S390x,
            0,
            new
        ));
        assert!(applies(
            r#""excludes": {"arches": ["s390", "s390x"]}"#,
            Machine::Aarch64,
            0,
            new
        ));
        assert!(!applies(
            r#""excludes": {"arches": ["s390", "s390x"]}"#,
            Machine::S390x,
            0,
            new
        ));
        let minimum = r#""includes": {"minKernel": "4.8"}"#;
        assert!(applies(minimum, Machine::X86_64, 0, new));
        assert!(applies(minimum, Machine::X86_64, 0, (4, 8)));
        assert!(!applies(minimum, Machine::X86_64, 0, old));
        assert!(!applies(
            r#""excludes": {"minKernel": "4.8"}"#,
            Machine::X86_64,
            0,
            new
        ));
        assert!(applies(
            r#""excludes": {"minKernel": "4.8"}"#,
            Machine::X86_64,
            0,
            old
        ));
        assert!(!on(
            r#""includes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["arm64"]}"#,
            ADMIN
        ));
    }

    #[test]
    fn bad_profiles_say_what_is_wrong() {
        let message = |json: &str| {
            resolve(json, Machine::X86_64, 0, (6, 1))
                .unwrap_err()
                .to_string()
        };
        assert!(message("{").contains("not a seccomp profile"));
        assert!(message(r#"{"syscalls": []}"#).contains("defaultAction"));
        assert!(message(r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#).contains("SCMP_ACT_MAYBE"));
        assert!(
            message(
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#
            )
            .contains("archMap")
        );
        let rule =
            |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#);
        assert!(message(&rule(r#"{"action": "SCMP_ACT_ALLOW"}"#)).contains("rule 0"));
        assert!(
            message(&rule(
                r#"{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}"#
            ))
            .contains("names")
        );
        assert!(message(&conditional(r#""includes": {"minKernel": "new"}"#)).contains("minKernel"));
        assert!(
            message(&rule(
                r#"{"names": ["b"], "action": "SCMP_ACT_ERRNO", "errno": "EWHAT"}"#
            ))
            .contains("EWHAT")
        );
    }

    #[test]
    fn errors_by_name() {
        let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS", "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM"},
            {"names": ["b"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM", "errnoRet": 13}]}"#;
        let filter = resolve(json, Machine::X86_64, 0, (6, 1)).unwrap();
        assert_eq!(filter.default_errno_ret(), Some(38));
        let calls = filter.syscalls().as_ref().unwrap();
        assert_eq!(
            (calls[0].errno_ret(), calls[1].errno_ret()),
            (Some(1), Some(13))
        );
    }
}
