//! SELinux: which labels containers, their file systems and their volumes have.
//!
//! As everywhere in the field, the policy names the types (`container_t` and `container_file_t`) and each pod gets a
//! level of its own, two categories that no other pod has, so that pods cannot touch each other's files and processes
//! though all have the same type. The containers of a pod share that level, whatever else they ask for: they share the
//! pod's volumes too.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::StatVfsMountFlags;

use crate::container::config::SelinuxLabel;
use crate::error::{Error, Result};

/// Where SELinux talks.
const MOUNT: &str = "/sys/fs/selinux";
/// Where the kernel takes labels to be checked, and answers with them in its own words.
const CHECK: &str = "/sys/fs/selinux/context";
/// Categories of a policy (`c0` to `c1023`): every policy of the field has so many.
const CATEGORIES: u32 = 1024;
/// Field of the request.
pub(super) const FIELD: &str = "config.linux.security_context.selinux_options";

/// SELinux of a node.
#[derive(Debug)]
pub struct Selinux {
    /// What the policy says of containers; one without knows none.
    contexts: Option<Contexts>,
    taken: Taken,
}

/// Labels that a policy has for containers (`lxc_contexts`, selabel_lxc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contexts {
    process: Context,
    file: Context,
    /// Of what containers read and never write, such as the layers of images.
    ro_file: Context,
}

/// A label. The level, and what it consists of, may be missing from a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

/// Levels of pods, with the number of pods that have them: one that a request names may be that of several.
type Taken = Arc<Mutex<HashMap<String, usize>>>;

/// The label of a pod's processes. Its level is nobody else's while this is there.
#[derive(Debug)]
pub struct PodLabel {
    context: Context,
    taken: Taken,
}

/// The labels of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Of its processes; `None` leaves them to the policy.
    pub process: Option<String>,
    /// Of its file systems and volumes; `None` leaves those of the node.
    pub mount: Option<String>,
}

