//! dvipa: a CNI plugin that gives every pod one dynamic VIPA.
//!
//! ```text
//!   runtime --- environment, JSON on stdin ---> request, config
//!                                                  |
//!                                                verbs ---> store     which address is whose, in a directory
//!                                                  |
//!                                               backend ---> netns    a veth pair into the pod's namespace
//!                                                  |         stack    the host's stack, the pod confined by eBPF
//!                                                  v         zos      a dynamic VIPA of a z/OS stack
//!   runtime <--- result or error on stdout ---- reply
//! ```
//!
//! The process lives for milliseconds: one thread, no async runtime, no other program is started.
//!
//! Source of the rules: <https://github.com/containernetworking/cni>, `SPEC.md` 1.1.0 and `CONVENTIONS.md`.

#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
pub mod error;
pub mod log;
mod probe;
pub mod ranges;
pub mod reply;
pub mod request;
pub mod store;
pub mod verbs;

use serde_json::Value;

use error::Result;
use log::Log;
use request::{Environment, Input, Pod, Verb};

/// What is to be written to standard output, and whether the operation succeeded.
#[derive(Debug)]
pub struct Outcome {
    /// The text; may be empty.
    pub output: String,
    /// Whether it is no error.
    pub success: bool,
}

/// Runs the plugin once.
pub fn run(environment: Environment<'_>, stdin: &[u8]) -> Outcome {
    match answer(environment, stdin) {
        Ok(Some(value)) => Outcome {
            output: format!("{value}\n"),
            success: true,
        },
        Ok(None) => Outcome {
            output: String::new(),
            success: true,
        },
        Err(error) => {
            let version = serde_json::from_slice(stdin)
                .map(|value| request::version_of(&value))
                .ok()
                .filter(|version| request::VERSIONS.contains(&version.as_str()))
                .unwrap_or_else(|| "1.1.0".to_owned());
            Outcome {
                output: format!("{}\n", reply::failed(&version, &error)),
                success: false,
            }
        }
    }
}

fn answer(environment: Environment<'_>, stdin: &[u8]) -> Result<Option<Value>> {
    let verb = request::verb(environment)?;
    if verb == Verb::Version {
        return Ok(Some(verbs::version(stdin)));
    }
    let input = Input::parse(stdin)?;
    let log_file = input.config.log_file.as_deref();
    let pod = match verb {
        Verb::Add | Verb::Del | Verb::Check => Some(Pod::from_environment(environment)?),
        Verb::Gc | Verb::Status | Verb::Version => None,
    };
    let log = Log::new(prefix(verb, pod.as_ref()), log_file);
    let result = match (verb, &pod) {
        (Verb::Add, Some(pod)) => verbs::add(&input, pod, &log).map(Some),
        (Verb::Del, Some(pod)) => verbs::del(&input, pod, &log).map(|()| None),
        (Verb::Check, Some(pod)) => verbs::check(&input, pod).map(|()| None),
        (Verb::Gc, _) => verbs::gc(&input, &log).map(|()| None),
        _ => verbs::status(&input, &log).map(|()| None),
    };
    if let Err(error) = &result {
        log.line(format_args!("failed: {}", error.chain()));
    }
    result
}

/// The operation and the pod in a few words.
fn prefix(verb: Verb, pod: Option<&Pod>) -> String {
    let verb = verb.as_str();
    let Some(pod) = pod else {
        return verb.to_owned();
    };
    let short: String = pod.container.chars().take(13).collect();
    match &pod.name {
        Some((namespace, name)) => format!("{verb} {namespace}/{name} ({short} {})", pod.ifname),
        None => format!("{verb} {short} {}", pod.ifname),
    }
}
