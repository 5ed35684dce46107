//! Platforms: `os/architecture[/variant]` with Go's names, as OCI indexes have them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Variants of 32-bit ARM from the newest to the oldest; a newer processor runs code for an older one.
const ARM_VARIANTS: [&str; 4] = ["v8", "v7", "v6", "v5"];

/// Which images run here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// For instance `linux` or `zos`.
    pub os: String,
    /// For instance `amd64` or `s390x`.
    pub architecture: String,
    /// For instance `v7`; none takes what there is.
    pub variant: Option<String>,
}

/// A text that is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a platform (os/architecture or os/architecture/variant)")]
pub struct PlatformError {
    /// The text.
    pub text: String,
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: go_architecture(std::env::consts::ARCH).to_owned(),
            variant: None,
        }
    }

    /// How well an image for the given platform runs here: none not at all, else lower is better.
    pub(crate) fn rank(
        &self,
        os: &str,
        architecture: &str,
        variant: Option<&str>,
    ) -> Option<usize> {
        if self.os != os || self.architecture != go_architecture(architecture) {
            return None;
        }
        let offered = variant.filter(|text| !text.is_empty());
        if self.architecture == "arm" {
            return self.rank_arm(offered.unwrap_or("v7"));
        }
        // arm64 without a variant is v8; nowhere else has a missing variant a name.
        let default = (self.architecture == "arm64").then_some("v8");
        let wanted = self.variant.as_deref().or(default);
        match (wanted, offered.or(default)) {
            (wanted, offered) if wanted == offered => Some(0),
            (_, None) => Some(1),
            (None, Some(_)) => Some(2),
            (Some(_), Some(_)) => None,
        }
    }

    fn rank_arm(&self, offered: &str) -> Option<usize> {
        let place = |name: &str| ARM_VARIANTS.iter().position(|variant| *variant == name);
        let mine = place(self.variant.as_deref().unwrap_or("v7"))?;
        place(offered)?.checked_sub(mine)
    }
}

/// Names that other tools write, in Go's spelling.
fn go_architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i386" | "i686" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The platform as texts have it, with `unknown` for what is missing.
pub(crate) fn describe(os: &str, architecture: &str, variant: Option<&str>) -> String {
    let or_unknown = |text: &str| {
        if text.is_empty() {
            "unknown".to_owned()
        } else {
            text.to_owned()
        }
    };
    let mut text = format!("{}/{}", or_unknown(os), or_unknown(architecture));
    if let Some(variant) = variant.filter(|text| !text.is_empty()) {
        text.push('/');
        text.push_str(variant);
    }
    text
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(
            &self.os,
            &self.architecture,
            self.variant.as_deref(),
        ))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.')
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: go_architecture(architecture).to_owned(),
                    variant: rest.first().map(|variant| (*variant).to_owned()),
                })
            }
            _ => Err(PlatformError {
                text: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(wanted: &str, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        wanted
            .parse::<Platform>()
            .unwrap()
            .rank(os, architecture, variant)
    }

    #[test]
    fn parses() {
        let zos: Platform = "zos/s390x".parse().unwrap();
        assert_eq!(zos.to_string(), "zos/s390x");
        assert_eq!(
            "linux/x86_64".parse::<Platform>().unwrap().architecture,
            "amd64"
        );
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b c"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert!(Platform::host().to_string().parse::<Platform>().is_ok());
    }

    #[test]
    fn matches() {
        assert_eq!(rank("zos/s390x", "zos", "s390x", None), Some(0));
        assert_eq!(rank("zos/s390x", "linux", "s390x", None), None);
        assert_eq!(rank("linux/amd64", "linux", "arm64", None), None);
        assert_eq!(rank("linux/arm64", "linux", "arm64", Some("v8")), Some(0));
        assert_eq!(rank("linux/arm64/v8", "linux", "aarch64", None), Some(0));
        assert_eq!(rank("linux/arm64", "linux", "arm64", Some("v9")), None);
        assert_eq!(rank("linux/amd64", "linux", "amd64", Some("v3")), Some(2));
        assert_eq!(rank("linux/amd64/v3", "linux", "amd64", None), Some(1));
        assert_eq!(rank("linux/arm", "linux", "arm", Some("v7")), Some(0));
        assert_eq!(rank("linux/arm/v7", "linux", "arm", Some("v6")), Some(1));
        assert_eq!(rank("linux/arm/v6", "linux", "arm", Some("v7")), None);
    }
}
