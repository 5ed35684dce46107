//! From the tree of values to domain types: one [`Section`] per table, one small parser per kind of value.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use crate::{
    error::{Fault, Origin},
    source::{Item, Table, Value},
};

/// A table while its keys are read. What is left at [`Section::finish`] nobody knows.
pub(crate) struct Section {
    path: String,
    table: Table,
    known: BTreeSet<&'static str>,
}

impl Section {
    /// The root of the tree.
    pub(crate) fn root(table: Table) -> Self {
        Self {
            path: String::new(),
            table,
            known: BTreeSet::new(),
        }
    }

    /// The section of an item that was found by name.
    pub(crate) fn of(path: String, item: Item, faults: &mut Vec<Fault>) -> Self {
        let table = match item.value {
            Value::Table(table) => table,
            other => {
                let reason = "must be a table".to_owned();
                faults.push(Fault {
                    key: path.clone(),
                    value: Some(other.to_string()),
                    origin: Some(item.origin),
                    reason,
                });
                Table::new()
            }
        };
        Self {
            path,
            table,
            known: BTreeSet::new(),
        }
    }

    /// The subsection `name`, empty when it is missing.
    pub(crate) fn section(&mut self, name: &'static str, faults: &mut Vec<Fault>) -> Self {
        let path = self.key(name);
        match self.take(name) {
            Some(item) => Self::of(path, item, faults),
            None => Self {
                path,
                table: Table::new(),
                known: BTreeSet::new(),
            },
        }
    }

    /// The key `name` with this section before it.
    pub(crate) fn key(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The item `name`, which is known from now on.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Item> {
        self.known.insert(name);
        self.table.remove(name)
    }

    /// Everything that is left, for a table whose keys are names that the user chose.
    pub(crate) fn take_all(&mut self) -> Table {
        std::mem::take(&mut self.table)
    }

    /// Puts the value of `name` into `slot` when it is given and good. Returns where it was given.
    pub(crate) fn set<T>(
        &mut self,
        name: &'static str,
        slot: &mut T,
        parse: impl FnOnce(&Value) -> Result<T, String>,
        faults: &mut Vec<Fault>,
    ) -> Option<Origin> {
        let item = self.take(name)?;
        match parse(&item.value) {
            Ok(value) => *slot = value,
            Err(reason) => faults.push(Fault {
                key: self.key(name),
                value: Some(item.value.to_string()),
                origin: Some(item.origin.clone()),
                reason,
            }),
        }
        Some(item.origin)
    }

    /// Reports what is left.
    pub(crate) fn finish(self, faults: &mut Vec<Fault>) {
        let known = self.known.iter().copied().collect::<Vec<_>>().join(", ");
        for (name, item) in &self.table {
            let reason = if self.path.is_empty() {
                format!("unknown section (there are {known})")
            } else {
                format!("unknown key (there are {known})")
            };
            let key = self.key(&printable(name));
            faults.push(Fault {
                key,
                value: None,
                origin: Some(item.origin.clone()),
                reason,
            });
        }
    }
}

/// Keys come from the file: they end up in logs and on terminals.
pub(crate) fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Any string without a NUL byte.
pub(crate) fn string(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.contains('\0') => {
            Err("must not contain a NUL character".to_owned())
        }
        Value::String(text) => Ok(text.clone()),
        _ => Err("must be a string".to_owned()),
    }
}

/// `""` is none.
pub(crate) fn optional<T>(
    parse: impl FnOnce(&Value) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<Option<T>, String> {
    |value| match value {
        Value::String(text) if text.is_empty() => Ok(None),
        _ => parse(value).map(Some),
    }
}

/// An absolute path without `..`, so that what is printed is what is meant.
pub(crate) fn absolute_path(value: &Value) -> Result<PathBuf, String> {
    let text = string(value)?;
    let path = Path::new(&text);
    if !path.is_absolute() {
        return Err("must be an absolute path".to_owned());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain \"..\"".to_owned());
    }
    Ok(path.components().collect())
}

/// An array of what `each` takes.
pub(crate) fn array<T>(
    each: impl Fn(&Value) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<Vec<T>, String> {
    move |value| match value {
        Value::Array(items) => items
            .iter()
            .map(|item| each(item).map_err(|e| format!("{item} {e}")))
            .collect(),
        _ => Err("must be an array".to_owned()),
    }
}

/// A whole number in a range.
pub(crate) fn integer<T>(min: T, max: T) -> impl FnOnce(&Value) -> Result<T, String>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| match value {
        Value::Integer(number) => T::try_from(*number)
            .ok()
            .filter(|number| *number >= min && *number <= max)
            .ok_or_else(|| format!("must be from {min} to {max}")),
        _ => Err(format!("must be a whole number from {min} to {max}")),
    }
}

/// One of a few words.
pub(crate) fn word<T: Copy>(words: &[(&str, T)]) -> impl FnOnce(&Value) -> Result<T, String> {
    |value| {
        let found = match value {
            Value::String(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let all = words
                .iter()
                .map(|(word, _)| format!("{word:?}"))
                .collect::<Vec<_>>();
            format!("must be {}", all.join(" or "))
        })
    }
}

/// What the standard library parses; `expected` completes "must be".
pub(crate) fn parsed<T: std::str::FromStr>(
    expected: &str,
) -> impl FnOnce(&Value) -> Result<T, String> {
    move |value| {
        string(value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("must be {expected}"))
    }
}
