//! [`Cni`] and [`NetworkList`]: what the daemon calls.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::task::spawn_blocking;

use crate::{
    attachment::{Attachment, AttachmentKey, is_container_id},
    cache::{Cache, CacheError, Cached, Record},
    chain::{Chain, Runner},
    conf::{self, LoadError, Network, SkippedFile},
    error::{
        AddError, CheckError, Command, DelError, DelErrors, Failure, GcError, NetworkError,
        PluginError,
    },
    leftover,
    result::AddResult,
    version::SpecVersion,
};

/// The directories of the CNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniDirs {
    /// Configurations; read each time that they are needed.
    pub conf_dir: PathBuf,
    /// Plugins, in the order of search.
    pub plugin_dirs: Vec<PathBuf>,
    /// Records of attachments, one file each. Made when it is missing. It must survive whatever the plugins' own
    /// state survives, a reboot above all: addresses are given back with what is in it.
    pub cache_dir: PathBuf,
}

/// The runtime side of the CNI. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni {
    conf_dir: Arc<Path>,
    runner: Arc<Runner>,
}

/// A network that pods can be attached to.
#[derive(Debug)]
pub struct NetworkList {
    network: Network,
    file: PathBuf,
    skipped: Vec<SkippedFile>,
    runner: Arc<Runner>,
}

impl Cni {
    /// `timeout` is what the plugins of an ADD, CHECK or STATUS have together, and what each plugin has that is to
    /// clean up (DEL, GC): one that hangs must not keep the others from it.
    #[must_use]
    pub fn new(dirs: CniDirs, timeout: Duration) -> Self {
        Self::with_environment(dirs, timeout, [])
    }

    /// As [`Cni::new`], with variables in the environment of every plugin beside those of the specification.
    #[must_use]
    pub fn with_environment(
        dirs: CniDirs,
        timeout: Duration,
        variables: impl IntoIterator<Item = (&'static str, OsString)>,
    ) -> Self {
        let CniDirs {
            conf_dir,
            plugin_dirs,
            cache_dir,
        } = dirs;
        let variables = variables.into_iter().collect();
        let runner = Runner::new(plugin_dirs, Cache::new(cache_dir), timeout, variables);
        Self {
            conf_dir: conf_dir.into(),
            runner: Arc::new(runner),
        }
    }

    /// The first valid configuration in the order of names. Reads a few small files, and blocks for that.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(&self) -> Result<Arc<NetworkList>, LoadError> {
        let loaded = conf::load(&self.conf_dir)?;
        let conf::Loaded {
            network,
            file,
            skipped,
        } = loaded;
        Ok(Arc::new(NetworkList {
            network,
            file,
            skipped,
            runner: Arc::clone(&self.runner),
        }))
    }

    /// Detaches a pod from everything that it was attached to, with the configurations of then. Goes on after
    /// errors. What nothing is recorded of is detached already.
    ///
    /// # Errors
    /// All that went wrong. The records of what failed are kept, so that it can be tried again.
    ///
    /// # Cancel safety
    /// Not cancel safe, but repeatable: plugins that run are killed, and the records are kept.
    pub async fn delete(&self, container_id: &str) -> Result<(), DelErrors> {
        let mut errors = Vec::new();
        if is_container_id(container_id) {
            let _shared = self.runner.gate.read().await;
            let _turn = self.runner.turns.of(container_id).await;
            match self.runner.cache.of(container_id).await {
                Ok(found) => {
                    for (key, cached) in found {
                        self.delete_one(&key, cached, &mut errors).await;
                    }
                }
                Err(e) => errors.push(DelError::Record(e)),
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DelErrors {
                container_id: container_id.to_owned(),
                errors,
            })
        }
    }

    async fn delete_one(&self, key: &AttachmentKey, cached: Cached, errors: &mut Vec<DelError>) {
        let record = match cached {
            Cached::Whole(record) => *record,
            Cached::Damaged(damage) => match conf::load(&self.conf_dir) {
                // Without its record a pod is detached as well as can be: today's plugins know it by its id.
                Ok(loaded) => {
                    tracing::warn!(attachment = %key, %damage, "record damaged, detaching by today's configuration");
                    Record::bare(key, loaded.network)
                }
                Err(source) => {
                    errors.push(DelError::Damaged {
                        ifname: key.ifname.clone(),
                        damage,
                        source,
                    });
                    return;
                }
            },
        };
        let failed = Chain::of(&self.runner, &record)
            .del(record.network.plugins.len())
            .await;
        if failed.is_empty() {
            errors.extend(
                self.runner
                    .cache
                    .remove(key)
                    .await
                    .err()
                    .map(DelError::Record),
            );
        }
        errors.extend(failed.into_iter().map(|error| DelError::Plugin {
            network: record.network.name.clone(),
            ifname: key.ifname.clone(),
            error: Box::new(error),
        }));
    }

