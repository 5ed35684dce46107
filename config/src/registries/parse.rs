//! registries.conf from text, and the merging of its drop-ins.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Mirror, PullFromMirror, Registries, Rule, ShortNameMode};
use crate::{
    error::{ConfigError, Fault, Origin},
    source::{Value, drop_ins, line, read_text, syntax},
};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    short_name_mode: Option<Spanned<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RegistryTable>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    /// Format 1.
    registries: Option<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryTable {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Spanned<MirrorTable>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

pub(super) fn load(path: &Path) -> Result<Registries, ConfigError> {
    let mut registries = Registries::default();
    match read_text(path) {
        Ok(text) => add(&mut registries, &text, path)?,
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(other) => return Err(other),
    }
    for file in drop_ins(path, "conf")? {
        add(&mut registries, &read_text(&file)?, &file)?;
    }
    Ok(registries)
}

pub(super) fn from_text(text: &str, name: &Path) -> Result<Registries, ConfigError> {
    let mut registries = Registries::default();
    add(&mut registries, text, name)?;
    Ok(registries)
}

/// Merges one file over what came before: a rule replaces the one with the same prefix, an alias the one with the
/// same name (an empty one removes it), the rest is replaced when given.
/// Source: containers-registries.conf.d(5).
fn add(into: &mut Registries, text: &str, file: &Path) -> Result<(), ConfigError> {
    let parsed: File = toml::from_str(text).map_err(|e| syntax(&e, text, file))?;
    let mut reader = FileReader {
        text,
        file,
        faults: Vec::new(),
    };
    if let Some(old) = &parsed.registries {
        let reason = "is of format 1, which is not supported: use unqualified-search-registries and [[registry]]";
        reader.fault("registries", None, old.span().start, reason.to_owned());
    }
    let mut seen = HashSet::new();
    for table in &parsed.registry {
        let Some(rule) = reader.rule(table) else {
            continue;
        };
        if !seen.insert(rule.prefix.clone()) {
            let reason = "this file has two [[registry]] tables with this prefix".to_owned();
            reader.fault(
                "registry.prefix",
                Some(&rule.prefix),
                table.span().start,
                reason,
            );
        }
        into.rules.retain(|old| old.prefix != rule.prefix);
        into.rules.push(rule);
    }
    if let Some(search) = &parsed.unqualified_search_registries {
        into.search = Some(
            search
                .iter()
                .filter_map(|host| reader.search_host(host))
                .collect(),
        );
    }
    for (name, target) in &parsed.aliases {
        reader.alias(into, name, target);
    }
    if let Some(mode) = parsed
        .short_name_mode
        .filter(|mode| !mode.get_ref().is_empty())
    {
        into.mode = reader.mode(&mode);
    }
    if reader.faults.is_empty() {
        Ok(())
    } else {
        Err(ConfigError::Invalid {
            faults: reader.faults,
        })
    }
}

struct FileReader<'a> {
    text: &'a str,
    file: &'a Path,
    faults: Vec<Fault>,
}

