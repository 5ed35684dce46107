//! `[wlm]`: which workload a container is to z/OS Workload Manager.
//!
//! z/OS has no control groups: WLM gives CPU by goals, and classifies work into service classes. zOSCP's default
//! class is SYSCNTNR, and installations classify by a "container qualifier". How the OCI runtime is told is
//! UNVERIFIED, so that the names of the annotations and variables are configuration.

use std::collections::BTreeMap;

use crate::{
    config::glob,
    error::Fault,
    read::{Section, optional, string, word},
    source::{Item, Table, Value},
};

/// Longest name of a service class (z/OS MVS Planning: Workload Management).
const MAX_CLASS: usize = 8;
/// Longest qualifier that is taken. The real limit is UNVERIFIED; this one only keeps nonsense out.
const MAX_QUALIFIER: usize = 128;

pub(crate) const QOS_CLASSES: &[(&str, QosClass)] = &[
    ("guaranteed", QosClass::Guaranteed),
    ("burstable", QosClass::Burstable),
    ("besteffort", QosClass::BestEffort),
];

/// `[wlm]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wlm {
    /// What a container is that no rule matches.
    pub default: WlmTarget,
    /// How the OCI runtime is told.
    pub mapping: WlmMapping,
    /// The first rule that matches decides.
    pub rules: Vec<WlmRule>,
}

/// A service class, a container qualifier, or both; neither leaves the choice to the system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WlmTarget {
    /// Service class.
    pub class: Option<String>,
    /// Container qualifier.
    pub qualifier: Option<String>,
}

/// Names under which the OCI runtime gets a target; none of a kind passes nothing that way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WlmMapping {
    /// Annotation for the service class.
    pub class_annotation: Option<String>,
    /// Annotation for the qualifier.
    pub qualifier_annotation: Option<String>,
    /// Environment variable of the container for the service class.
    pub class_env: Option<String>,
    /// Environment variable of the container for the qualifier.
    pub qualifier_env: Option<String>,
}

/// Kubernetes' quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Requests equal to limits.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// Neither.
    BestEffort,
}

/// One rule: all conditions that are given must hold. `*` in a pattern stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WlmRule {
    /// Pattern of the pod's namespace.
    pub namespace: Option<String>,
    /// Labels with patterns of their values.
    pub labels: BTreeMap<String, String>,
    /// Annotations with patterns of their values.
    pub annotations: BTreeMap<String, String>,
    /// Quality of service.
    pub qos: Option<QosClass>,
    /// Runtime handler.
    pub handler: Option<String>,
    /// What it makes of the container.
    pub target: WlmTarget,
}

/// What is known of a container when it is classified.
#[derive(Debug, Clone, Copy)]
pub struct WlmSubject<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// Quality of service, where it can be told.
    pub qos: Option<QosClass>,
    /// Runtime handler.
    pub handler: &'a str,
}

impl Wlm {
    /// The target of a container. Depends on nothing but its arguments.
    #[must_use]
    pub fn classify(&self, subject: &WlmSubject<'_>) -> &WlmTarget {
        let rule = self.rules.iter().find(|rule| rule.matches(subject));
        rule.map_or(&self.default, |rule| &rule.target)
    }
}

impl WlmRule {
    fn matches(&self, subject: &WlmSubject<'_>) -> bool {
        let all = |wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>| {
            wanted
                .iter()
                .all(|(key, pattern)| found.get(key).is_some_and(|value| glob(pattern, value)))
        };
        self.namespace
            .as_ref()
            .is_none_or(|pattern| glob(pattern, subject.namespace))
            && all(&self.labels, subject.labels)
            && all(&self.annotations, subject.annotations)
            && self.qos.is_none_or(|qos| subject.qos == Some(qos))
            && self
                .handler
                .as_ref()
                .is_none_or(|name| name == subject.handler)
    }
}

impl Default for WlmMapping {
    fn default() -> Self {
        Self {
            class_annotation: Some("zcri.io/wlm-service-class".to_owned()),
            qualifier_annotation: Some("zcri.io/wlm-qualifier".to_owned()),
            class_env: None,
            qualifier_env: None,
        }
    }
}

impl Default for Wlm {
    fn default() -> Self {
        Self {
            default: WlmTarget {
                class: Some("SYSCNTNR".to_owned()),
                qualifier: None,
            },
            mapping: WlmMapping::default(),
            rules: Vec::new(),
        }
    }
}

pub(crate) fn section(mut section: Section, faults: &mut Vec<Fault>) -> Wlm {
    let mut wlm = Wlm::default();
    let Wlm {
        default, mapping, ..
    } = &mut wlm;
    section.set("default_class", &mut default.class, optional(class), faults);
    section.set(
        "default_qualifier",
        &mut default.qualifier,
        optional(qualifier),
        faults,
    );
    for (name, slot) in [
        ("class_annotation", &mut mapping.class_annotation),
        ("qualifier_annotation", &mut mapping.qualifier_annotation),
        ("class_env", &mut mapping.class_env),
        ("qualifier_env", &mut mapping.qualifier_env),
    ] {
        section.set(name, slot, optional(key), faults);
    }
    if let Some(item) = section.take("rules") {
        rules(section.key("rules"), item, &mut wlm.rules, faults);
    }
    section.finish(faults);
    wlm
}

