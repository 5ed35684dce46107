//! Short names: what an image name without a registry stands for.

use super::{LookupError, Registries};

/// `short-name-mode`. Nobody can be asked here, so `permissive` and `disabled` are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortNameMode {
    /// More than one registry to search is an error.
    Enforcing,
    /// All of them are searched in order. The default of the format.
    #[default]
    Permissive,
    /// As `permissive`.
    Disabled,
}

/// Where short names are searched when no file says anything: what every other client does.
const DEFAULT_SEARCH: &str = "docker.io";

/// Whether the first part of a name is not a registry: it has neither a dot nor a colon, and is not `localhost`.
/// Source: `distribution/reference`, `splitDockerDomain`.
#[must_use]
pub fn is_short_name(name: &str) -> bool {
    let Some((first, _)) = name.split_once('/') else {
        return true;
    };
    !(first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase()))
}

impl Registries {
    /// The full names that `name` may stand for, in the order in which to try them; tag and digest are kept. A full
    /// name stands for itself. Names at `docker.io` get the `library/` that they imply.
    ///
    /// # Errors
    /// For a short name that is not an alias: when there is nowhere to search, or too much.
    pub fn expand(&self, name: &str) -> Result<Vec<String>, LookupError> {
        if !is_short_name(name) {
            return Ok(vec![normalized(name)]);
        }
        let (bare, suffix) = split_suffix(name);
        if let Some(alias) = self.aliases.get(bare) {
            return Ok(vec![normalized(&format!("{alias}{suffix}"))]);
        }
        let default = [DEFAULT_SEARCH.to_owned()];
        let search = self.search.as_deref().unwrap_or(&default);
        match (search, self.mode) {
            ([], _) => Err(LookupError::NowhereToSearch {
                name: name.to_owned(),
            }),
            ([_, _, ..], ShortNameMode::Enforcing) => Err(LookupError::Ambiguous {
                name: name.to_owned(),
                registries: search.to_vec(),
            }),
            _ => Ok(search
                .iter()
                .map(|registry| normalized(&format!("{registry}/{name}")))
                .collect()),
        }
    }
}

/// A name and its `[:tag][@digest]`.
fn split_suffix(name: &str) -> (&str, &str) {
    let bare = name.find('@').unwrap_or(name.len());
    let last_part = name[..bare].rfind('/').map_or(0, |slash| slash + 1);
    let end = name[last_part..bare]
        .find(':')
        .map_or(bare, |colon| last_part + colon);
    name.split_at(end)
}

/// `docker.io/busybox` is `docker.io/library/busybox`, and `index.docker.io` the old name of `docker.io`.
fn normalized(name: &str) -> String {
    let rest = name
        .strip_prefix("docker.io/")
        .or_else(|| name.strip_prefix("index.docker.io/"));
    match rest {
        Some(rest) if split_suffix(rest).0.contains('/') => format!("docker.io/{rest}"),
        Some(rest) => format!("docker.io/library/{rest}"),
        None => name.to_owned(),
    }
}
