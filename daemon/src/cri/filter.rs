//! Filters of lists. Conditions of one filter all hold; ids may be truncated.

use std::collections::{BTreeMap, HashMap};

/// Whether an id is the one asked for, or begins with it; nothing asked matches all.
pub(super) fn id_matches(id: &str, wanted: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
}

/// Whether all labels asked for are there with these values.
pub(super) fn labels_match(
    labels: &BTreeMap<String, String>,
    wanted: &HashMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_hold() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".into(), "2".into())]);
        let wanted = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(labels_match(&labels, &wanted(&[])));
        assert!(labels_match(&labels, &wanted(&[("a", "1"), ("b", "2")])));
        assert!(!labels_match(&labels, &wanted(&[("a", "1"), ("b", "3")])));
        assert!(!labels_match(&labels, &wanted(&[("c", "1")])));
        assert!(id_matches("abc", "") && id_matches("abc", "ab") && !id_matches("abc", "abcd"));
    }
}
