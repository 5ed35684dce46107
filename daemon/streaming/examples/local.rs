//! A streaming server whose containers are this machine: for driving it with `crictl` by hand, for recording what Go
//! clients send, and for measuring.
//!
//!     cargo run --release -p zcri-streaming --example local -- /tmp/local.sock [BASE_URL [PORT]]
//!     crictl -r unix:///tmp/local.sock exec -it any sh
//!
//! It answers the five RPCs of CRI that this needs, written down by hand, and runs commands as this user.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::{TcpStream, UnixListener};
use tokio::process::{Child, Command};
use zcri_streaming::{
    AttachRequest, Backend, Duplex, ExecRequest, ExitStatus, Server, ServerConfig, Session,
    SessionControl, SessionError, TerminalSize,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Local;

struct Process {
    child: tokio::sync::Mutex<Child>,
    terminal: Option<std::fs::File>,
}

impl SessionControl for Process {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        if let Some(terminal) = &self.terminal {
            let size = Winsize {
                ws_row: size.height,
                ws_col: size.width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(terminal, size).ok();
        }
        std::future::ready(()).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, Result<ExitStatus, SessionError>> {
        use std::os::unix::process::ExitStatusExt;
        async {
            let status = self.child.lock().await.wait().await.map_err(internal)?;
            let code = status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal));
            Ok(ExitStatus {
                code: code.unwrap_or(255),
            })
        }
        .boxed()
    }
}

fn internal(error: impl std::fmt::Display) -> SessionError {
    SessionError::Internal {
        message: error.to_string(),
    }
}

fn start(request: &ExecRequest) -> Result<Session, SessionError> {
    let [program, arguments @ ..] = request.command.as_slice() else {
        return Err(internal("no command"));
    };
    if request.tty {
        return start_in_terminal(&request.command);
    }
    let pipe = |wanted: bool| {
        if wanted {
            Stdio::piped()
        } else {
            Stdio::null()
        }
    };
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command
        .stdin(pipe(request.stdin))
        .stdout(pipe(request.stdout))
        .stderr(pipe(request.stderr));
    let mut child = command.spawn().map_err(|error| SessionError::CannotStart {
        code: 127,
        message: format!("exec: {program:?}: {error}"),
    })?;
    Ok(Session {
        stdin: child.stdin.take().map(|stdin| Box::new(stdin) as _),
        stdout: child.stdout.take().map(|stdout| Box::new(stdout) as _),
        stderr: child.stderr.take().map(|stderr| Box::new(stderr) as _),
        control: Box::new(Process {
            child: child.into(),
            terminal: None,
        }),
    })
}

fn start_in_terminal(arguments: &[String]) -> Result<Session, SessionError> {
    let terminal =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(internal)?;
    grantpt(&terminal)
        .and_then(|()| unlockpt(&terminal))
        .map_err(internal)?;
    let name = ptsname(&terminal, Vec::new()).map_err(internal)?;
    let name = name.to_str().map_err(internal)?;
    let other = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name)
        .map_err(internal)?;
    let stdio = || other.try_clone().map(Stdio::from).map_err(internal);
    let mut command = Command::new("setsid");
    command
        .arg("--ctty")
        .arg("--wait")
        .args(arguments)
        .kill_on_drop(true);
    command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
    let child = command.spawn().map_err(internal)?;
    let terminal = std::fs::File::from(terminal);
    let clone = || {
        terminal
            .try_clone()
            .map(tokio::fs::File::from_std)
            .map_err(internal)
    };
    Ok(Session {
        stdin: Some(Box::new(clone()?)),
        stdout: Some(Box::new(clone()?)),
        stderr: None,
        control: Box::new(Process {
            child: child.into(),
            terminal: Some(terminal),
        }),
    })
}

impl Backend for Local {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        std::future::ready(start(&request)).boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, SessionError>> {
        let AttachRequest {
            container_id,
            tty,
            stdin,
            stdout,
            stderr,
        } = request;
        let command = vec!["sh".to_owned()];
        self.exec(ExecRequest {
            container_id,
            command,
            tty,
            stdin,
            stdout,
            stderr,
        })
    }

