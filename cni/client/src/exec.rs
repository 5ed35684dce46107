//! One run of one plugin: a process with a deadline.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::error::Failure;

/// Far more than a result has. Of a plugin that writes more, one byte more is kept to tell.
pub(crate) const MAX_STDOUT: usize = 1024 * 1024;

/// As much as a log line or an error message can carry.
const MAX_STDERR: usize = 8 * 1024;

/// How long to wait for output when the plugin has ended but something that it left running holds its output
/// open. What the plugin itself wrote is in the pipe by then.
const LEFTOVER_GRACE: Duration = Duration::from_millis(200);

/// How long a killed process may take to be gone; one that is stuck in the kernel is left to be reaped later.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// A plugin that is just being installed is busy for the time of a write.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Invocation<'a> {
    pub(crate) program: &'a Path,
    /// All of its environment.
    pub(crate) env: Vec<(&'static str, OsString)>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Instant,
    /// What the deadline was made of, for the error.
    pub(crate) allowed: Duration,
}

pub(crate) struct Done {
    /// Standard output of a plugin that succeeded.
    pub(crate) outcome: Result<Vec<u8>, Failure>,
    /// Standard error, shortened.
    pub(crate) stderr: String,
}

/// Runs a plugin to its end, or to its deadline.
///
/// # Cancel safety
/// When dropped, the plugin's process group is killed.
pub(crate) async fn run(invocation: Invocation<'_>) -> Done {
    let mut child = match spawn(&invocation).await {
        Ok(child) => child,
        Err(source) => {
            let failure = Failure::NotStarted {
                path: invocation.program.to_owned(),
                source,
            };
            return Done {
                outcome: Err(failure),
                stderr: String::new(),
            };
        }
    };
    let mut group = Group::of(&child);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let talked = timeout_at(
        invocation.deadline,
        talk(&mut child, &invocation.stdin, &mut stdout, &mut stderr),
    )
    .await;
    let outcome = match talked {
        Ok(Ok(status)) => {
            group.ended();
            judge(status, stdout)
        }
        // Waiting for one's own child does not fail; if it does, the child is not known to be gone.
        Ok(Err(source)) => Err(Failure::NotStarted {
            path: invocation.program.to_owned(),
            source,
        }),
        Err(_) => {
            group.kill();
            if let Ok(Ok(_)) = timeout(KILL_GRACE, child.wait()).await {
                group.ended();
            }
            Err(Failure::TimedOut {
                after: invocation.allowed,
            })
        }
    };
    Done {
        outcome,
        stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
    }
}

async fn spawn(invocation: &Invocation<'_>) -> io::Result<Child> {
    let mut tries = 1;
    loop {
        let spawned = Command::new(invocation.program)
            .env_clear()
            .envs(invocation.env.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        match spawned {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Gives the plugin its input and takes its output until it has ended.
async fn talk(
    child: &mut Child,
    input: &[u8],
    out: &mut Vec<u8>,
    err: &mut Vec<u8>,
) -> io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A plugin may end without reading: its exit status says more than the broken pipe.
            drop(stdin.write_all(input).await);
        }
    };
    let streams = async {
        tokio::join!(
            write,
            collect(stdout, out, MAX_STDOUT + 1),
            collect(stderr, err, MAX_STDERR)
        )
    };
    tokio::pin!(streams);
    tokio::select! {
        _ = &mut streams => child.wait().await,
        status = child.wait() => {
            let _left_open = timeout(LEFTOVER_GRACE, &mut streams).await.is_err();
            status
        }
    }
}

/// Reads to the end, keeps the first `limit` bytes: a writer that is not read from would block.
async fn collect(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, limit: usize) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 8 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let room = limit.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..n.min(room)]);
    }
}

fn judge(status: ExitStatus, stdout: Vec<u8>) -> Result<Vec<u8>, Failure> {
    if status.success() {
        Ok(stdout)
    } else {
        Err(reported(&stdout).unwrap_or(Failure::Ended { status }))
    }
}

/// The error that a plugin wrote. Source: SPEC.md section 5, "Error".
fn reported(stdout: &[u8]) -> Option<Failure> {
    let Ok(Value::Object(object)) = serde_json::from_slice(stdout) else {
        return None;
    };
    let text = |key: &str| {
        object
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let code = object.get("code").and_then(Value::as_u64);
    let (msg, details) = (text("msg"), text("details"));
    if code.is_none() && msg.is_empty() {
        return None;
    }
    let code = code.and_then(|code| u32::try_from(code).ok()).unwrap_or(0);
    Some(Failure::Reported { code, msg, details })
}

/// The process group of a plugin, killed when dropped before the plugin has ended. Its number is safe to use until
/// the plugin is waited for.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw),
        )
    }

    fn kill(&self) {
        if let Some(pid) = self.0 {
            // Only "no such process" can come back, and then there is nothing to kill.
            kill_process_group(pid, Signal::KILL).ok();
        }
    }

    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
