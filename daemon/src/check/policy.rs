//! containers-policy.json(5), as far as its form goes: whether it can be read, and lets anything in.

use std::io;
use std::path::Path;

use serde_json::{Map, Value};

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PolicyFile {
    Absent,
    Good {
        /// Nothing is let in, from wherever.
        rejects_all: bool,
    },
    Bad(String),
}

pub(super) fn load(path: &Path) -> PolicyFile {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_or_else(PolicyFile::Bad, |rejects_all| PolicyFile::Good {
            rejects_all,
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => PolicyFile::Absent,
        Err(e) => PolicyFile::Bad(e.to_string()),
    }
}

/// Gives whether everything is rejected.
fn parse(text: &str) -> Result<bool, String> {
    let whole: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let top = object(&whole, "the file")?;
    known_keys(top, &["default", "transports"], "the file")?;
    let default = top.get("default").ok_or("\"default\" is missing")?;
    let mut rejects_all = requirements(default, "default")?;
    if let Some(transports) = top.get("transports") {
        for (transport, scopes) in object(transports, "transports")? {
            for (scope, list) in object(scopes, transport)? {
                rejects_all &= requirements(list, &format!("transports.{transport}.{scope:?}"))?;
            }
        }
    }
    Ok(rejects_all)
}

/// Each requirement has to be met: one that rejects is enough.
fn requirements(list: &Value, at: &str) -> Result<bool, String> {
    let list = list.as_array().ok_or(format!("{at} is not a list"))?;
    if list.is_empty() {
        return Err(format!("{at} has no requirement"));
    }
    let mut rejects = false;
    for (i, item) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let item = object(item, &at)?;
        let kind = item.get("type").and_then(Value::as_str);
        match kind.ok_or(format!("{at}.type is missing"))? {
            "reject" => rejects = true,
            "insecureAcceptAnything" => {}
            "signedBy" | "sigstoreSigned" => keys(item, &at)?,
            other => {
                return Err(format!(
                    "{at}.type: {other:?} is none of insecureAcceptAnything, reject, signedBy and sigstoreSigned"
                ));
            }
        }
    }
    Ok(rejects)
}

/// The files of keys have to be there. Whether they are good keys shows with the first signature.
fn keys(item: &Map<String, Value>, at: &str) -> Result<(), String> {
    let one = item.get("keyPath").into_iter();
    let more = item.get("keyPaths").and_then(Value::as_array);
    let mut any = ["keyData", "keyDatas", "fulcio", "pki"]
        .iter()
        .any(|key| item.contains_key(*key));
    for path in one.chain(more.into_iter().flatten()) {
        let path = path
            .as_str()
            .ok_or(format!("{at}: a key's path is not a string"))?;
        std::fs::File::open(path).map_err(|e| format!("{at}: {path}: {e}"))?;
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err(format!("{at} names no key"))
    }
}

fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or(format!("{at} is not an object"))
}

fn known_keys(map: &Map<String, Value>, known: &[&str], at: &str) -> Result<(), String> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("{at} has the unknown key {key:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_in_and_what_does_not() {
        let accept = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        assert_eq!(parse(accept), Ok(false));
        assert_eq!(parse(r#"{"default":[{"type":"reject"}]}"#), Ok(true));
        let one = r#"{"default":[{"type":"reject"}],
            "transports":{"docker":{"icr.io":[{"type":"insecureAcceptAnything"}]}}}"#;
        assert_eq!(parse(one), Ok(false));
        let signed =
            r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/dev/null"}]}"#;
        assert_eq!(parse(signed), Ok(false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            ("{", "EOF"),
            ("[]", "object"),
            ("{}", "\"default\" is missing"),
            (r#"{"default":[]}"#, "no requirement"),
            (r#"{"default":[{}]}"#, "default[0].type is missing"),
            (r#"{"default":[{"type":"maybe"}]}"#, "maybe"),
            (r#"{"default":[{"type":"signedBy"}]}"#, "names no key"),
            (
                r#"{"default":[{"type":"signedBy","keyPath":"/no/key"}]}"#,
                "/no/key",
            ),
            (r#"{"default":[{"type":"reject"}],"extra":1}"#, "extra"),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"x":{}}}}"#,
                "not a list",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        assert_eq!(load(Path::new("/no/policy")), PolicyFile::Absent);
        assert!(matches!(load(Path::new("/")), PolicyFile::Bad(_)));
    }
}
