//! containers-policy.json(5): which images may be pulled.
//!
//! Requirements that need a signature to be checked are understood, and refused when they would have to be met: an image
//! must never come in unchecked because its check is not there yet.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// The transport whose scopes concern registries.
const REGISTRIES: &str = "docker";

/// A policy that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    source: PathBuf,
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
}

/// One requirement; an image has to meet all of its list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type")]
enum Requirement {
    /// Met by every image.
    #[serde(rename = "insecureAcceptAnything")]
    Accept,
    /// Met by none.
    #[serde(rename = "reject")]
    Reject,
    /// An OpenPGP signature.
    #[serde(rename = "signedBy")]
    SignedBy,
    /// A sigstore signature.
    #[serde(rename = "sigstoreSigned")]
    SigstoreSigned,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// A policy that cannot be used. Nothing may be pulled by it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no policy.
    #[error("{path} is no policy", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A list without requirements, which the format forbids because nobody knows what it means.
    #[error("{path}: the requirements of {scope:?} are an empty list", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// "default", or the scope.
        scope: String,
    },
}

/// Why an image may not be pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy rejects it.
    #[error("{path} rejects images of {scope}", path = path.display())]
    Rejected {
        /// The file.
        path: PathBuf,
        /// "the default", or the scope that decided.
        scope: String,
    },
    /// The policy wants a signature that cannot be checked.
    #[error("{path} wants images of {scope} to be signed ({kind}), which this version cannot check", path = path.display())]
    Unverifiable {
        /// The file.
        path: PathBuf,
        /// "the default", or the scope that decided.
        scope: String,
        /// Type of the requirement.
        kind: &'static str,
    },
}

impl Policy {
    /// Reads a policy; none if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read or is no policy.
    pub fn load(path: &Path) -> Result<Option<Self>, PolicyError> {
        match fs::read(path) {
            Ok(text) => Self::parse(&text, path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PolicyError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses a policy; `source` is named in what is said of it.
    ///
    /// # Errors
    /// The text is no policy.
    pub fn parse(text: &[u8], source: &Path) -> Result<Self, PolicyError> {
        let failed = |error| PolicyError::Parse {
            path: source.to_owned(),
            source: error,
        };
        let mut raw: Raw = serde_json::from_slice(text).map_err(failed)?;
        let scopes = raw.transports.remove(REGISTRIES).unwrap_or_default();
        let lists = scopes.iter().map(|(scope, list)| (scope.as_str(), list));
        let empty = lists
            .chain([("default", &raw.default)])
            .find(|(_, list)| list.is_empty());
        if let Some((scope, _)) = empty {
            return Err(PolicyError::Empty {
                path: source.to_owned(),
                scope: scope.to_owned(),
            });
        }
        Ok(Self {
            source: source.to_owned(),
            default: raw.default,
            scopes,
        })
    }

    /// A policy without a file: what holds where nobody wrote one. `source` is where it would be.
    #[must_use]
    pub fn without_file(source: &Path, accept: bool) -> Self {
        let requirement = if accept {
            Requirement::Accept
        } else {
            Requirement::Reject
        };
        Self {
            source: source.to_owned(),
            default: vec![requirement],
            scopes: BTreeMap::new(),
        }
    }

    /// Whether an image may be pulled. `name` is its whole name without tag and digest (`host[:port]/path`), `full` the
    /// same with them. The most specific scope decides: the image, its repository, each namespace above it, the host,
    /// `*.` and a domain of the host, "", and last the default.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, name: &str, full: &str) -> Result<(), Refusal> {
        let scope = scopes_of(name, full)
            .into_iter()
            .find(|scope| self.scopes.contains_key(scope));
        let list = scope
            .as_ref()
            .and_then(|scope| self.scopes.get(scope))
            .unwrap_or(&self.default);
        let shown = match scope.as_deref() {
            None | Some("") => "any registry".to_owned(),
            Some(scope) => scope.to_owned(),
        };
        for requirement in list {
            let (path, scope) = (self.source.clone(), shown.clone());
            let kind = match requirement {
                Requirement::Accept => continue,
                Requirement::Reject => return Err(Refusal::Rejected { path, scope }),
                Requirement::SignedBy => "signedBy",
                Requirement::SigstoreSigned => "sigstoreSigned",
            };
            return Err(Refusal::Unverifiable { path, scope, kind });
        }
        Ok(())
    }
}

/// Scopes that an image is in, the most specific first (containers-policy.json(5), "docker:").
fn scopes_of(name: &str, full: &str) -> Vec<String> {
    let mut scopes = vec![full.to_owned(), name.to_owned()];
    let mut rest = name;
    while let Some((above, _)) = rest.rsplit_once('/') {
        scopes.push(above.to_owned());
        rest = above;
    }
    // What is left is the host, whose domains may have a scope too.
    let mut host = rest;
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), Path::new("/p.json")).unwrap()
    }

    fn check(policy: &Policy, name: &str) -> Result<(), Refusal> {
        policy.check(name, &format!("{name}:1"))
    }

    #[test]
    fn the_most_specific_scope_decides() {
        let policy = policy(
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{
                "icr.io/zoscp":[{"type":"insecureAcceptAnything"}],
                "icr.io/zoscp/secret":[{"type":"reject"}],
                "icr.io/zoscp/secret:1":[{"type":"insecureAcceptAnything"}],
                "*.example.com":[{"type":"insecureAcceptAnything"}]},
                "atomic":{"":[{"type":"insecureAcceptAnything"}]}}}"#,
        );
        check(&policy, "icr.io/zoscp/zos").unwrap();
        check(&policy, "icr.io/zoscp/secret").unwrap();
        assert!(
            policy
                .check("icr.io/zoscp/secret", "icr.io/zoscp/secret:2")
                .is_err()
        );
        check(&policy, "a.b.example.com/x").unwrap();
        assert!(check(&policy, "example.com/x").is_err(), "not below itself");
        assert!(
            check(&policy, "icr.io/zoscp2/zos").is_err(),
            "not a prefix of letters"
        );
        assert!(check(&policy, "docker.io/library/x").is_err());
    }

    #[test]
    fn a_signature_that_cannot_be_checked_is_refused() {
        for kind in ["signedBy", "sigstoreSigned"] {
            let text = format!(
                r#"{{"default":[{{"type":"insecureAcceptAnything"}},{{"type":"{kind}","keyType":"GPGKeys","keyPath":"/k"}}]}}"#
            );
            let refusal = check(&policy(&text), "a.io/b").unwrap_err();
            assert!(refusal.to_string().contains(kind), "{refusal}");
        }
    }

    #[test]
    fn what_is_no_policy_is_none() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"whatever"}]}"#,
            r#"{"default":[{"type":"reject"}],"transport":{}}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#,
        ] {
            assert!(
                Policy::parse(bad.as_bytes(), Path::new("/p")).is_err(),
                "{bad}"
            );
        }
        assert_eq!(Policy::load(Path::new("/no/such/policy")).unwrap(), None);
        let open = Policy::without_file(Path::new("/p"), true);
        check(&open, "a.io/b").unwrap();
        let closed = Policy::without_file(Path::new("/p"), false);
        assert!(check(&closed, "a.io/b").is_err());
    }
}
