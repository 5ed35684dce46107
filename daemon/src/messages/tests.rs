//! The table, its documentation, and that the source tells every message with all its inserts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use zcri_sys::console::Console;

use super::*;

/// Prefixes of components whose messages are on the same consoles.
const TAKEN: &[&str] = &[
    "GLZ", "BCZ", "EZ", "BPX", "CSQ", "DFH", "IE", "IST", "ICH", "IRR",
];

#[test]
fn ids_are_well_formed_in_order_and_nobody_elses() {
    assert!(TAKEN.iter().all(|prefix| !PREFIX.starts_with(prefix)));
    for message in TABLE {
        assert!(is_id(message.id), "{}", message.id);
        assert!(
            !message.explanation.is_empty() && !message.response.is_empty(),
            "{}",
            message.id
        );
    }
    let digits: Vec<_> = TABLE.iter().map(|m| &m.id[..6]).collect();
    assert!(digits.is_sorted_by(|a, b| a < b), "{digits:?}");
}

#[test]
fn an_id_is_found_behind_what_the_system_puts_before_it() {
    let line = find(SERVING)
        .unwrap()
        .line(|_| Some("/run/zcri/zcri.sock".into()));
    assert_eq!(line, "ZCR002I ZCRID IS SERVING ON /run/zcri/zcri.sock");
    let wrapped = format!("BPXM023I (ZCRI) {line}");
    assert_eq!(id_in(&wrapped), Some(SERVING));
    for none in [
        "BPXM023I (ZCRI) hello",
        "XZCR002I",
        "ZCR02I",
        "ZCR0021",
        "ZCR002II",
        "",
    ] {
        assert_eq!(id_in(none), None, "{none}");
    }
}

#[test]
fn control_characters_do_not_reach_the_console() {
    let message = find(CANNOT_GO_ON).unwrap();
    let line = message.line(|_| Some("a\nb\u{1b}[c".into()));
    assert_eq!(line, "ZCR005E ZCRID CANNOT GO ON: a b [c");
    assert_eq!(message.line(|_| None), "ZCR005E ZCRID CANNOT GO ON: ?");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Console for Lines {
    fn write(&self, line: &str) -> std::io::Result<()> {
        self.0.lock().unwrap().push(line.to_owned());
        Ok(())
    }
}

#[test]
fn messages_reach_the_console_once_and_nothing_else_does() {
    let lines = Lines::default();
    let layer = ConsoleLayer::new(Box::new(lines.clone())).with_filter(OnlyMessages);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(zcr = SERVING, socket = %"/s", "zcrid is serving");
        tracing::error!("no message");
        for pod in ["a", "a", "b"] {
            tracing::debug!(zcr = SHIM_GONE, pod = %pod, "at any level");
        }
    });
    let want = [
        "ZCR002I ZCRID IS SERVING ON /s",
        "ZCR201E THE SHIM OF POD a IS GONE",
        "ZCR201E THE SHIM OF POD b IS GONE",
    ];
    assert_eq!(*lines.0.lock().unwrap(), want);
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Every message is told somewhere, and wherever it is told by the log it has all its inserts.
#[test]
fn the_source_tells_every_message_with_its_inserts() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let own = Path::new("src/messages");
    files.retain(|f| !f.to_string_lossy().contains(&*own.to_string_lossy()));
    let text: Vec<String> = files
        .iter()
        .map(|f| std::fs::read_to_string(f).unwrap())
        .collect();
    let table = include_str!("../messages.rs");
    for message in TABLE {
        let (before, _) = table.split_once(&format!(" = \"{}\"", message.id)).unwrap();
        let name = before.rsplit_once(' ').unwrap().1;
        let mut told = 0;
        for text in &text {
            for (at, _) in text.match_indices(&format!("messages::{name}")) {
                let rest = &text[at..];
                if !rest[name.len() + 10..]
                    .starts_with(|c: char| c == ',' || c == ')' || c == ';' || c.is_whitespace())
                {
                    continue;
                }
                told += 1;
                if !text[..at].trim_end().ends_with("zcr =") {
                    continue;
                }
                let call = &rest[..rest.find(");").unwrap_or(rest.len())];
                for insert in message.inserts() {
                    let given = [
                        format!(", {insert} ="),
                        format!(", %{insert},"),
                        format!("\n{insert} ="),
                    ];
                    let flat = call.split_whitespace().collect::<Vec<_>>().join(" ");
                    let has = given
                        .iter()
                        .any(|g| flat.contains(g.trim_start_matches('\n')));
                    assert!(has, "{} is told without {insert}: {flat}", message.id);
                }
            }
        }
        assert!(told > 0, "nothing tells {} ({name})", message.id);
    }
}

/// docs/messages.md; `UPDATE_DOCS=1 cargo test -p zcri-daemon messages` writes it anew.
#[test]
fn the_documentation_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/messages.md");
    let expected = documentation();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "run UPDATE_DOCS=1 cargo test -p zcri-daemon messages"
    );
}

fn documentation() -> String {
    let mut out = String::from(
        "# Operator messages\n\n\
         <!-- made from daemon/src/messages.rs by its test -->\n\n\
         What an operator must see is written to the console: on z/OS to the operator's console, on Linux where\n\
         `[console] output` says. Each line begins with an id: `ZCR`, three digits, and the type, which is `I`\n\
         (information), `W` (warning: pods or images may fail), `E` (error) or `A` (somebody has to act).\n\n\
         z/OS puts `BPXM023I (USER)` before the messages of a process that is not UID 0. Automation finds the id as the\n\
         first word that is `ZCR` with three digits and one of these letters.\n\n\
         A line that is the same as the one before with its id is not repeated within a minute. The daemon's log has\n\
         every event, with its id in the field `zcr`.\n",
    );
    for message in TABLE {
        let Message {
            id,
            text,
            explanation,
            response,
        } = message;
        let text = text.replace(['{', '}'], "*");
        write!(
            out,
            "\n## {id}\n\n**{id} {text}**\n\nExplanation: {explanation}\n\nResponse: {response}\n"
        )
        .unwrap();
    }
    out
}