    fn port_forward<'a>(
        &'a self,
        _: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, SessionError>> {
        async move {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .map_err(internal)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        }
        .boxed()
    }
}

/// The requests of api.proto that are answered.
#[derive(Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(bool, tag = "3")]
    tty: bool,
    #[prost(bool, tag = "4")]
    stdin: bool,
    #[prost(bool, tag = "5")]
    stdout: bool,
    #[prost(bool, tag = "6")]
    stderr: bool,
}

#[derive(Message)]
struct Attach {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(bool, tag = "2")]
    stdin: bool,
    #[prost(bool, tag = "3")]
    tty: bool,
    #[prost(bool, tag = "4")]
    stdout: bool,
    #[prost(bool, tag = "5")]
    stderr: bool,
}

#[derive(Message)]
struct PortForward {
    #[prost(string, tag = "1")]
    pod_id: String,
    #[prost(int32, repeated, tag = "2")]
    ports: Vec<i32>,
}

#[derive(Message)]
struct Url {
    #[prost(string, tag = "1")]
    url: String,
}

#[derive(Message)]
struct Version {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
    #[prost(string, tag = "4")]
    api_version: String,
}

fn call(server: &Server, method: &str, request: Bytes) -> Result<Vec<u8>, Error> {
    let url = match method {
        "/runtime.v1.RuntimeService/Exec" => {
            let Exec {
                container_id,
                command,
                tty,
                stdin,
                stdout,
                stderr,
            } = Exec::decode(request)?;
            server.exec_url(ExecRequest {
                container_id,
                command,
                tty,
                stdin,
                stdout,
                stderr,
            })?
        }
        "/runtime.v1.RuntimeService/Attach" => {
            let Attach {
                container_id,
                stdin,
                tty,
                stdout,
                stderr,
            } = Attach::decode(request)?;
            server.attach_url(AttachRequest {
                container_id,
                tty,
                stdin,
                stdout,
                stderr,
            })?
        }
        "/runtime.v1.RuntimeService/PortForward" => {
            let request = PortForward::decode(request)?;
            let ports: Vec<u16> = request
                .ports
                .iter()
                .map(|port| u16::try_from(*port))
                .collect::<Result<_, _>>()?;
            server.port_forward_url(&request.pod_id, &ports)?
        }
        "/runtime.v1.RuntimeService/Version" => {
            let text = |text: &str| text.to_owned();
            let (version, name) = (text("0.1.0"), text("local"));
            let answer = Version {
                version,
                name,
                runtime_version: text("0"),
                api_version: text("v1"),
            };
            return Ok(answer.encode_to_vec());
        }
        // What crictl looks for before it begins.
        "/runtime.v1.ImageService/ImageFsInfo" => return Ok(Vec::new()),
        other => return Err(format!("{other} is not answered").into()),
    };
    Ok(Url { url }.encode_to_vec())
}

async fn grpc(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>, Error>
{
    let method = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let mut trailers = HeaderMap::new();
    let mut frames = Vec::new();
    match call(&server, &method, body.slice(5.min(body.len())..)) {
        Ok(message) => {
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len())?);
            frame.put_slice(&message);
            frames.push(Ok(Frame::data(frame.freeze())));
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        Err(error) => {
            trailers.insert("grpc-status", HeaderValue::from_static("2"));
            trailers.insert("grpc-message", HeaderValue::try_from(error.to_string())?);
        }
    }
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments
        .next()
        .ok_or("usage: local SOCKET [BASE_URL [PORT]]")?;
    let config = ServerConfig {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        base_url: arguments.next().filter(|url| !url.is_empty()),
        port: arguments
            .next()
            .map(|port| port.parse())
            .transpose()?
            .unwrap_or(0),
        tls: None,
        idle_timeout: Duration::from_secs(4 * 3600),
    };
    let server = Arc::new(Server::bind(config, Arc::new(Local)).await?);
    println!("streaming on {}, gRPC on {socket}", server.local_addr());
    std::fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket)?;
    let streaming = server.clone();
    tokio::spawn(async move { streaming.serve(std::future::pending()).await });
    loop {
        let (stream, _) = listener.accept().await?;
        let server = server.clone();
        let service = hyper::service::service_fn(move |request| grpc(server.clone(), request));
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}
