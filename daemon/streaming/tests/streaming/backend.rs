//! A backend whose processes are tasks. It counts what lives, so that a test sees what is left over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use zcri_streaming::{
    AttachRequest, Backend, Duplex, ExecRequest, ExitStatus, Session, SessionControl, SessionError,
    TerminalSize,
};

/// What a pipe holds on Linux.
const PIPE: usize = 64 * 1024;

/// Ports of every pod of the fake.
pub(crate) const ECHO_PORT: u16 = 7;
pub(crate) const DISCARD_PORT: u16 = 9;
/// Says hello and closes.
pub(crate) const HELLO_PORT: u16 = 13;
/// Accepts and never reads.
pub(crate) const STUCK_PORT: u16 = 14;
pub(crate) const REFUSED_PORT: u16 = 1;

#[derive(Default)]
pub(crate) struct Fake {
    live: Arc<watch::Sender<usize>>,
    /// Attached containers by id: what each prints.
    containers: Mutex<HashMap<String, Arc<Container>>>,
    pub(crate) requests: Mutex<Vec<ExecRequest>>,
}

/// A container that prints what anyone types, until it ends.
pub(crate) struct Container {
    output: tokio::sync::broadcast::Sender<Vec<u8>>,
    exit: watch::Sender<Option<i32>>,
}

impl Fake {
    pub(crate) fn live(&self) -> usize {
        *self.live.borrow()
    }

    /// Waits until so many processes and connections live.
    pub(crate) async fn lives(&self, count: usize) {
        let mut live = self.live.subscribe();
        let wait = live.wait_for(|live| *live == count);
        if tokio::time::timeout(crate::DEADLINE, wait).await.is_err() {
            panic!("{} live, not {count}", self.live());
        }
    }

    pub(crate) fn container(&self, id: &str) -> Arc<Container> {
        let new = || {
            Arc::new(Container {
                output: tokio::sync::broadcast::channel(64).0,
                exit: watch::channel(None).0,
            })
        };
        self.containers
            .lock()
            .unwrap()
            .entry(id.to_owned())
            .or_insert_with(new)
            .clone()
    }

    fn count(&self) -> Live {
        self.live.send_modify(|live| *live += 1);
        Live(self.live.clone())
    }

    fn spawn<F: Future<Output = i32> + Send + 'static>(
        &self,
        program: impl FnOnce(Pipes) -> F,
        request: &ExecRequest,
    ) -> Session {
        let live = self.count();
        let (stdin, child_stdin) = tokio::io::duplex(PIPE);
        let (child_stdout, stdout) = tokio::io::duplex(PIPE);
        let (child_stderr, stderr) = tokio::io::duplex(PIPE);
        let (resized, sizes) = mpsc::unbounded_channel();
        let (exited, exit) = watch::channel(None);
        let running = program(Pipes {
            stdin: child_stdin,
            stdout: child_stdout,
            stderr: child_stderr,
            sizes,
        });
        let task = tokio::spawn(async move {
            let _live = live;
            let code = running.await;
            exited.send_replace(Some(code));
        });
        Session {
            stdin: request.stdin.then(|| Box::new(stdin) as _),
            stdout: request.stdout.then(|| Box::new(stdout) as _),
            stderr: request.stderr.then(|| Box::new(stderr) as _),
            control: Box::new(Control {
                exit,
                resized,
                task: Some(task),
            }),
        }
    }
}

impl Container {
    pub(crate) fn print(&self, text: &str) {
        self.output.send(text.as_bytes().to_vec()).unwrap();
    }

    pub(crate) fn end(&self, code: i32) {
        self.exit.send_replace(Some(code));
    }

    pub(crate) fn watchers(&self) -> usize {
        self.output.receiver_count()
    }
}

struct Live(Arc<watch::Sender<usize>>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.send_modify(|live| *live -= 1);
    }
}

struct Pipes {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    sizes: mpsc::UnboundedReceiver<TerminalSize>,
}