    /// Asks the plugins whether an attachment is as it was made. Says yes without asking when the configuration
    /// disables CHECK, or is of a version that has none. Waits for its turn when another operation on the same pod
    /// runs.
    ///
    /// # Errors
    /// When it is not, or was never made.
    pub async fn check(&self, key: &AttachmentKey) -> Result<(), CheckError> {
        let not_attached = || CheckError::NotAttached { key: key.clone() };
        let _shared = self.runner.gate.read().await;
        let _turn = self.runner.turns.of(&key.container_id).await;
        let record = match self
            .runner
            .cache
            .get(key)
            .await
            .map_err(CheckError::Record)?
        {
            Some(Cached::Whole(record)) if record.complete => record,
            Some(Cached::Damaged(damage)) => return Err(CheckError::Record(damage)),
            _ => return Err(not_attached()),
        };
        if record.network.disable_check || !record.network.version.has_check() {
            return Ok(());
        }
        let network = record.network.name.clone();
        let checked = Chain::of(&self.runner, &record).check().await;
        checked.map_err(|error| CheckError::Plugin {
            network,
            error: Box::new(error),
        })
    }

    /// The result of an attachment, from its record; none when it is not, or not wholly, attached.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn result(&self, key: &AttachmentKey) -> Result<Option<AddResult>, CacheError> {
        match self.runner.cache.get(key).await? {
            Some(Cached::Whole(record)) if record.complete => Ok(record
                .result
                .as_ref()
                .and_then(|raw| AddResult::from_json(raw).ok())),
            Some(Cached::Damaged(damage)) => Err(damage),
            _ => Ok(None),
        }
    }

    /// Kills the plugins that a runtime with this directory of records left running when it died, whatever they were
    /// to do. To be called before anything else is done. Gives their process ids.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    pub async fn end_leftovers(&self) -> Result<Vec<i32>, CacheError> {
        let runner = Arc::clone(&self.runner);
        let ended = spawn_blocking(move || leftover::end(runner.cache.dir().as_os_str())).await;
        ended
            .unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
            .map_err(|source| CacheError::Io {
                path: leftover::PROCESSES.into(),
                source,
            })
    }

    /// All attachments that are recorded, those that were begun or not wholly undone too.
    ///
    /// # Errors
    /// When the directory of records cannot be read.
    pub async fn attachments(&self) -> Result<Vec<AttachmentKey>, CacheError> {
        self.runner.cache.keys().await
    }
}

