//! The admin socket: console commands where the system has no console for them.
//!
//! One command a connection. The client sends a line; the answer is `OK` or `NO` on a line, then the lines to show, then
//! the end of the stream. The socket is its owner's alone (mode 0600): STOP and REFRESH are nothing for those who may
//! only use the CRI.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Answer, Operator};

/// Name of the socket, in `[storage] state`.
const NAME: &str = "admin.sock";
/// Longest command; the longest that there is has 15 bytes.
const LONGEST: u64 = 256;
/// A client that has not said or taken anything by then is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// An operator types one command at a time: more than this is a mistake, and waits.
const CLIENTS: usize = 8;

/// Path of the socket of a daemon.
pub fn path(state: &Path) -> PathBuf {
    state.join(NAME)
}

/// Serves commands. The socket goes with this value.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Admin {
    /// Binds the socket and begins to serve. The caller holds the lock of `state`, so that one that is there is stale.
    ///
    /// # Errors
    /// The file system refused.
    pub fn start(state: &Path, operator: Arc<Operator>) -> io::Result<Self> {
        let path = path(state);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Nobody may connect in the moment between bind and chmod.
        let private = path.with_extension("new");
        match std::fs::remove_file(&private) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&private)?;
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&private, &path)?;
        let task = tokio::spawn(serve(listener, operator));
        Ok(Self { path, task })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
        // It may be gone with the directory.
        std::fs::remove_file(&self.path).ok();
    }
}

async fn serve(listener: UnixListener, operator: Arc<Operator>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let operator = Arc::clone(&operator);
                tokio::spawn(async move {
                    if let Err(error) = answer(client, &operator).await {
                        tracing::debug!(%error, "an admin client was let go");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket takes nobody");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut client: UnixStream, operator: &Operator) -> io::Result<()> {
    let (reading, mut writing) = client.split();
    let mut line = String::new();
    let mut reading = BufReader::new(reading.take(LONGEST));
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(PATIENCE, reading.read_line(&mut line))
        .await
        .map_err(late)??;
    let text = encode(&operator.obey(&line).await);
    timeout(PATIENCE, writing.write_all(text.as_bytes()))
        .await
        .map_err(late)?
}

fn encode(answer: &Answer) -> String {
    let mut text = String::from(if answer.done { "OK\n" } else { "NO\n" });
    for line in &answer.lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Asks a daemon to obey a command.
///
/// # Errors
/// It does not run, or broke off.
pub async fn ask(socket: &Path, command: &str) -> io::Result<Answer> {
    let mut daemon = UnixStream::connect(socket).await?;
    let line = format!("{}\n", command.replace('\n', " "));
    daemon.write_all(line.as_bytes()).await?;
    let mut text = String::new();
    daemon.read_to_string(&mut text).await?;
    decode(&text).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

fn decode(text: &str) -> Option<Answer> {
    let mut lines = text.lines();
    let done = match lines.next()? {
        "OK" => true,
        "NO" => false,
        _ => return None,
    };
    Some(Answer {
        done,
        lines: lines.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_encoded_and_decoded() {
        for done in [true, false] {
            let answer = Answer {
                done,
                lines: vec!["ZCR050I 1 PODS".into(), "  x".into()],
            };
            assert_eq!(decode(&encode(&answer)), Some(answer));
        }
        assert_eq!(decode(""), None);
        assert_eq!(decode("WHAT\n"), None);
    }
}