/// Dropping it kills the process.
struct Control {
    exit: watch::Receiver<Option<i32>>,
    resized: mpsc::UnboundedSender<TerminalSize>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl SessionControl for Control {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        self.resized.send(size).ok();
        std::future::ready(()).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, Result<ExitStatus, SessionError>> {
        let mut exit = self.exit.clone();
        async move {
            match exit.wait_for(Option::is_some).await {
                Ok(code) => Ok(ExitStatus {
                    code: code.unwrap_or(255),
                }),
                Err(_) => Err(SessionError::Internal {
                    message: "the process was lost".to_owned(),
                }),
            }
        }
        .boxed()
    }
}

/// The byte at a place of the stream that `pour` makes.
pub(crate) fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

async fn run(command: Vec<String>, mut pipes: Pipes) -> i32 {
    let argument = |at: usize| command.get(at).cloned().unwrap_or_default();
    let number = |at: usize| argument(at).parse::<usize>().unwrap();
    match command[0].as_str() {
        "echo" => {
            pipes
                .stdout
                .write_all(command[1..].join(" ").as_bytes())
                .await
                .ok();
            0
        }
        "cat" => {
            tokio::io::copy(&mut pipes.stdin, &mut pipes.stdout)
                .await
                .ok();
            0
        }
        "exit" => i32::try_from(number(1)).unwrap(),
        "both" => {
            pipes.stdout.write_all(b"to stdout").await.ok();
            pipes.stderr.write_all(b"to stderr").await.ok();
            3
        }
        "sizes" => {
            while let Some(size) = pipes.sizes.recv().await {
                let text = format!("{}x{};", size.width, size.height);
                pipes.stdout.write_all(text.as_bytes()).await.ok();
                if size.width == 1 {
                    break;
                }
            }
            0
        }
        "pour" => {
            let length = number(1);
            let mut sent = 0;
            while sent < length {
                let part: Vec<u8> = (sent..length.min(sent + PIPE)).map(pattern).collect();
                if pipes.stdout.write_all(&part).await.is_err() {
                    return 141;
                }
                sent += part.len();
            }
            0
        }
        "count" => {
            let mut buffer = vec![0; PIPE];
            let mut total = 0;
            while let Ok(length @ 1..) = pipes.stdin.read(&mut buffer).await {
                assert!(
                    (0..length).all(|at| buffer[at] == pattern(total + at)),
                    "input is damaged"
                );
                total += length;
            }
            pipes
                .stdout
                .write_all(total.to_string().as_bytes())
                .await
                .ok();
            0
        }
        // Reads nothing, writes nothing, ends never.
        "hang" => std::future::pending().await,
        // Ends its input, and lives on until it is asked to stop by a size.
        "deaf" => {
            drop(pipes.stdin);
            pipes.stdout.write_all(b"deaf").await.ok();
            pipes.sizes.recv().await;
            0
        }
        other => panic!("{other} is no program of the fake"),
    }
}

impl Backend for Fake {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        self.requests.lock().unwrap().push(request.clone());
        let result = match request.command[0].as_str() {
            "missing" => Err(SessionError::CannotStart {
                code: 127,
                message: "exec: no such file\n".to_owned(),
            }),
            "stopped" => Err(SessionError::NotRunning {
                message: "container c is not running".to_owned(),
            }),
            _ => Ok(self.spawn(|pipes| run(request.command.clone(), pipes), &request)),
        };
        std::future::ready(result).boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        let container = self.container(&request.container_id);
        let AttachRequest {
            container_id,
            tty,
            stdin,
            stdout,
            stderr,
        } = request;
        let request = ExecRequest {
            container_id,
            command: vec!["attach".to_owned()],
            tty,
            stdin,
            stdout,
            stderr,
        };
        let program = move |pipes: Pipes| attached(container, pipes);
        std::future::ready(Ok(self.spawn(program, &request))).boxed()
    }

    fn port_forward<'a>(
        &'a self,
        pod_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, SessionError>> {
        assert_eq!(pod_id, "pod");
        if port == REFUSED_PORT {
            let refused = SessionError::Internal {
                message: "connection refused".to_owned(),
            };
            return std::future::ready(Err(refused)).boxed();
        }
        let (near, far) = tokio::io::duplex(PIPE);
        let live = self.count();
        tokio::spawn(async move {
            let _live = live;
            serve_port(port, far).await;
        });
        std::future::ready(Ok(Box::new(near) as Box<dyn Duplex>)).boxed()
    }
}

async fn attached(container: Arc<Container>, mut pipes: Pipes) -> i32 {
    let mut output = container.output.subscribe();
    let mut exit = container.exit.subscribe();
    let mut buffer = vec![0; PIPE];
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            text = output.recv() => pipes.stdout.write_all(&text.unwrap()).await.unwrap(),
            typed = pipes.stdin.read(&mut buffer), if open => match typed {
                Ok(length @ 1..) => container.print(std::str::from_utf8(&buffer[..length]).unwrap()),
                _ => open = false,
            },
            code = ended(&mut exit) => return code,
        }
    }
}

async fn ended(exit: &mut watch::Receiver<Option<i32>>) -> i32 {
    exit.wait_for(Option::is_some).await.unwrap().unwrap()
}

async fn serve_port(port: u16, mut connection: DuplexStream) {
    match port {
        ECHO_PORT => {
            let (mut reader, mut writer) = tokio::io::split(connection);
            tokio::io::copy(&mut reader, &mut writer).await.ok();
        }
        DISCARD_PORT => {
            tokio::io::copy(&mut connection, &mut tokio::io::sink())
                .await
                .ok();
        }
        HELLO_PORT => connection.write_all(b"hello").await.unwrap_or_default(),
        STUCK_PORT => {
            // The other side's end is all that it notices.
            let (reader, mut writer) = tokio::io::split(connection);
            let _reader = reader;
            while writer.write_all(&[0]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
        other => panic!("port {other}"),
    }
}
