//! The node's CNI configuration from a template and the addresses that the cluster gave the node.
//!
//! Kubernetes hands each node a range of pod addresses and the kubelet tells it by UpdateRuntimeConfig. The template is
//! a conflist in which strings may hold `${podCIDR}` (the first range), `${podCIDRv4}`, `${podCIDRv6}`; an element of
//! an array that is `"${podCIDRs}"` becomes one element for each range. The result has the template's file name in the
//! directory of configurations.

use std::path::Path;

use serde_json::Value;
use zcri_cni::Cidr;

use super::failed;
use crate::error::{Error, Result};
use crate::node::blocking;

/// An element of an array that stands for all ranges.
const ALL: &str = "${podCIDRs}";

/// Writes the configuration for these ranges, which are separated by commas. Nothing is done without a template, or
/// without a range: the kubelet says "" until the cluster gave one.
pub(super) async fn apply(template: Option<&Path>, conf_dir: &Path, cidrs: &str) -> Result<()> {
    let ranges = parse(cidrs)?;
    let Some(template) = template else {
        if !ranges.is_empty() {
            tracing::info!(
                pod_cidr = cidrs,
                "the node's range is not used: network.conf_template is not set"
            );
        }
        return Ok(());
    };
    if ranges.is_empty() {
        return Ok(());
    }
    let (template, conf_dir) = (template.to_owned(), conf_dir.to_owned());
    blocking(move || write(&template, &conf_dir, &ranges)).await
}

fn parse(cidrs: &str) -> Result<Vec<Cidr>> {
    let each = |text: &str| {
        text.trim().parse::<Cidr>().map_err(|error| Error::Invalid {
            field: "runtime_config.network_config.pod_cidr",
            value: cidrs.to_owned(),
            reason: error.to_string(),
        })
    };
    let given = cidrs.split(',').filter(|text| !text.trim().is_empty());
    given.map(each).collect()
}

fn write(template: &Path, conf_dir: &Path, ranges: &[Cidr]) -> Result<()> {
    let read = |path: &Path| std::fs::read_to_string(path);
    let text =
        read(template).map_err(|e| Error::node(format!("read {}", template.display()), e))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::node(format!("understand {}", template.display()), e))?;
    let filled = fill(value, ranges).map_err(|missing| {
        failed(
            "template",
            std::io::Error::other(format!("{}: {missing}", template.display())),
        )
    })?;
    let text = format!("{filled:#}\n");
    let name = template.file_name().unwrap_or_default();
    let path = conf_dir.join(name);
    if read(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    // Hidden, and so never taken for a configuration.
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    let fresh = conf_dir.join(fresh);
    std::fs::create_dir_all(conf_dir)
        .and_then(|()| std::fs::write(&fresh, text))
        .and_then(|()| std::fs::rename(&fresh, &path))
        .map_err(|e| Error::node(format!("write {}", path.display()), e))?;
    tracing::info!(file = %path.display(), ranges = ?ranges.iter().map(Cidr::to_string).collect::<Vec<_>>(), "the pods' ranges are configured");
    Ok(())
}

/// The template with its variables replaced.
///
/// # Errors
/// The variable for which the cluster gave no range.
fn fill(value: Value, ranges: &[Cidr]) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(replace(text, ranges)?),
        Value::Array(items) => {
            let mut filled = Vec::with_capacity(items.len());
            for item in items {
                if item == ALL {
                    filled.extend(ranges.iter().map(|range| Value::String(range.to_string())));
                } else {
                    filled.push(fill(item, ranges)?);
                }
            }
            Value::Array(filled)
        }
        Value::Object(map) => {
            let each = map
                .into_iter()
                .map(|(key, value)| Ok((key, fill(value, ranges)?)));
            Value::Object(each.collect::<Result<_, String>>()?)
        }
        other => other,
    })
}

fn replace(mut text: String, ranges: &[Cidr]) -> Result<String, String> {
    let first_of = |wanted: fn(&&Cidr) -> bool| ranges.iter().find(wanted);
    for (variable, range) in [
        ("${podCIDR}", ranges.first()),
        ("${podCIDRv4}", first_of(|range| range.ip.is_ipv4())),
        ("${podCIDRv6}", first_of(|range| range.ip.is_ipv6())),
    ] {
        if text.contains(variable) {
            let range = range.ok_or_else(|| format!("the cluster gave no range for {variable}"))?;
            text = text.replace(variable, &range.to_string());
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_replaced_wherever_they_stand() {
        let template = json!({
            "name": "pods", "plugins": [
                {"type": "dvipa", "vipaRanges": ["${podCIDRs}"], "maxVipas": 9},
                {"type": "bridge", "ipam": {"ranges": [[{"subnet": "${podCIDRv4}"}], [{"subnet": "${podCIDRv6}"}]]}},
                {"note": "first is ${podCIDR}."},
            ]
        });
        let filled = fill(template, &parse("10.1.2.0/24,fd00:1::/64").unwrap()).unwrap();
        assert_eq!(
            filled,
            json!({
                "name": "pods", "plugins": [
                    {"type": "dvipa", "vipaRanges": ["10.1.2.0/24", "fd00:1::/64"], "maxVipas": 9},
                    {"type": "bridge", "ipam": {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]}},
                    {"note": "first is 10.1.2.0/24."},
                ]
            })
        );
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let only_v4 = parse("10.1.2.0/24").unwrap();
        let missing = fill(json!(["${podCIDRv6}"]), &only_v4).unwrap_err();
        assert!(missing.contains("${podCIDRv6}"), "{missing}");
        let error = parse("10.1.2.0/24,nonsense").unwrap_err().to_string();
        assert!(
            error.contains("pod_cidr") && error.contains("nonsense"),
            "{error}"
        );
        assert!(parse("").unwrap().is_empty());
    }
}
