//! The pod's bandwidth from the annotations that Kubernetes knows.
//! Source: kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins, "Support traffic
//! shaping"; the bounds are those of `pkg/util/bandwidth/utils.go`.

use std::collections::BTreeMap;

use zcri_cni::Bandwidth;

use crate::error::{Error, Result};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Bits per second.
const MIN: u64 = 1_000;
const MAX: u64 = 1_000_000_000_000_000;

/// None when nothing is asked for.
pub(super) fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Bandwidth>> {
    let ingress = rate(
        annotations,
        INGRESS,
        "annotations[\"kubernetes.io/ingress-bandwidth\"]",
    )?;
    let egress = rate(
        annotations,
        EGRESS,
        "annotations[\"kubernetes.io/egress-bandwidth\"]",
    )?;
    Ok((ingress.is_some() || egress.is_some()).then(|| Bandwidth::from_rates(ingress, egress)))
}

fn rate(
    annotations: &BTreeMap<String, String>,
    key: &str,
    field: &'static str,
) -> Result<Option<u64>> {
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    let invalid = |reason: &str| Error::Invalid {
        field,
        value: text.clone(),
        reason: reason.into(),
    };
    let rate = quantity(text).ok_or_else(|| invalid("not a quantity such as 10M"))?;
    if (MIN..=MAX).contains(&rate) {
        Ok(Some(rate))
    } else {
        Err(invalid("not between 1k and 1P"))
    }
}

/// A quantity as Kubernetes writes them, rounded up. Source: apimachinery `pkg/api/resource/quantity.go`.
fn quantity(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Nine digits are more than any bound above can tell apart.
    let fraction = fraction.get(..fraction.len().min(9))?;
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(factor(suffix)?)?.div_ceil(scale);
    u64::try_from(value).ok()
}

fn factor(suffix: &str) -> Option<u128> {
    let decimal = ["", "k", "M", "G", "T", "P", "E"];
    let binary = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let place = |of: &[&str]| {
        of.iter()
            .position(|s| *s == suffix)
            .and_then(|n| u32::try_from(n).ok())
    };
    if let Some(n) = place(&decimal) {
        return 1000_u128.checked_pow(n);
    }
    if let Some(n) = place(&binary) {
        return 1024_u128.checked_pow(n);
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    10_u128.checked_pow(
        exponent
            .strip_prefix('+')
            .unwrap_or(exponent)
            .parse()
            .ok()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("1000", 1_000),
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            (".5G", 500_000_000),
            ("2Ki", 2_048),
            ("1e6", 1_000_000),
            ("1E+6", 1_000_000),
            ("1.0001k", 1_001),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in [
            "",
            "M",
            ".",
            "1.2.3",
            "-1M",
            "1m",
            "1 M",
            "10MB",
            "1e-3",
            "99999999999E",
        ] {
            assert_eq!(quantity(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_rate_out_of_bounds_is_refused_by_its_name() {
        let with = |text: &str| BTreeMap::from([(EGRESS.to_owned(), text.to_owned())]);
        for text in ["1", "2P", "fast"] {
            let error = of(&with(text)).unwrap_err().to_string();
            assert!(error.contains(EGRESS) && error.contains(text), "{error}");
        }
        let bandwidth = of(&with("1M")).unwrap().unwrap();
        assert_eq!(
            (bandwidth.egress_rate, bandwidth.ingress_rate),
            (1_000_000, 0)
        );
        assert!(of(&BTreeMap::new()).unwrap().is_none());
    }
}
