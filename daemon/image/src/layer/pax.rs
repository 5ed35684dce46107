//! PAX extended headers (POSIX.1-2024 pax, "pax Extended Header"): records `length key=value\n`. Values are binary:
//! attributes may contain newlines.

use rustix::fs::Timespec;

/// The records of one header that matter here.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timespec>,
    /// Name and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The prefix under which GNU tar, Go and libarchive write extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

impl Extension {
    /// Reads all records; later ones replace earlier ones, an empty value takes a record back.
    ///
    /// # Errors
    /// A short text: what is wrong.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut found = Self::default();
        while !data.is_empty() {
            let (record, rest) = split(data).ok_or("a record of its extended header")?;
            data = rest;
            let equals = record.iter().position(|b| *b == b'=');
            let at = equals.ok_or("a record of its extended header")?;
            found.set(&record[..at], &record[at + 1..])?;
        }
        Ok(found)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let given = (!value.is_empty()).then_some(value);
        let bad = |name: &str| format!("record {name} of its extended header");
        let number = |name: &str| {
            given
                .map(|value| decimal(value).ok_or_else(|| bad(name)))
                .transpose()
        };
        match key {
            b"path" => self.path = given.map(<[u8]>::to_vec),
            b"linkpath" => self.link = given.map(<[u8]>::to_vec),
            b"size" => self.size = number("size")?,
            b"uid" => self.uid = number("uid")?,
            b"gid" => self.gid = number("gid")?,
            b"mtime" => {
                self.mtime = given
                    .map(|value| time(value).ok_or_else(|| bad("mtime")))
                    .transpose()?;
            }
            _ if key.starts_with(SPARSE) => {
                return Err("sparse files are not supported".to_owned());
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// One record without its length and newline, and what follows.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    // 20 digits are more than any size has.
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length > data.len() || length < space + 2 || data[length - 1] != b'\n' {
        return None;
    }
    Some((&data[space + 1..length - 1], &data[length..]))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction; digits after the ninth are cut off. Before 1970 the fraction
/// counts backwards, as in Go and GNU tar.
fn time(text: &[u8]) -> Option<Timespec> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds: i64 = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |b| i64::from(b - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    let (tv_sec, tv_nsec) = match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 2;
        while format!("{length} ").len() + body.len() != length {
            length += 1;
        }
        [format!("{length} ").as_bytes(), &body].concat()
    }

    #[test]
    fn binary_values_keep_their_newlines() {
        let data = [
            record("SCHILY.xattr.security.capability", b"\x01\n\0=\n"),
            record("path", b"a/b"),
            record("comment", b"x"),
            record("uid", b"4294967294"),
        ]
        .concat();
        let found = Extension::parse(&data).unwrap();
        assert_eq!(
            found.xattrs,
            [(b"security.capability".to_vec(), b"\x01\n\0=\n".to_vec())]
        );
        assert_eq!(found.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(found.uid, Some(4_294_967_294));
    }

    #[test]
    fn refuses_malformed_records() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"999 a=b\n",
            b"0 a=b\n",
            b"2 \n",
            b"6 abc\n",
            b"99999999999999999999999 a=b\n",
            b"-6 a=b\n",
        ] {
            assert!(Extension::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Extension::parse(&record("size", b"-1")).is_err());
        assert!(Extension::parse(&record("mtime", b"1.x")).is_err());
        assert!(Extension::parse(&record("GNU.sparse.major", b"1")).is_err());
    }

    #[test]
    fn times() {
        let of = |text: &str| time(text.as_bytes()).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(
            of("1350244992.023960108"),
            Some((1_350_244_992, 23_960_108))
        );
        assert_eq!(of("5"), Some((5, 0)));
        assert_eq!(of("5.1234567899"), Some((5, 123_456_789)));
        assert_eq!(of("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(of("-1"), Some((-1, 0)));
        assert_eq!(of(""), None);
        assert_eq!(of("99999999999999999999"), None);
    }
}
