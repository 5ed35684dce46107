//! The form of netlink messages: a header, a fixed part, attributes that nest. No input or output here.
//!
//! Everything is in the byte order of the machine, except where a builder's caller passes network order.
//! Source: `linux/netlink.h`; Linux, Documentation/userspace-api/netlink/intro.rst.

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTR_HEADER: usize = 4;
/// Messages and attributes begin at multiples of this.
const ALIGN: usize = 4;
/// The attribute holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are its type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message to be sent. Its sequence number is set when it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of type `kind` with the flags of `nlmsghdr` and the fixed part of its family.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        pad(&mut bytes);
        Self { bytes }
    }

    /// With an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
        self
    }

    /// With an attribute that is a text with a NUL at its end.
    #[must_use]
    pub fn text(mut self, kind: u16, value: &str) -> Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    /// With an attribute that is a number in the machine's byte order.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// With an attribute that holds what `inside` adds.
    #[must_use]
    pub fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | NLA_F_NESTED);
        self = inside(self);
        self.close(start);
        self
    }

    /// With raw bytes at this place: the fixed part of a message within an attribute.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        pad(&mut self.bytes);
        self
    }

    /// With further flags of `nlmsghdr`.
    pub(crate) fn set_flags(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    /// The bytes to send.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Sets the length of the attribute begun at `start`. One of more than 64 KiB gets a length that no kernel
    /// takes.
    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(0);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
}

/// A message that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its type.
    pub kind: u16,
    /// Flags of `nlmsghdr`.
    pub flags: u16,
    /// Of the request that it answers.
    pub sequence: u32,
    /// All after the header.
    pub payload: &'a [u8],
}

/// The messages of one datagram. Ends at the first that is cut off.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let length = usize::try_from(u32_at(header, 0)?).ok()?;
        let payload = datagram.get(HEADER..length)?;
        let received = Received {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            sequence: u32_at(header, 8)?,
            payload,
        };
        datagram = datagram
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(received)
    })
}

/// The attributes in `bytes`: type without its flags, and value. Ends at the first that is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTR_HEADER..length)?;
        bytes = bytes
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some((kind, value))
    })
}

/// The number at `at`, in the machine's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(part.try_into().ok()?))
}

/// The number at `at`, in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(part.try_into().ok()?))
}

/// A text that a NUL ends.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_the_form_of_the_header_file() {
        let bytes = Message::new(16, 5, &[1, 2, 3, 4])
            .text(3, "lo")
            .nest(18, |m| m.text(1, "veth").nest(2, |m| m.u32(4, 1500)))
            .finish(7);
        assert_eq!(bytes.len() % ALIGN, 0);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].flags, all[0].sequence), (16, 5, 7));
        assert_eq!(&all[0].payload[..4], &[1, 2, 3, 4]);
        // Length 7 = header + "lo\0", padded by one.
        assert_eq!(&all[0].payload[4..6], &7_u16.to_ne_bytes());
        let attrs: Vec<_> = attributes(&all[0].payload[4..]).collect();
        assert_eq!((attrs[0].0, text(attrs[0].1)), (3, "lo".to_owned()));
        let inner: Vec<_> = attributes(attrs[1].1).collect();
        assert_eq!((inner[0].0, text(inner[0].1)), (1, "veth".to_owned()));
        let data: Vec<_> = attributes(inner[1].1).collect();
        assert_eq!((data[0].0, u32_at(data[0].1, 0)), (4, Some(1500)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(
            (0_u16..=NLA_TYPE_MASK, proptest::collection::vec(any::<u8>(), 0..40)), 0..8,
        )) {
            let message = parts.iter().fold(Message::new(1, 0, &[]), |m, (kind, value)| m.attr(*kind, value));
            let bytes = message.finish(0);
            let received = messages(&bytes).next().unwrap();
            let read: Vec<_> = attributes(received.payload).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(read, parts);
        }

        #[test]
        fn no_bytes_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).take(100) {
                prop_assert!(attributes(message.payload).count() <= 50);
            }
            prop_assert!(attributes(&bytes).count() <= 50);
        }
    }
}
