//! A byte stream in the binary messages of a WebSocket.

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};

use super::websocket;

/// Bytes that wait between the stream and the socket.
const BUFFER: usize = 64 << 10;

/// Opens a tunnel of the given subprotocol.
pub(super) async fn open(url: &str, protocol: &str) -> Result<DuplexStream> {
    let socket = websocket::upgrade(url, protocol).await?;
    let (mut reader, writer) = websocket::connect(socket, false);
    let (inner, outer) = duplex(BUFFER);
    let (mut from_client, mut to_client) = split(outer);
    tokio::spawn(async move {
        while let Ok(Some(message)) = reader.message().await {
            if to_client.write_all(&message).await.is_err() {
                break;
            }
        }
        to_client.shutdown().await.ok();
    });
    tokio::spawn(async move {
        let mut chunk = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut chunk).await {
            if writer.lock().await.binary(&chunk[..count]).await.is_err() {
                break;
            }
        }
    });
    Ok(inner)
}
