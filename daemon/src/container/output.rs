//! From which code page the output of a container is converted to UTF-8, if it is.
//!
//! What precedes what: the container's annotation, the pod's annotation, the image's label, the setting of the handler.
//! Each of them may be `none` or empty, which switches the conversion off. The result goes into the specification under
//! the same name: the monitor, which writes the log, finds it there, and so does every later exec, whatever has become of
//! the configuration meanwhile.

use std::collections::BTreeMap;

use oci_spec::runtime::Spec;
use zcri_codepage::Rule;

use super::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::pod::config::PodConfig;

/// Name of the annotation and of the image label.
pub(super) const NAME: &str = "zcri.io/output-code-page";

/// Finds the rule for a new container; `handler` is what its handler is configured with.
///
/// # Errors
/// [`Error::Invalid`] if a value that counts is no code page.
pub(super) fn rule(
    pod: &PodConfig,
    container: &ContainerConfig,
    image: &BTreeMap<String, String>,
    handler: Option<Rule>,
) -> Result<Option<Rule>> {
    let given = [
        (
            "config.annotations[\"zcri.io/output-code-page\"]",
            &container.annotations,
        ),
        (
            "sandbox_config.annotations[\"zcri.io/output-code-page\"]",
            &pod.annotations,
        ),
        ("label zcri.io/output-code-page of the image", image),
    ];
    let first = given
        .into_iter()
        .find_map(|(field, values)| values.get(NAME).map(|value| (field, value)));
    match first {
        None => Ok(handler),
        Some((field, value)) => zcri_codepage::setting(value).map_err(|error| Error::Invalid {
            field,
            value: value.clone(),
            reason: error.to_string(),
        }),
    }
}

/// Writes the rule into a specification.
pub(super) fn annotate(spec: &mut Spec, rule: Option<Rule>) {
    if let Some(rule) = rule {
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        annotations.insert(NAME.to_owned(), rule.to_string());
        spec.set_annotations(Some(annotations));
    }
}

/// What [`annotate`] wrote.
pub(super) fn rule_of(spec: &Spec) -> Option<Rule> {
    spec.annotations().as_ref()?.get(NAME)?.parse().ok()
}

/// A piece of a command's output as it is read, and what it is in UTF-8.
#[derive(Debug)]
pub(super) struct Chunk {
    rule: Option<Rule>,
    bytes: Box<[u8]>,
}

impl Chunk {
    /// With a buffer of that size.
    pub(super) fn new(rule: Option<Rule>, size: usize) -> Self {
        Self {
            rule,
            bytes: vec![0; size].into_boxed_slice(),
        }
    }

    /// Where the next bytes are read into: half of the buffer if they are converted, as a character may take twice its
    /// room then.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let size = self.bytes.len();
        let room = if self.rule.is_some() { size / 2 } else { size };
        self.bytes.split_at_mut(room).0
    }

    /// What the first `count` bytes of the room mean; `ccsid` is what their stream is tagged with.
    pub(super) fn take(&mut self, count: usize, ccsid: impl FnOnce() -> Option<u16>) -> &[u8] {
        let page = self.rule.and_then(|rule| rule.page_of(ccsid));
        let length = page.map_or(count, |p| p.convert_in_place(&mut self.bytes, count));
        self.bytes.get(..length).unwrap_or_default()
    }

    /// The buffer, as [`Chunk::take`] left it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How much of a text is kept of which `limit` bytes may be. What was converted is cut between two characters.
    pub(super) fn cut(rule: Option<Rule>, text: &[u8], limit: usize) -> &[u8] {
        let kept = text.get(..limit).unwrap_or(text);
        match kept {
            // The first of two bytes: the page has no longer characters.
            [head @ .., 0xc2 | 0xc3] if rule.is_some() && kept.len() < text.len() => head,
            _ => kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(value: Option<&str>) -> BTreeMap<String, String> {
        value
            .map(|value| (NAME.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }

    fn found(values: [Option<&str>; 4]) -> Result<Option<String>> {
        let [container, pod, image, handler] = values;
        let container = ContainerConfig {
            annotations: named(container),
            ..ContainerConfig::default()
        };
        let pod = PodConfig {
            annotations: named(pod),
            ..PodConfig::default()
        };
        let handler = handler.map(|text| text.parse().unwrap());
        rule(&pod, &container, &named(image), handler).map(|rule| rule.map(|r| r.to_string()))
    }

    #[test]
    fn the_nearest_that_says_something_decides() {
        const ON: Option<&str> = Some("IBM-1047");
        const TAG: Option<&str> = Some("IBM-1047 untagged");
        for (values, expected) in [
            ([None; 4], None),
            ([None, None, None, ON], ON),
            ([None, None, TAG, ON], TAG),
            ([None, ON, TAG, None], ON),
            ([TAG, ON, ON, ON], TAG),
            ([Some("none"), ON, ON, ON], None),
            ([None, Some(""), ON, ON], None),
            ([None, None, Some("none"), ON], None),
            ([Some("cp1047"), None, None, None], ON),
        ] {
            assert_eq!(found(values).unwrap().as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_and_one_that_does_not_count_is_not_looked_at() {
        const WRONG: Option<&str> = Some("IBM-37");
        for (values, field) in [
            ([WRONG, None, None, None], "config.annotations"),
            ([None, WRONG, None, None], "sandbox_config.annotations"),
            ([None, None, WRONG, None], "label"),
        ] {
            let error = found(values).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }));
            let text = error.to_string();
            for part in [field, NAME, "IBM-37", "there is IBM-1047"] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
        assert_eq!(found([Some("none"), WRONG, WRONG, None]).unwrap(), None);
    }

    #[test]
    fn it_stands_in_the_specification() {
        let mut spec = Spec::default();
        annotate(&mut spec, None);
        assert_eq!(rule_of(&spec), None);
        let rule: Rule = "IBM-1047 untagged".parse().unwrap();
        annotate(&mut spec, Some(rule));
        assert_eq!(rule_of(&spec), Some(rule));
    }

    #[test]
    fn what_is_cut_off_ends_with_a_whole_character() {
        let (text, rule) = ("a\u{e4}b".as_bytes(), "IBM-1047".parse().ok());
        for (limit, kept) in [
            (0, ""),
            (1, "a"),
            (2, "a"),
            (3, "a\u{e4}"),
            (4, "a\u{e4}b"),
            (9, "a\u{e4}b"),
        ] {
            assert_eq!(Chunk::cut(rule, text, limit), kept.as_bytes(), "{limit}");
        }
        assert_eq!(Chunk::cut(None, text, 2), b"a\xc3");
        assert_eq!(Chunk::cut(rule, b"a\xc3", 2), b"a\xc3");
    }

    #[test]
    fn a_tag_of_another_code_page_leaves_bytes_as_they_are() {
        let mut chunk = Chunk::new("IBM-1047 untagged".parse().ok(), 8);
        for (tag, expected) in [
            (None, "ab\u{e4}\n".as_bytes()),
            (Some(1047), "ab\u{e4}\n".as_bytes()),
            (Some(819), b"\x81\x82\x43\x15"),
        ] {
            chunk.room().copy_from_slice(b"\x81\x82\x43\x15");
            assert_eq!(chunk.take(4, || tag), expected, "{tag:?}");
        }
        assert_eq!(Chunk::new(None, 8).room().len(), 8);
    }
}
