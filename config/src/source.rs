//! Files to one tree of values, in which each value still knows where it was written.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Origin};

/// More than any configuration has, little enough to read a device or a log by mistake without harm.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// A table of the merged files.
pub(crate) type Table = BTreeMap<String, Item>;

/// A value and where it was written last.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) origin: Origin,
    pub(crate) value: Value,
}

/// What `zcri.toml` can hold.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Table(Table),
    Array(Vec<Value>),
    String(String),
    Integer(i64),
    Bool(bool),
    /// What no key takes (floats, dates), with its type's name.
    Other(&'static str),
}

/// As it would stand in the file, shortened.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 160;
        match self {
            Self::Table(_) => f.write_str("{ ... }"),
            Self::Array(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    if i == 8 {
                        f.write_str("...")?;
                        break;
                    }
                    item.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::String(text) if text.chars().count() > SHOWN => {
                let start: String = text.chars().take(SHOWN).collect();
                write!(f, "{start:?}...")
            }
            Self::String(text) => write!(f, "{text:?}"),
            Self::Integer(number) => number.fmt(f),
            Self::Bool(flag) => flag.fmt(f),
            Self::Other(kind) => write!(f, "<{kind}>"),
        }
    }
}

/// The merged files.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) table: Table,
    pub(crate) files: Vec<PathBuf>,
}

/// Whether the main file may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MainFile {
    Required,
    Optional,
}

/// Reads `path` and `<path>.d/*.toml` in the order of their names.
pub(crate) fn read(path: &Path, main: MainFile) -> Result<Sources, ConfigError> {
    let mut files = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && main == MainFile::Optional => Vec::new(),
        _ => vec![path.to_owned()],
    };
    files.extend(drop_ins(path, "toml")?);
    let mut table = Table::new();
    for file in &files {
        merge(&mut table, parse(&read_text(file)?, file)?);
    }
    Ok(Sources { table, files })
}

/// One text in place of files.
pub(crate) fn from_text(text: &str, name: &Path) -> Result<Sources, ConfigError> {
    Ok(Sources {
        table: parse(text, name)?,
        files: Vec::new(),
    })
}

/// The files `<path>.d/*.<extension>` in the order of their names; none when the directory is missing.
/// Hidden files are left out: editors and package tools leave theirs behind.
pub(crate) fn drop_ins(path: &Path, extension: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let failed = |source| ConfigError::Read {
        path: dir.clone(),
        source,
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|e| e == extension) && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = || {
        let mut text = String::new();
        fs::File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "larger than {MAX_FILE_BYTES} bytes"
            )));
        }
        Ok(text)
    };
    read().map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A syntax error with its line.
pub(crate) fn syntax(error: &toml::de::Error, text: &str, file: &Path) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    ConfigError::Syntax {
        origin: Origin {
            file: file.to_owned(),
            line: line(text, at),
        },
        message: error.message().trim().replace('\n', "; "),
    }
}

/// The line of a byte offset; the first is 1.
pub(crate) fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn parse(text: &str, file: &Path) -> Result<Table, ConfigError> {
    let document = DeTable::parse(text).map_err(|e| syntax(&e, text, file))?;
    Ok(table(document.get_ref(), &Lines::new(text, file)))
}

/// Offsets to lines without counting from the start each time.
struct Lines<'a> {
    file: &'a Path,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &str, file: &'a Path) -> Self {
        let starts = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(i, _)| i + 1)
            .collect();
        Self { file, starts }
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin {
            file: self.file.to_owned(),
            line: 1 + self.starts.partition_point(|start| *start <= offset),
        }
    }
}

fn table(from: &DeTable<'_>, lines: &Lines<'_>) -> Table {
    from.iter()
        .map(|(key, item)| {
            let origin = lines.origin(key.span().start);
            (
                key.get_ref().to_string(),
                Item {
                    origin,
                    value: value(item.get_ref(), lines),
                },
            )
        })
        .collect()
}

fn value(from: &DeValue<'_>, lines: &Lines<'_>) -> Value {
    match from {
        DeValue::Table(inner) => Value::Table(table(inner, lines)),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| value(item.get_ref(), lines))
                .collect(),
        ),
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("integer out of range"), Value::Integer),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Float(_) | DeValue::Datetime(_) => Value::Other(from.type_str()),
    }
}

/// Tables key by key; anything else is replaced whole.
fn merge(into: &mut Table, from: Table) {
    for (key, item) in from {
        match (into.get_mut(&key), item) {
            (
                Some(Item {
                    value: Value::Table(old),
                    ..
                }),
                Item {
                    value: Value::Table(new),
                    ..
                },
            ) => merge(old, new),
            (_, item) => {
                into.insert(key, item);
            }
        }
    }
}
