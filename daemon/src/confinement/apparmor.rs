//! AppArmor: the profile of containers that ask for none, and whether one that is asked for is loaded.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::container::config::AppArmorProfile;
use crate::error::{Chain, Error, Result};

/// What the runtime's own profile is called in the kernel.
const DEFAULT: &str = "zcri-default";
/// How a process says that it wants no profile, so that it does not keep that of the daemon.
pub(super) const UNCONFINED: &str = "unconfined";
/// Its rules.
const DEFAULT_PROFILE: &str = include_str!("zcri-default");
/// Profiles that the kernel knows, one to a line: `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// The features that the rules are written for. A parser that is told nothing takes those of its own version, and what
/// is not allowed is denied: with those of version 4 user namespaces would be.
const ABI: &str = "/etc/apparmor.d/abi/3.0";
/// The program that compiles profiles, of the package `apparmor`.
const PARSER: &str = "apparmor_parser";

/// AppArmor of a node.
#[derive(Debug, Default)]
pub struct AppArmor {
    /// Whether it was told that the default profile cannot be loaded, since it last was.
    told: AtomicBool,
}

/// Why a profile was not loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    /// The parser did not run.
    #[error("cannot run {PARSER} (is the package apparmor installed?)")]
    Run(#[source] io::Error),
    /// It said no.
    #[error("{PARSER} ended with {status}: {said}")]
    Refused {
        status: std::process::ExitStatus,
        said: String,
    },
}

impl AppArmor {
    /// AppArmor of this node if it is enabled, with the default profile loaded: one of an earlier version is replaced.
    pub(super) fn of_node() -> Option<Self> {
        if !zcri_sys::node::has_apparmor() {
            return None;
        }
        let module = Self::default();
        if module.load_default().is_ok() {
            tracing::info!(profile = DEFAULT, "AppArmor: loaded");
        }
        Some(module)
    }

    fn load_default(&self) -> Result<(), LoadError> {
        let loaded = parse(&default_policy(), &["--replace"]);
        match &loaded {
            Ok(()) => self.told.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        profile = DEFAULT, error = %Chain(error),
                        "AppArmor: containers that ask for no profile run without one, those that ask for the default are refused"
                    );
                }
            }
        }
        loaded
    }

    /// Sees to it that a profile of zcrid's own is loaded: aa-remove-unknown(8) unloads what is in no file of
    /// /etc/apparmor.d.
    pub(super) fn keep_loaded(&self, profile: &str) -> Result<()> {
        if profile != DEFAULT || is_loaded(DEFAULT).unwrap_or(false) {
            return Ok(());
        }
        self.load_default()
            .map_err(|e| Error::node("load the default AppArmor profile", e))
    }

    /// The profile of an unprivileged container.
    pub(super) fn profile(&self, asked: &AppArmorProfile) -> Result<Option<String>> {
        match asked {
            AppArmorProfile::Unconfined => Ok(Some(UNCONFINED.to_owned())),
            AppArmorProfile::Unspecified => Ok(self
                .keep_loaded(DEFAULT)
                .is_ok()
                .then(|| DEFAULT.to_owned())),
            AppArmorProfile::RuntimeDefault => match self.keep_loaded(DEFAULT) {
                Ok(()) => Ok(Some(DEFAULT.to_owned())),
                Err(error) => Err(Error::Unsupported {
                    what: "config.linux.security_context.apparmor",
                    reason: Chain(&error).to_string(),
                }),
            },
            AppArmorProfile::Localhost(name) if is_loaded(name)? => Ok(Some(name.clone())),
            AppArmorProfile::Localhost(name) => Err(Error::Invalid {
                field: "config.linux.security_context.apparmor.localhost_ref",
                value: name.clone(),
                reason: "no such profile is loaded on this node".into(),
            }),
        }
    }
}

fn is_loaded(name: &str) -> Result<bool> {
    let loaded = std::fs::read_to_string(PROFILES)
        .map_err(|e| Error::node(format!("read {PROFILES}"), e))?;
    Ok(has(&loaded, name))
}