fn rules(path: String, item: Item, rules: &mut Vec<WlmRule>, faults: &mut Vec<Fault>) {
    let Value::Array(items) = item.value else {
        faults.push(Fault {
            key: path,
            value: Some(item.value.to_string()),
            origin: Some(item.origin),
            reason: "must be an array of tables, [[wlm.rules]]".to_owned(),
        });
        return;
    };
    for (at, value) in items.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let item = Item {
            origin: item.origin.clone(),
            value,
        };
        rules.push(rule(path, item, faults));
    }
}

fn rule(path: String, item: Item, faults: &mut Vec<Fault>) -> WlmRule {
    let origin = item.origin.clone();
    let before = faults.len();
    let mut section = Section::of(path, item, faults);
    let mut rule = WlmRule::default();
    section.set("namespace", &mut rule.namespace, optional(string), faults);
    section.set("labels", &mut rule.labels, patterns, faults);
    section.set("annotations", &mut rule.annotations, patterns, faults);
    let qos = |value: &Value| word(QOS_CLASSES)(value).map(Some);
    section.set("qos", &mut rule.qos, qos, faults);
    section.set("handler", &mut rule.handler, optional(string), faults);
    section.set("class", &mut rule.target.class, optional(class), faults);
    section.set(
        "qualifier",
        &mut rule.target.qualifier,
        optional(qualifier),
        faults,
    );
    if faults.len() == before && rule.target == WlmTarget::default() {
        faults.push(Fault {
            key: section.key("class"),
            value: None,
            origin: Some(origin),
            reason: "missing: a rule needs a class or a qualifier".to_owned(),
        });
    }
    section.finish(faults);
    rule
}

fn patterns(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let wrong = || "must be a table of names with patterns".to_owned();
    let Value::Table(table) = value else {
        return Err(wrong());
    };
    let one = |(name, item): (&String, &Item)| Some((name.clone(), string(&item.value).ok()?));
    Table::iter(table)
        .map(one)
        .collect::<Option<_>>()
        .ok_or_else(wrong)
}

fn class(value: &Value) -> Result<String, String> {
    let name = string(value)?;
    let fits = (1..=MAX_CLASS).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"@#$".contains(&b));
    if fits {
        Ok(name)
    } else {
        Err("must be a service class: 1 to 8 of A-Z, 0-9, @, # and $".to_owned())
    }
}

fn qualifier(value: &Value) -> Result<String, String> {
    let name = string(value)?;
    if name.len() <= MAX_QUALIFIER && name.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(name)
    } else {
        Err(format!(
            "must be at most {MAX_QUALIFIER} printable characters without spaces"
        ))
    }
}

/// The name of an annotation or variable.
fn key(value: &Value) -> Result<String, String> {
    let name = string(value)?;
    if name.bytes().all(|b| b.is_ascii_graphic() && b != b'=') {
        Ok(name)
    } else {
        Err("must be a name without spaces and \"=\"".to_owned())
    }
}

/// The rows of `[wlm]` for `Config::to_toml`.
pub(crate) fn render(wlm: &Wlm) -> Vec<(&'static str, toml::Value)> {
    let text = |value: &Option<String>| toml::Value::String(value.clone().unwrap_or_default());
    let rules = wlm.rules.iter().map(|rule| {
        let mut table = toml::Table::new();
        let mut put = |name: &str, value: toml::Value| drop(table.insert(name.to_owned(), value));
        for (name, value) in [
            ("namespace", &rule.namespace),
            ("handler", &rule.handler),
            ("class", &rule.target.class),
            ("qualifier", &rule.target.qualifier),
        ] {
            if value.is_some() {
                put(name, text(value));
            }
        }
        for (name, map) in [("labels", &rule.labels), ("annotations", &rule.annotations)] {
            if !map.is_empty() {
                let pairs = map
                    .iter()
                    .map(|(key, value)| (key.clone(), toml::Value::String(value.clone())));
                put(name, toml::Value::Table(pairs.collect()));
            }
        }
        if let Some((name, _)) = QOS_CLASSES.iter().find(|(_, qos)| Some(*qos) == rule.qos) {
            put("qos", toml::Value::String((*name).to_owned()));
        }
        toml::Value::Table(table)
    });
    vec![
        ("default_class", text(&wlm.default.class)),
        ("default_qualifier", text(&wlm.default.qualifier)),
        ("class_annotation", text(&wlm.mapping.class_annotation)),
        (
            "qualifier_annotation",
            text(&wlm.mapping.qualifier_annotation),
        ),
        ("class_env", text(&wlm.mapping.class_env)),
        ("qualifier_env", text(&wlm.mapping.qualifier_env)),
        ("rules", toml::Value::Array(rules.collect())),
    ]
}
