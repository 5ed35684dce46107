//! Round trips of the codecs, in any pieces, and what random bytes do to them.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;
use zcri_streaming::spdy::frame::{Decoder, Encoder, Frame};
use zcri_streaming::spdy::header::{
    DICTIONARY, HeaderDecoder, HeaderEncoder, HeaderError, Headers, serialize,
};
use zcri_streaming::websocket::channel::{self, Format, Input, encode_base64};
use zcri_streaming::websocket::frame as websocket;

use crate::client::masked;

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map("[a-z][a-z0-9-]{0,20}", "[ -~]{0,40}", 0..8)
        .prop_map(Headers::new)
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = 1u32..0x7fff_ffff;
    prop_oneof![
        (
            stream.clone(),
            proptest::collection::vec(any::<u8>(), 0..300),
            any::<bool>()
        )
            .prop_map(|(stream, bytes, fin)| Frame::Data {
                stream,
                bytes: bytes.into(),
                fin
            }),
        (stream.clone(), headers(), any::<bool>(), any::<bool>()).prop_map(
            |(stream, headers, fin, unidirectional)| Frame::SynStream {
                stream,
                headers,
                fin,
                unidirectional
            }
        ),
        (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| {
            Frame::SynReply {
                stream,
                headers,
                fin,
            }
        }),
        (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| {
            Frame::Headers {
                stream,
                headers,
                fin,
            }
        }),
        (stream.clone(), any::<u32>())
            .prop_map(|(stream, status)| Frame::RstStream { stream, status }),
        proptest::collection::vec((0u32..0x00ff_ffff, any::<u32>()), 0..5)
            .prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (stream.clone(), any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway {
            last_stream,
            status
        }),
        (stream, 0u32..0x7fff_ffff)
            .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
    ]
}

/// All that comes out of the decoder when `bytes` arrive in pieces.
fn decode(bytes: &[u8], piece: usize) -> Vec<Frame> {
    let (mut decoder, mut input, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(piece) {
        input.extend_from_slice(part);
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            frames.push(frame);
        }
    }
    assert!(input.is_empty());
    merged(frames)
}

/// Data of one stream in one frame, however many it came in.
fn merged(frames: Vec<Frame>) -> Vec<Frame> {
    let mut merged: Vec<Frame> = Vec::new();
    for frame in frames {
        match (merged.last_mut(), frame) {
            (
                Some(Frame::Data {
                    stream,
                    bytes,
                    fin: fin @ false,
                }),
                Frame::Data {
                    stream: same,
                    bytes: more,
                    fin: end,
                },
            ) if *stream == same => {
                *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
                *fin = end;
            }
            (_, frame) => merged.push(frame),
        }
    }
    merged
}

fn compress(compressor: &mut Compress, headers: &Headers) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * 1024);
    compressor
        .compress_vec(&serialize(headers), &mut out, FlushCompress::Sync)
        .unwrap();
    out
}

proptest! {
    #[test]
    fn frames_come_through(frames in proptest::collection::vec(frame(), 1..8), piece in 1usize..200) {
        let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut out);
        }
        prop_assert_eq!(decode(&out, piece), merged(frames));
    }

    #[test]
    fn compressed_headers_come_through(blocks in proptest::collection::vec(headers(), 1..6)) {
        let mut compressor = Compress::new(Compression::best(), true);
        compressor.set_dictionary(DICTIONARY).unwrap();
        let mut decoder = HeaderDecoder::new();
        for block in blocks {
            prop_assert_eq!(decoder.decode(&compress(&mut compressor, &block)), Ok(block));
        }
    }

    #[test]
    fn spdy_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    #[test]
    fn websocket_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (mut decoder, mut input) = (websocket::Decoder::new(), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    #[test]
    fn a_mask_is_what_the_standard_says(data in proptest::collection::vec(any::<u8>(), 0..100), mask in any::<[u8; 4]>()) {
        let plain: Vec<u8> = data.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        let mut wide = data;
        websocket::apply_mask(&mut wide, mask);
        prop_assert_eq!(wide, plain);
    }

    #[test]
    fn base64_channels_come_through(channel in 0u8..5, data in proptest::collection::vec(any::<u8>(), 1..500), cut in 0usize..500) {
        let mut text = String::new();
        encode_base64(channel, &data, &mut text);
        let mut decoder = channel::Decoder::new(Format { base64: true, close_signal: false });
        let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
        let event = |first, last, bytes: &[u8]| websocket::Event::Data {
            first, last, kind: websocket::Kind::Text, bytes: Bytes::copy_from_slice(bytes),
        };
        prop_assert_eq!(decoder.decode(event(true, false, head)), Ok(None));
        let whole = decoder.decode(event(false, true, tail));
        prop_assert_eq!(whole, Ok(Some(Input::Data { channel, bytes: data.into() })));
    }
}

proptest! {
    // Long messages, for all forms of a length.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn websocket_messages_come_through(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70_000), 1..4),
        piece in 1usize..9000,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| masked(0x82, message)).collect();
        let (mut decoder, mut input) = (websocket::Decoder::new(), BytesMut::new());
        let (mut received, mut current): (Vec<Vec<u8>>, Vec<u8>) = (Vec::new(), Vec::new());
        for part in bytes.chunks(piece) {
            input.extend_from_slice(part);
            while let Some(event) = decoder.decode(&mut input).unwrap() {
                let websocket::Event::Data { first, last, bytes, .. } = event else { panic!("{event:?}") };
                prop_assert_eq!(first, current.is_empty() || bytes.is_empty());
                current.extend_from_slice(&bytes);
                if last {
                    received.push(std::mem::take(&mut current));
                }
            }
        }
        prop_assert_eq!(received, messages);
    }
}

#[test]
fn header_blocks_have_bounds() {
    let block = |headers: &Headers| {
        let mut out = BytesMut::new();
        HeaderEncoder::new().encode(headers, &mut out);
        out
    };
    let decode = |headers: &Headers| HeaderDecoder::new().decode(&block(headers));
    let long = Headers::new([("x", "y".repeat(zcri_streaming::limits::MAX_HEADER_BLOCK))]);
    assert_eq!(decode(&long), Err(HeaderError::TooLong));
    let longest = Headers::new([(
        "x",
        "y".repeat(zcri_streaming::limits::MAX_HEADER_BLOCK - 13),
    )]);
    assert_eq!(decode(&longest), Ok(longest));
    let many = Headers::new((0..100).map(|n| (format!("n{n}"), "")));
    assert_eq!(decode(&many), Err(HeaderError::TooMany));
    for bad in [("Upper", "x"), ("", "x"), ("sp ace", "x")] {
        assert_eq!(
            decode(&Headers::new([bad])),
            Err(HeaderError::Name),
            "{bad:?}"
        );
    }
    assert_eq!(
        decode(&Headers::new([("a", "1"), ("a", "2")])),
        Err(HeaderError::Name)
    );
}

#[test]
fn a_block_with_another_dictionary_is_refused() {
    let mut compressor = Compress::new(Compression::best(), true);
    compressor.set_dictionary(b"another dictionary").unwrap();
    let block = compress(&mut compressor, &Headers::new([("a", "b")]));
    assert_eq!(
        HeaderDecoder::new().decode(&block),
        Err(HeaderError::Compression)
    );
    // Or with none.
    let block = compress(
        &mut Compress::new(Compression::best(), true),
        &Headers::new([("a", "b")]),
    );
    assert_eq!(
        HeaderDecoder::new().decode(&block).map(|_| ()),
        Ok(()),
        "zlib without a dictionary is still zlib"
    );
}
