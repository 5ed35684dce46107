//! A pod's shim: starting it, finding it again, and its Task API over ttrpc.
//!
//! The interface is containerd's shim v2 (the bootstrap command line and the Task service), plus
//! `zcri.shim.v1.Stdio` for log rotation. ARCHITECTURE.md has the conventions for streams and files.

mod stdio;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{
    EnumOrUnknown, Message, MessageField, well_known_types::any::Any,
};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::{self, context::Context};
use serde::Deserialize;
use tokio::net::UnixStream;

use super::Handler;

/// Type name of the options of runc and its likes in `CreateTaskRequest.options`.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// Name of the socket in a pod's bundle.
const SOCKET: &str = "shim.sock";
/// Between two tries to reach a shim when this process is short of descriptors or the like.
const CONNECT_PERIOD: std::time::Duration = std::time::Duration::from_millis(100);
/// How often that is tried.
const CONNECT_TRIES: u32 = 50;
/// Limit of an ordinary call; calls that wait for a process have none.
const CALL_TIMEOUT_NS: i64 = 120_000_000_000;

/// A call to a shim that failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The program could not be started.
    #[error("start {program}", program = program.display())]
    Start {
        /// The shim's program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program started and gave up.
    #[error("{program} ended with {status}: {message}", program = program.display())]
    Refused {
        /// The shim's program.
        program: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to stderr.
        message: String,
    },
    /// Nobody answers on the socket.
    #[error("no shim answers on {socket}", socket = socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The shim answered with an error.
    #[error("{message}")]
    Answer {
        /// ttrpc's code.
        code: ttrpc::Code,
        /// The shim's words, with those of the OCI runtime.
        message: String,
    },
    /// The shim took too long to answer.
    #[error("the shim has not answered for {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection broke.
    #[error("connection to the shim")]
    Transport(#[source] ttrpc::Error),
}

impl ShimError {
    /// Whether the shim does not know the container or process.
    pub fn is_not_found(&self) -> bool {
        self.has_code(ttrpc::Code::NOT_FOUND)
    }

    /// Whether what was asked is not possible in the state that the container or process is in.
    pub fn is_precondition(&self) -> bool {
        self.has_code(ttrpc::Code::FAILED_PRECONDITION)
    }

    fn has_code(&self, wanted: ttrpc::Code) -> bool {
        matches!(self, ShimError::Answer { code, .. } if *code == wanted)
    }
}

impl From<ttrpc::Error> for ShimError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => ShimError::Answer {
                code: status.code(),
                message: status.message().to_owned(),
            },
            other => ShimError::Transport(other),
        }
    }
}

/// The stack that the sockets of a process and of all that it starts use, where a system has several. Source: IBM, z/OS
/// UNIX System Services Planning, "_BPXK_SETIBMOPT_TRANSPORT".
pub const STACK_AFFINITY: &str = "_BPXK_SETIBMOPT_TRANSPORT";

/// Namespaces that a shim makes for itself, and so for all that it starts. The default is none.
#[derive(Debug, Clone, Default)]
pub struct ShimNamespaces {
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace with this host name.
    pub hostname: Option<String>,
    /// The TCP/IP stack that it and all that it starts have affinity to.
    pub stack: Option<String>,
}

impl ShimNamespaces {
    /// How zcri-shim is told. By variables, because containerd's shims refuse flags that they do not know.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let ipc = self.ipc.then(|| ("ZCRI_SHIM_NEW_IPC", "1".to_owned()));
        let uts = self
            .hostname
            .clone()
            .map(|name| ("ZCRI_SHIM_NEW_UTS", name));
        let stack = self.stack.clone().map(|name| (STACK_AFFINITY, name));
        ipc.into_iter().chain(uts).chain(stack).collect()
    }
}

/// Starts shims.
#[derive(Debug, Clone)]
pub struct ShimLauncher {
    /// The program.
    pub program: PathBuf,
    /// Soft limit of open files that containers are to inherit, where this process has raised its own.
    pub open_files: Option<u64>,
}

