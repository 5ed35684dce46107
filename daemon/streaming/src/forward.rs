//! Port-forward: connections to the ports of a pod, many on one connection of the client.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::{Backend, Duplex};
use crate::channel::Channel;
use crate::limits::{FRAME_SIZE, MAX_STREAMS, STREAM_CREATION_TIMEOUT};
use crate::spdy::stream::Stream;
use crate::status::truncate;
use crate::websocket::connection::Channel as WebSocketChannel;
use crate::writer::FrameBuffer;

/// The pod, and what the client may reach of it.
#[derive(Clone)]
pub(crate) struct Target {
    /// Who connects.
    pub(crate) backend: Arc<dyn Backend>,
    /// Where to.
    pub(crate) pod_id: Arc<str>,
    /// The ports that may be asked for; empty: any.
    pub(crate) ports: Arc<[u16]>,
}

impl Target {
    fn allows(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// One connection: bytes both ways until both directions have ended, or an error.
    async fn connect(&self, port: u16, data: &Channel, error: &Channel, half_close: bool) {
        let pod = &self.pod_id;
        let connecting = async {
            if !self.allows(port) {
                return Err("the session was not made for this port".to_owned());
            }
            self.backend
                .port_forward(pod, port)
                .await
                .map_err(|error| error.to_string())
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            () = data.gone() => return,
        };
        match connected {
            Ok(connection) => copy(connection, data, half_close).await,
            Err(reason) => {
                let mut message = format!("error forwarding port {port} to pod {pod}: {reason}");
                truncate(&mut message);
                // A client that is gone is found by the reading side.
                error.send_slice(message.as_bytes()).await.ok();
            }
        }
        error.finish().await.ok();
        data.finish().await.ok();
    }
}

/// With `half_close` the client can end its direction alone, and is waited for; without, the end of the port's
/// direction is the end.
async fn copy(connection: Box<dyn Duplex>, data: &Channel, half_close: bool) {
    let (reader, writer) = tokio::io::split(connection);
    let to_client = port_to_client(reader, data);
    let to_port = client_to_port(writer, data);
    if half_close {
        // A port that does not read holds up no client that is gone.
        let to_port = async {
            tokio::select! {
                () = to_port => {}
                () = data.gone() => {}
            }
        };
        tokio::join!(to_client, to_port);
    } else {
        tokio::select! {
            () = to_client => {}
            () = async { to_port.await; std::future::pending().await } => {}
        }
    }
}

async fn client_to_port(mut port: WriteHalf<Box<dyn Duplex>>, data: &Channel) {
    while let Some(bytes) = data.read().await {
        if port.write_all(&bytes).await.is_err() {
            // The port takes no more: what the client still sends is thrown away, so that it does not hold up the
            // other connections.
            while data.read().await.is_some() {}
            return;
        }
    }
    port.shutdown().await.ok();
}

async fn port_to_client(mut port: ReadHalf<Box<dyn Duplex>>, data: &Channel) {
    let mut buffer = FrameBuffer::new(FRAME_SIZE);
    loop {
        let read = tokio::select! {
            read = port.read(buffer.space()) => read,
            () = data.gone() => return,
        };
        // A connection that the port has reset is not the session's error: Go clients would end the session.
        let Ok(length @ 1..) = read else { break };
        if data.send(&mut buffer, length).await.is_err() {
            return;
        }
    }
    data.finish().await.ok();
}

/// A session over SPDY: pairs of an error and a data stream, each a connection.
pub(crate) async fn spdy(target: Target, mut streams: mpsc::Receiver<Stream>) {
    let mut pairs: HashMap<u32, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.recv() => match stream {
                Some(stream) => admit(stream, &target, &mut pairs, &mut connections),
                None => return,
            },
            Some(_) = connections.join_next() => pairs.retain(|_, half| !half.other.is_closed()),
        }
    }
}

/// A stream whose pair waits for the other.
struct Half {
    is_data: bool,
    port: u16,
    other: oneshot::Sender<Stream>,
}

fn admit(
    stream: Stream,
    target: &Target,
    pairs: &mut HashMap<u32, Half>,
    connections: &mut JoinSet<()>,
) {
    // What breaks the protocol is dropped, and with that reset.
    let Some((is_data, port, request)) = describe(&stream) else {
        return;
    };
    match pairs.remove(&request) {
        // As many as there can be streams: more are those of streams that were reset just now.
        None if connections.len() >= MAX_STREAMS => {}
        None => {
            let (other, partner) = oneshot::channel();
            pairs.insert(
                request,
                Half {
                    is_data,
                    port,
                    other,
                },
            );
            connections.spawn(pair(target.clone(), stream, is_data, port, partner));
        }
        Some(half) if half.is_data != is_data && half.port == port => drop(half.other.send(stream)),
        // A second of the same kind; the first goes on to wait.
        Some(half) => drop(pairs.insert(request, half)),
    }
}

/// Kind, port and pair of a stream. Old clients send no request id: the data stream follows its error stream
/// (kubelet `requestID`).
fn describe(stream: &Stream) -> Option<(bool, u16, u32)> {
    let headers = stream.headers();
    let is_data = match headers.get("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let request = match headers.get("requestid") {
        Some(id) => id.parse().ok()?,
        None if is_data => stream.id().checked_sub(2)?,
        None => stream.id(),
    };
    Some((is_data, port, request))
}

async fn pair(
    target: Target,
    first: Stream,
    is_data: bool,
    port: u16,
    partner: oneshot::Receiver<Stream>,
) {
    let partner = tokio::select! {
        partner = timeout(STREAM_CREATION_TIMEOUT, partner) => partner,
        // Streams that are opened and reset do not pile up here.
        () = first.gone() => return,
    };
    let Ok(Ok(second)) = partner else {
        if !is_data {
            let error = Channel::Stream(first);
            error
                .send_slice(b"timed out waiting for the data stream")
                .await
                .ok();
            error.finish().await.ok();
        }
        return;
    };
    let (data, error) = if is_data {
        (first, second)
    } else {
        (second, first)
    };
    let (data, error) = (Channel::Stream(data), Channel::Stream(error));
    target.connect(port, &data, &error, true).await;
}

/// A session over the channels of WebSocket: for each port a data and an error channel, both with the port as their
/// first message (kubelet `websocketStreamPair`). It ends with the last connection.
pub(crate) async fn websocket(target: Target, ports: Vec<u16>, channels: Vec<WebSocketChannel>) {
    let mut connections = JoinSet::new();
    let mut channels = channels.into_iter().map(Channel::Channel);
    for port in ports {
        let (Some(data), Some(error)) = (channels.next(), channels.next()) else {
            break;
        };
        for channel in [&data, &error] {
            if channel.send_slice(&port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let target = target.clone();
        connections.spawn(async move { target.connect(port, &data, &error, false).await });
    }
    while connections.join_next().await.is_some() {}
}