impl NetworkList {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.network.name
    }

    /// The version of the specification that is spoken with its plugins.
    #[must_use]
    pub fn version(&self) -> SpecVersion {
        self.network.version
    }

    /// The file that it is from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Its plugins, in the order of ADD.
    pub fn plugins(&self) -> impl Iterator<Item = &str> {
        self.network
            .plugins
            .iter()
            .map(|plugin| plugin.kind.as_str())
    }

    /// The configurations before it in the order of names that are not valid.
    #[must_use]
    pub fn skipped(&self) -> &[SkippedFile] {
        &self.skipped
    }

    /// Attaches a pod. Waits for its turn when another operation on the same pod runs.
    ///
    /// # Errors
    /// Then what was done is undone, in reverse.
    ///
    /// # Cancel safety
    /// Not cancel safe: a plugin that runs is killed, and what was done is left to [`Cni::delete`], which knows of it.
    pub async fn add(&self, attachment: &Attachment) -> Result<AddResult, AddError> {
        attachment.validate()?;
        let runner = &self.runner;
        let _shared = runner.gate.read().await;
        let _turn = runner.turns.of(&attachment.container_id).await;
        let programs = runner
            .find_all(&self.network, Command::Add)
            .map_err(|error| self.plugin_error(error))?;
        let mut record = Record::new(attachment, self.network.clone());
        match runner.cache.create(&record).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(AddError::Attached {
                    key: attachment.key(),
                });
            }
            Err(source) => {
                return Err(AddError::Record {
                    source,
                    undo: Vec::new(),
                });
            }
        }
        let added = Chain::of(runner, &record).add(&programs).await;
        match added {
            Ok((raw, result)) => {
                record.result = Some(raw);
                record.complete = true;
                match runner.cache.replace(&record).await {
                    Ok(()) => Ok(result),
                    Err(source) => {
                        let undo = self.undo(&mut record, programs.len()).await;
                        Err(AddError::Record { source, undo })
                    }
                }
            }
            Err(failed) => {
                record.result = failed.previous;
                let undo = self.undo(&mut record, failed.ran).await;
                Err(AddError::Plugin {
                    network: self.network.name.clone(),
                    error: Box::new(failed.error),
                    undo,
                })
            }
        }
    }

    /// DEL of the first `ran` plugins in reverse, then no record; when that fails, a record for the next try.
    async fn undo(&self, record: &mut Record, ran: usize) -> Vec<PluginError> {
        record.complete = false;
        let errors = Chain::of(&self.runner, record).del(ran).await;
        let key = record.key();
        let kept = if errors.is_empty() {
            self.runner.cache.remove(&key).await
        } else {
            self.runner.cache.replace(record).await
        };
        if let Err(e) = kept {
            // The record from before ADD is still there: DEL with it does the same, without a result.
            tracing::warn!(attachment = %key, error = %e, "cannot update the record of a failed attachment");
        }
        errors
    }

    fn plugin_error(&self, error: PluginError) -> AddError {
        AddError::Plugin {
            network: self.network.name.clone(),
            error: Box::new(error),
            undo: Vec::new(),
        }
    }

    /// Whether an attachment could be made now: all plugins are there, and say so if they know STATUS.
    ///
    /// # Errors
    /// The first plugin that could not.
    pub async fn status(&self) -> Result<(), NetworkError> {
        let programs = self
            .runner
            .find_all(&self.network, Command::Status)
            .map_err(|e| self.network_error(vec![e]))?;
        if !self.network.version.has_status_and_gc() {
            return Ok(());
        }
        let deadline = self.runner.deadline();
        for (plugin, program) in self.network.plugins.iter().zip(&programs) {
            let request = self.network.request(plugin);
            let asked = self
                .runner
                .run(Command::Status, plugin, program, &[], &request, deadline)
                .await;
            asked.map_err(|e| self.network_error(vec![e]))?;
        }
        Ok(())
    }

    /// Has the plugins remove what no attachment needs of which there is a record, be it of one that is not wholly
    /// undone. Waits until no ADD and DEL runs, and lets none begin meanwhile. Does nothing when the configuration
    /// disables GC, or is of a version without.
    ///
    /// # Errors
    /// The records cannot be read, or all plugins that failed.
    pub async fn gc(&self) -> Result<(), GcError> {
        if self.network.disable_gc || !self.network.version.has_status_and_gc() {
            return Ok(());
        }
        let _alone = self.runner.gate.write().await;
        let entry =
            |key: &AttachmentKey| json!({ "containerID": key.container_id, "ifname": key.ifname });
        let valid = self.runner.cache.keys().await?;
        let valid = valid.iter().map(entry).collect::<Vec<_>>();
        let mut errors = Vec::new();
        for plugin in &self.network.plugins {
            let mut request = self.network.request(plugin);
            request.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            let collected = async {
                let program = self.runner.find(plugin, Command::Gc)?;
                self.runner
                    .run(
                        Command::Gc,
                        plugin,
                        &program,
                        &[],
                        &request,
                        self.runner.deadline(),
                    )
                    .await
            };
            errors.extend(collected.await.err());
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(GcError::Plugins(self.network_error(errors)))
        }
    }

    /// The versions that each plugin speaks, in the order of ADD.
    ///
    /// # Errors
    /// The first plugin that does not say.
    pub async fn versions(&self) -> Result<Vec<(String, Vec<String>)>, NetworkError> {
        let mut all = Vec::new();
        for plugin in &self.network.plugins {
            let asked = self
                .version_of(plugin)
                .await
                .map_err(|e| self.network_error(vec![e]))?;
            all.push((plugin.kind.clone(), asked));
        }
        Ok(all)
    }

    async fn version_of(&self, plugin: &conf::PluginConf) -> Result<Vec<String>, PluginError> {
        let program = self.runner.find(plugin, Command::Version)?;
        let request = serde_json::Map::from_iter([(
            "cniVersion".to_owned(),
            json!(self.network.version.as_str()),
        )]);
        let deadline = self.runner.deadline();
        let output = self
            .runner
            .run(Command::Version, plugin, &program, &[], &request, deadline)
            .await?;
        let answer = serde_json::from_slice::<serde_json::Value>(&output).ok();
        let versions = answer
            .as_ref()
            .and_then(|a| a.get("supportedVersions"))
            .and_then(|v| v.as_array());
        let versions = versions.ok_or_else(|| PluginError {
            plugin: plugin.kind.clone(),
            command: Command::Version,
            failure: Failure::Malformed {
                reason: "no \"supportedVersions\"".to_owned(),
            },
            stderr: String::new(),
        })?;
        Ok(versions
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect())
    }

    fn network_error(&self, errors: Vec<PluginError>) -> NetworkError {
        NetworkError {
            network: self.network.name.clone(),
            errors,
        }
    }
}
