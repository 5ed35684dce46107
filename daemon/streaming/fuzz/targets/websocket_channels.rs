//! Frames of WebSocket and the messages of the channel protocols in them, whole and in pieces.
#![no_main]

use bytes::BytesMut;
use codecs::websocket::channel::{Decoder as Messages, Format, Input};
use codecs::websocket::frame::{Decoder, Event};
use libfuzzer_sys::fuzz_target;

fn decode<'a>(format: Format, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Input>, Vec<Event>) {
    let (mut decoder, mut messages, mut input) =
        (Decoder::new(), Messages::new(format), BytesMut::new());
    let (mut inputs, mut others): (Vec<Input>, Vec<Event>) = (Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event @ Event::Data { .. })) => match messages.decode(event) {
                    Ok(Some(Input::Data { channel, bytes })) => match inputs.last_mut() {
                        Some(Input::Data {
                            channel: last,
                            bytes: had,
                        }) if *last == channel => {
                            *had = [had.as_ref(), bytes.as_ref()].concat().into();
                        }
                        _ => inputs.push(Input::Data { channel, bytes }),
                    },
                    Ok(Some(closed)) => inputs.push(closed),
                    Ok(None) => {}
                    Err(_) => return (inputs, others),
                },
                Ok(Some(other)) => others.push(other),
                Ok(None) => break,
                Err(_) => return (inputs, others),
            }
        }
    }
    (inputs, others)
}

fuzz_target!(|data: &[u8]| {
    let data = codecs::behind_head(data);
    let first = data.first().copied().unwrap_or_default();
    let format = Format {
        base64: first & 0x20 != 0,
        close_signal: first & 0x40 == 0,
    };
    assert_eq!(
        decode(format, std::iter::once(data)),
        decode(format, codecs::pieces(data))
    );
});
