//! The codecs of zcri-streaming, from their sources and under the same names.
#![forbid(unsafe_code)]

#[path = "../src/limits.rs"]
pub mod limits;
#[path = "../src/upgrade.rs"]
pub mod upgrade;

/// SPDY.
#[path = "../src/spdy"]
pub mod spdy {
    pub mod frame;
    pub mod header;
}

/// WebSocket.
#[path = "../src/websocket"]
pub mod websocket {
    pub mod channel;
    pub mod frame;
}

/// What follows the head of a request, if there is one: the recordings of Go clients are seeds as they are.
pub fn behind_head(data: &[u8]) -> &[u8] {
    match data.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(end) => &data[end + 4..],
        None => data,
    }
}

/// The data in pieces whose lengths the data itself gives.
pub fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::from(*data.first()?) + 1;
        let (piece, rest) = data.split_at(length.min(data.len()));
        data = rest;
        Some(piece)
    })
}
