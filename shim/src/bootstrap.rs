//! The `start` action: one monitor per bundle, found or made.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zcri_sys::fork::{Side, exit_now, fork};

use crate::args::Arguments;
use crate::monitor::Monitor;

/// Name of the socket in a pod's bundle.
const SOCKET: &str = "shim.sock";

/// Name of the file that takes what the monitor itself has to say.
const LOG: &str = "shim.log";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Most bytes of a path in a socket address, its final zero apart.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// How much the kernel shall spare the monitor when memory is short: as containerd's shims. It needs privilege; a
/// container's own value comes from its spec.
const OOM_SCORE: &str = "-998";

/// Signals that must not end a monitor: its pod would lose its parent. SIGHUP, SIGINT, SIGPIPE, SIGTERM.
const DISREGARDED: [i32; 4] = [1, 2, 13, 15];

/// What kept a monitor from starting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{op} {path}: {source}", path = path.display())]
    Path {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{op}: {source}")]
    Call { op: &'static str, source: io::Error },
    #[error("whoever started this is gone")]
    Abandoned,
    #[error("the monitor ended while it started, see {log}", log = log.display())]
    Child { log: PathBuf },
}

/// Prints the address of the bundle's monitor, which is started if none is alive.
pub(crate) fn start(arguments: &Arguments) -> Result<(), StartError> {
    let at = |op, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Path { op, path, source }
    };
    let call = |op| move |source: io::Error| StartError::Call { op, source };
    let bundle = std::fs::canonicalize(&arguments.bundle)
        .map_err(at("find the bundle", &arguments.bundle))?;
    // Two that start at once: the second waits and finds the first one's socket.
    let lock = File::open(&bundle).map_err(at("open", &bundle))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|e| at("lock", &bundle)(e.into()))?;
    let socket = bundle.join(SOCKET);
    if is_alive(&socket) {
        return announce(&socket).map_err(call("print the address"));
    }
    own_namespaces().map_err(call("enter namespaces of the pod's own"))?;
    restore_open_files().map_err(call("set the limit of open files"))?;
    let listener = listen(&socket).map_err(at("listen on", &socket))?;
    if launcher_is_gone() {
        // Nobody wants the pod any more. A successor that looked for its monitor before the socket was there took it
        // for one without; one that looks from now on finds this one and shuts it down.
        drop(std::fs::remove_file(&socket));
        return Err(StartError::Abandoned);
    }
    let log = bundle.join(LOG);
    let log_file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(at("open", &log))?;
    let (ready, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| call("make a pipe")(e.into()))?;
    match fork().map_err(call("fork"))? {
        Side::Child => {
            drop((lock, ready));
            exit_now(i32::from(
                serve(listener, socket, log_file, report).is_err(),
            ))
        }
        Side::Parent(_) => {
            drop((listener, report));
            let mut byte = [0];
            File::from(ready)
                .read_exact(&mut byte)
                .map_err(|_| StartError::Child { log })?;
            announce(&socket).map_err(call("print the address"))
        }
    }
}

/// Where the daemon pins no namespaces for a pod, its monitor lives in them, and all that the monitor starts.
fn own_namespaces() -> io::Result<()> {
    let ipc = std::env::var_os("ZCRI_SHIM_NEW_IPC").is_some();
    let hostname = std::env::var("ZCRI_SHIM_NEW_UTS").ok();
    // One line is all that the daemon gets to know: what the kernel said belongs into it.
    zcri_sys::namespace::enter_new(ipc, hostname.as_deref()).map_err(|error| match error.io() {
        Some(cause) => io::Error::new(cause.kind(), format!("{error}: {cause}")),
        None => io::Error::other(error),
    })
}

/// The daemon raises its limit of open files for itself: containers inherit the node's.
fn restore_open_files() -> io::Result<()> {
    match std::env::var("ZCRI_SHIM_OPEN_FILES").map(|soft| soft.parse()) {
        Ok(Ok(soft)) => zcri_sys::open_files::set_soft_limit(soft),
        Ok(Err(_)) => Err(io::ErrorKind::InvalidInput.into()),
        Err(_unset) => Ok(()),
    }
}

/// The life of the monitor.
fn serve(listener: OwnedFd, socket: PathBuf, log: File, report: OwnedFd) -> io::Result<()> {
    let null = crate::stdio::null()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&log)?;
    drop((null, log));
    let result = become_monitor(listener, socket)
        .and_then(|monitor| File::from(report).write_all(&[1]).map(|()| monitor))
        .and_then(Monitor::run);
    if let Err(e) = &result {
        eprintln!("the monitor ends: {e}");
    }
    result
}

fn become_monitor(listener: OwnedFd, socket: PathBuf) -> io::Result<Monitor> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    zcri_sys::signal::reset_all();
    zcri_sys::signal::disregard(&DISREGARDED)?;
    // Not allowed everywhere; what was inherited stays then.
    drop(std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    Monitor::new(listener, socket)
}

fn announce(socket: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "unix://{}", socket.display())?;
    out.flush()
}

/// Whether standard input is a pipe whose other end is closed: zcrid holds it open until this program has answered.
fn launcher_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdin = rustix::stdio::stdin();
    let pipe = rustix::fs::fstat(stdin)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let mut watched = [PollFd::new(&stdin, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    pipe && poll(&mut watched, Some(&now)).is_ok()
        && watched
            .iter()
            .any(|fd| fd.revents().contains(PollFlags::HUP))
}

fn is_alive(socket: &Path) -> bool {
    with_short_path(socket, |path| UnixStream::connect(path)).is_ok()
}

/// Binds the socket of the bundle, over a dead monitor's if there is one, for the owner alone.
fn listen(socket: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = bind(&listener, socket);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Binds a socket to a path of any length.
pub(crate) fn bind(socket: impl AsFd, path: &Path) -> io::Result<()> {
    with_short_path(path, |path| {
        Ok(rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?)
    })
}

/// Runs `action` with a name of `path` that fits into a socket address.
fn with_short_path<T>(path: &Path, action: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return action(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    action(&Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}
