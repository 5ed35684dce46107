//! Limits of a process, as `[runtime] rlimits` names them: `nofile=1024:524288`.

use std::fmt;
use std::str::FromStr;

/// The word for no limit.
const UNLIMITED: &str = "unlimited";

/// A limit of every process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// Its name in lower case, without `RLIMIT_`.
    pub name: &'static str,
    /// What holds; `u64::MAX` is no limit.
    pub soft: u64,
    /// How far the process may raise it; `u64::MAX` is no limit.
    pub hard: u64,
}

impl Rlimit {
    /// The names that there are (setrlimit(2), without `RLIMIT_`).
    pub const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
}

impl FromStr for Rlimit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, values) = text.split_once('=').ok_or(())?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Self {
            name: Self::NAMES
                .into_iter()
                .find(|known| *known == name)
                .ok_or(())?,
            soft: value(soft)?,
            hard: value(hard)?,
        };
        (limit.soft <= limit.hard).then_some(limit).ok_or(())
    }
}

fn value(text: &str) -> Result<u64, ()> {
    if text == UNLIMITED {
        return Ok(u64::MAX);
    }
    // `parse` takes a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|value| digits && *value != u64::MAX)
        .ok_or(())
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: u64| match value {
            u64::MAX => UNLIMITED.to_owned(),
            value => value.to_string(),
        };
        write!(f, "{}={}:{}", self.name, shown(self.soft), shown(self.hard))
    }
}
