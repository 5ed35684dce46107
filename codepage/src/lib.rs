//! From EBCDIC to UTF-8: what programs of z/OS write when nothing has converted it yet.
//!
//! Every byte is a character of its own, so that a stream may be cut anywhere and nothing is kept between two calls.
//!
//! IBM-1047 has the characters of ISO 8859-1, each at another place, which makes the conversion exact: no byte is
//! without a meaning and none is lost. The two ends of a line are the exception that programs need: 0x15 (NL), which is
//! the newline of z/OS, and 0x25 (LF), which Java and file transfers write, both become a line feed. Strictly the one of
//! them would be U+0085, at which no reader of a log ends a line.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// NL and LF.
const NEWLINES: [u8; 2] = [0x15, 0x25];

/// The substitute character.
const SUB: u8 = 0x3f;

/// A code page that is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodePage {
    /// "Latin 1/Open Systems", that of z/OS UNIX.
    Ibm1047,
}

/// A name of no code page that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCodePage(String);

impl fmt::Display for UnknownCodePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no code page that is converted (there is IBM-1047)",
            self.0
        )
    }
}

impl std::error::Error for UnknownCodePage {}

impl FromStr for CodePage {
    type Err = UnknownCodePage;

    /// By the names that iconv has for it.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        match plain.to_ascii_uppercase().as_str() {
            "IBM1047" | "CP1047" | "1047" => Ok(Self::Ibm1047),
            _ => Err(UnknownCodePage(name.to_owned())),
        }
    }
}

impl fmt::Display for CodePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ibm1047 => "IBM-1047",
        })
    }
}

impl CodePage {
    /// The character of a byte.
    #[must_use]
    pub fn character(self, byte: u8) -> char {
        char::from(self.table()[usize::from(byte)])
    }

    /// Code points, all below 256.
    fn table(self) -> &'static [u8; 256] {
        match self {
            Self::Ibm1047 => &TO_LATIN_1,
        }
    }

    /// Converts the first `len` bytes of `buffer`, which has room for twice as many, and gives the length of the result.
    ///
    /// # Panics
    /// If `buffer` has less room.
    pub fn convert_in_place(self, buffer: &mut [u8], len: usize) -> usize {
        let table = self.table();
        let mut wide = 0;
        for byte in &mut buffer[..len] {
            *byte = table[usize::from(*byte)];
            wide += usize::from(*byte >> 7);
        }
        // What is above 127 takes two bytes: from the end, so that nothing is overwritten that is still needed.
        let end = len + wide;
        let mut to = end;
        let mut from = len;
        while to > from {
            from -= 1;
            let latin = buffer[from];
            if latin < 0x80 {
                to -= 1;
                buffer[to] = latin;
            } else {
                to -= 2;
                buffer[to] = 0xc0 | latin >> 6;
                buffer[to + 1] = 0x80 | latin & 0x3f;
            }
        }
        end
    }

    /// Converts a text.
    #[must_use]
    pub fn convert(self, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0; text.len() * 2];
        out[..text.len()].copy_from_slice(text);
        let len = self.convert_in_place(&mut out, text.len());
        out.truncate(len);
        out
    }
}

/// From UTF-8 to a code page: what somebody types at a terminal. A character may come in pieces.
///
/// A line feed becomes the newline of z/OS. What the page has no place for becomes SUB, as z/OS does it.
#[derive(Debug, Clone)]
pub struct Typed {
    page: CodePage,
    /// The first byte of a character in two, whose second has not come yet.
    lead: Option<u8>,
    /// Bytes still to come of a character that the page does not have.
    skip: u8,
}

impl Typed {
    /// For a terminal in that code page.
    #[must_use]
    pub fn new(page: CodePage) -> Self {
        Self {
            page,
            lead: None,
            skip: 0,
        }
    }

    /// Converts the next piece, behind what is in `out`.
    pub fn convert(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let table = match self.page {
            CodePage::Ibm1047 => &FROM_LATIN_1,
        };
        for &byte in piece {
            let continues = byte & 0xc0 == 0x80;
            if let Some(lead) = self.lead.take() {
                if continues {
                    out.push(table[usize::from(lead << 6 | byte & 0x3f)]);
                    continue;
                }
                out.push(SUB);
            }
            if continues && self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.skip = 0;
            match byte {
                0..=0x7f => out.push(table[usize::from(byte)]),
                // U+0080 to U+00FF.
                0xc2 | 0xc3 => self.lead = Some(byte),
                _ => {
                    out.push(SUB);
                    self.skip = match byte {
                        0xc4..=0xdf => 1,
                        0xe0..=0xef => 2,
                        0xf0..=0xf4 => 3,
                        _ => 0,
                    };
                }
            }
        }
    }
}

/// What a setting says: nothing and `none` are no conversion, anything else is a [`Rule`].
///
/// # Errors
/// It is neither.
pub fn setting(text: &str) -> Result<Option<Rule>, UnknownCodePage> {
    match text.trim() {
        "" | "none" => Ok(None),
        rule => rule.parse().map(Some),
    }
}

