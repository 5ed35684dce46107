//! Header blocks, as they are and compressed, several with one decoder.
#![no_main]

use codecs::limits::{MAX_HEADER_BLOCK, MAX_HEADERS};
use codecs::spdy::header::{DICTIONARY, HeaderDecoder, parse, serialize};
use flate2::{Compress, Compression, FlushCompress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else {
        return;
    };
    if let Ok(headers) = parse(data) {
        assert!(headers.iter().count() <= MAX_HEADERS);
        assert_eq!(serialize(&headers), data);
    }
    let mut decoder = HeaderDecoder::new();
    if mode % 2 == 0 {
        // Any bytes as the compressed stream.
        for piece in codecs::pieces(data) {
            let Ok(headers) = decoder.decode(piece) else {
                return;
            };
            assert!(serialize(&headers).len() <= MAX_HEADER_BLOCK);
        }
        return;
    }
    // Any bytes as the blocks in a stream that is good.
    let mut compressor = Compress::new(Compression::fast(), true);
    compressor.set_dictionary(DICTIONARY).unwrap();
    for piece in codecs::pieces(data) {
        let mut block = Vec::with_capacity(4096);
        compressor
            .compress_vec(piece, &mut block, FlushCompress::Sync)
            .unwrap();
        let decoded = decoder.decode(&block);
        assert_eq!(decoded, parse(piece));
        if decoded.is_err() {
            return;
        }
    }
});
