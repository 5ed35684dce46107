//! The command line of a containerd shim, as `containerd/pkg/shim` defines it: flags with one dash, then an action.

use std::path::PathBuf;

/// What the caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the monitor of a bundle, or find the one that runs, and print its address.
    Start,
    /// Clear away what a dead monitor left of one container.
    Delete,
    /// Print the version.
    Version,
}

/// A parsed command line. Flags that only containerd's own plumbing needs are accepted and ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) action: Action,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
}

/// A command line that is not a shim's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgumentError {
    #[error("unknown flag {flag:?}")]
    UnknownFlag { flag: String },
    #[error("flag -{flag} needs a value")]
    NoValue { flag: String },
    #[error("unknown action {action:?}: expected start or delete")]
    UnknownAction { action: String },
    #[error("no action given: expected start or delete")]
    NoAction,
    #[error("flag -{flag} is missing")]
    Missing { flag: &'static str },
}

/// Parses what follows the program's name.
pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Arguments, ArgumentError> {
    let mut words = words.into_iter();
    let (mut id, mut bundle, mut version) = (String::new(), None, false);
    let mut action = None;
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            action = Some(match word.as_str() {
                "start" => Action::Start,
                "delete" => Action::Delete,
                _ => return Err(ArgumentError::UnknownAction { action: word }),
            });
            continue;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "v" => version = true,
            "debug" | "no-daemon" => {}
            "namespace" | "id" | "bundle" | "address" | "publish-binary" | "socket" => {
                let value =
                    inline
                        .or_else(|| words.next())
                        .ok_or_else(|| ArgumentError::NoValue {
                            flag: name.to_owned(),
                        })?;
                match name {
                    "id" => id = value,
                    "bundle" => bundle = Some(PathBuf::from(value)),
                    _ => {}
                }
            }
            _ => return Err(ArgumentError::UnknownFlag { flag: word }),
        }
    }
    if version {
        return Ok(Arguments {
            action: Action::Version,
            id,
            bundle: PathBuf::new(),
        });
    }
    let action = action.ok_or(ArgumentError::NoAction)?;
    if id.is_empty() {
        return Err(ArgumentError::Missing { flag: "id" });
    }
    // containerd gives no -bundle to `start`: the working directory is the bundle.
    Ok(Arguments {
        action,
        id,
        bundle: bundle.unwrap_or_else(|| PathBuf::from(".")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Arguments, ArgumentError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_own_call() {
        let parsed = words(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/c -id abc start",
        )
        .unwrap();
        assert_eq!(
            parsed,
            Arguments {
                action: Action::Start,
                id: "abc".into(),
                bundle: ".".into()
            }
        );
    }

    #[test]
    fn delete_with_bundle_and_equal_signs() {
        let parsed = words("--namespace=zcri -debug -id=abc -bundle=/run/b delete").unwrap();
        assert_eq!(
            parsed,
            Arguments {
                action: Action::Delete,
                id: "abc".into(),
                bundle: "/run/b".into()
            }
        );
        assert_eq!(words("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            words("-id"),
            Err(ArgumentError::NoValue { flag: "id".into() })
        );
        assert_eq!(
            words("-nope start"),
            Err(ArgumentError::UnknownFlag {
                flag: "-nope".into()
            })
        );
        assert_eq!(
            words("-id a stop"),
            Err(ArgumentError::UnknownAction {
                action: "stop".into()
            })
        );
        assert_eq!(words("-id a"), Err(ArgumentError::NoAction));
        assert_eq!(words("start"), Err(ArgumentError::Missing { flag: "id" }));
    }
}
