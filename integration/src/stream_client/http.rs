//! The request that turns an HTTP connection into something else.

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest answer head that is read.
const MAX_HEAD: usize = 64 << 10;

/// The server answered, but not with an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status code.
    pub status: u16,
    /// Head and body.
    pub text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not upgraded: {}", self.text)
    }
}

impl std::error::Error for Refused {}

/// Host and path of a plain URL.
fn split(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").context("not an http URL")?;
    let at = rest.find('/').context("a URL without a path")?;
    Ok(rest.split_at(at))
}

/// Sends a request and gives the connection with the answer's head.
async fn request(url: &str, method: &str, headers: &[(&str, &str)]) -> Result<(TcpStream, String)> {
    let (host, path) = split(url)?;
    let mut socket = TcpStream::connect(host).await?;
    socket.set_nodelay(true)?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    socket.write_all(text.as_bytes()).await?;
    let mut head = Vec::new();
    // Byte by byte, so that nothing of what follows the head is taken.
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        head.push(socket.read_u8().await.context("no answer to the request")?);
    }
    Ok((socket, String::from_utf8_lossy(&head).into_owned()))
}

fn status_of(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// Upgrades a new connection.
///
/// # Errors
/// [`Refused`] if the server does not.
pub async fn upgrade(
    url: &str,
    method: &str,
    protocol: &str,
    headers: &[(&str, &str)],
) -> Result<TcpStream> {
    let mut all = vec![("Connection", "Upgrade"), ("Upgrade", protocol)];
    all.extend_from_slice(headers);
    let (mut socket, head) = request(url, method, &all).await?;
    // Go's client looks at both headers too.
    let says = |name: &str, value: &str| {
        let wanted = value.to_ascii_lowercase();
        head.to_ascii_lowercase().lines().any(|line| {
            line.split_once(':')
                .is_some_and(|(n, v)| n == name && v.contains(&wanted))
        })
    };
    if status_of(&head) == 101 && says("connection", "upgrade") && says("upgrade", protocol) {
        return Ok(socket);
    }
    let mut body = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(1), async {
        socket.read_to_end(&mut body).await
    });
    drop(read.await);
    Err(Refused {
        status: status_of(&head),
        text: format!("{head}{}", String::from_utf8_lossy(&body)),
    }
    .into())
}

/// A plain request: its status code.
///
/// # Errors
/// There is no answer.
pub async fn get(url: &str) -> Result<u16> {
    let (_, head) = request(url, "GET", &[("Connection", "close")]).await?;
    Ok(status_of(&head))
}
