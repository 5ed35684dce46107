//! The log: one line per step that an operator understands, on standard error and, if configured, in a file.

use std::{
    fmt,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Where lines go. A line that cannot be written is lost: the log is no reason to fail.
#[derive(Debug)]
pub struct Log {
    prefix: String,
    file: Option<PathBuf>,
}

impl Log {
    /// Lines begin with `prefix`: the operation and the pod.
    #[must_use]
    pub fn new(prefix: String, file: Option<&Path>) -> Self {
        Self {
            prefix,
            file: file.map(Path::to_owned),
        }
    }

    /// Writes a line.
    pub fn line(&self, line: impl fmt::Display) {
        let text = format!("dvipa {}: {line}\n", self.prefix);
        drop(std::io::stderr().write_all(text.as_bytes()));
        if let Some(path) = &self.file {
            let now = OffsetDateTime::from(SystemTime::now())
                .format(&Rfc3339)
                .unwrap_or_default();
            let text = format!("{now} {text}");
            // One write to a file opened for appending: lines of several processes do not mix.
            drop(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .and_then(|mut file| file.write_all(text.as_bytes())),
            );
        }
    }
}
