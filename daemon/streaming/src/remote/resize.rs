//! Terminal sizes: JSON objects one after the other, `{"Width":80,"Height":24}`.

use bytes::{Buf, BytesMut};
use serde::Deserialize;

use crate::backend::{SessionControl, TerminalSize};
use crate::channel::Channel;
use crate::limits::MAX_RESIZE_MESSAGE;

#[derive(Deserialize)]
struct Size {
    #[serde(alias = "width")]
    #[serde(rename = "Width")]
    width: u16,
    #[serde(alias = "height")]
    #[serde(rename = "Height")]
    height: u16,
}

/// Hands on each size, until the client sends no more. After something that is not a size nothing more is taken, but
/// the session goes on.
pub(super) async fn run(from: Option<&Channel>, control: &dyn SessionControl) {
    let Some(from) = from else { return };
    let mut decoder = Decoder::default();
    while let Some(bytes) = from.read().await {
        // Of many sizes that came at once the last is what the terminal has.
        if let Some(size) = decoder.decode(&bytes) {
            control.resize(size).await;
        }
    }
}

#[derive(Default)]
struct Decoder {
    text: BytesMut,
    broken: bool,
}

impl Decoder {
    /// The last of the sizes that are complete with these bytes.
    fn decode(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        if self.broken {
            return None;
        }
        self.text.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
        let (mut last, mut taken) = (None, 0);
        loop {
            match sizes.next() {
                Some(Ok(size)) => {
                    taken = sizes.byte_offset();
                    // A terminal without columns or rows is one that is not there yet.
                    if size.width > 0 && size.height > 0 {
                        last = Some(TerminalSize {
                            width: size.width,
                            height: size.height,
                        });
                    }
                }
                Some(Err(error)) if !error.is_eof() => {
                    self.broken = true;
                    break;
                }
                Some(Err(_)) | None => break,
            }
        }
        self.text.advance(taken);
        self.broken |= self.text.len() > MAX_RESIZE_MESSAGE;
        if self.broken {
            self.text = BytesMut::new();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Option<TerminalSize> {
        Some(TerminalSize { width, height })
    }

    #[test]
    fn sizes_come_in_any_pieces() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"{\"Width\":80,\"Hei"), None);
        assert_eq!(decoder.decode(b"ght\":24}\n"), size(80, 24));
        assert_eq!(
            decoder.decode(b"{\"Width\":1,\"Height\":2}{\"width\":3,\"height\":4}{\"Wi"),
            size(3, 4)
        );
        assert_eq!(decoder.decode(b"dth\":5,\"Height\":6}"), size(5, 6));
    }

    #[test]
    fn what_is_no_size_is_ignored_for_good() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"{\"Width\":0,\"Height\":0}"), None);
        assert_eq!(decoder.decode(b"{\"Width\":70000,\"Height\":1}"), None);
        assert_eq!(decoder.decode(b"{\"Width\":80,\"Height\":24}"), None);
    }

    #[test]
    fn a_size_that_never_ends_is_not_kept() {
        let mut decoder = Decoder::default();
        decoder.decode(b"{\"Width\":80,\"Comment\":\"");
        for _ in 0..10 {
            decoder.decode(&[b'x'; MAX_RESIZE_MESSAGE / 4]);
        }
        assert!(decoder.text.is_empty());
    }
}
