//! What an OCI runtime can do, by its `features` command (runtime specification, features.md).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

/// A runtime answers from what was compiled into it; one that takes longer than this does not know the command.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a runtime says of itself. The default is a runtime that says nothing: what is not said is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandlerFeatures {
    /// The options that it knows in mounts; empty when it does not say.
    pub mount_options: BTreeSet<String>,
    /// The kinds of namespaces that it knows: "user", "pid", ...
    pub namespaces: BTreeSet<String>,
    /// The newest version of the runtime specification that it takes; empty when it does not say.
    pub newest_specification: String,
    /// Whether it was built with AppArmor, if it says.
    pub apparmor: Option<bool>,
    /// Whether it was built with SELinux, if it says.
    pub selinux: Option<bool>,
}

impl HandlerFeatures {
    /// Whether a mount can be made read-only with all that is mounted below it.
    #[must_use]
    pub fn recursive_read_only(&self) -> bool {
        self.mount_options.contains("rro")
    }

    /// Whether containers can run in a user namespace. The runtime need not know id-mapped mounts: zcrid makes them.
    #[must_use]
    pub fn user_namespaces(&self) -> bool {
        self.namespaces.contains("user")
    }

    /// Whether an option of a mount is known to be refused.
    #[must_use]
    pub fn lacks_mount_option(&self, option: &str) -> bool {
        !self.mount_options.is_empty() && !self.mount_options.contains(option)
    }

    /// Reads the answer of `features`; anything else is an answer that says nothing.
    #[must_use]
    pub fn parse(json: &[u8]) -> Self {
        let answer: Answer = serde_json::from_slice(json).unwrap_or_default();
        Self {
            mount_options: answer.mount_options.into_iter().collect(),
            namespaces: answer.linux.namespaces.into_iter().collect(),
            newest_specification: answer.oci_version_max,
            apparmor: answer.linux.apparmor.enabled,
            selinux: answer.linux.selinux.enabled,
        }
    }

    /// Asks a runtime. One without the command, as crun before 1.9, says nothing as long as it tells its version.
    ///
    /// # Cancel safety
    /// The runtime is killed.
    ///
    /// # Errors
    /// It cannot be run, does not answer in time, or knows neither command.
    pub async fn ask(runtime: &Path) -> Result<Self, String> {
        match run(runtime, "features").await? {
            output if output.status.success() => Ok(Self::parse(&output.stdout)),
            _ => match run(runtime, "--version").await? {
                output if output.status.success() => Ok(Self::default()),
                output => Err(format!(
                    "--version ended with {}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                )),
            },
        }
    }
}

async fn run(runtime: &Path, word: &str) -> Result<Output, String> {
    let mut command = Command::new(runtime);
    command.arg(word).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(|error| format!("it cannot be run: {error}")),
        Err(_elapsed) => Err(format!("{word} takes more than {} s", PATIENCE.as_secs())),
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    oci_version_max: String,
    mount_options: Vec<String>,
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<String>,
    apparmor: Module,
    selinux: Module,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Module {
    enabled: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_and_what_is_not() {
        let said = HandlerFeatures::parse(
            br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],
                 "linux":{"namespaces":["pid","user"],"cgroup":{"v1":true},"apparmor":{"enabled":true},
                 "selinux":{"enabled":false}},"annotations":{}}"#,
        );
        assert!(said.recursive_read_only() && said.user_namespaces());
        assert!(said.lacks_mount_option("noexec") && !said.lacks_mount_option("ro"));
        assert_eq!(said.newest_specification, "1.2.0");
        assert_eq!((said.apparmor, said.selinux), (Some(true), Some(false)));
        for nothing in [
            "",
            "unknown command features",
            "{}",
            r#"{"mountOptions":null}"#,
        ] {
            let nothing = HandlerFeatures::parse(nothing.as_bytes());
            assert_eq!(nothing, HandlerFeatures::default());
            assert!(!nothing.recursive_read_only() && !nothing.user_namespaces());
            assert!(!nothing.lacks_mount_option("noexec"), "it may know it");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_no_runtime_has_no_features() {
        let ask = |program| HandlerFeatures::ask(Path::new(program));
        assert_eq!(ask("/bin/true").await, Ok(HandlerFeatures::default()));
        let failed = ask("/bin/false").await.unwrap_err();
        assert!(failed.contains("ended with"), "{failed}");
        let missing = ask("/no/such/runtime").await.unwrap_err();
        assert!(missing.contains("cannot be run"), "{missing}");
    }
}
