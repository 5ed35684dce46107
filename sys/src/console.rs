//! The operator's console.
//!
//! On z/OS it is the system's: `__console2()` writes a message, and waits for the MODIFY and STOP commands of the
//! started task. Elsewhere a file or standard error stands for it, and commands come by a socket of the daemon's own.

pub mod zos;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Where operators read.
pub trait Console: Send + Sync {
    /// Writes one message.
    ///
    /// # Errors
    /// The console does not take it.
    fn write(&self, line: &str) -> io::Result<()>;
}

/// What an operator asks of a started task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `MODIFY task,text` (`F task,text`).
    Modify(String),
    /// `STOP task` (`P task`).
    Stop,
}

/// Where operators' commands come from.
pub trait Requests: Send {
    /// Waits for the next one. Blocks.
    ///
    /// # Errors
    /// There will be no more.
    fn next(&mut self) -> io::Result<Request>;
}

/// Standard error.
#[derive(Debug, Default)]
pub struct StandardError;

impl Console for StandardError {
    fn write(&self, line: &str) -> io::Result<()> {
        // One call, so that lines of several threads do not mix.
        io::stderr().write_all(format!("{line}\n").as_bytes())
    }
}

/// A file, appended to. It is made with mode 0640: messages name pods and images.
#[derive(Debug)]
pub struct LogFile(Mutex<File>);

impl LogFile {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// The file system refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o640).open(path)?;
        Ok(Self(Mutex::new(file)))
    }
}

impl Console for LogFile {
    fn write(&self, line: &str) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes())
    }
}

/// The system's own console and commands, where there is such a thing: on z/OS.
pub fn system() -> Option<(Box<dyn Console>, Box<dyn Requests>)> {
    zos::system()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_appended_to() {
        let path = std::env::temp_dir().join(format!("zcri-console-{}", std::process::id()));
        for line in ["one", "two"] {
            LogFile::open(&path).unwrap().write(line).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        std::fs::remove_file(path).unwrap();
    }

    #[cfg(not(feature = "zos-stub"))]
    #[test]
    fn linux_has_no_console_of_the_systems() {
        assert!(system().is_none());
    }
}