fn has(profiles: &str, name: &str) -> bool {
    let mut names = profiles
        .lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .map(|(name, _mode)| name);
    names.any(|loaded| loaded == name)
}

/// Whether the default profile can be had here. Nothing is loaded.
///
/// # Errors
/// Why not.
pub(crate) fn try_default() -> Result<(), String> {
    parse(&default_policy(), &["--skip-kernel-load", "--quiet"]).map_err(|e| Chain(&e).to_string())
}

fn default_policy() -> String {
    // The older file may be another module's.
    let own = std::fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| std::fs::read_to_string("/proc/self/attr/current"));
    policy(
        own.unwrap_or_default().trim_end_matches('\0'),
        Path::new(ABI).exists(),
    )
}

/// The profile as it is loaded by a daemon that is under a profile itself, `NAME (MODE)` in the words of the kernel.
fn policy(own: &str, abi: bool) -> String {
    let own = own.rsplit_once(" (").map_or("", |(name, _mode)| name);
    let own: String = own.chars().flat_map(literally).collect();
    let zcrid = if own.is_empty() { UNCONFINED } else { &own };
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    format!("{abi}@{{zcrid}} = \"{zcrid}\"\n{DEFAULT_PROFILE}")
}

/// In the rules a name is a pattern.
fn literally(c: char) -> impl Iterator<Item = char> {
    let special = matches!(
        c,
        '*' | '?' | '[' | ']' | '{' | '}' | '^' | '"' | '\\' | '@'
    );
    special.then_some('\\').into_iter().chain([c])
}

/// Compiles a policy and does with it what is asked for.
fn parse(policy: &str, what: &[&str]) -> Result<(), LoadError> {
    let mut parser = Command::new(PARSER)
        .arg("--skip-cache")
        .args(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(LoadError::Run)?;
    if let Some(mut stdin) = parser.stdin.take() {
        // One that does not read to the end says why in the end.
        stdin.write_all(policy.as_bytes()).ok();
    }
    let output = parser.wait_with_output().map_err(LoadError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(LoadError::Refused {
        status: output.status,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let profiles = "docker-default (enforce)\n/usr/bin/man (complain)\na (b) (enforce)\n";
        for (name, expected) in [
            ("docker-default", true),
            ("docker", false),
            ("default", false),
            ("/usr/bin/man", true),
            ("a (b)", true),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(has(profiles, name), expected, "{name}");
        }
    }

    #[test]
    fn the_policy_knows_who_loads_it() {
        let first_lines = |own, abi| {
            let policy = policy(own, abi);
            policy.split("\n#").next().unwrap().to_owned()
        };
        assert_eq!(
            first_lines("unconfined\n", false),
            r#"@{zcrid} = "unconfined""#
        );
        assert_eq!(
            first_lines("/usr/bin/zcrid (enforce)\n", true),
            "abi <abi/3.0>,\n@{zcrid} = \"/usr/bin/zcrid\""
        );
        // SELinux speaks through the same file.
        assert_eq!(first_lines("kernel", false), r#"@{zcrid} = "unconfined""#);
    }

    /// The parser needs no kernel that has AppArmor.
    #[test]
    fn the_default_profile_compiles_and_nonsense_does_not() {
        const TRY: &[&str] = &["--skip-kernel-load", "--quiet"];
        match parse("profile {", TRY) {
            Err(LoadError::Run(error)) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("skipped: there is no {PARSER}");
                return;
            }
            Err(LoadError::Refused { said, .. }) => {
                assert!(said.contains("syntax error"), "{said}");
            }
            other => panic!("{other:?}"),
        }
        for own in [
            "unconfined",
            "runner (enforce)",
            "/usr/sbin/zcrid (complain)",
        ] {
            for abi in [Path::new(ABI).exists(), false] {
                parse(&policy(own, abi), TRY).unwrap();
            }
        }
        try_default().unwrap();
    }
}
