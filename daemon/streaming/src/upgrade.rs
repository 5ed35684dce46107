//! The upgrade request: which transport and which protocol a client wants, and whether it can have it. No I/O.
//!
//! The rules are those of the Kubernetes servers (k8s.io/streaming: `httpstream.Handshake`, `wsstream`; kubelet
//! `pkg/kubelet/server/portforward`) and RFC 6455, section 4.2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode, Uri};
use sha1::{Digest, Sha1};

use crate::limits::{MAX_OFFERED_PROTOCOLS, MAX_WEBSOCKET_PORTS};
use crate::websocket::channel::Format;

/// The value of `Upgrade` for SPDY.
const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
/// The header of SPDY clients with the protocols they offer.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The server's answer with those it has, when none of the client's is among them.
pub const ACCEPTED_VERSIONS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Version of WebSocket (RFC 6455, section 4.1).
const WEBSOCKET_VERSION: &str = "13";
/// What is hashed with the client's key (RFC 6455, section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a URL is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Exec and attach.
    Command,
    /// Port-forward.
    Forward,
}

/// A transport with a protocol on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// A remote command over SPDY.
    SpdyCommand {
        /// The client opens a stream for terminal sizes (since version 3).
        resize: bool,
        /// The status is JSON (since version 4).
        json: bool,
    },
    /// Port-forward over SPDY.
    SpdyForward,
    /// A remote command over the channels of WebSocket.
    ChannelCommand {
        /// How messages are written.
        format: Format,
        /// The status is JSON (since version 4).
        json: bool,
    },
    /// Port-forward over the channels of WebSocket, two for each port.
    ChannelForward {
        /// How messages are written.
        format: Format,
        /// The ports of the query, in its order.
        ports: Vec<u16>,
    },
    /// Port-forward over SPDY that is carried by the binary messages of WebSocket.
    TunnelForward,
}

/// An upgrade that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// What is spoken from now on.
    pub protocol: Protocol,
    /// For the response 101.
    pub headers: HeaderMap,
}

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the response.
    pub status: StatusCode,
    /// Its text.
    pub message: String,
    /// Its headers.
    pub headers: Vec<(HeaderName, &'static str)>,
}

const COMMAND_SPDY: [(&str, Protocol); 4] = [
    (
        "v4.channel.k8s.io",
        Protocol::SpdyCommand {
            resize: true,
            json: true,
        },
    ),
    (
        "v3.channel.k8s.io",
        Protocol::SpdyCommand {
            resize: true,
            json: false,
        },
    ),
    (
        "v2.channel.k8s.io",
        Protocol::SpdyCommand {
            resize: false,
            json: false,
        },
    ),
    (
        "channel.k8s.io",
        Protocol::SpdyCommand {
            resize: false,
            json: false,
        },
    ),
];

const FORWARD_SPDY: [(&str, Protocol); 1] = [("portforward.k8s.io", Protocol::SpdyForward)];

const RAW: Format = Format {
    base64: false,
    close_signal: false,
};
const BASE64: Format = Format {
    base64: true,
    close_signal: false,
};
const CLOSING: Format = Format {
    base64: false,
    close_signal: true,
};

/// The name "" is for clients that offer nothing.
const COMMAND_WEBSOCKET: [(&str, Protocol); 6] = [
    (
        "v5.channel.k8s.io",
        Protocol::ChannelCommand {
            format: CLOSING,
            json: true,
        },
    ),
    (
        "v4.channel.k8s.io",
        Protocol::ChannelCommand {
            format: RAW,
            json: true,
        },
    ),
    (
        "v4.base64.channel.k8s.io",
        Protocol::ChannelCommand {
            format: BASE64,
            json: true,
        },
    ),
    (
        "channel.k8s.io",
        Protocol::ChannelCommand {
            format: RAW,
            json: false,
        },
    ),
    (
        "base64.channel.k8s.io",
        Protocol::ChannelCommand {
            format: BASE64,
            json: false,
        },
    ),
    (
        "",
        Protocol::ChannelCommand {
            format: RAW,
            json: false,
        },
    ),
];

const FORWARD_WEBSOCKET: [(&str, Protocol); 4] = [
    ("SPDY/3.1+portforward.k8s.io", Protocol::TunnelForward),
    (
        "v4.channel.k8s.io",
        Protocol::ChannelForward {
            format: RAW,
            ports: Vec::new(),
        },
    ),
    (
        "v4.base64.channel.k8s.io",
        Protocol::ChannelForward {
            format: BASE64,
            ports: Vec::new(),
        },
    ),
    (
        "",
        Protocol::ChannelForward {
            format: RAW,
            ports: Vec::new(),
        },
    ),
];

