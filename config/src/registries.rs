//! containers-registries.conf(5), format 2: where the content of an image may be fetched from.
//!
//! An image name is logical. [`Registries::endpoints`] turns it into the places to ask, mirrors first;
//! [`Registries::expand`] turns a short name into the full names that it may stand for.
//!
//! Keys that are not understood are passed over, as the other readers of this file do: it belongs to all of them.

mod parse;
mod short_name;

use std::{net::IpAddr, path::Path};

use thiserror::Error;

pub use crate::error::ConfigError;
pub use short_name::{ShortNameMode, is_short_name};

/// What registries.conf and its drop-ins say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registries {
    /// The `[[registry]]` tables, each with a prefix of its own.
    rules: Vec<Rule>,
    /// Where short names are searched; none when no file says.
    search: Option<Vec<String>>,
    aliases: std::collections::BTreeMap<String, String>,
    mode: ShortNameMode,
}

/// One `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// Names that it is for, without a slash at the end; `*.` at the start stands for any subdomain.
    prefix: String,
    /// What replaces the prefix; none for a rule that leaves the name as it is.
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

/// One `[[registry.mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    pull: PullFromMirror,
}

/// `pull-from-mirror`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PullFromMirror {
    All,
    DigestOnly,
    TagOnly,
}

/// An image's full name, in parts. `registry` is a host with an optional port; `docker.io` names have `library/`
/// in their repository already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageName<'a> {
    /// Host and port, as in the name.
    pub registry: &'a str,
    /// Path of the repository, without host, tag and digest.
    pub repository: &'a str,
    /// Tag, when there is one.
    pub tag: Option<&'a str>,
    /// Digest, such as `sha256:...`, when there is one.
    pub digest: Option<&'a str>,
}

/// A place to fetch an image from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port. `docker.io` is given as such; its API is at another host.
    pub host: String,
    /// Path of the repository there.
    pub repository: String,
    /// Plain HTTP and certificates that nobody vouches for will do.
    pub insecure: bool,
    /// It stands in for the registry of the name. Credentials of that registry are not meant for it, unless the
    /// host is the same.
    pub mirror: bool,
}

impl Endpoint {
    /// Whether plain HTTP may be tried after TLS: the registry is insecure, or never leaves this machine.
    #[must_use]
    pub fn allows_plain_http(&self) -> bool {
        self.insecure || is_loopback(&self.host)
    }
}

/// Whether `host`, with or without a port, is this machine: `localhost`, 127.0.0.0/8 or ::1.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    if host
        .parse::<std::net::Ipv6Addr>()
        .is_ok_and(|ip| ip.is_loopback())
    {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name
        .strip_prefix('[')
        .and_then(|n| n.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Why an image has no place to be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LookupError {
    /// A rule forbids it.
    #[error("{name}: blocked by registries.conf (prefix {prefix:?})")]
    Blocked {
        /// The image's name.
        name: String,
        /// Prefix of the rule.
        prefix: String,
    },
    /// Rewriting by a rule leaves no repository, or no host.
    #[error(
        "{name}: registries.conf (prefix {prefix:?}) makes it {rewritten:?}, which names no repository"
    )]
    Unusable {
        /// The image's name.
        name: String,
        /// Prefix of the rule.
        prefix: String,
        /// What became of the name.
        rewritten: String,
    },
    /// A short name that is not an alias, and there is nowhere to search.
    #[error(
        "{name}: a short name, and registries.conf has neither an alias for it nor registries to search"
    )]
    NowhereToSearch {
        /// The short name.
        name: String,
    },
    /// A short name that is not an alias could be in several registries, which `enforcing` does not allow.
    #[error("{name}: a short name that may be in any of {}; short-name-mode is enforcing", registries.join(", "))]
    Ambiguous {
        /// The short name.
        name: String,
        /// Registries to search.
        registries: Vec<String>,
    },
}

