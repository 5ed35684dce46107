//! The unix socket, and who may have it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use zcri_proto::v1::image_service_server::ImageServiceServer;
use zcri_proto::v1::runtime_service_server::RuntimeServiceServer;

use super::Services;
use super::deadline::Deadline;
use crate::messages;

/// How long a stopping daemon waits for the calls in flight. A client that does not take its answer must not keep it
/// up; what is cut short is found by the next start, as after a crash.
const DRAIN: Duration = Duration::from_secs(5);
/// Two streams of 16 MiB (api.proto, ExecSyncResponse), and room for their frame.
const LARGEST_ANSWER: usize = (32 << 20) + 4096;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon has the directory.
    #[error("another zcrid is running on {dir} (it holds {lock})", dir = dir.display(), lock = lock.display())]
    Running {
        /// Its directory.
        dir: PathBuf,
        /// The file it has locked.
        lock: PathBuf,
    },
    /// Somebody else answers on the socket.
    #[error("another process is serving on {socket}", socket = socket.display())]
    Taken {
        /// The socket.
        socket: PathBuf,
    },
    /// The file system refused.
    #[error("{action} {path}", path = path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The configured group does not exist.
    #[error("api.socket_group: there is no group {name:?}")]
    NoGroup {
        /// Its name.
        name: String,
    },
    /// The transport failed.
    #[error("serve on the socket")]
    Transport(#[source] tonic::transport::Error),
}

/// The right to use a directory: as long as it lives, no other daemon gets it.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Makes the directory and locks it.
    ///
    /// # Errors
    /// [`ServeError::Running`] if another daemon has it.
    pub fn acquire(dir: &Path) -> Result<Self, ServeError> {
        let lock = dir.join("zcrid.lock");
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ServeError::Path {
                action,
                path,
                source,
            }
        };
        std::fs::create_dir_all(dir).map_err(fail("make", dir))?;
        let file = File::create(&lock).map_err(fail("open", &lock))?;
        // A lock of the process, which no child has: with flock(2), one that was just being started when its daemon was
        // killed would hold on to it.
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(ServeError::Running {
                dir: dir.into(),
                lock,
            }),
            Err(e) => Err(fail("lock", &lock)(e.into())),
        }
    }
}

/// How the socket is to be.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// Its path.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its group by name; empty leaves the process's.
    pub group: String,
    /// Largest message in either direction, in bytes.
    pub max_message_bytes: usize,
}

/// Binds the socket; a stale one, on which nobody answers, is replaced.
///
/// # Errors
/// Somebody answers on it, or the file system refused.
pub fn bind(options: &SocketOptions) -> Result<UnixListener, ServeError> {
    let path = &options.path;
    let fail = |action: &'static str| {
        move |source: io::Error| ServeError::Path {
            action,
            path: path.clone(),
            source,
        }
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail("make the directory of"))?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ServeError::Taken {
            socket: path.clone(),
        });
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("remove the stale")(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(options.mode))
        .map_err(fail("set the mode of"))?;
    if !options.group.is_empty() {
        let gid = group_id(&options.group).map_err(fail("look up the group of"))?;
        let gid = gid.ok_or_else(|| ServeError::NoGroup {
            name: options.group.clone(),
        })?;
        chown(path, None, Some(gid)).map_err(fail("set the group of"))?;
    }
    Ok(listener)
}

/// Number of a group, given by name or number.
pub(crate) fn group_id(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let text = std::fs::read_to_string("/etc/group")?;
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    }))
}

/// Serves both services until `shutdown` is done, then lets the calls in flight finish, for `DRAIN` at most, and
/// removes the socket.
///
/// # Errors
/// The transport failed.
pub async fn serve(
    services: Services,
    listener: UnixListener,
    options: &SocketOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let limit = options.max_message_bytes;
    // Both streams of an ExecSync at their limit have to fit, with what goes around them.
    let answer_limit = limit.max(LARGEST_ANSWER);
    let runtime = RuntimeServiceServer::new(services.clone())
        .max_decoding_message_size(limit)
        .max_encoding_message_size(answer_limit);
    let image = ImageServiceServer::new(services)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let (stopping, mut stopped) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        stopping.send_replace(true);
    };
    let serving = Server::builder()
        .layer(tower::layer::layer_fn(Deadline::new))
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown);
    let drained = async move {
        // An error is a server that ended by itself, which ends the race too.
        drop(stopped.wait_for(|stopping| *stopping).await.map(|_| ()));
        tokio::time::sleep(DRAIN).await;
    };
    let served = tokio::select! {
        served = serving => served.map_err(ServeError::Transport),
        () = drained => {
            tracing::info!(zcr = messages::CUT_SHORT, seconds = DRAIN.as_secs(), "calls in flight are left");
            Ok(())
        }
    };
    if let Err(error) = std::fs::remove_file(&options.path) {
        tracing::debug!(path = %options.path.display(), %error, "the socket was not removed");
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let options = SocketOptions {
            path: dir.path().join("s/zcri.sock"),
            mode: 0o600,
            group: "0".into(),
            max_message_bytes: 1,
        };
        let first = bind(&options).unwrap();
        assert!(matches!(bind(&options), Err(ServeError::Taken { .. })));
        drop(first);
        let _second = bind(&options).unwrap();
        let mode = std::fs::metadata(&options.path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("no-such-group-here").unwrap(), None);
    }
}
