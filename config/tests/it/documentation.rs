//! docs/configuration.md has every key with its default and meaning: that part of it is made from the defaults.
//!
//! `UPDATE_DOCS=1 cargo test -p zcri-config` writes it anew.

use std::{fmt::Write as _, fs, path::Path};

use zcri_config::default_toml;

const BEGIN: &str =
    "<!-- made from config/src/default.toml by config/tests/it/documentation.rs -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// A table per section; the comments above a key are its meaning.
fn reference() -> String {
    let mut out = String::new();
    let mut comment = String::new();
    // The comment at the top is about the file.
    let body = &default_toml()[default_toml().find("[api]").unwrap()..];
    for line in body.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text);
        } else if line.starts_with('[') {
            write!(out, "\n### `{}`\n\n", line.replace(".runc]", ".NAME]")).unwrap();
            if !comment.is_empty() {
                write!(out, "{}\n\n", cell(&comment)).unwrap();
            }
            out.push_str("| key | default | meaning |\n|---|---|---|\n");
            comment.clear();
        } else if let Some((key, default)) = line.split_once(" = ") {
            assert!(!comment.is_empty(), "{key} has no comment");
            writeln!(out, "| `{key}` | `{default}` | {} |", cell(&comment)).unwrap();
            comment.clear();
        } else {
            assert!(
                line.is_empty() && comment.is_empty(),
                "neither key, section nor comment: {line}"
            );
        }
    }
    out
}

/// What Markdown would take for a table's edge or a tag.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('*', "\\*")
}

#[test]
fn the_reference_is_that_of_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find(BEGIN).unwrap() + BEGIN.len();
    let end = text.find(END).unwrap();
    let expected = format!("{}\n", reference());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(
            &path,
            format!("{}{expected}{}", &text[..begin], &text[end..]),
        )
        .unwrap();
        return;
    }
    assert_eq!(
        &text[begin..end],
        expected,
        "run UPDATE_DOCS=1 cargo test -p zcri-config"
    );
}

/// Every example in the text is one that works.
#[test]
fn the_examples_are_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = fs::read_to_string(path).unwrap();
    let mut examples = 0;
    for (i, block) in text.split("```").enumerate().filter(|(i, _)| i % 2 == 1) {
        if let Some(example) = block.strip_prefix("toml\n") {
            let parsed = zcri_config::Config::from_toml(example, Path::new("example"));
            assert!(parsed.is_ok(), "block {i}: {}", parsed.unwrap_err());
            examples += 1;
        }
    }
    assert!(examples >= 2, "the examples are gone");
}
