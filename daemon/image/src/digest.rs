//! Digests: `sha256:` or `sha512:` and hexadecimal digits, as the OCI image specification (descriptor.md) has them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// A digest in its canonical text form. Only algorithms that can be verified here exist.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: Arc<str>,
    algorithm: Algorithm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DigestError {
    /// There is no `algorithm:`.
    #[error("`{text}` has no algorithm")]
    NoAlgorithm {
        /// The text.
        text: String,
    },
    /// The algorithm cannot be verified.
    #[error("digest algorithm `{algorithm}` is not supported (sha256 and sha512 are)")]
    Unsupported {
        /// Its name.
        algorithm: String,
    },
    /// The digits are too few, too many, or none.
    #[error("`{text}` is not followed by {expected} lower-case hexadecimal digits")]
    BadHex {
        /// The text.
        text: String,
        /// How many digits the algorithm has.
        expected: usize,
    },
}

impl Digest {
    /// The sha256 digest of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        let mut hasher = Hasher::Sha256(Sha256::new());
        hasher.update(data);
        hasher.finish()
    }

    /// The digest of `data` by the algorithm of this one.
    pub(crate) fn of_same_kind(&self, data: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish()
    }

    /// A hasher whose result can be compared with this digest.
    pub(crate) fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// Whether both digests are of one algorithm.
    pub(crate) fn same_kind(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm
    }

    /// The whole text, `sha256:0123...`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The digits alone. Lengths differ between algorithms, so that they name a file without its algorithm.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The digest whose digits are `hex`, by their number.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.hex_len() == hex.len())
            .and_then(|algorithm| format!("{}:{hex}", algorithm.name()).parse().ok())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(DigestError::NoAlgorithm {
                text: text.to_owned(),
            });
        };
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| DigestError::Unsupported {
                algorithm: name.to_owned(),
            })?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::BadHex {
                text: text.to_owned(),
                expected: algorithm.hex_len(),
            });
        }
        Ok(Self {
            text: Arc::from(text),
            algorithm,
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A digest in the making.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(data),
            Self::Sha512(state) => state.update(data),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => named(Algorithm::Sha256, &state.finalize()),
            Self::Sha512(state) => named(Algorithm::Sha512, &state.finalize()),
        }
    }
}

fn named(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(algorithm.name().len() + 1 + algorithm.hex_len());
    text.push_str(algorithm.name());
    text.push(':');
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    Digest {
        text: Arc::from(text),
        algorithm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_values() {
        assert_eq!(Digest::sha256(b"").as_str(), EMPTY);
        let sha512: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        // FIPS 180 example for "abc".
        assert!(
            sha512
                .of_same_kind(b"abc")
                .hex()
                .starts_with("ddaf35a193617abacc417349ae204131")
        );
    }

    #[test]
    fn parses_and_refuses() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(Digest::from_hex(digest.hex()), Some(digest));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:../../../../../../../../../../../../../../../../../../../../../../",
            &EMPTY[..70],
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Digest::from_hex("zz"), None);
    }
}