impl Registries {
    /// Reads `path` and the drop-ins `<path>.d/*.conf`, in the order of their names. What is missing is empty.
    ///
    /// # Errors
    /// When a file cannot be read, is not TOML, is in format 1, or has a value that cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        parse::load(path)
    }

    /// Parses one text; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Registries::load`].
    pub fn from_toml(text: &str, name: &Path) -> Result<Self, ConfigError> {
        parse::from_text(text, name)
    }

    /// The places to ask for an image, in the order in which to ask. Never empty.
    ///
    /// # Errors
    /// When the image is blocked, or a rule makes nonsense of its name.
    pub fn endpoints(&self, image: ImageName<'_>) -> Result<Vec<Endpoint>, LookupError> {
        let name = format!("{}/{}", image.registry, image.repository);
        let Some((rule, matched)) = self.rule(image, &name) else {
            let ImageName {
                registry,
                repository,
                ..
            } = image;
            let (host, repository) = (registry.to_owned(), repository.to_owned());
            return Ok(vec![Endpoint {
                host,
                repository,
                insecure: false,
                mirror: false,
            }]);
        };
        let prefix = || rule.prefix.clone();
        if rule.blocked {
            return Err(LookupError::Blocked {
                name,
                prefix: prefix(),
            });
        }
        let rest = name.get(matched..).unwrap_or("");
        let endpoint = |location: &str, insecure: bool, mirror: bool| {
            let rewritten = format!("{location}{rest}");
            match rewritten.split_once('/') {
                Some((host, repository)) if !host.is_empty() && !repository.is_empty() => {
                    Ok(Endpoint {
                        host: host.to_owned(),
                        repository: repository.to_owned(),
                        insecure,
                        mirror,
                    })
                }
                _ => Err(LookupError::Unusable {
                    name: name.clone(),
                    prefix: prefix(),
                    rewritten,
                }),
            }
        };
        let wanted = |mirror: &&Mirror| match mirror.pull {
            PullFromMirror::All => true,
            PullFromMirror::DigestOnly => image.digest.is_some(),
            PullFromMirror::TagOnly => image.digest.is_none(),
        };
        let mirrors = rule
            .mirrors
            .iter()
            .filter(wanted)
            .map(|m| endpoint(&m.location, m.insecure, true));
        let own = rule
            .location
            .as_deref()
            .unwrap_or_else(|| name.get(..matched).unwrap_or(""));
        mirrors
            .chain(std::iter::once(endpoint(own, rule.insecure, false)))
            .collect()
    }

    /// The rule for an image, the one with the longest match, and how many bytes of `name` it matched. A prefix
    /// with tag or digest matches more than the name: then all of it.
    fn rule(&self, image: ImageName<'_>, name: &str) -> Option<(&Rule, usize)> {
        let mut full = name.to_owned();
        if let Some(tag) = image.tag {
            full = format!("{full}:{tag}");
        }
        if let Some(digest) = image.digest {
            full = format!("{full}@{digest}");
        }
        let by_prefix = |rule| matched(&full, rule).map(|length| (rule, length));
        // Of a wildcard and a plain prefix that match as much, the plain one says more.
        let (rule, length) = self
            .rules
            .iter()
            .filter_map(by_prefix)
            .max_by_key(|(rule, length)| (*length, !rule.prefix.starts_with("*.")))?;
        Some((rule, length.min(name.len())))
    }
}

/// How many bytes of `full` the rule's prefix covers. It must end where a part of the name ends, and after a bare
/// host a colon begins a port, which makes it another registry.
fn matched(full: &str, rule: &Rule) -> Option<usize> {
    let length = match rule.prefix.strip_prefix('*') {
        // One or more labels, then the rest of the prefix (which starts with a dot).
        Some(suffix) => {
            let host = full.split('/').next()?;
            let domain = suffix.split('/').next()?;
            let labels = host
                .strip_suffix(domain)
                .filter(|labels| !labels.is_empty())?;
            full.get(labels.len()..)?
                .starts_with(suffix)
                .then_some(labels.len() + suffix.len())?
        }
        None => full
            .starts_with(&rule.prefix)
            .then_some(rule.prefix.len())?,
    };
    match full.as_bytes().get(length) {
        None | Some(b'/' | b'@') => Some(length),
        Some(b':') if rule.prefix.contains('/') => Some(length),
        Some(_) => None,
    }
}
