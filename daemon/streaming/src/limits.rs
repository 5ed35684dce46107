//! Every limit of this crate, with its reason. What a peer can make the server hold or do is bounded by these.

use std::time::Duration;

/// URLs that wait for their client. The kubelet uses one at once; a thousand at a time is a client that asks for
/// URLs and does not come.
pub const MAX_PENDING_TOKENS: usize = 1000;

/// Life of an unused token, as the CRI's own servers have it.
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Connections at a time, sessions and handshakes together. Each has at least one file descriptor; a node's kubelet
/// and its users hold some tens.
pub const MAX_CONNECTIONS: usize = 4096;

/// From accept to the end of the upgrade request, TLS included: a client that sends a byte a second does not hold a
/// connection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The size of an upgrade request. Those of Go clients have some hundred bytes; cookies and tokens of proxies more.
pub const MAX_REQUEST_HEAD: usize = 16 * 1024;

/// The number of headers in an upgrade request.
pub const MAX_REQUEST_HEADERS: usize = 64;

/// Protocol names that one upgrade request may offer. Go clients offer five.
pub const MAX_OFFERED_PROTOCOLS: usize = 32;

/// How long a client may take to open the streams of its session. The same as `DefaultStreamCreationTimeout` of the
/// Go clients (k8s.io/apimachinery, remotecommand).
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the server waits, after the end of a session, for the client to close its side. Closing first could make
/// the kernel throw away what the client has not read yet.
pub const LINGER: Duration = Duration::from_secs(10);

/// How long a session that is ended from outside (idle, shutdown) may take to send its last frames.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// The payload of a frame that the server sends, and of one read from an output: what a pipe holds on Linux, so that
/// one read and one write move all of it.
pub const FRAME_SIZE: usize = 64 * 1024;

/// What is read from a client at once.
pub const READ_SIZE: usize = 64 * 1024;

/// Bytes from the client that wait for a stream's consumer. More, and the server stops reading the connection.
/// At least a frame; small, as each of a connection's streams may hold it.
pub const STREAM_BUFFER: usize = 128 * 1024;

/// A piece of input shorter than this is copied and does not keep the whole read buffer ([`READ_SIZE`]) alive: a
/// stream that holds [`STREAM_BUFFER`] keeps at most four times as much.
pub const COPY_BELOW: usize = 16 * 1024;

/// Answers (pings, replies, resets) that wait for the connection. A client that asks and does not read the answers
/// is cut off.
pub const MAX_PENDING_ANSWERS: usize = 64 * 1024;

/// While the server does not read a connection (its consumer is slow), it looks so often whether the client is gone.
pub const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// A silent connection is probed after this time, and given up [`KEEPALIVE_PROBES`] probes later.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// The time between two probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Unanswered probes until a client counts as vanished.
pub const KEEPALIVE_PROBES: u32 = 4;

/// The payload of a SPDY control frame. Header blocks of Go clients have under 100 bytes compressed.
pub const MAX_CONTROL_FRAME: usize = 16 * 1024;

/// A header block inflated. A frame of [`MAX_CONTROL_FRAME`] bytes could hold 16 MiB.
pub const MAX_HEADER_BLOCK: usize = 16 * 1024;

/// The number of headers in a block.
pub const MAX_HEADERS: usize = 64;

/// Streams open at a time on one SPDY connection: 512 forwarded connections, each two streams.
pub const MAX_STREAMS: usize = 1024;

/// Ports of one WebSocket port-forward: a channel is a byte and a port has two; 255 is taken in version 5.
pub const MAX_WEBSOCKET_PORTS: usize = 127;

/// A message of the base64 protocols, which can only be decoded whole.
pub const MAX_BASE64_MESSAGE: usize = 256 * 1024;

/// A terminal size that is not complete. `{"Width":65535,"Height":65535}` has 30 bytes.
pub const MAX_RESIZE_MESSAGE: usize = 1024;

/// An error that is reported to a client: messages of a runtime can carry the output of a hook.
pub const MAX_ERROR_MESSAGE: usize = 16 * 1024;