impl Selinux {
    /// SELinux of this node, if it is enabled and has a policy.
    pub(super) fn of_node() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        // As long as no policy is loaded, all is "kernel".
        if !is_on() || own.trim_end_matches('\0') == "kernel" {
            return None;
        }
        let contexts = usable_contexts();
        match &contexts {
            Ok(found) => {
                tracing::info!(processes = %found.process, files = %found.file, "SELinux: containers are labelled");
            }
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "SELinux: the policy knows no containers, they are not labelled"
                );
            }
        }
        Some(Self {
            contexts: contexts.ok(),
            taken: Taken::default(),
        })
    }

    /// See [`super::Confinement::pod_label`]. A pod that sees or reaches the processes of the node cannot be kept apart
    /// from them, and gets a label only if it asks for one.
    pub(super) fn pod_label(
        &self,
        asked: Option<&SelinuxLabel>,
        shares_processes_with_node: bool,
    ) -> Result<Option<PodLabel>> {
        let Some(contexts) = self.contexts(asked)? else {
            return Ok(None);
        };
        if asked.is_none() && shares_processes_with_node {
            return Ok(None);
        }
        let mut context = match asked {
            Some(asked) => checked(contexts.process.with(asked))?,
            None => contexts.process.clone(),
        };
        let given = asked.is_some_and(|asked| !asked.level.is_empty());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let (false, Some(level)) = (given, &contexts.process.level) {
            context.level = Some(free_level(sensitivity(level), &taken)?);
        }
        if let Some(level) = &context.level {
            *taken.entry(level.clone()).or_default() += 1;
        }
        Ok(Some(PodLabel {
            context,
            taken: Arc::clone(&self.taken),
        }))
    }

    /// See [`super::Confinement::recall`].
    pub(super) fn recall(&self, recorded: &str) -> Option<PodLabel> {
        let Some(context) = Context::parse(recorded) else {
            tracing::error!(
                label = recorded,
                "SELinux: the label of a pod is not understood, its containers get none"
            );
            return None;
        };
        if let Some(level) = &context.level {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *taken.entry(level.clone()).or_default() += 1;
        }
        Some(PodLabel {
            context,
            taken: Arc::clone(&self.taken),
        })
    }

    /// The labels of a container; a pod without one leaves it to what the container asks for.
    pub(super) fn labels(
        &self,
        pod: Option<&PodLabel>,
        asked: Option<&SelinuxLabel>,
        privileged: bool,
    ) -> Result<Labels> {
        let contexts = match (self.contexts(asked)?, pod) {
            (Some(contexts), _) => contexts,
            (None, None) => return Ok(Labels::default()),
            // It has been there: a container without a label would be the only one of its pod.
            (None, Some(_)) => return Err(no_contexts()),
        };
        let process = match (pod, asked) {
            (Some(pod), Some(asked)) => checked(pod.context.with(asked))?,
            (Some(pod), None) => pod.context.clone(),
            (None, Some(asked)) => checked(contexts.process.with(asked))?,
            (None, None) => return Ok(Labels::default()),
        };
        let mut files = Context {
            level: process.level.clone(),
            ..contexts.file.clone()
        };
        if asked.is_some() {
            files = checked(files)?;
        }
        Ok(Labels {
            // The privilege includes it (api.proto). What it writes stays the pod's.
            process: (!privileged).then(|| process.to_string()),
            mount: Some(files.to_string()),
        })
    }

    /// The label of files that zcrid makes for all containers to read, whatever level they ask for.
    pub(super) fn shared_files(&self) -> Option<String> {
        let contexts = self.contexts.as_ref()?;
        let level = contexts.file.level.as_deref();
        let files = Context {
            level: level.map(|level| sensitivity(level).to_owned()),
            ..contexts.file.clone()
        };
        Some(files.to_string())
    }

    /// The label of a pod's own file systems.
    pub(super) fn files_of(&self, pod: &PodLabel) -> Option<String> {
        let contexts = self.contexts.as_ref()?;
        let files = Context {
            level: pod.context.level.clone(),
            ..contexts.file.clone()
        };
        Some(files.to_string())
    }

    /// The label of layers, below the file systems of containers: the kernel looks through an overlay at them when
    /// memory that a file is mapped into becomes executable.
    pub(super) fn layers(&self) -> Option<String> {
        let contexts = self.contexts.as_ref()?;
        Some(contexts.ro_file.to_string())
    }

    /// What the policy says. A label that is asked for of one that says nothing is an error.
    fn contexts(&self, asked: Option<&SelinuxLabel>) -> Result<Option<&Contexts>> {
        match (&self.contexts, asked) {
            (None, Some(_)) => Err(no_contexts()),
            (contexts, _) => Ok(contexts.as_ref()),
        }
    }
}

impl PodLabel {
    /// As it is recorded.
    pub(crate) fn recorded(&self) -> String {
        self.context.to_string()
    }
}

impl Drop for PodLabel {
    fn drop(&mut self) {
        let Some(level) = &self.context.level else {
            return;
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(level) {
            *count -= 1;
            if *count == 0 {
                taken.remove(level);
            }
        }
    }
}

impl Context {
    /// `user:role:type[:level]`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let context = Self {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next(),
        };
        let named = [&context.user, &context.role, &context.kind];
        named.iter().all(|part| !part.is_empty()).then_some(context)
    }

    /// The same with what is asked for.
    fn with(&self, asked: &SelinuxLabel) -> Self {
        let part = |asked: &str, own: &str| if asked.is_empty() { own } else { asked }.to_owned();
        Self {
            user: part(&asked.user, &self.user),
            role: part(&asked.role, &self.role),
            kind: part(&asked.kind, &self.kind),
            level: match asked.level.as_str() {
                "" => self.level.clone(),
                level => Some(level.to_owned()),
            },
        }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match &self.level {
            Some(level) => write!(f, ":{level}"),
            None => Ok(()),
        }
    }
}

/// The label of containers by this node's policy.
///
/// # Errors
/// It has none.
pub(crate) fn try_contexts() -> Result<String, String> {
    usable_contexts().map(|contexts| contexts.process.to_string())
}

