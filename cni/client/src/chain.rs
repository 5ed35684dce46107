//! Running the plugins of a network: what each is given, and in which order they run.

use std::{
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{sync::RwLock, time::Instant};

use crate::{
    cache::{Cache, Record},
    conf::{Network, PluginConf},
    error::{Command, Failure, PluginError},
    exec::{self, Invocation},
    leftover,
    result::AddResult,
    turn::Turns,
};

/// The error code with which a plugin says that there is nothing to clean up. Source: SPEC.md section 5, "Error".
const CODE_UNKNOWN_CONTAINER: u32 = 3;

/// What plugins such as portmap search for iptables when the daemon itself has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What all networks of a [`crate::Cni`] share.
#[derive(Debug)]
pub(crate) struct Runner {
    plugin_dirs: Vec<PathBuf>,
    /// `CNI_PATH`
    cni_path: OsString,
    /// `PATH`
    path: OsString,
    /// What else is in the environment of plugins.
    environment: Vec<(&'static str, OsString)>,
    timeout: Duration,
    pub(crate) cache: Cache,
    /// ADD, DEL and CHECK share it, GC has it alone. Source: SPEC.md section 3, "Lifecycle & Ordering".
    pub(crate) gate: RwLock<()>,
    /// Operations on one pod do not overlap.
    pub(crate) turns: Turns,
}

impl Runner {
    pub(crate) fn new(
        plugin_dirs: Vec<PathBuf>,
        cache: Cache,
        timeout: Duration,
        environment: Vec<(&'static str, OsString)>,
    ) -> Self {
        let cni_path = plugin_dirs
            .iter()
            .map(|dir| dir.as_os_str())
            .collect::<Vec<_>>()
            .join(OsStr::new(":"));
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        Self {
            plugin_dirs,
            cni_path,
            path,
            environment,
            timeout,
            cache,
            gate: RwLock::new(()),
            turns: Turns::default(),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The programs of all plugins, before any of them runs.
    pub(crate) fn find_all(
        &self,
        network: &Network,
        command: Command,
    ) -> Result<Vec<PathBuf>, PluginError> {
        network
            .plugins
            .iter()
            .map(|plugin| self.find(plugin, command))
            .collect()
    }

    /// The program of a plugin: the first executable file of its name.
    pub(crate) fn find(
        &self,
        plugin: &PluginConf,
        command: Command,
    ) -> Result<PathBuf, PluginError> {
        let executable = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = self.plugin_dirs.iter().map(|dir| dir.join(&plugin.kind));
        candidates.find(executable).ok_or_else(|| PluginError {
            plugin: plugin.kind.clone(),
            command,
            failure: Failure::Missing {
                searched: self.plugin_dirs.clone(),
            },
            stderr: String::new(),
        })
    }

    /// Runs a plugin once; gives what it wrote to standard output.
    pub(crate) async fn run(
        &self,
        command: Command,
        plugin: &PluginConf,
        program: &Path,
        parameters: &[(&'static str, OsString)],
        request: &Map<String, Value>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PluginError> {
        let mut env = vec![
            ("CNI_COMMAND", OsString::from(command.as_str())),
            ("CNI_PATH", self.cni_path.clone()),
            ("PATH", self.path.clone()),
            (leftover::OWNER, self.cache.dir().into()),
        ];
        env.extend(self.environment.iter().cloned());
        env.extend_from_slice(parameters);
        // A map with string keys always becomes JSON.
        let stdin = Value::Object(request.clone()).to_string().into_bytes();
        let invocation = Invocation {
            program,
            env,
            stdin,
            deadline,
            allowed: self.timeout,
        };
        let done = exec::run(invocation).await;
        match done.outcome {
            Ok(stdout) => {
                if !done.stderr.is_empty() {
                    tracing::info!(plugin = plugin.kind, %command, stderr = done.stderr, "CNI plugin");
                }
                Ok(stdout)
            }
            Err(failure) => Err(PluginError {
                plugin: plugin.kind.clone(),
                command,
                failure,
                stderr: done.stderr,
            }),
        }
    }
}

impl Network {
    /// The configuration of a plugin as it is given to it, without what belongs to an attachment.
    /// Source: SPEC.md section 3, "Deriving request configuration from plugin configuration".
    pub(crate) fn request(&self, plugin: &PluginConf) -> Map<String, Value> {
        let mut request = plugin.config.clone();
        request.retain(|key, _| !key.starts_with("cni.dev/"));
        for generated in ["capabilities", "runtimeConfig", "prevResult", "cniVersions"] {
            request.remove(generated);
        }
        request.insert("cniVersion".to_owned(), json!(self.version.as_str()));
        request.insert("name".to_owned(), json!(self.name));
        request
    }
}

/// The plugins of one attachment.
pub(crate) struct Chain<'a> {
    runner: &'a Runner,
    record: &'a Record,
}

/// An ADD that failed.
pub(crate) struct FailedAdd {
    pub(crate) error: PluginError,
    /// How many plugins ran, the one that failed included: it may have done half of its work.
    pub(crate) ran: usize,
    /// The result of the one before it.
    pub(crate) previous: Option<Value>,
}

impl<'a> Chain<'a> {
    pub(crate) fn of(runner: &'a Runner, record: &'a Record) -> Self {
        Self { runner, record }
    }

    /// All plugins in order, each with the result of the one before.
    pub(crate) async fn add(&self, programs: &[PathBuf]) -> Result<(Value, AddResult), FailedAdd> {
        let deadline = self.runner.deadline();
        let mut previous = None;
        let mut last = AddResult::default();
        for (i, (plugin, program)) in self.record.network.plugins.iter().zip(programs).enumerate() {
            let request = self.request(plugin, previous.as_ref());
            let parameters = self.parameters(self.record.netns.as_os_str());
            let run = self.runner.run(
                Command::Add,
                plugin,
                program,
                &parameters,
                &request,
                deadline,
            );
            match run.await.and_then(|output| self.result(plugin, &output)) {
                Ok((raw, result)) => {
                    previous = Some(raw);
                    last = result;
                }
                Err(error) => {
                    return Err(FailedAdd {
                        error,
                        ran: i + 1,
                        previous,
                    });
                }
            }
        }
        Ok((previous.unwrap_or_default(), last))
    }

    /// The first `ran` plugins in reverse, all of them whatever fails.
    pub(crate) async fn del(&self, ran: usize) -> Vec<PluginError> {
        let previous = self
            .record
            .result
            .as_ref()
            .filter(|_| self.record.network.version.has_check());
        // A namespace that is gone took its interfaces along. Plugins know how to go without, not all of them know
        // what a path to nothing means.
        // What is no path is a token of a system without them, and good for ever.
        let netns = if self.record.netns.is_relative() || self.record.netns.exists() {
            self.record.netns.as_os_str()
        } else {
            OsStr::new("")
        };
        let parameters = self.parameters(netns);
        let mut errors = Vec::new();
        for plugin in self.record.network.plugins.iter().take(ran).rev() {
            let request = self.request(plugin, previous);
            let run = async {
                let program = self.runner.find(plugin, Command::Del)?;
                let deadline = self.runner.deadline();
                self.runner
                    .run(
                        Command::Del,
                        plugin,
                        &program,
                        &parameters,
                        &request,
                        deadline,
                    )
                    .await
            };
            errors.extend(
                run.await
                    .err()
                    .filter(|error| error.code() != Some(CODE_UNKNOWN_CONTAINER)),
            );
        }
        errors
    }

    /// All plugins in order, with the final result of ADD, up to the first that finds fault.
    pub(crate) async fn check(&self) -> Result<(), PluginError> {
        let deadline = self.runner.deadline();
        let parameters = self.parameters(self.record.netns.as_os_str());
        for plugin in &self.record.network.plugins {
            let program = self.runner.find(plugin, Command::Check)?;
            let request = self.request(plugin, self.record.result.as_ref());
            self.runner
                .run(
                    Command::Check,
                    plugin,
                    &program,
                    &parameters,
                    &request,
                    deadline,
                )
                .await?;
        }
        Ok(())
    }

    fn request(&self, plugin: &PluginConf, previous: Option<&Value>) -> Map<String, Value> {
        let mut request = self.record.network.request(plugin);
        let wanted = |name: &str| {
            plugin.config.get("capabilities").and_then(|c| c.get(name)) == Some(&Value::Bool(true))
        };
        let granted = self
            .record
            .capabilities
            .iter()
            .filter(|(name, _)| wanted(name));
        let granted = granted
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Map<_, _>>();
        if !granted.is_empty() {
            request.insert("runtimeConfig".to_owned(), Value::Object(granted));
        }
        if let Some(previous) = previous {
            request.insert("prevResult".to_owned(), previous.clone());
        }
        request
    }

    fn parameters(&self, netns: &OsStr) -> Vec<(&'static str, OsString)> {
        vec![
            ("CNI_CONTAINERID", self.record.container_id.clone().into()),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", self.record.ifname.clone().into()),
            ("CNI_ARGS", self.record.args.clone().into()),
        ]
    }

    fn result(
        &self,
        plugin: &PluginConf,
        output: &[u8],
    ) -> Result<(Value, AddResult), PluginError> {
        let malformed = |reason| PluginError {
            plugin: plugin.kind.clone(),
            command: Command::Add,
            failure: Failure::Malformed { reason },
            stderr: String::new(),
        };
        if output.len() > exec::MAX_STDOUT {
            let reason = format!("a result of more than {} bytes", exec::MAX_STDOUT);
            return Err(malformed(reason));
        }
        let mut raw = serde_json::from_slice::<Value>(output)
            .map_err(|e| malformed(format!("result: {e}")))?;
        let result = AddResult::from_json(&raw).map_err(|e| malformed(format!("result: {e}")))?;
        // The next plugin reads it as of the version that it is told.
        if let Some(object) = raw.as_object_mut() {
            object.insert(
                "cniVersion".to_owned(),
                json!(self.record.network.version.as_str()),
            );
        }
        Ok((raw, result))
    }
}
