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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn dir(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn list_of(name: &str) -> String {
        json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}).to_string()
    }

    #[test]
    fn the_first_valid_one_is_used_and_the_others_are_named() {
        let dir = dir(&[
            ("05-broken.conflist", "{"),
            ("06-ignored.txt", &list_of("text")),
            (".00-hidden.conflist", &list_of("hidden")),
            ("10-good.conflist", &list_of("good")),
            ("20-later.conflist", &list_of("later")),
        ]);
        let loaded = load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.network.name, "good");
        assert_eq!(loaded.file, dir.path().join("10-good.conflist"));
        assert_eq!(loaded.skipped.len(), 1);
        assert_eq!(
            loaded.skipped[0].path,
            dir.path().join("05-broken.conflist")
        );
    }

    #[test]
    fn none_is_told_from_wrong_ones() {
        let empty = dir(&[("readme", "")]);
        let error = load(empty.path()).err().unwrap();
        assert!(
            matches!(&error, LoadError::NoConfiguration { dir } if dir == empty.path()),
            "{error}"
        );
        let missing = empty.path().join("missing");
        let error = load(&missing).err().unwrap();
        assert!(
            matches!(&error, LoadError::NoConfiguration { dir } if *dir == missing),
            "{error}"
        );

        let wrong = dir(&[("1.conf", "[]"), ("2.json", "{}")]);
        let error = load(wrong.path()).err().unwrap().to_string();
        assert!(
            error.contains("1.conf: not a JSON object") && error.contains("2.json: \"cniVersion\""),
            "{error}"
        );

        let file = dir(&[("file", "")]);
        let error = load(&file.path().join("file")).err().unwrap();
        assert!(matches!(error, LoadError::Read { .. }), "{error}");
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let dir = dir(&[(
            "1.conf",
            r#"{"cniVersion":"0.3.1","name":"one","type":"macvlan","master":"eth0"}"#,
        )]);
        let network = load(dir.path()).unwrap_or_else(|e| panic!("{e}")).network;
        assert_eq!(
            (network.plugins.len(), network.version),
            (1, SpecVersion::V0_3_1)
        );
        assert_eq!(network.plugins[0].config["master"], json!("eth0"));
    }

    #[test]
    fn plugins_come_from_the_folder_of_the_network_too() {
        let inlined = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#;
        let folder = [
            ("n/2.conf", r#"{"type":"c"}"#),
            ("n/1.conf", r#"{"type":"b"}"#),
            ("n/0.txt", "{"),
        ];
        let kinds = |network: &Network| {
            network
                .plugins
                .iter()
                .map(|p| p.kind.clone())
                .collect::<Vec<_>>()
        };

        let both = dir(&[&[("1.conflist", inlined)], &folder[..]].concat());
        assert_eq!(
            kinds(&load(both.path()).unwrap_or_else(|e| panic!("{e}")).network),
            ["a", "b", "c"]
        );

        let none_inlined = r#"{"cniVersion":"1.1.0","name":"n"}"#;
        let folder_only = dir(&[&[("1.conflist", none_inlined)], &folder[..]].concat());
        assert_eq!(
            kinds(
                &load(folder_only.path())
                    .unwrap_or_else(|e| panic!("{e}"))
                    .network
            ),
            ["b", "c"]
        );

        let only = inlined.replace("\"name\"", "\"loadOnlyInlinedPlugins\":true,\"name\"");
        let inlined_only = dir(&[&[("1.conflist", only.as_str())], &folder[..]].concat());
        assert_eq!(
            kinds(
                &load(inlined_only.path())
                    .unwrap_or_else(|e| panic!("{e}"))
                    .network
            ),
            ["a"]
        );
    }

    #[test]
    fn the_highest_version_known_to_both_is_spoken() {
        let version = |value: Value| {
            let top = value.as_object().cloned().unwrap();
            version(&top)
        };
        let both = json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "7.0.0"]});
        assert_eq!(version(both), Ok(SpecVersion::V1_0_0));
        assert_eq!(
            version(json!({"cniVersions": ["1.1.0"]})),
            Ok(SpecVersion::V1_1_0)
        );
        assert!(
            version(json!({"cniVersion": "0.2.0"}))
                .unwrap_err()
                .contains("0.2.0")
        );
        assert!(version(json!({})).unwrap_err().contains("missing"));
        assert!(version(json!({"cniVersion": 1})).is_err());
        assert!(version(json!({"cniVersions": "1.0.0"})).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (value, names) in [
            (
                json!({"cniVersion": "1.0.0", "plugins": [{"type": "a"}]}),
                "name",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "../x", "plugins": [{"type": "a"}]}),
                "../x",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "", "plugins": [{"type": "a"}]}),
                "name",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}),
                "no plugins",
            ),
            (json!({"cniVersion": "1.0.0", "name": "n"}), "no plugins"),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": {}}),
                "plugins",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [1]}),
                "object",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
                "type",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": 1}]}),
                "type",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../../bin/sh"}]}),
                "../../bin/sh",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": ".."}]}),
                "..",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a", "capabilities": 1}]}),
                "capabilities",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "disableCheck": "maybe", "plugins": [{"type": "a"}]}),
                "maybe",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "loadOnlyInlinedPlugins": true}),
                "loadOnlyInlinedPlugins",
            ),
        ] {
            let error = network(value.clone(), Path::new("/nonexistent")).unwrap_err();
            assert!(error.contains(names), "{value}: {error}");
        }
    }

    #[test]
    fn odd_files_do_no_harm() {
        let dir = dir(&[("3.conflist", &list_of("good"))]);
        let deep = "[".repeat(100_000);
        fs::write(dir.path().join("1.conf"), deep).unwrap();
        fs::write(dir.path().join("2.conf"), vec![b' '; 2 * 1024 * 1024]).unwrap();
        symlink("/dev/zero", dir.path().join("2a.conf")).unwrap();
        symlink("/nonexistent", dir.path().join("2b.conf")).unwrap();
        fs::create_dir(dir.path().join("2c.conf")).unwrap();
        let loaded = load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (loaded.network.name.as_str(), loaded.skipped.len()),
            ("good", 4)
        );
    }

    proptest! {
        #[test]
        fn a_program_stays_in_its_directory(name in "\\PC{0,12}|[./]{1,4}|[a-z./\\\\]{1,8}") {
            if is_program(&name) {
                let path = Path::new("/opt/cni/bin").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("/opt/cni/bin")));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            }
        }
    }
}