/// When output is converted. As text: `IBM-1047`, or `IBM-1047 untagged`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// From which code page.
    pub page: CodePage,
    /// Only where the file tag of the stream does not name another code page: then somebody converts already.
    pub untagged_only: bool,
}

impl Rule {
    /// The code page to convert from, given what `ccsid` finds in the file tag of a stream (0 or none: no tag).
    #[must_use]
    pub fn page_of(self, ccsid: impl FnOnce() -> Option<u16>) -> Option<CodePage> {
        if !self.untagged_only {
            return Some(self.page);
        }
        let own = match self.page {
            CodePage::Ibm1047 => 1047,
        };
        match ccsid() {
            None | Some(0) => Some(self.page),
            Some(tag) => (tag == own).then_some(self.page),
        }
    }
}

impl FromStr for Rule {
    type Err = UnknownCodePage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (page, untagged_only) = match text.trim().strip_suffix(" untagged") {
            Some(page) => (page, true),
            None => (text, false),
        };
        let page = page.parse().map_err(|_| UnknownCodePage(text.to_owned()))?;
        Ok(Self {
            page,
            untagged_only,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            page,
            untagged_only,
        } = self;
        write!(f, "{page}{}", if *untagged_only { " untagged" } else { "" })
    }
}

/// ISO 8859-1 of each byte of IBM-1047, with both ends of a line as line feed. Source: glibc, `localedata/charmaps/IBM1047`,
/// against which the tests compare.
const TO_LATIN_1: [u8; 256] = with_newlines([
    0x00, 0x01, 0x02, 0x03, 0x9c, 0x09, 0x86, 0x7f, 0x97, 0x8d, 0x8e, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x9d, 0x85, 0x08, 0x87, 0x18, 0x19, 0x92, 0x8f, 0x1c, 0x1d, 0x1e, 0x1f,
    0x80, 0x81, 0x82, 0x83, 0x84, 0x0a, 0x17, 0x1b, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x05, 0x06, 0x07,
    0x90, 0x91, 0x16, 0x93, 0x94, 0x95, 0x96, 0x04, 0x98, 0x99, 0x9a, 0x9b, 0x14, 0x15, 0x9e, 0x1a,
    0x20, 0xa0, 0xe2, 0xe4, 0xe0, 0xe1, 0xe3, 0xe5, 0xe7, 0xf1, 0xa2, 0x2e, 0x3c, 0x28, 0x2b, 0x7c,
    0x26, 0xe9, 0xea, 0xeb, 0xe8, 0xed, 0xee, 0xef, 0xec, 0xdf, 0x21, 0x24, 0x2a, 0x29, 0x3b, 0x5e,
    0x2d, 0x2f, 0xc2, 0xc4, 0xc0, 0xc1, 0xc3, 0xc5, 0xc7, 0xd1, 0xa6, 0x2c, 0x25, 0x5f, 0x3e, 0x3f,
    0xf8, 0xc9, 0xca, 0xcb, 0xc8, 0xcd, 0xce, 0xcf, 0xcc, 0x60, 0x3a, 0x23, 0x40, 0x27, 0x3d, 0x22,
    0xd8, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0xab, 0xbb, 0xf0, 0xfd, 0xfe, 0xb1,
    0xb0, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f, 0x70, 0x71, 0x72, 0xaa, 0xba, 0xe6, 0xb8, 0xc6, 0xa4,
    0xb5, 0x7e, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0xa1, 0xbf, 0xd0, 0x5b, 0xde, 0xae,
    0xac, 0xa3, 0xa5, 0xb7, 0xa9, 0xa7, 0xb6, 0xbc, 0xbd, 0xbe, 0xdd, 0xa8, 0xaf, 0x5d, 0xb4, 0xd7,
    0x7b, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0xad, 0xf4, 0xf6, 0xf2, 0xf3, 0xf5,
    0x7d, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f, 0x50, 0x51, 0x52, 0xb9, 0xfb, 0xfc, 0xf9, 0xfa, 0xff,
    0x5c, 0xf7, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0xb2, 0xd4, 0xd6, 0xd2, 0xd3, 0xd5,
    0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0xb3, 0xdb, 0xdc, 0xd9, 0xda, 0x9f,
]);

const fn with_newlines(mut table: [u8; 256]) -> [u8; 256] {
    table[NEWLINES[0] as usize] = b'\n';
    table[NEWLINES[1] as usize] = b'\n';
    table
}

/// The other way. The line feed, which two bytes become, is the newline of z/OS.
const FROM_LATIN_1: [u8; 256] = inverse(&TO_LATIN_1);

const fn inverse(table: &[u8; 256]) -> [u8; 256] {
    // U+0085 is the one character that no byte becomes: it is a newline too.
    let mut inverse = [NEWLINES[0]; 256];
    let mut byte: u8 = 0;
    loop {
        if byte != NEWLINES[1] {
            inverse[table[byte as usize] as usize] = byte;
        }
        if byte == u8::MAX {
            return inverse;
        }
        byte += 1;
    }
}

#[cfg(test)]
mod tests;
