//! Frames come out the same whether they arrive whole or in pieces, and what is decoded can be encoded again.
#![no_main]

use bytes::BytesMut;
use codecs::spdy::frame::{Decoder, Encoder, Frame};
use libfuzzer_sys::fuzz_target;

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let (mut decoder, mut input, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Frame::Data { stream, bytes, fin })) => match frames.last_mut() {
                    Some(Frame::Data {
                        stream: last,
                        bytes: had,
                        fin: end @ false,
                    }) if *last == stream => {
                        *had = [had.as_ref(), bytes.as_ref()].concat().into();
                        *end = fin;
                    }
                    _ => frames.push(Frame::Data { stream, bytes, fin }),
                },
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

fuzz_target!(|data: &[u8]| {
    let data = codecs::behind_head(data);
    let (whole, _) = decode(std::iter::once(data));
    let (pieces, _) = decode(codecs::pieces(data));
    assert_eq!(whole, pieces);
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for frame in &whole {
        encoder.encode(frame, &mut out);
    }
    let (again, good) = decode(std::iter::once(&out[..]));
    assert!(good);
    let known: Vec<Frame> = whole
        .into_iter()
        .filter(|frame| !matches!(frame, Frame::Unknown { .. }))
        .collect();
    // What an unknown frame kept apart is together now.
    if again.len() == known.len() {
        assert_eq!(again, known);
    }
});
