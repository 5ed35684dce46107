//! The CRI log format: `<RFC 3339 time with nanoseconds> <stream> <F|P> <text>\n`
//! (kubernetes, `staging/src/k8s.io/cri-client/pkg/logs/logs.go`).
//!
//! Text is split at newlines. A line longer than [`MAX_ENTRY`] becomes entries tagged `P` and a last one tagged `F`.
//! What a stream ends with and no newline follows is tagged `P`, as containerd does: nothing ended that line, and a
//! reader that joins `P` entries loses no byte either way. A carriage return is text.

mod file;
pub(crate) use file::LogFile;

use std::time::Duration;

/// Most bytes of text in one entry: what containerd and CRI-O use.
pub(crate) const MAX_ENTRY: usize = 16 * 1024;

/// Room that an entry needs at most: text, time, stream, tag, newline.
pub(crate) const MAX_ENCODED: usize = MAX_ENTRY + 64;

/// Which stream of a container text came from. A terminal has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// Where encoded entries go when a batch is full.
pub(crate) trait Sink {
    fn append(&mut self, entries: &[u8]);
}

/// What every entry of a batch begins with: the time of the read that brought its text, and the stream.
pub(crate) struct Head {
    bytes: [u8; 40],
    len: usize,
}

impl Head {
    /// `time` counts from the epoch of Unix.
    pub(crate) fn new(time: Duration, stream: Stream) -> Self {
        let mut bytes = [0; 40];
        let stamp = rfc3339_nanos(time);
        let name: &[u8] = match stream {
            Stream::Out => b" stdout ",
            Stream::Err => b" stderr ",
        };
        let len = stamp.len() + name.len();
        bytes[..stamp.len()].copy_from_slice(&stamp);
        bytes[stamp.len()..len].copy_from_slice(name);
        Self { bytes, len }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Encoded entries, gathered so that one write carries many.
pub(crate) struct Batch<'a, S: Sink> {
    buffer: &'a mut [u8],
    len: usize,
    sink: &'a mut S,
}

impl<'a, S: Sink> Batch<'a, S> {
    /// `buffer` must have room for one entry ([`MAX_ENCODED`]).
    pub(crate) fn new(buffer: &'a mut [u8], sink: &'a mut S) -> Self {
        Self {
            buffer,
            len: 0,
            sink,
        }
    }

    fn entry(&mut self, head: &Head, tag: u8, parts: [&[u8]; 2]) {
        if self.buffer.len() - self.len < MAX_ENCODED {
            self.flush();
        }
        let tag = [tag, b' '];
        for part in [head.as_bytes(), &tag, parts[0], parts[1], b"\n"] {
            self.buffer[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
        }
    }

    /// Hands on what is gathered.
    pub(crate) fn flush(&mut self) {
        if self.len > 0 {
            self.sink.append(&self.buffer[..self.len]);
            self.len = 0;
        }
    }
}

/// Splits one stream into entries. Between reads it holds the beginning of a line that has not ended.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Takes what a read brought.
    pub(crate) fn feed<S: Sink>(
        &mut self,
        mut input: &[u8],
        head: &Head,
        batch: &mut Batch<'_, S>,
    ) {
        while let Some(end) = memchr::memchr(b'\n', input) {
            let line = self.emit_over_long(&input[..end], head, batch);
            batch.entry(head, b'F', [&self.partial, line]);
            self.partial.clear();
            input = &input[end + 1..];
        }
        let rest = self.emit_over_long(input, head, batch);
        self.partial.extend_from_slice(rest);
    }

    /// Emits `P` entries until the held beginning and the rest of `text` fit into one entry; returns that rest.
    fn emit_over_long<'t, S: Sink>(
        &mut self,
        mut text: &'t [u8],
        head: &Head,
        batch: &mut Batch<'_, S>,
    ) -> &'t [u8] {
        while self.partial.len() + text.len() > MAX_ENTRY {
            let (now, later) = text.split_at(MAX_ENTRY - self.partial.len());
            batch.entry(head, b'P', [&self.partial, now]);
            self.partial.clear();
            text = later;
        }
        text
    }

    /// The stream ended: what is held becomes an entry.
    pub(crate) fn finish<S: Sink>(&mut self, head: &Head, batch: &mut Batch<'_, S>) {
        if !self.partial.is_empty() {
            batch.entry(head, b'P', [&self.partial, &[]]);
            self.partial = Vec::new();
        }
    }

    /// Gives unused memory back.
    pub(crate) fn shrink(&mut self) {
        self.partial.shrink_to_fit();
    }
}

/// `2006-01-02T15:04:05.123456789Z`, always 30 bytes for years of four digits.
fn rfc3339_nanos(time: Duration) -> [u8; 30] {
    let seconds = time.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let of_day = seconds % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], of_day / 3600);
    put(&mut text[14..16], of_day / 60 % 60);
    put(&mut text[17..19], of_day % 60);
    put(&mut text[20..29], u64::from(time.subsec_nanos()));
    text
}

fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10).to_le_bytes()[0];
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01 (Gregorian; the algorithm counts years from March).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collected(Vec<u8>);
    impl Sink for Collected {
        fn append(&mut self, entries: &[u8]) {
            self.0.extend_from_slice(entries);
        }
    }

    /// Feeds the pieces and returns (tag, text) of every entry.
    fn entries(pieces: &[&[u8]], capacity: usize) -> Vec<(u8, Vec<u8>)> {
        let head = Head::new(Duration::ZERO, Stream::Err);
        let (mut sink, mut buffer, mut splitter) =
            (Collected::default(), vec![0; capacity], Splitter::default());
        let mut batch = Batch::new(&mut buffer, &mut sink);
        for piece in pieces {
            splitter.feed(piece, &head, &mut batch);
        }
        splitter.finish(&head, &mut batch);
        batch.flush();
        let prefix = b"1970-01-01T00:00:00.000000000Z stderr ";
        sink.0
            .split_inclusive(|b| *b == b'\n')
            .map(|line| {
                let rest = line
                    .strip_prefix(prefix)
                    .unwrap()
                    .strip_suffix(b"\n")
                    .unwrap();
                assert_eq!(rest[1], b' ');
                (rest[0], rest[2..].to_vec())
            })
            .collect()
    }

    #[test]
    fn stamps() {
        let stamp = |s, n| String::from_utf8(rfc3339_nanos(Duration::new(s, n)).to_vec()).unwrap();
        assert_eq!(stamp(0, 0), "1970-01-01T00:00:00.000000000Z");
        // `date -u -d @1709210096` and others.
        assert_eq!(stamp(1_709_210_096, 7), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(
            stamp(951_782_400, 999_999_999),
            "2000-02-29T00:00:00.999999999Z"
        );
        assert_eq!(
            stamp(4_107_542_399, 120_000_000),
            "2100-02-28T23:59:59.120000000Z"
        );
        assert_eq!(stamp(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn lines_across_reads_and_an_unended_tail() {
        let got = entries(&[b"one\ntw", b"o\r\n\nthr", b"ee"], MAX_ENCODED);
        let want = [(b'F', "one"), (b'F', "two\r"), (b'F', ""), (b'P', "three")];
        assert_eq!(got, want.map(|(tag, text)| (tag, text.as_bytes().to_vec())));
    }

    #[test]
    fn long_lines_are_split_at_the_limit_wherever_reads_end() {
        for (len, full_entries) in [
            (MAX_ENTRY - 1, 0),
            (MAX_ENTRY, 0),
            (MAX_ENTRY + 1, 1),
            (3 * MAX_ENTRY, 2),
        ] {
            let mut text: Vec<u8> = (0..len)
                .map(|i| b'a' + u8::try_from(i % 26).unwrap())
                .collect();
            text.push(b'\n');
            for piece in [1000, MAX_ENTRY, MAX_ENTRY + 1, text.len()] {
                let got = entries(&text.chunks(piece).collect::<Vec<_>>(), 2 * MAX_ENCODED);
                let tags: Vec<u8> = got.iter().map(|(tag, _)| *tag).collect();
                let mut want = vec![b'P'; full_entries];
                want.push(b'F');
                assert_eq!(tags, want, "length {len}, pieces of {piece}");
                assert!(got.iter().all(|(_, text)| text.len() <= MAX_ENTRY));
                let joined: Vec<u8> = got.into_iter().flat_map(|(_, text)| text).collect();
                assert_eq!(joined, text[..len]);
            }
        }
    }

    #[test]
    fn any_text_in_any_pieces_comes_back() {
        for seed in 1_u64..60 {
            let mut state = seed;
            let mut next = |limit: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                usize::try_from((state >> 33) % limit).unwrap()
            };
            let newline_every = [3, 80, 40_000][next(3)];
            let text: Vec<u8> = (0..next(100_000))
                .map(|_| {
                    if next(newline_every) == 0 {
                        b'\n'
                    } else {
                        u8::try_from(next(256)).unwrap()
                    }
                })
                .collect();
            let (mut pieces, mut rest) = (Vec::new(), &text[..]);
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(1 + next(rest.len().min(30_000) as u64));
                pieces.push(piece);
                rest = tail;
            }
            let mut joined = Vec::new();
            for (tag, part) in entries_raw(&pieces) {
                joined.extend(part);
                if tag == b'F' {
                    joined.push(b'\n');
                }
            }
            assert!(joined == text, "seed {seed}");
        }
    }

    /// As `entries`, for text that itself may look like anything but holds no newline inside an entry.
    fn entries_raw(pieces: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        entries(pieces, 4 * MAX_ENCODED)
    }
}