impl FileReader<'_> {
    fn fault(&mut self, key: &str, value: Option<&str>, offset: usize, reason: String) {
        self.faults.push(Fault {
            key: key.to_owned(),
            value: value.map(|value| Value::String(value.to_owned()).to_string()),
            origin: Some(Origin {
                file: self.file.to_owned(),
                line: line(self.text, offset),
            }),
            reason,
        });
    }

    fn rule(&mut self, table: &Spanned<RegistryTable>) -> Option<Rule> {
        let before = self.faults.len();
        let (at, table) = (table.span().start, table.get_ref());
        let location = if table.location.is_empty() {
            if !table.prefix.starts_with("*.") {
                self.fault(
                    "registry.location",
                    Some(""),
                    at,
                    "missing: needed unless the prefix starts with *.".into(),
                );
            }
            None
        } else {
            self.place("registry.location", &table.location, at)
        };
        let prefix = match table.prefix.strip_prefix("*.") {
            Some(domain) => self
                .place("registry.prefix", domain, at)
                .map(|domain| format!("*.{domain}")),
            None if table.prefix.is_empty() => location.clone(),
            None => self.place("registry.prefix", &table.prefix, at),
        };
        let mirrors = table
            .mirror
            .iter()
            .filter_map(|m| self.mirror(m, table.mirror_by_digest_only))
            .collect();
        if self.faults.len() > before {
            return None;
        }
        Some(Rule {
            prefix: prefix?,
            location,
            insecure: table.insecure,
            blocked: table.blocked,
            mirrors,
        })
    }

    fn mirror(&mut self, table: &Spanned<MirrorTable>, digest_only: bool) -> Option<Mirror> {
        let (at, table) = (table.span().start, table.get_ref());
        let key = "registry.mirror.pull-from-mirror";
        let pull = match table.pull_from_mirror.as_str() {
            "" if digest_only => PullFromMirror::DigestOnly,
            "" | "all" => PullFromMirror::All,
            "digest-only" => PullFromMirror::DigestOnly,
            "tag-only" => PullFromMirror::TagOnly,
            other => {
                self.fault(
                    key,
                    Some(other),
                    at,
                    "must be \"all\", \"digest-only\" or \"tag-only\"".to_owned(),
                );
                return None;
            }
        };
        if digest_only && pull != PullFromMirror::DigestOnly {
            let reason = "contradicts mirror-by-digest-only = true of its registry".to_owned();
            self.fault(key, Some(&table.pull_from_mirror), at, reason);
        }
        let location = self.place("registry.mirror.location", &table.location, at)?;
        Some(Mirror {
            location,
            insecure: table.insecure,
            pull,
        })
    }

    /// `host[:port][/path]`, without slashes at the end.
    fn place(&mut self, key: &str, text: &str, at: usize) -> Option<String> {
        let place = text.trim_end_matches('/');
        let reason = if place.is_empty() {
            "must not be empty"
        } else if place.contains("://") {
            "must be host[:port][/path] without a scheme such as https://"
        } else if place.contains('*') {
            "may have a wildcard only in a prefix, as \"*.\" at its start"
        } else if place.starts_with('/')
            || place.contains("//")
            || place.split('/').any(|part| part == "..")
        {
            "must be host[:port][/path]"
        } else if place.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "must not contain white space or control characters"
        } else {
            return Some(place.to_owned());
        };
        self.fault(key, Some(text), at, reason.to_owned());
        None
    }

    fn search_host(&mut self, host: &Spanned<String>) -> Option<String> {
        let (key, at) = ("unqualified-search-registries", host.span().start);
        let place = self.place(key, host.get_ref(), at)?;
        if place.contains(['/', '@']) {
            self.fault(
                key,
                Some(host.get_ref()),
                at,
                "must be host[:port]".to_owned(),
            );
            return None;
        }
        Some(place)
    }

    fn alias(&mut self, into: &mut Registries, name: &str, target: &Spanned<String>) {
        let (at, text) = (target.span().start, target.get_ref());
        if !super::is_short_name(name) || name.contains([':', '@']) {
            self.fault(
                "aliases",
                Some(name),
                at,
                "must be a short name without tag and digest".to_owned(),
            );
        } else if text.is_empty() {
            into.aliases.remove(name);
        } else if super::is_short_name(text) {
            self.fault(
                "aliases",
                Some(text),
                at,
                "must be a full name, with its registry".to_owned(),
            );
        } else if text
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains([':', '@']))
        {
            self.fault(
                "aliases",
                Some(text),
                at,
                "must have neither tag nor digest".to_owned(),
            );
        } else if let Some(place) = self.place("aliases", text, at) {
            into.aliases.insert(name.to_owned(), place);
        }
    }

    fn mode(&mut self, mode: &Spanned<String>) -> ShortNameMode {
        match mode.get_ref().as_str() {
            "enforcing" => ShortNameMode::Enforcing,
            "permissive" => ShortNameMode::Permissive,
            "disabled" => ShortNameMode::Disabled,
            other => {
                let reason = "must be \"enforcing\", \"permissive\" or \"disabled\"".to_owned();
                self.fault("short-name-mode", Some(other), mode.span().start, reason);
                ShortNameMode::default()
            }
        }
    }
}
