//! Network configurations: files to [`Network`].

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::version::SpecVersion;

/// A network: the plugins that make an attachment, in order. Source: SPEC.md section 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) version: SpecVersion,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// Never empty.
    pub(crate) plugins: Vec<PluginConf>,
}

/// The configuration of one plugin, as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginConf {
    /// Name of the program.
    pub(crate) kind: String,
    pub(crate) config: Map<String, Value>,
}

/// A configuration that was passed over because of what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedFile {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Why there is no network.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Nobody configured one: the directory has no `*.conflist`, `*.conf` or `*.json`, or does not exist.
    #[error("no CNI configuration in {}", dir.display())]
    NoConfiguration {
        /// The directory.
        dir: PathBuf,
    },
    /// There are configurations, and something is wrong with each.
    #[error("no valid CNI configuration in {}: {}", dir.display(), reasons(skipped))]
    Invalid {
        /// The directory.
        dir: PathBuf,
        /// At least one, in the order of names.
        skipped: Vec<SkippedFile>,
    },
    /// The directory could not be read.
    #[error("cannot read the CNI configurations in {}", dir.display())]
    Read {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn reasons(skipped: &[SkippedFile]) -> String {
    let each = |file: &SkippedFile| format!("{}: {}", file.path.display(), file.reason);
    skipped.iter().map(each).collect::<Vec<_>>().join("; ")
}

/// A configuration in use.
pub(crate) struct Loaded {
    pub(crate) network: Network,
    pub(crate) file: PathBuf,
    pub(crate) skipped: Vec<SkippedFile>,
}

/// More than any configuration has.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The first valid configuration in the order of names.
pub(crate) fn load(dir: &Path) -> Result<Loaded, LoadError> {
    let files = match list(dir, &["conflist", "conf", "json"]) {
        Ok(files) if files.is_empty() => {
            return Err(LoadError::NoConfiguration {
                dir: dir.to_owned(),
            });
        }
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(LoadError::NoConfiguration {
                dir: dir.to_owned(),
            });
        }
        Err(source) => {
            return Err(LoadError::Read {
                dir: dir.to_owned(),
                source,
            });
        }
    };
    let mut skipped = Vec::new();
    for file in files {
        match read(&file).and_then(|value| network(value, dir)) {
            Ok(network) => {
                return Ok(Loaded {
                    network,
                    file,
                    skipped,
                });
            }
            Err(reason) => skipped.push(SkippedFile { path: file, reason }),
        }
    }
    Err(LoadError::Invalid {
        dir: dir.to_owned(),
        skipped,
    })
}

/// Files with one of these extensions, in the order of names.
fn list(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let wanted = path
            .extension()
            .is_some_and(|e| extensions.iter().any(|x| e == *x));
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if wanted && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Value, String> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
    }
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

/// A list of plugins, or the configuration of a single one as before specification 1.0. `dir` may have more
/// plugins for it in a directory named as the network.
fn network(value: Value, dir: &Path) -> Result<Network, String> {
    let Value::Object(mut top) = value else {
        return Err("not a JSON object".to_owned());
    };
    let version = version(&top)?;
    let name = match top.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        Some(other) => return Err(format!("name {other} is not a network's name")),
        None => return Err("\"name\" is missing".to_owned()),
    };
    let (disable_check, disable_gc) = (flag(&top, "disableCheck")?, flag(&top, "disableGC")?);
    let only_inlined = flag(&top, "loadOnlyInlinedPlugins")?;
    let mut plugins = match top.remove("plugins") {
        Some(Value::Array(items)) => items
            .into_iter()
            .map(plugin)
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("\"plugins\" is not an array".to_owned()),
        None if top.contains_key("type") => {
            return plugin(Value::Object(top)).map(|only| Network {
                name,
                version,
                disable_check,
                disable_gc,
                plugins: vec![only],
            });
        }
        None if only_inlined => {
            return Err("\"loadOnlyInlinedPlugins\" without \"plugins\"".to_owned());
        }
        None => Vec::new(),
    };
    if !only_inlined {
        plugins.extend(plugins_in(&dir.join(&name))?);
    }
    if plugins.is_empty() {
        return Err("no plugins".to_owned());
    }
    Ok(Network {
        name,
        version,
        disable_check,
        disable_gc,
        plugins,
    })
}

fn plugins_in(dir: &Path) -> Result<Vec<PluginConf>, String> {
    let files = match list(dir, &["conf"]) {
        Ok(files) => files,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(e) => return Err(format!("{}: {e}", dir.display())),
    };
    let each = |file: &PathBuf| {
        read(file)
            .and_then(plugin)
            .map_err(|e| format!("{}: {e}", file.display()))
    };
    files.iter().map(each).collect()
}

fn plugin(value: Value) -> Result<PluginConf, String> {
    let Value::Object(config) = value else {
        return Err("a plugin is not a JSON object".to_owned());
    };
    let kind = match config.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(format!("a plugin's type {other} is not a string")),
        None => return Err("a plugin has no \"type\"".to_owned()),
    };
    if !is_program(&kind) {
        return Err(format!("a plugin's type {kind:?} is not a program's name"));
    }
    if config
        .get("capabilities")
        .is_some_and(|c| !c.is_object() && !c.is_null())
    {
        return Err(format!("plugin {kind}: \"capabilities\" is not an object"));
    }
    Ok(PluginConf { kind, config })
}

/// The name becomes part of a path, and must not leave the plugin directories.
pub(crate) fn is_program(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control())
}

/// Source: SPEC.md section 1, `name`.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The highest version that both the configuration and this side know.
fn version(top: &Map<String, Value>) -> Result<SpecVersion, String> {
    let one = top.get("cniVersion").into_iter();
    let more = match top.get("cniVersions") {
        None | Some(Value::Null) => [].iter(),
        Some(Value::Array(versions)) => versions.iter(),
        Some(other) => return Err(format!("cniVersions {other} is not an array")),
    };
    let all = one
        .chain(more)
        .map(|v| v.as_str().ok_or(format!("CNI version {v} is not a string")));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    match all.iter().filter_map(|v| SpecVersion::parse(v)).max() {
        Some(version) => Ok(version),
        None if all.is_empty() => Err("\"cniVersion\" is missing".to_owned()),
        None => Err(format!(
            "CNI version {} is not supported (0.3.0 to 1.1.0 are)",
            all.join(", ")
        )),
    }
}

/// A boolean, also written as a string, which the reference implementation takes too.
fn flag(top: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match top.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} {other} is not true or false")),
    }
}