impl ShimLauncher {
    /// Starts the shim of a pod, whose bundle directory exists, and connects to it.
    ///
    /// # Errors
    /// The program is missing or gave up; its words are in the error.
    pub async fn start(
        &self,
        pod: &str,
        bundle: &Path,
        own: &ShimNamespaces,
    ) -> Result<Shim, ShimError> {
        let failed = |source| ShimError::Start {
            program: self.program.clone(),
            source,
        };
        // Held until it has answered: a shim that starts after this process has died sees the pipe's end, and
        // gives up, for nobody knows of it.
        let (lifeline, _held) = std::io::pipe().map_err(failed)?;
        let open_files = self.open_files.map(|soft| soft.to_string());
        let output = tokio::process::Command::new(&self.program)
            .envs(own.variables())
            .envs(open_files.map(|soft| ("ZCRI_SHIM_OPEN_FILES", soft)))
            .args(["-namespace", "zcri", "-id", pod, "-bundle"])
            .arg(bundle)
            .arg("start")
            .current_dir(bundle)
            .stdin(lifeline)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .await
            .map_err(failed)?;
        if !output.status.success() {
            return Err(ShimError::Refused {
                program: self.program.clone(),
                status: output.status,
                message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Shim::connect(bundle).await
    }
}

/// A connection to a pod's shim. Clones share it.
#[derive(Clone)]
pub struct Shim {
    tasks: TaskClient,
    client: Client,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// When, in ns since 1970.
    pub at_ns: i64,
    /// Whether the kernel ended it for want of memory.
    pub oom_killed: bool,
}

/// What a container is made of.
pub struct CreateRequest<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its bundle, with `config.json` and `rootfs`.
    pub bundle: &'a Path,
    /// Its OCI runtime; none for the init of a pod's PID namespace.
    pub handler: Option<&'a Handler>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// FIFO that feeds its standard input.
    pub stdin: Option<&'a Path>,
    /// Its log in CRI's format.
    pub log: Option<&'a Path>,
}

/// A command in a running container.
pub struct ExecRequest<'a> {
    /// The container.
    pub id: &'a str,
    /// Name of the command, unique within the container.
    pub exec_id: &'a str,
    /// The OCI process as JSON.
    pub process: Vec<u8>,
    /// Whether it has a terminal, whose output goes to `stdout`.
    pub terminal: bool,
    /// FIFO that feeds its standard input.
    pub stdin: Option<&'a Path>,
    /// FIFO for its standard output, open for reading.
    pub stdout: Option<&'a Path>,
    /// FIFO for its standard error, open for reading.
    pub stderr: Option<&'a Path>,
}

impl Shim {
    /// Connects to the shim of the pod with that bundle.
    ///
    /// # Errors
    /// [`ShimError::Unreachable`] when there is none.
    pub async fn connect(bundle: &Path) -> Result<Self, ShimError> {
        let stream = open(bundle)
            .await
            .map_err(|source| ShimError::Unreachable {
                socket: bundle.join(SOCKET),
                source,
            })?;
        let client = Client::new(Socket::new(stream));
        Ok(Self {
            tasks: TaskClient::new(client.clone()),
            client,
        })
    }

    /// Its process id. (The credentials of the socket name the process that began to listen, which has ended.)
    ///
    /// # Errors
    /// The shim's answer.
    pub async fn pid(&self) -> Result<u32, ShimError> {
        let request = api::ConnectRequest::default();
        Ok(self.tasks.connect(call(), &request).await?.shim_pid)
    }

    /// As [`Shim::connect`], for a shim that may have died: gives none if it has, and tries again for a while if
    /// it is this process that is short of something.
    pub async fn find(bundle: &Path) -> Option<Self> {
        for _ in 0..CONNECT_TRIES {
            match Self::connect(bundle).await {
                Ok(shim) => return Some(shim),
                Err(ShimError::Unreachable { source, .. }) if is_absence(&source) => return None,
                Err(_) => tokio::time::sleep(CONNECT_PERIOD).await,
            }
        }
        None
    }

    /// Waits until the shim of the pod with that bundle has ended; at once when there is none.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn gone(bundle: &Path) {
        let stream = loop {
            match open(bundle).await {
                Ok(stream) => break stream,
                Err(error) if is_absence(&error) => return,
                // This process is short of something, which says nothing about the shim.
                Err(_) => tokio::time::sleep(CONNECT_PERIOD).await,
            }
        };
        // Nothing is asked on this connection: the only thing that comes is its end.
        drop(stream.readable().await);
    }

    /// Makes the shim ready to start a container.
    ///
    /// # Errors
    /// The shim's answer.
    pub async fn create(&self, request: CreateRequest<'_>) -> Result<(), ShimError> {
        let mut message = api::CreateTaskRequest {
            id: request.id.into(),
            bundle: request.bundle.to_string_lossy().into(),
            terminal: request.terminal,
            stdin: fifo(request.stdin),
            ..Default::default()
        };
        if let Some(log) = request.log {
            message.stdout = format!("cri-log://{}", log.display());
            if !request.terminal {
                message.stderr.clone_from(&message.stdout);
            }
        }
        if let Some(handler) = request.handler {
            let options = Options {
                binary_name: handler.path.to_string_lossy().into(),
                root: handler
                    .root
                    .as_ref()
                    .map(|root| root.to_string_lossy().into())
                    .unwrap_or_default(),
                systemd_cgroup: handler.systemd_cgroup,
                ..Default::default()
            };
            message.options = any(OPTIONS_TYPE, options.write_to_bytes().unwrap_or_default());
        }
        self.tasks.create(call(), &message).await?;
        Ok(())
    }

