//! Reading the configuration anew while the daemon serves: what REFRESH and SIGHUP do.
//!
//! In force at once: `[log] level`, `[network] conf_template`, the files that `[image] registries_conf` and `auth_file`
//! name, and these names. Everything else is read at the start, and said to need a restart when it changed. Nothing is
//! in force if one of the files is not valid.
//!
//! Certificates of registries and the CNI configuration are read whenever they are needed.

use std::sync::{Mutex, PoisonError};

use zcri_config::{Config, ConfigError, LogLevel};

use crate::images::{Files, FilesError};
use crate::node::Node;

/// Where the configuration comes from, and how the log's level is changed: the command line knows.
pub struct Source {
    /// Reads the configuration.
    pub read: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// Sets the level of the log; false where the environment has set it.
    pub set_level: Box<dyn Fn(LogLevel) -> bool + Send + Sync>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What is in force now.
    pub applied: String,
    /// What needs a restart, if something does.
    pub restart: Option<String>,
}

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// zcri.toml or a drop-in.
    #[error("the configuration")]
    Config(#[source] ConfigError),
    /// A file that it names.
    #[error("a file that the configuration names")]
    Files(#[source] FilesError),
    /// The work was not done.
    #[error("the work ended early")]
    Task(#[source] tokio::task::JoinError),
}

/// Reads the configuration anew.
pub struct Reloader {
    source: std::sync::Arc<Source>,
    node: std::sync::Arc<Node>,
    /// What is in force, and what the daemon was started with where that is not.
    running: Mutex<Config>,
}

impl Reloader {
    /// Over the configuration that the daemon was started with.
    pub fn new(source: Source, node: std::sync::Arc<Node>, running: Config) -> Self {
        Self {
            source: source.into(),
            node,
            running: Mutex::new(running),
        }
    }

    /// Reads everything, then puts it in force.
    ///
    /// # Errors
    /// A file is not valid; nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let source = self.source.clone();
        let read = move || {
            let config = (source.read)().map_err(ReloadError::Config)?;
            let files = Files::load(&config.image).map_err(ReloadError::Files)?;
            Ok((config, files))
        };
        let (new, files) = tokio::task::spawn_blocking(read)
            .await
            .map_err(ReloadError::Task)??;
        Ok(self.apply(new, files))
    }

    fn apply(&self, new: Config, files: Files) -> Reloaded {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut applied = vec!["registries.conf"];
        if new.image.auth_file.is_some() {
            applied.push("auth.json");
        }
        self.node.images.set_files(files);
        running
            .image
            .registries_conf
            .clone_from(&new.image.registries_conf);
        running.image.auth_file.clone_from(&new.image.auth_file);
        if running.log.level != new.log.level && (self.source.set_level)(new.log.level) {
            applied.push("log.level");
            running.log.level = new.log.level;
        }
        if running.network.conf_template != new.network.conf_template {
            applied.push("network.conf_template");
            let template = new.network.conf_template.clone();
            self.node.network.set_template(template.clone());
            running.network.conf_template = template;
        }
        let restart = differences(&running, &new);
        Reloaded {
            applied: applied.join(", "),
            restart: (!restart.is_empty()).then(|| restart.join(", ")),
        }
    }
}

/// Keys whose values differ, as in `zcrid config`.
fn differences(running: &Config, new: &Config) -> Vec<String> {
    let (before, after) = (keys(running), keys(new));
    let mut changed: Vec<String> = before
        .iter()
        .filter(|pair| !after.contains(pair))
        .chain(after.iter().filter(|pair| !before.contains(pair)))
        .map(|(key, _)| key.clone())
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

/// Every key in full, with its value.
fn keys(config: &Config) -> Vec<(String, String)> {
    let text = config.to_toml();
    let mut section = "";
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once(" = ") {
            all.push((format!("{section}.{key}"), value.to_owned()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named() {
        let before = Config::default();
        let mut after = Config::default();
        assert!(differences(&before, &after).is_empty());
        after.api.socket_mode = 0o600;
        let runc = after.runtime.handlers["runc"].clone();
        after.runtime.handlers.insert("crun".into(), runc);
        let want = [
            "api.socket_mode",
            "runtime.handlers.crun.output_code_page",
            "runtime.handlers.crun.path",
            "runtime.handlers.crun.root",
            "runtime.handlers.crun.type",
        ];
        assert_eq!(differences(&before, &after), want);
        assert_eq!(differences(&after, &before), want);
    }
}
