//! What a request names as standard streams, and opening it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// Scheme of a stream that goes to a CRI log.
const LOG_SCHEME: &str = "cri-log://";

/// Capacity of a pipe that carries a container's output to its log: room for a burst, so that the container rarely
/// waits for the disk. Memory is used only for what is in it.
const PIPE_CAPACITY: usize = 256 * 1024;

/// Where an output stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Null,
    Log(PathBuf),
    Fifo(PathBuf),
}

impl Target {
    /// Parses `stdout` or `stderr` of a request.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let (path, log) = match text.strip_prefix(LOG_SCHEME) {
            Some(path) => (path, true),
            None => (text, false),
        };
        if !path.starts_with('/') {
            return Err(format!(
                "{text:?} is neither {LOG_SCHEME}/absolute/path nor the absolute path of a FIFO"
            ));
        }
        Ok(if log {
            Self::Log(path.into())
        } else {
            Self::Fifo(path.into())
        })
    }
}

/// Opens a FIFO without waiting for its other end.
///
/// # Errors
/// `ENXIO` when it is opened for writing only and nobody reads; `InvalidInput` for what is no FIFO.
pub(crate) fn open_fifo(path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO"));
    }
    Ok(fd)
}

/// A second opening of an open FIFO, for a process that expects to block on it.
pub(crate) fn open_for_process(fifo: impl AsFd, access: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fifo.as_fd().as_raw_fd());
    let fd = rustix::fs::open(
        path,
        access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )?;
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
    Ok(fd)
}

/// A pipe whose reader does not block and whose writer does: (reader, writer).
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(&reader)?;
    rustix::fs::fcntl_setfl(&reader, flags | OFlags::NONBLOCK)?;
    // A user over its allowance keeps the default capacity, which works too.
    rustix::pipe::fcntl_setpipe_size(&reader, PIPE_CAPACITY).ok();
    Ok((reader, writer))
}

/// `/dev/null` for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(Target::parse(""), Ok(Target::Null));
        assert_eq!(
            Target::parse("cri-log:///var/log/x"),
            Ok(Target::Log("/var/log/x".into()))
        );
        assert_eq!(Target::parse("/run/f"), Ok(Target::Fifo("/run/f".into())));
        for bad in [
            "relative",
            "cri-log://relative",
            "binary:///x",
            "cri-log:/x",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_fifos_with_a_reader_are_opened_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, fifo) = (dir.path().join("file"), dir.path().join("fifo"));
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            open_fifo(&file, OFlags::WRONLY).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let nobody = open_fifo(&fifo, OFlags::WRONLY).unwrap_err();
        assert_eq!(
            nobody.raw_os_error(),
            Some(rustix::io::Errno::NXIO.raw_os_error())
        );
        let reader = open_fifo(&fifo, OFlags::RDONLY).unwrap();
        let ours = open_fifo(&fifo, OFlags::WRONLY).unwrap();
        let theirs = open_for_process(&ours, OFlags::WRONLY).unwrap();
        assert!(
            !rustix::fs::fcntl_getfl(&theirs)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
        assert!(
            rustix::fs::fcntl_getfl(&ours)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
        drop(reader);
    }
}
