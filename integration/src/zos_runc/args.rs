//! The command line of an OCI runtime, as runc has it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What is to be done, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make a container.
    Create,
    /// Make and start a container.
    Run,
    /// Run a process in a container.
    Exec,
    /// Remove a container.
    Delete,
    /// Change limits.
    Update,
    /// Say what the runtime can do.
    Features,
    /// What the real runtime does without our help: start, state, kill, ps, ...
    Other,
}

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// What is to be done.
    pub verb: Verb,
    /// `--root`
    pub root: Option<PathBuf>,
    /// `--log`
    pub log: Option<PathBuf>,
    /// `--bundle`
    pub bundle: Option<PathBuf>,
    /// The container: the first word that is neither a flag nor a flag's value.
    pub id: Option<String>,
    words: Vec<OsString>,
    /// Where the bundle's value is among the words.
    bundle_at: Option<usize>,
}

/// Flags that have a value, before and after the verb.
const VALUED: [&str; 17] = [
    "--root",
    "--log",
    "--log-format",
    "--criu",
    "--rootless",
    "--bundle",
    "-b",
    "--console-socket",
    "--pid-file",
    "--preserve-fds",
    "--process",
    "-p",
    "--cgroup",
    "--format",
    "-f",
    "--resources",
    "-r",
];

impl Arguments {
    /// Parses what follows the program's name.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Self {
        let mut parsed = Self {
            verb: Verb::Other,
            root: None,
            log: None,
            bundle: None,
            id: None,
            words: words.into_iter().collect(),
            bundle_at: None,
        };
        let (mut at, mut verb) = (0, false);
        while let Some(word) = parsed.words.get(at).cloned() {
            let text = word.to_string_lossy();
            let (flag, inline) = match text.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') => (flag, Some(value.to_owned())),
                _ => (text.as_ref(), None),
            };
            if !flag.starts_with('-') {
                if !verb {
                    (parsed.verb, verb) = (verb_of(flag), true);
                } else if parsed.id.is_none() {
                    parsed.id = Some(flag.to_owned());
                }
            } else if VALUED.contains(&flag) {
                let separate = inline.is_none();
                let value = inline.map(PathBuf::from).or_else(|| {
                    at += 1;
                    parsed.words.get(at).map(PathBuf::from)
                });
                match flag {
                    "--root" => parsed.root = value,
                    "--log" => parsed.log = value,
                    "--bundle" | "-b" => {
                        parsed.bundle = value;
                        parsed.bundle_at = separate.then_some(at);
                    }
                    _ => {}
                }
            }
            at += 1;
        }
        parsed
    }

    /// The words for the real runtime, with another bundle.
    pub fn words(&self, bundle: Option<&Path>) -> Vec<OsString> {
        let mut words = self.words.clone();
        if let (Some(at), Some(bundle)) = (self.bundle_at, bundle)
            && let Some(word) = words.get_mut(at)
        {
            *word = bundle.into();
        }
        words
    }
}

fn verb_of(word: &str) -> Verb {
    match word {
        "create" => Verb::Create,
        "run" => Verb::Run,
        "exec" => Verb::Exec,
        "delete" => Verb::Delete,
        "update" => Verb::Update,
        "features" => Verb::Features,
        _ => Verb::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Arguments {
        Arguments::parse(text.split(' ').map(OsString::from))
    }

    #[test]
    fn a_run_gets_another_bundle_and_nothing_else() {
        let given =
            "--root /r --log /l --log-format json run --detach --bundle /b --pid-file /p c1";
        let parsed = parse(given);
        assert_eq!(parsed.verb, Verb::Run);
        assert_eq!(parsed.id.as_deref(), Some("c1"));
        assert_eq!(parsed.log.as_deref(), Some(Path::new("/l")));
        let words = parsed.words(Some(Path::new("/other")));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(words.join(" "), given.replace("/b ", "/other "));
    }

    #[test]
    fn the_container_is_found_among_flags() {
        assert_eq!(parse("kill --all c2 9").id.as_deref(), Some("c2"));
        let exec = parse("--root=/r exec --detach --process /p --pid-file /q c3");
        assert_eq!((exec.verb, exec.id.as_deref()), (Verb::Exec, Some("c3")));
        assert_eq!(exec.root.as_deref(), Some(Path::new("/r")));
        assert_eq!(parse("features").verb, Verb::Features);
        assert_eq!(parse("delete --force c4").id.as_deref(), Some("c4"));
    }
}