impl Refusal {
    /// A refusal without headers of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Decides on a request.
///
/// # Errors
/// The response that says why not.
pub fn negotiate(
    endpoint: Endpoint,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Upgrade, Refusal> {
    if *method != Method::GET && *method != Method::POST {
        let refusal = Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("method {method} is not allowed"),
        );
        return Err(refusal.with(ALLOW, "GET, POST"));
    }
    if headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0")
    {
        return Err(Refusal::bad("unable to upgrade: the request has a body"));
    }
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::bad(
            "unable to upgrade: the header Connection does not say Upgrade",
        ));
    }
    let wanted = headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if wanted.eq_ignore_ascii_case(WEBSOCKET) {
        websocket(endpoint, method, uri, headers)
    } else if wanted.eq_ignore_ascii_case(SPDY) {
        spdy(endpoint, headers)
    } else {
        Err(Refusal::bad(
            "unable to upgrade: the header Upgrade is neither SPDY/3.1 nor websocket",
        ))
    }
}

fn spdy(endpoint: Endpoint, headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    let served: &[(&'static str, Protocol)] = match endpoint {
        Endpoint::Command => &COMMAND_SPDY,
        Endpoint::Forward => &FORWARD_SPDY,
    };
    let offered: Vec<&str> = offered(headers, &PROTOCOL_VERSION)?;
    if offered.is_empty() {
        return Err(Refusal::bad(
            "unable to upgrade: the header X-Stream-Protocol-Version is missing or empty",
        ));
    }
    let Some((name, protocol)) = first_common(&offered, served) else {
        let mut refusal = Refusal::new(
            StatusCode::FORBIDDEN,
            "unable to upgrade: no protocol in common",
        );
        for (name, _) in served {
            refusal = refusal.with(ACCEPTED_VERSIONS, name);
        }
        return Err(refusal);
    };
    let mut headers = switching(SPDY);
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(name));
    Ok(Upgrade { protocol, headers })
}

fn websocket(
    endpoint: Endpoint,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Upgrade, Refusal> {
    if *method != Method::GET {
        return Err(
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "WebSocket needs GET").with(ALLOW, "GET"),
        );
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != WEBSOCKET_VERSION)
    {
        let refusal = Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "WebSocket version 13 is spoken here",
        );
        return Err(refusal.with(SEC_WEBSOCKET_VERSION, WEBSOCKET_VERSION));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
        let served: &[(&'static str, Protocol)] = match endpoint {
            Endpoint::Command => &COMMAND_WEBSOCKET,
            Endpoint::Forward => &FORWARD_WEBSOCKET,
        };
        let mut offered = offered(headers, &SEC_WEBSOCKET_PROTOCOL)?;
        if offered.is_empty() {
            offered.push("");
        }
        let Some((name, mut protocol)) = first_common(&offered, served) else {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "unable to upgrade: no protocol in common",
            ));
        };
        if let Protocol::ChannelForward { ports, .. } = &mut protocol {
            *ports = query_ports(uri)?;
        }
        let mut headers = switching(WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key)?);
        if !name.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        return Ok(Upgrade { protocol, headers });
    }
    Err(Refusal::bad(
        "unable to upgrade: the header Sec-WebSocket-Key is missing or malformed",
    ))
}

/// The answer to a key (RFC 6455, section 4.2.2).
fn accept(key: &[u8]) -> Result<HeaderValue, Refusal> {
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(WEBSOCKET_GUID);
    HeaderValue::try_from(STANDARD.encode(digest.finalize()))
        .map_err(|_| Refusal::bad("unable to upgrade: the header Sec-WebSocket-Key is malformed"))
}

fn switching(to: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    headers
}

/// The values of a header that may be there many times, each with many values.
fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn offered<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Vec<&'a str>, Refusal> {
    let offered: Vec<&str> = tokens(headers, name)
        .take(MAX_OFFERED_PROTOCOLS + 1)
        .collect();
    if offered.len() > MAX_OFFERED_PROTOCOLS {
        return Err(Refusal::bad(format!(
            "unable to upgrade: {name} offers more than {MAX_OFFERED_PROTOCOLS}"
        )));
    }
    Ok(offered)
}

/// The first of the client's protocols that is served.
fn first_common(
    offered: &[&str],
    served: &[(&'static str, Protocol)],
) -> Option<(&'static str, Protocol)> {
    offered
        .iter()
        .find_map(|offer| served.iter().find(|(name, _)| name == offer).cloned())
}

/// `?port=80&port=443` or `?port=80,443`. The numbers need no decoding of percents.
fn query_ports(uri: &Uri) -> Result<Vec<u16>, Refusal> {
    let pairs = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.strip_prefix("port="));
    let mut ports = Vec::new();
    for text in pairs.flat_map(|value| value.split(',')) {
        match text.parse() {
            Ok(port) if port > 0 && ports.len() < MAX_WEBSOCKET_PORTS => ports.push(port),
            Ok(0) | Err(_) => {
                return Err(Refusal::bad(
                    "a port of the query is not a number from 1 to 65535",
                ));
            }
            Ok(_) => {
                return Err(Refusal::bad(format!(
                    "more than {MAX_WEBSOCKET_PORTS} ports"
                )));
            }
        }
    }
    Ok(ports)
}