/// What the policy says of containers, if it has the labels that it names: Debian's names some that it does not have.
fn usable_contexts() -> Result<Contexts, String> {
    let found = find_contexts(Path::new("/"))?;
    for context in [&found.process, &found.file, &found.ro_file] {
        checked(context.clone()).map_err(|e| e.to_string())?;
    }
    Ok(found)
}

/// Whether the kernel has it on, as OCI runtimes see it: in a node that is itself a container it is the business of
/// the node below.
pub(crate) fn is_on() -> bool {
    /// linux/magic.h
    const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
    let mounted = rustix::fs::statfs(MOUNT)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == SELINUX_MAGIC));
    mounted
        && rustix::fs::statvfs(MOUNT)
            .is_ok_and(|found| !found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn no_contexts() -> Error {
    Error::Unsupported {
        what: FIELD,
        reason: "the SELinux policy of this node names no labels for containers".into(),
    }
}

/// A label as the policy writes it, if it has it: the kernel says so, before a runtime would fail with nothing but
/// EINVAL.
fn checked(context: Context) -> Result<Context> {
    let asked = context.to_string();
    let answer = File::options()
        .read(true)
        .write(true)
        .open(CHECK)
        .and_then(|mut file| {
            file.write_all(asked.as_bytes())?;
            let mut canonical = String::new();
            file.read_to_string(&mut canonical).map(|_| canonical)
        });
    match answer {
        Ok(canonical) => Ok(Context::parse(canonical.trim_end_matches('\0')).unwrap_or(context)),
        // A policy may forbid to ask; and tests run where nobody answers.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::NotFound
            ) =>
        {
            Ok(context)
        }
        Err(error) => Err(Error::Invalid {
            field: FIELD,
            value: asked,
            reason: format!("the SELinux policy of this node has no such label: {error}"),
        }),
    }
}

/// `s0` of `s0-s0:c0.c1023`.
fn sensitivity(level: &str) -> &str {
    level.split([':', '-']).next().unwrap_or(level)
}

/// A level of two categories that no pod has.
fn free_level(sensitivity: &str, taken: &HashMap<String, usize>) -> Result<String> {
    // There are half a million: the second draw is as good as always enough.
    for _ in 0..1024 {
        let [a, b] = [random_category(), random_category()];
        let level = format!("{sensitivity}:c{},c{}", a.min(b), a.max(b));
        if a != b && !taken.contains_key(&level) {
            return Ok(level);
        }
    }
    Err(Error::Exhausted {
        action: "give a pod SELinux categories of its own",
        source: "too many are taken".into(),
    })
}

fn random_category() -> u32 {
    let mut bytes = [0u8; 4];
    // Without randomness all draws are the same, and the caller gives up.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok();
    u32::from_le_bytes(bytes) % CATEGORIES
}

/// Reads what the policy of a system says of containers. The first file is that of the package container-selinux.
fn find_contexts(root: &Path) -> Result<Contexts, String> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let mut candidates = vec![at("/usr/share/containers/selinux/contexts")];
    if let Ok(config) = std::fs::read_to_string(at("/etc/selinux/config"))
        && let Some(policy) = setting(&config, "SELINUXTYPE")
    {
        candidates.push(
            at("/etc/selinux")
                .join(policy)
                .join("contexts/lxc_contexts"),
        );
    }
    let found = |path: &PathBuf| Some((path.clone(), std::fs::read_to_string(path).ok()?));
    let Some((path, text)) = candidates.iter().find_map(found) else {
        return Err(format!("none of {candidates:?} can be read"));
    };
    let context = |key: &str| {
        setting(&text, key)
            .and_then(Context::parse)
            .ok_or_else(|| format!("{} has no label {key:?}", path.display()))
    };
    let file = context("file")?;
    Ok(Contexts {
        process: context("process")?,
        ro_file: context("ro_file").unwrap_or_else(|_| file.clone()),
        file,
    })
}

/// Value of a line `key = "value"`.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
    Some(value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests;
