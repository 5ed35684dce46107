//! One accepted connection: TLS, the upgrade request, then the session.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Shared, Target};
use crate::forward;
use crate::limits::{
    HANDSHAKE_TIMEOUT, MAX_REQUEST_HEAD, MAX_REQUEST_HEADERS, MAX_WEBSOCKET_PORTS,
};
use crate::remote::{self, Channels, Command};
use crate::session::{self, Ending, Notice, Peer};
use crate::transport::{Tcp, Transport};
use crate::upgrade::{Endpoint, Protocol, Refusal, negotiate};

/// What a client was granted.
struct Granted {
    target: Target,
    protocol: Protocol,
}

/// Serves a connection to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    mut stopped: watch::Receiver<bool>,
) {
    let handshake = timeout(HANDSHAKE_TIMEOUT, handshake(&shared, stream));
    let upgraded = tokio::select! {
        upgraded = handshake => upgraded,
        _ = stopped.wait_for(|stopped| *stopped) => return,
    };
    let (transport, buffer, granted) = match upgraded {
        Ok(Ok(Some(upgraded))) => upgraded,
        // The client has its answer.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            return tracing::debug!(%error, "a streaming connection failed before its upgrade");
        }
        Err(_) => {
            return tracing::debug!("a streaming connection took too long to ask for its upgrade");
        }
    };
    let peer = Peer {
        transport,
        buffer,
        idle_timeout: shared.idle_timeout,
        stopped,
    };
    run(&shared, peer, granted).await.log();
}

async fn handshake(
    shared: &Arc<Shared>,
    stream: TcpStream,
) -> io::Result<Option<(Transport, BytesMut, Granted)>> {
    let tcp = Tcp::new(stream)?;
    let transport = match &shared.tls {
        None => Transport::Plain(tcp),
        Some(acceptors) => Transport::Tls(Box::new(acceptors.get().accept(tcp).await?)),
    };
    let granted = Mutex::new(None);
    let service = service_fn(|request| {
        let response = answer(shared, &request).map(|(accepted, response)| {
            *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
            response
        });
        std::future::ready(Ok::<_, Infallible>(response.unwrap_or_else(refuse)))
    });
    let connection = http1::Builder::new()
        .max_headers(MAX_REQUEST_HEADERS)
        .max_buf_size(MAX_REQUEST_HEAD)
        .serve_connection(TokioIo::new(transport), service);
    let parts = connection
        .without_shutdown()
        .await
        .map_err(io::Error::other)?;
    let mut transport = parts.io.into_inner();
    let granted = granted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match granted {
        Some(granted) => Ok(Some((transport, BytesMut::from(parts.read_buf), granted))),
        None => {
            transport.shutdown().await?;
            Ok(None)
        }
    }
}

/// Decides on a request. Its token is used up, whatever comes of it.
fn answer(
    shared: &Shared,
    request: &Request<Incoming>,
) -> Result<(Granted, Response<Full<Bytes>>), Refusal> {
    let target = target(shared, request.uri().path()).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "there is no such session, or its time is over",
        )
    })?;
    let endpoint = match &target {
        Target::Command(_) => Endpoint::Command,
        Target::Forward { .. } => Endpoint::Forward,
    };
    let mut upgrade = negotiate(endpoint, request.method(), request.uri(), request.headers())?;
    if let (Protocol::ChannelForward { ports, .. }, Target::Forward { ports: allowed, .. }) =
        (&mut upgrade.protocol, &target)
    {
        // The kubelet asks for a session with the ports, and does not hand on the query.
        if ports.is_empty() {
            ports.extend(allowed.iter().take(MAX_WEBSOCKET_PORTS));
        }
        if ports.is_empty() {
            let message = "unable to upgrade: no port was asked for";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
        }
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = upgrade.headers;
    Ok((
        Granted {
            target,
            protocol: upgrade.protocol,
        },
        response,
    ))
}

fn target(shared: &Shared, path: &str) -> Option<Target> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    let target = shared.tokens.take(token)?;
    let right = match &target {
        Target::Command(Command::Exec(_)) => "exec",
        Target::Command(Command::Attach(_)) => "attach",
        Target::Forward { .. } => "portforward",
    };
    (kind == right).then_some(target)
}

fn refuse(refusal: Refusal) -> Response<Full<Bytes>> {
    tracing::debug!(status = %refusal.status, reason = refusal.message, "a streaming request is refused");
    let mut response = Response::new(Full::from(refusal.message + "\n"));
    *response.status_mut() = refusal.status;
    // One request is what a connection is for. (Without keep-alive hyper would say so in the 101 too, where this
    // header is the upgrade's.)
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in refusal.headers {
        response
            .headers_mut()
            .append(name, HeaderValue::from_static(value));
    }
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

async fn run(shared: &Shared, peer: Peer, granted: Granted) -> Ending {
    match granted.target {
        Target::Command(command) => run_command(shared, peer, command, granted.protocol).await,
        Target::Forward { pod_id, ports } => {
            let target = forward::Target {
                backend: shared.backend.clone(),
                pod_id: pod_id.into(),
                ports: ports.into(),
            };
            run_forward(peer, target, granted.protocol).await
        }
    }
}

async fn run_command(shared: &Shared, peer: Peer, command: Command, protocol: Protocol) -> Ending {
    let (backend, wants) = (shared.backend.clone(), command.wants());
    match protocol {
        Protocol::ChannelCommand { format, json } => {
            let application = async |channels, notice| {
                let Some(channels) = Channels::numbered(channels, wants) else {
                    return;
                };
                if channels.greet().await.is_ok() {
                    remote::run(backend, command, channels, json, notice).await;
                }
            };
            session::websocket(peer, format, Channels::COUNT, application).await
        }
        Protocol::SpdyCommand { resize, json } => {
            let application =
                async |streams, notice| match Channels::gather(streams, wants, resize).await {
                    Some(channels) => remote::run(backend, command, channels, json, notice).await,
                    None => tracing::debug!("a client did not open the streams of its session"),
                };
            session::spdy(peer, false, application).await
        }
        // Not among what is negotiated for commands.
        Protocol::SpdyForward | Protocol::TunnelForward | Protocol::ChannelForward { .. } => {
            Ending::Done
        }
    }
}

async fn run_forward(peer: Peer, target: forward::Target, protocol: Protocol) -> Ending {
    match protocol {
        Protocol::ChannelForward { format, ports } => {
            let count = u8::try_from(2 * ports.len()).unwrap_or(u8::MAX);
            session::websocket(peer, format, count, async |channels, notice| {
                unless(notice, forward::websocket(target, ports, channels)).await;
            })
            .await
        }
        Protocol::SpdyForward | Protocol::TunnelForward => {
            let tunnel = protocol == Protocol::TunnelForward;
            session::spdy(peer, tunnel, async |streams, notice| {
                unless(notice, forward::spdy(target, streams)).await;
            })
            .await
        }
        // Not among what is negotiated for port-forward.
        Protocol::SpdyCommand { .. } | Protocol::ChannelCommand { .. } => Ending::Done,
    }
}

/// Connections to ports have no last words: a notice ends them.
async fn unless(notice: Notice, forward: impl Future<Output = ()>) {
    tokio::select! {
        () = forward => {}
        _ = notice.given() => {}
    }
}
