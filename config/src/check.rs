//! Whether this machine has what a valid configuration names.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{auth::AuthFile, config::Config, registries::Registries};

/// Something that the configuration names and this machine does not have, or that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key that names it, such as `runtime.handlers.crun.path`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
    /// Whether the daemon cannot do its work so; otherwise some pods or images will fail.
    pub fatal: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.reason)
    }
}

impl Config {
    /// Looks at what the configuration names: programs, directories, groups, the files in other formats. Only
    /// reads, changes nothing, starts nothing.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |key: &str, value: String, fatal: bool, found: Result<(), String>| {
            if let Err(reason) = found {
                problems.push(Problem {
                    key: key.to_owned(),
                    value,
                    reason,
                    fatal,
                });
            }
        };
        for (name, handler) in &self.runtime.handlers {
            let key = format!("runtime.handlers.{name}.path");
            let fatal = *name == self.runtime.default_handler;
            report(
                &key,
                quoted(&handler.path),
                fatal,
                executable(&handler.path),
            );
        }
        if let Some(shim) = &self.runtime.shim {
            report("runtime.shim", quoted(shim), true, executable(shim));
        }
        if let Some(tls) = &self.stream.tls {
            let ca = tls.client_ca.as_ref();
            for (key, path) in [
                ("stream.tls_cert_file", Some(&tls.certificate)),
                ("stream.tls_key_file", Some(&tls.key)),
                ("stream.tls_client_ca_file", ca),
            ] {
                if let Some(path) = path {
                    report(key, quoted(path), true, readable(path));
                }
            }
        }
        if let Some(name) = &self.api.socket_group {
            report("api.socket_group", format!("{name:?}"), true, group(name));
        }
        let conf_dir = &self.network.conf_dir;
        report(
            "network.conf_dir",
            quoted(conf_dir),
            false,
            directory(conf_dir),
        );
        let dirs = &self.network.plugin_dirs;
        report(
            "network.plugin_dirs",
            format!("{dirs:?}"),
            false,
            one_directory(dirs),
        );
        let path = &self.image.registries_conf;
        report(
            "image.registries_conf",
            quoted(path),
            true,
            Registries::load(path).map(drop).map_err(|e| chain(&e)),
        );
        if let Some(path) = &self.image.auth_file {
            report(
                "image.auth_file",
                quoted(path),
                false,
                AuthFile::load(path).map(drop).map_err(|e| chain(&e)),
            );
        }
        problems
    }
}

fn quoted(path: &Path) -> String {
    format!("{path:?}")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn executable(path: &Path) -> Result<(), String> {
    let meta = fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("not a file".to_owned());
    }
    if meta.permissions().mode() & 0o111 == 0 {
        Err("not executable".to_owned())
    } else {
        Ok(())
    }
}

fn readable(path: &Path) -> Result<(), String> {
    fs::read(path).map(drop).map_err(|e| e.to_string())
}

fn directory(path: &Path) -> Result<(), String> {
    let meta = fs::metadata(path).map_err(|e| e.to_string())?;
    if meta.is_dir() {
        Ok(())
    } else {
        Err("not a directory".to_owned())
    }
}

fn one_directory(dirs: &[PathBuf]) -> Result<(), String> {
    if dirs.iter().any(|dir| dir.is_dir()) {
        Ok(())
    } else {
        Err("none of these is a directory".to_owned())
    }
}

fn group(name: &str) -> Result<(), String> {
    if name.parse::<u32>().is_ok() {
        return Ok(());
    }
    let groups = fs::read_to_string("/etc/group").map_err(|e| format!("/etc/group: {e}"))?;
    let found = groups
        .lines()
        .any(|line| line.split(':').next() == Some(name));
    if found {
        Ok(())
    } else {
        Err("no such group in /etc/group".to_owned())
    }
}
