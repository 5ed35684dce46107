//! Platforms of images, as the OCI image index names them.

use std::{fmt, str::FromStr};

/// Which platform's images are pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlatform {
    /// The platform that zcrid was built for.
    Host,
    /// A given one.
    Fixed(OciPlatform),
}

impl ImagePlatform {
    /// What runs on z/OS, whatever this program was built for.
    #[must_use]
    pub fn zos() -> Self {
        Self::Fixed(OciPlatform {
            os: "zos".to_owned(),
            architecture: "s390x".to_owned(),
            variant: None,
        })
    }

    /// The platform itself.
    #[must_use]
    pub fn resolve(&self) -> OciPlatform {
        match self {
            Self::Host => OciPlatform::host(),
            Self::Fixed(platform) => platform.clone(),
        }
    }
}

impl FromStr for ImagePlatform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "host" {
            Ok(Self::Host)
        } else {
            text.parse().map(Self::Fixed)
        }
    }
}

impl fmt::Display for ImagePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Fixed(platform) => platform.fmt(f),
        }
    }
}

/// `os/architecture[/variant]` with the names of the OCI image specification, which are Go's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OciPlatform {
    /// Operating system, such as `linux` or `zos`.
    pub os: String,
    /// Architecture, such as `amd64` or `s390x`.
    pub architecture: String,
    /// Variant of the architecture, such as `v8`.
    pub variant: Option<String>,
}

impl OciPlatform {
    /// The platform that this program was built for. The variant is left open.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            same => same,
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }
}

impl FromStr for OciPlatform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "must be \"host\" or \"<os>/<arch>[/<variant>]\", such as \"zos/s390x\"".to_owned();
        let word = |w: &str| {
            let fits = !w.is_empty()
                && w.len() <= 32
                && w.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
            fits.then(|| w.to_owned())
        };
        let parts = text
            .split('/')
            .map(word)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong)?;
        match <[String; 2]>::try_from(parts) {
            Ok([os, architecture]) => Ok(Self {
                os,
                architecture,
                variant: None,
            }),
            Err(parts) => {
                let [os, architecture, variant] =
                    <[String; 3]>::try_from(parts).map_err(|_| wrong())?;
                Ok(Self {
                    os,
                    architecture,
                    variant: Some(variant),
                })
            }
        }
    }
}

impl fmt::Display for OciPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}
