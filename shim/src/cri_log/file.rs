//! The file that a container's log goes to.
//!
//! Writing never fails for the writer: what a full disk does not take is dropped and counted, whole entries only, and
//! the container goes on.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Sink;

/// Mode of a log file: the kubelet and those in its group read it.
const MODE: u32 = 0o640;

/// An open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: File,
    path: PathBuf,
    dropped: u64,
}

impl LogFile {
    /// Opens the log for appending and creates it, and its directory, when missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open(path)?,
            path: path.to_owned(),
            dropped: 0,
        })
    }

    /// Opens the path again, for a log that was renamed. On failure the old file stays in use.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts off the part of an entry that a failed write left, so that the next one begins on a line of its own.
    fn cut_torn_entry(&mut self, written: &[u8]) {
        let torn = written.len() - memchr::memrchr(b'\n', written).map_or(0, |end| end + 1);
        if torn == 0 {
            return;
        }
        let cut = self
            .file
            .metadata()
            .and_then(|m| self.file.set_len(m.len().saturating_sub(torn as u64)));
        if let Err(e) = cut {
            eprintln!("log {}: an entry is torn: {e}", self.path.display());
        }
    }

    fn count_dropped(&mut self, bytes: usize, error: &io::Error) {
        if self.dropped == 0 {
            eprintln!("log {}: dropping output: {error}", self.path.display());
        }
        self.dropped += bytes as u64;
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Who can write to the directory must not lead the log elsewhere by a link, nor make this thread wait on a FIFO.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    options
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
            options.open(path)
        }
        opened => opened,
    }?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the log is not a regular file",
        ));
    }
    Ok(file)
}

impl Sink for LogFile {
    fn append(&mut self, entries: &[u8]) {
        let mut rest = entries;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return self.count_dropped(rest.len(), &io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let written = entries
                        .get(..entries.len() - rest.len())
                        .unwrap_or_default();
                    self.cut_torn_entry(written);
                    return self.count_dropped(rest.len(), &e);
                }
            }
        }
        if self.dropped > 0 {
            eprintln!(
                "log {}: writing again, {} bytes were dropped",
                self.path.display(),
                self.dropped
            );
            self.dropped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn follows_no_link_and_waits_on_no_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) = (
            dir.path().join("target"),
            dir.path().join("link"),
            dir.path().join("fifo"),
        );
        std::fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(LogFile::open(&link).is_err());
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(LogFile::open(&fifo).is_err());
        LogFile::open(&target).unwrap();
    }

    #[test]
    fn opens_in_a_new_directory_with_its_mode_and_reopens_after_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/0.log");
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        log.append(b"one\n");
        let old = dir.path().join("a/b/0.log.old");
        std::fs::rename(&path, &old).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn a_failing_reopen_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/0.log");
        let mut log = LogFile::open(&path).unwrap();
        std::fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
        std::fs::write(dir.path().join("d"), b"in the way").unwrap();
        assert!(log.reopen().is_err());
        log.append(b"kept\n");
        assert_eq!(
            std::fs::read(dir.path().join("e/0.log")).unwrap(),
            b"kept\n"
        );
    }
}
