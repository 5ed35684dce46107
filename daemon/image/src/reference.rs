//! Image references: `[registry/]repository[:tag][@digest]`, by the grammar of the distribution project's
//! `reference` package, in the canonical form that containerd and Docker give them (`busybox` is
//! `docker.io/library/busybox:latest`).
//!
//! The parser is written out: oci-client's is one regular expression, which costs memory in a daemon that wants
//! little and cannot say what is wrong with a reference.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::ImageError;

/// The registry of names without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Another name of it, from old clients.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where its images without an owner are.
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// `RepositoryNameTotalLengthMax` of the grammar.
const MAX_REPOSITORY_LEN: usize = 255;
/// Length of a tag in the grammar, `[\w][\w.-]{0,127}`.
const MAX_TAG_LEN: usize = 128;
/// Longer texts are not looked at: registry (a DNS name and a port), repository, tag and digest fit well.
const MAX_LEN: usize = 1024;

/// A parsed reference with its defaults filled in. Has a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageReference {
    /// Host and optional port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path at the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; there is none when only a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of a manifest or index.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, when the reference is to be known by its tag: a digest beside it wins, as in
    /// containerd.
    pub fn tagged_name(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}/{}:{tag}", self.registry, self.repository)),
            _ => None,
        }
    }

    /// `registry/repository@digest` for a digest of an image found under this name.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }

    /// What is asked of the registry: the digest, else the tag.
    pub(crate) fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageReference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::InvalidReference {
            reference: text.chars().take(MAX_LEN).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<ImageReference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.len() > MAX_LEN {
        return Err(format!("it is longer than {MAX_LEN} bytes"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse::<Digest>()
                .map_err(|error| error.to_string())?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to a port.
    let (name, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (None, Some(_)) => None,
    };
    Ok(ImageReference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first component is a registry when it cannot be part of a path: it has a dot, a port or an upper-case
/// letter, or is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), String> {
    let is_registry = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => {
            check_registry(first)?;
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    if registry != DEFAULT_REGISTRY && registry != LEGACY_DEFAULT_REGISTRY {
        return Ok((registry.to_owned(), repository.to_owned()));
    }
    let repository = if repository.contains('/') {
        repository.to_owned()
    } else if Digest::from_hex(repository).is_some() {
        return Err("64 hexadecimal digits are an image id, not a name".to_owned());
    } else {
        format!("{OFFICIAL_PREFIX}{repository}")
    };
    Ok((DEFAULT_REGISTRY.to_owned(), repository))
}

fn check_registry(registry: &str) -> Result<(), String> {
    let bad = || format!("`{registry}` is not a host with an optional port");
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad());
        }
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(bad)?),
        };
        (None, port)
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    let good_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let good_host = host.is_none_or(|host| host.split('.').all(good_label));
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0));
    if good_host && good_port {
        Ok(())
    } else {
        Err(bad())
    }
}

/// `path-component ["/" path-component]*`, each of lower-case letters and digits with `.`, `_`, `__` or any number
/// of `-` between them.
fn check_repository(repository: &str) -> Result<(), String> {
    if repository.len() > MAX_REPOSITORY_LEN {
        return Err(format!(
            "the repository is longer than {MAX_REPOSITORY_LEN} bytes"
        ));
    }
    for component in repository.split('/') {
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("`{component}` is not lower case"));
        }
        if !good_component(component) {
            return Err(format!(
                "`{component}` is not a component of a repository name"
            ));
        }
    }
    Ok(())
}

fn good_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (component.bytes().next(), component.bytes().last()) else {
        return false;
    };
    word(first)
        && word(last)
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if good {
        Ok(())
    } else {
        Err(format!("`{tag}` is not a tag"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Host/x", "Host/x:latest"),
            ("a__b/c--d/e.f", "docker.io/a__b/c--d/e.f:latest"),
            ("x:_T.a-g", "docker.io/library/x:_T.a-g"),
        ] {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(canonical.parse::<ImageReference>().unwrap(), reference);
        }
    }

    #[test]
    fn digests() {
        let only: ImageReference = format!("quay.io/a/b@sha256:{HEX}").parse().unwrap();
        assert_eq!((only.tag(), only.tagged_name()), (None, None));
        assert_eq!(only.to_string(), format!("quay.io/a/b@sha256:{HEX}"));
        let both: ImageReference = format!("quay.io/a/b:t@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.tag(), Some("t"));
        assert_eq!(both.target(), format!("sha256:{HEX}"));
        assert_eq!(both.tagged_name(), None, "the digest wins");
    }

    #[test]
    fn refuses_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "empty"),
            ("UPPER/x/Y", "`Y` is not lower case"),
            ("busyBox", "`busyBox` is not lower case"),
            ("a//b", "``"),
            ("a/b/", "``"),
            ("-a", "`-a`"),
            ("a___b", "`a___b`"),
            ("a..b", "`a..b`"),
            ("a:", "`` is not a tag"),
            ("a:-x", "`-x` is not a tag"),
            ("a b", "`a b`"),
            ("host:0/x", "`host:0`"),
            ("host:99999/x", "`host:99999`"),
            ("ho_st.x/y", "`ho_st.x`"),
            ("[::g]/x", "`[::g]`"),
            ("../x", "`..`"),
            ("x@sha256:12", "64 lower-case"),
            ("x@md5:12", "`md5`"),
            (HEX, "image id"),
        ] {
            let error = text.parse::<ImageReference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!("a/".repeat(200).parse::<ImageReference>().is_err());
        assert!(
            format!("x:{}", "t".repeat(129))
                .parse::<ImageReference>()
                .is_err()
        );
    }
}
