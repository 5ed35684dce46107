//! What only a z/OS node has: affinity to a TCP/IP stack, Workload Manager, system-wide limits that no program sees.

use std::path::Path;

use serde_json::Value;
use zcri_config::Config;

use super::report::Area;
use crate::runtime::STACK_AFFINITY;

/// Whether pods have affinity to the stack that the conflist names (CINET): by the configuration, or else by what the
/// started task was given, of which the environment of this process is only a hint.
pub(super) fn stack(config: &Config, conflist: &Path, area: &mut Area<'_>) {
    let wanted = stack_of(&std::fs::read(conflist).unwrap_or_default());
    let inherited = std::env::var(STACK_AFFINITY).ok();
    let own = config.network.stack_name.clone().or(inherited);
    let what = "TCP/IP stack";
    match (wanted, own) {
        (None, None) => area.pass(what, "the only one, or the default: there is no affinity"),
        (None, Some(own)) => area.pass(what, own),
        (Some(wanted), Some(own)) if wanted == own => area.pass(what, own),
        (Some(wanted), own) => area.warn(
            what,
            format!(
                "the network is on {wanted:?}, and pods have affinity to {}",
                own.map_or("none".to_owned(), |own| format!("{own:?}"))
            ),
            format!("set [network] stack_name = {wanted:?}"),
        ),
    }
}

/// The stack that our plugin is told; those of others are not understood.
fn stack_of(conflist: &[u8]) -> Option<String> {
    let list: Value = serde_json::from_slice(conflist).ok()?;
    let mut plugins = list["plugins"].as_array()?.iter();
    let own = plugins.find(|plugin| plugin["type"] == "dvipa")?;
    let stack = own["stack"].as_str()?;
    (stack != "default").then(|| stack.to_owned())
}

/// Whether the OCI runtime is told of classes; what becomes of it only the system's operator can see.
pub(super) fn workloads(config: &Config, area: &mut Area<'_>) {
    let (wlm, mapping) = (&config.wlm, &config.wlm.mapping);
    let targets = std::iter::once(&wlm.default).chain(wlm.rules.iter().map(|rule| &rule.target));
    let mut lost = Vec::new();
    for target in targets {
        for (value, told) in [
            (
                &target.class,
                [&mapping.class_annotation, &mapping.class_env],
            ),
            (
                &target.qualifier,
                [&mapping.qualifier_annotation, &mapping.qualifier_env],
            ),
        ] {
            lost.extend(value.as_ref().filter(|_| told.iter().all(|t| t.is_none())));
        }
    }
    lost.dedup();
    let what = "WLM";
    if lost.is_empty() {
        area.skip(
            what,
            "classes are told to the OCI runtime; whether they are classified is not to be seen from a program: \
             `D WLM` and the WLM dialogs tell",
        );
    } else {
        let names: Vec<_> = lost.into_iter().map(String::as_str).collect();
        area.warn(
            what,
            format!("nobody is told of {}", names.join(", ")),
            "set class_annotation or class_env, and the same for the qualifier, in [wlm]",
        );
    }
}

/// SMFLIMxx.
pub(super) fn shared_pages(area: &mut Area<'_>) {
    area.skip(
        "shared pages",
        "MAXSHARE of SMFLIMxx is not to be seen from a program: a container whose program dies for want of shared \
         storage tells",
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::{Outcome, Report};
    use super::*;

    #[test]
    fn the_stack_is_that_of_our_plugin() {
        for (text, stack) in [
            (
                r#"{"plugins":[{"type":"dvipa","stack":"TCPIPB"}]}"#,
                Some("TCPIPB"),
            ),
            (
                r#"{"plugins":[{"type":"x","stack":"A"},{"type":"dvipa","stack":"B"}]}"#,
                Some("B"),
            ),
            (r#"{"plugins":[{"type":"dvipa","stack":"default"}]}"#, None),
            (r#"{"plugins":[{"type":"dvipa"}]}"#, None),
            (r#"{"plugins":[{"type":"zoscni","stack":"A"}]}"#, None),
            ("{", None),
        ] {
            assert_eq!(stack_of(text.as_bytes()).as_deref(), stack, "{text}");
        }
    }

    #[test]
    fn a_class_that_nobody_is_told_of_is_a_warning() {
        let outcome = |config: &Config| {
            let mut report = Report::default();
            workloads(config, &mut report.area("resources"));
            let finding = &report.findings()[0];
            (finding.outcome, finding.found.clone())
        };
        let mut config = Config::default();
        assert_eq!(outcome(&config).0, Outcome::Skip);
        config.wlm.mapping.class_annotation = None;
        config.wlm.default.class = Some("SYSCNTNR".into());
        let (found, text) = outcome(&config);
        assert_eq!(found, Outcome::Warn);
        assert!(text.contains("SYSCNTNR"), "{text}");
        config.wlm.mapping.class_env = Some("CLASS".into());
        assert_eq!(outcome(&config).0, Outcome::Skip);
    }
}
