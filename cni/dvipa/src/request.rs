//! What the runtime asks: the environment, and a configuration on standard input. Source: SPEC.md section 2.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    config::Config,
    error::{Error, Result},
};

/// The versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Is the attachment as ADD made it?
    Check,
    /// Free what no attachment needs.
    Gc,
    /// Could a pod be attached?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// As in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Add,
            Self::Del,
            Self::Check,
            Self::Gc,
            Self::Status,
            Self::Version,
        ]
        .into_iter()
        .find(|verb| verb.as_str() == text)
    }
}

/// Variables of the environment, by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What is to be done.
///
/// # Errors
/// `CNI_COMMAND` is missing or unknown.
pub fn verb(environment: Environment<'_>) -> Result<Verb> {
    let name = "CNI_COMMAND";
    let text = required(environment, name)?;
    Verb::parse(&text).ok_or_else(|| Error::Environment {
        name,
        reason: format!("{text:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"),
    })
}

/// The attachment that ADD, DEL and CHECK are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Id of the container, for Kubernetes of the pod sandbox.
    pub container: String,
    /// Name of the interface.
    pub ifname: String,
    /// The network namespace; may be missing at DEL.
    pub netns: Option<PathBuf>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` of `CNI_ARGS`, for people.
    pub name: Option<(String, String)>,
}

impl Pod {
    /// From the environment.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn from_environment(environment: Environment<'_>) -> Result<Self> {
        let container = required(environment, "CNI_CONTAINERID")?;
        if !is_container_id(&container) {
            return Err(Error::Environment {
                name: "CNI_CONTAINERID",
                reason: format!("{container:?} is not an id as SPEC.md has them"),
            });
        }
        let ifname = required(environment, "CNI_IFNAME")?;
        if !is_ifname(&ifname) {
            return Err(Error::Environment {
                name: "CNI_IFNAME",
                reason: format!("{ifname:?} is not a name for an interface"),
            });
        }
        let args = environment("CNI_ARGS").unwrap_or_default();
        let arg = |wanted: &str| {
            args.split(';')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == wanted)
                // It is put into lines of a log.
                .map(|(_, value)| value.replace(char::is_control, ""))
        };
        Ok(Self {
            container,
            ifname,
            netns: environment("CNI_NETNS")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            name: arg("K8S_POD_NAMESPACE").zip(arg("K8S_POD_NAME")),
        })
    }
}

fn required(environment: Environment<'_>, name: &'static str) -> Result<String> {
    environment(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Error::Environment {
            name,
            reason: "is missing".to_owned(),
        })
}

/// Source: SPEC.md section 2, "Parameters".
fn is_container_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// What the kernel takes. Source: Linux, `dev_valid_name`.
fn is_ifname(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// An attachment that GC must leave alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Valid {
    /// Id of the container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Name of the interface.
    pub ifname: String,
}

/// What comes on standard input.
#[derive(Debug)]
pub struct Input {
    /// Version of the specification that the answer must be of.
    pub version: String,
    /// The configuration.
    pub config: Config,
    /// The result of the plugins before, or at DEL and CHECK of the whole chain.
    pub prev_result: Option<Value>,
    /// For GC: all attachments that there are. libcni leaves an empty list out.
    pub valid: Vec<Valid>,
}

impl Input {
    /// From the bytes of standard input.
    ///
    /// # Errors
    /// It is not JSON, of an unknown version, or not a configuration of this plugin.
    pub fn parse(stdin: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(stdin).map_err(Error::Decode)?;
        let version = version_of(&value);
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Error::Version { version });
        }
        Config::parse(value, version)
    }
}

/// `cniVersion`, which was not written before 0.2.0.
#[must_use]
pub fn version_of(value: &Value) -> String {
    let version = value.get("cniVersion").and_then(Value::as_str);
    version.unwrap_or("0.1.0").to_owned()
}
