//! The first process of a container, and processes that join it.

use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType, Process, Spec, User};

use super::capabilities::ProcessCapabilities;
use super::{SpecError, SpecInput, oom_score_adj};

/// What a process finds when neither the image nor the request sets it (the field's common value).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERM: &str = "xterm";

/// What an image says about its containers (OCI image specification, config.md).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDefaults {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The command's fixed part.
    pub entrypoint: Vec<String>,
    /// The command's default arguments.
    pub cmd: Vec<String>,
    /// Working directory, or empty.
    pub working_dir: String,
}

pub(super) fn process(
    input: &SpecInput<'_>,
    capabilities: &ProcessCapabilities,
) -> Result<Process, SpecError> {
    let config = input.container;
    let mut process = portable(input)?;
    process
        .set_capabilities(Some(capabilities.oci()))
        .set_apparmor_profile(input.confined.apparmor.clone())
        .set_selinux_label(input.confined.selinux.process.clone())
        .set_oom_score_adj(Some(oom_score_adj(&config.resources, input.facts)));
    Ok(process)
}

/// What a process has on every system.
pub(super) fn portable(input: &SpecInput<'_>) -> Result<Process, SpecError> {
    let config = input.container;
    let mut user = User::default();
    user.set_uid(input.user.uid)
        .set_gid(input.user.gid)
        .set_additional_gids(Some(input.user.additional_gids.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_user(user)
        .set_args(Some(args(input)?))
        .set_env(Some(env(input)?))
        .set_cwd(working_dir(input)?.into())
        .set_capabilities(None)
        // Those of the node come later, see [`set_rlimits`].
        .set_rlimits(None)
        // Not false: where it is said at all, youki loads filters at the wrong time.
        .set_no_new_privileges(config.security.no_new_privs.then_some(true));
    Ok(process)
}

/// Limits of the process, for all containers alike. The others are inherited from the daemon: hard limits could not be
/// raised everywhere.
pub fn set_rlimits(spec: &mut Spec, limits: &[zcri_config::Rlimit]) {
    let one = |limit: &zcri_config::Rlimit| {
        let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
        // Every name that the configuration takes is in the specification too.
        let kind = serde_json::from_value::<PosixRlimitType>(name.into()).ok()?;
        let limit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit.soft)
            .hard(limit.hard);
        limit.build().ok()
    };
    if let (Some(process), false) = (spec.process_mut(), limits.is_empty()) {
        process.set_rlimits(Some(limits.iter().filter_map(one).collect()));
    }
}

/// Kubernetes, "Define a Command and Arguments for a Container": a command replaces the image's entrypoint and its
/// arguments; arguments alone replace only those.
fn args(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let (config, image) = (input.container, input.image);
    let (first, rest) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = first.iter().chain(rest).cloned().collect();
    if args.is_empty() {
        Err(SpecError::NoCommand)
    } else {
        Ok(args)
    }
}

/// Defaults, then the image, then the pod's host name, then the request: each later one replaces a value in place.
fn env(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", PATH);
    if input.container.tty {
        env.set("TERM", TERM);
    }
    for pair in &input.image.env {
        // An image's entry without `=` sets nothing; execve passes it on, but no program can read it.
        if let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) {
            env.set(name, value);
        }
    }
    if !input.host.host_name.is_empty() {
        env.set("HOSTNAME", &input.host.host_name);
    }
    for (name, value) in &input.container.env {
        let value = std::str::from_utf8(value)
            .map_err(|_| SpecError::EnvironmentNotText { name: name.clone() })?;
        env.set(name, value);
    }
    // Runtimes do this too, but each by rules of its own.
    if let Some(home) = input.user.home.as_deref().filter(|_| !env.has("HOME")) {
        env.set("HOME", home);
    }
    Ok(env.pairs)
}

/// The request's, else the image's, else the root. Docker took relative ones in images as relative to the root.
fn working_dir(input: &SpecInput<'_>) -> Result<String, SpecError> {
    if !input.container.working_dir.is_empty() {
        return Ok(input.container.working_dir.clone());
    }
    let path = &input.image.working_dir;
    if path.contains('\0') {
        return Err(SpecError::WorkingDirectory {
            path: path.escape_default().to_string(),
        });
    }
    Ok(if path.starts_with('/') {
        path.clone()
    } else {
        format!("/{path}")
    })
}

/// A process for an exec in a container: everything as its first process has it, but for command and terminal.
#[must_use]
pub fn exec_process(first: &Process, command: &[String], tty: bool) -> Process {
    let mut process = first.clone();
    process
        .set_args(Some(command.to_vec()))
        .set_terminal(Some(tty));
    if tty {
        let mut env = Environment {
            pairs: process.env().clone().unwrap_or_default(),
        };
        if !env.has("TERM") {
            env.set("TERM", TERM);
        }
        process.set_env(Some(env.pairs));
    }
    process
}

/// `NAME=value` pairs with each name once, in the order in which the names came first.
#[derive(Default)]
struct Environment {
    pairs: Vec<String>,
}

impl Environment {
    fn position(&self, name: &str) -> Option<usize> {
        self.pairs.iter().position(|pair| {
            pair.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    }

    fn has(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    fn set(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        match self.position(name).and_then(|at| self.pairs.get_mut(at)) {
            Some(old) => *old = pair,
            None => self.pairs.push(pair),
        }
    }
}
