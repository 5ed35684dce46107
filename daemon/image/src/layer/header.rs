//! The 512-byte header of a tar entry: v7, POSIX ustar and GNU (POSIX.1-2024 pax, "ustar Interchange Format").

/// Bytes of a header, and the unit of everything in an archive.
pub(super) const BLOCK: usize = 512;

/// Fields of a header as far as they matter here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
}

/// Reads a header. None: it is all zeros, which ends an archive.
///
/// # Errors
/// A short text: the field that is wrong.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, String> {
    if block.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    check_sum(block)?;
    let kind = block[156];
    let magic = &block[257..265];
    let (ustar, gnu) = (magic == b"ustar\x0000", magic == b"ustar  \0");
    let mut path = text(&block[..100]).to_vec();
    if ustar && block[345] != 0 {
        let mut whole = text(&block[345..500]).to_vec();
        whole.push(b'/');
        whole.append(&mut path);
        path = whole;
    }
    let device = if (ustar || gnu) && matches!(kind, b'3' | b'4') {
        let part = |range: std::ops::Range<usize>| number(&block[range]).map(u32::try_from);
        match (part(329..337), part(337..345)) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => return Err("its device number".to_owned()),
        }
    } else {
        (0, 0)
    };
    let field = |range: std::ops::Range<usize>, name: &str| {
        number(&block[range]).ok_or_else(|| format!("its {name}"))
    };
    let positive = |range: std::ops::Range<usize>, name: &str| {
        field(range, name).and_then(|n| u64::try_from(n).map_err(|_| format!("its {name}")))
    };
    let mode = positive(100..108, "mode")?;
    Ok(Some(Header {
        path,
        link: text(&block[157..257]).to_vec(),
        kind,
        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
        uid: positive(108..116, "owner")?,
        gid: positive(116..124, "group")?,
        size: positive(124..136, "size")?,
        mtime: field(136..148, "time")?,
        device,
    }))
}

/// The sum of all bytes with the sum itself as spaces; old writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), String> {
    let stated = number(&block[148..156]).ok_or_else(|| "its checksum".to_owned())?;
    let bytes = || block[..148].iter().chain(&block[156..]);
    let unsigned: i64 = 8 * i64::from(b' ') + bytes().map(|b| i64::from(*b)).sum::<i64>();
    if stated == unsigned {
        return Ok(());
    }
    let signed: i64 =
        8 * i64::from(b' ') + bytes().map(|b| i64::from(b.cast_signed())).sum::<i64>();
    if stated == signed {
        Ok(())
    } else {
        Err("its checksum".to_owned())
    }
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// An octal number in text, or (GNU, first bit set) a binary one. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement; the top bit of the first byte is the mark, the next one the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = match (index, negative) {
                (0, true) => *byte,
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let digits = field
        .iter()
        .skip_while(|b| **b == b' ')
        .take_while(|b| **b != 0 && **b != b' ');
    let mut value: i64 = 0;
    for digit in digits {
        let digit = char::from(*digit).to_digit(8)?;
        value = value.checked_mul(8)?.checked_add(i64::from(digit))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o7777_7777));
        assert_eq!(number(b"12x\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        let huge = [
            0x80, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        assert_eq!(number(&huge), None);
    }

    #[test]
    fn zeros_end_and_noise_is_refused() {
        assert_eq!(parse(&[0; BLOCK]), Ok(None));
        assert!(parse(&[b'x'; BLOCK]).is_err());
        let mut nearly = [0; BLOCK];
        nearly[0] = b'a';
        assert_eq!(parse(&nearly), Err("its checksum".to_owned()));
    }
}