    /// Starts what was created, or a command; gives its process id.
    ///
    /// # Errors
    /// The shim's answer, with the words of the OCI runtime.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, ShimError> {
        let request = api::StartRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        Ok(self.tasks.start(call(), &request).await?.pid)
    }

    /// Prepares a command in a container; [`Shim::start`] runs it.
    ///
    /// # Errors
    /// The shim's answer.
    pub async fn exec(&self, request: ExecRequest<'_>) -> Result<(), ShimError> {
        let message = api::ExecProcessRequest {
            id: request.id.into(),
            exec_id: request.exec_id.into(),
            terminal: request.terminal,
            stdin: fifo(request.stdin),
            stdout: fifo(request.stdout),
            stderr: fifo(request.stderr),
            spec: any(
                "types.containerd.io/opencontainers/runtime-spec/1/Process",
                request.process,
            ),
            ..Default::default()
        };
        self.tasks.exec(call(), &message).await?;
        Ok(())
    }

    /// Waits until a container (or a command, by its name) has ended, and gives its exit code and time in ns.
    ///
    /// # Errors
    /// The shim does not know it, or is gone.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<(i32, i64), ShimError> {
        let request = api::WaitRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let answer = self.tasks.wait(Context::default(), &request).await?;
        let at = answer
            .exited_at
            .as_ref()
            .map_or(0, |t| t.seconds * 1_000_000_000 + i64::from(t.nanos));
        Ok((answer.exit_status.cast_signed(), at))
    }

    /// Whether a container runs (its process id), was created (0), or has ended (`None`).
    ///
    /// # Errors
    /// The shim does not know it, or is gone.
    pub async fn running(&self, id: &str) -> Result<Option<u32>, ShimError> {
        let request = api::StateRequest {
            id: id.into(),
            ..Default::default()
        };
        let answer = self.tasks.state(call(), &request).await?;
        Ok((answer.status != EnumOrUnknown::new(api::Status::STOPPED)).then_some(answer.pid))
    }

    /// Sends a signal: to the first process, or to all that descend from it.
    ///
    /// # Errors
    /// The shim's answer; NOT_FOUND when it has ended.
    pub async fn kill(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), ShimError> {
        let request = api::KillRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        self.tasks.kill(call(), &request).await?;
        Ok(())
    }

    /// Forgets a container that has ended, or a command; what the shim does not know is forgotten already.
    ///
    /// # Errors
    /// It still runs, or the OCI runtime could not clean up.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<(), ShimError> {
        let request = api::DeleteRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        match self
            .tasks
            .delete(call(), &request)
            .await
            .map_err(ShimError::from)
        {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Changes the limits of a running container; `resources` is the OCI object as JSON.
    ///
    /// # Errors
    /// The OCI runtime's words.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), ShimError> {
        let request = api::UpdateTaskRequest {
            id: id.into(),
            resources: any(
                "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
                resources,
            ),
            ..Default::default()
        };
        self.tasks.update(call(), &request).await?;
        Ok(())
    }

    /// Ends the shim, whatever still runs in its pod.
    ///
    /// # Errors
    /// None that matter: a shim that is gone is what was wanted.
    pub async fn shutdown(&self) {
        let request = api::ShutdownRequest {
            now: true,
            ..Default::default()
        };
        if let Err(error) = self.tasks.shutdown(call(), &request).await {
            tracing::debug!(%error, "shim did not answer its shutdown");
        }
    }
}

/// Connects to the socket in a bundle.
async fn open(bundle: &Path) -> std::io::Result<UnixStream> {
    // A unix address holds 108 bytes, and a bundle's path may be longer: go through a descriptor of it.
    let dir = std::fs::File::open(bundle)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

/// Whether a failed connection means that there is no shim; every other error is this side's.
fn is_absence(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | NotFound)
}

fn call() -> Context {
    Context {
        timeout_nano: CALL_TIMEOUT_NS,
        ..Context::default()
    }
}

/// The path of a FIFO as a request has it; empty for none.
fn fifo(path: Option<&Path>) -> String {
    path.map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn any(type_url: &str, value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.into(),
        value,
        ..Default::default()
    })
}

/// The shim's note of how a container ended, if it wrote one.
pub async fn exit_file(bundle: &Path) -> Option<Exit> {
    #[derive(Deserialize)]
    struct File {
        exit_code: i32,
        exited_at_ns: i64,
        oom_killed: bool,
    }
    let text = tokio::fs::read(bundle.join("exit.json")).await.ok()?;
    let file: File = serde_json::from_slice(&text).ok()?;
    Some(Exit {
        code: file.exit_code,
        at_ns: file.exited_at_ns,
        oom_killed: file.oom_killed,
    })
}
