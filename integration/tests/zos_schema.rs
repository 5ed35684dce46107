//! Specifications of containers on z/OS against the runtime specification: its schema in our words, always, and the
//! schema itself with its examples where a checkout of opencontainers/runtime-spec is named in `ZCRI_RUNTIME_SPEC`
//! (nothing of it is in this repository). Checked last against commit 6999a89.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use zcri_integration::lpar::namespaces;
use zcri_integration::pod::{pod_security, security};
use zcri_integration::v1::{Int64Value, KeyValue, Mount, NamespaceMode};
use zcri_integration::zos_runc::check;
use zcri_integration::{Test, TestNode};

const CHECKOUT: &str = "ZCRI_RUNTIME_SPEC";

/// Files of a schema, by name: as much of JSON Schema (draft 4) as the runtime specification's needs.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    /// `config.md` and `config-zos.md` in the form of a schema: kinds, and what is REQUIRED.
    fn ours() -> Self {
        let text = json!({ "type": "string" });
        let texts = json!({ "type": "array", "items": text });
        let id = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
        let object = |required: &[&str], properties: Value| json!({ "type": "object", "required": required, "properties": properties });
        let user = object(
            &[],
            json!({ "uid": id, "gid": id, "umask": id, "additionalGids": { "type": "array", "items": id } }),
        );
        let process = object(
            &["cwd"],
            json!({ "args": texts, "cwd": text, "env": texts, "terminal": { "type": "boolean" },
                    "noNewPrivileges": { "type": "boolean" }, "user": user }),
        );
        let mount = object(
            &["destination"],
            json!({ "destination": text, "source": text, "type": text, "options": texts }),
        );
        let kinds = json!({ "type": "string", "enum": ["mount", "pid", "uts", "ipc"] });
        let namespace = object(&["type"], json!({ "type": kinds, "path": text }));
        let zos = object(
            &[],
            json!({ "namespaces": { "type": "array", "items": namespace } }),
        );
        let root = object(
            &["path"],
            json!({ "path": text, "readonly": { "type": "boolean" } }),
        );
        let annotations = json!({ "type": "object", "patternProperties": { ".{1,}": text } });
        let whole = object(
            &["ociVersion"],
            json!({ "ociVersion": text, "process": process, "root": root, "hostname": text,
                    "mounts": { "type": "array", "items": mount }, "annotations": annotations, "zos": zos }),
        );
        Self([("config-schema.json".to_owned(), whole)].into())
    }

    fn of(checkout: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(checkout.join("schema"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "json") {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                files.insert(name.into_owned(), read(&path)?);
            }
        }
        Ok(Self(files))
    }

    fn validate(&self, value: &Value) -> Result<()> {
        let file = "config-schema.json";
        let schema = self.0.get(file).context("no config-schema.json")?;
        self.check(file, schema, value, "")
    }

    /// `file` is where the schema stands, `at` where the value does.
    fn check(&self, file: &str, schema: &Value, value: &Value, at: &str) -> Result<()> {
        for (keyword, rule) in schema.as_object().context("a schema is an object")? {
            match keyword.as_str() {
                "$schema" | "description" | "definitions" => {}
                "$ref" => {
                    let (file, schema) = self.find(file, rule.as_str().unwrap_or_default())?;
                    self.check(file, schema, value, at)?;
                }
                "anyOf" => {
                    let mut any = rule.as_array().into_iter().flatten();
                    let fits = any.any(|one| self.check(file, one, value, at).is_ok());
                    ensure!(fits, "{at}: {value} fits none of {rule}");
                }
                "properties" | "patternProperties" | "additionalProperties" | "required" => {
                    self.object(file, keyword, rule, value, at)?;
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(file, rule, item, &format!("{at}[{index}]"))?;
                    }
                }
                _ => scalar(keyword, rule, value).with_context(|| at.to_owned())?,
            }
        }
        Ok(())
    }

    fn object(
        &self,
        file: &str,
        keyword: &str,
        rule: &Value,
        value: &Value,
        at: &str,
    ) -> Result<()> {
        let Some(object) = value.as_object() else {
            return Ok(());
        };
        for (name, member) in object {
            let rule = match keyword {
                "properties" => rule.get(name),
                // The only pattern of a name that there is: not empty.
                "patternProperties" => {
                    let one = rule.as_object().and_then(|rules| rules.iter().next());
                    let (pattern, rule) = one.context("an empty patternProperties")?;
                    ensure!(pattern == ".{1,}", "unknown pattern {pattern}");
                    Some(rule).filter(|_| !name.is_empty())
                }
                _ => None,
            };
            if let Some(rule) = rule {
                self.check(file, rule, member, &format!("{at}.{name}"))?;
            }
        }
        if keyword == "required" {
            for name in rule.as_array().into_iter().flatten() {
                let name = name.as_str().unwrap_or_default();
                ensure!(object.contains_key(name), "{at}.{name}: missing");
            }
        }
        Ok(())
    }

    /// `FILE#/PATH` or `#/PATH`.
    fn find<'a>(&'a self, file: &'a str, reference: &'a str) -> Result<(&'a str, &'a Value)> {
        let (other, pointer) = reference.split_once('#').unwrap_or((reference, ""));
        let file = if other.is_empty() { file } else { other };
        let whole = self.0.get(file).with_context(|| file.to_owned())?;
        let found = whole.pointer(pointer);
        Ok((file, found.with_context(|| reference.to_owned())?))
    }
}

fn scalar(keyword: &str, rule: &Value, value: &Value) -> Result<()> {
    let fits = match keyword {
        "type" => match rule.as_str().unwrap_or_default() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            other => bail!("unknown type {other}"),
        },
        "enum" => rule.as_array().is_some_and(|all| all.contains(value)),
        "minimum" => value.as_f64() >= rule.as_f64(),
        "maximum" => value.as_f64() <= rule.as_f64(),
        // "^RLIMIT_[A-Z]+$", and others of Linux alone, which must not be met here.
        "pattern" => rule == "^RLIMIT_[A-Z]+$" && value.as_str().is_some_and(is_rlimit),
        other => bail!("unknown keyword {other}"),
    };
    ensure!(fits, "{value} is against {keyword} {rule}");
    Ok(())
}

fn is_rlimit(text: &str) -> bool {
    let rest = text.strip_prefix("RLIMIT_").unwrap_or_default();
    !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_uppercase())
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn checkout() -> Option<std::path::PathBuf> {
    let named = std::env::var_os(CHECKOUT).map(Into::into);
    if named.is_none() {
        eprintln!("the schema itself is left out: {CHECKOUT} names no checkout of runtime-spec");
    }
    named
}

#[tokio::test(flavor = "multi_thread")]
async fn every_specification_of_a_container_is_valid() -> Test {
    let node = TestNode::start_zos().await?;
    let mut specs = Vec::new();
    let plain = node.run_pod(node.host_pod_config("plain")?).await?;
    let id = plain.sleeper("c").await?;
    specs.push(node.info(&id).await?["runtimeSpec"].clone());
    let mut config = node.container_config("silent").await?;
    config.linux = None;
    let id = plain.create(&config).await?;
    specs.push(node.info(&id).await?["runtimeSpec"].clone());

    let mut config = node.host_pod_config("rich")?;
    namespaces(&mut config).pid = NamespaceMode::Pod.into();
    pod_security(&mut config).supplemental_groups = vec![7, 8];
    let rich = node.run_pod(config).await?;
    let mut config = node.container_config("rich").await?;
    config.tty = true;
    config.stdin = true;
    config.envs.push(KeyValue {
        key: "A".into(),
        value: "b c".into(),
    });
    config.mounts.push(Mount {
        container_path: "/data".into(),
        host_path: node.scratch("data")?.display().to_string(),
        readonly: true,
        ..Default::default()
    });
    let own = security(&mut config);
    own.run_as_user = Some(Int64Value { value: 1000 });
    own.no_new_privs = true;
    own.readonly_rootfs = true;
    let id = rich.create(&config).await?;
    specs.push(node.info(&id).await?["runtimeSpec"].clone());

    let mut schemas = vec![Schema::ours()];
    if let Some(checkout) = checkout() {
        schemas.push(Schema::of(&checkout)?);
    }
    for spec in &specs {
        check(spec)?;
        for schema in &schemas {
            schema.validate(spec).with_context(|| format!("{spec:#}"))?;
        }
    }
    drop((plain, rich));
    node.finish().await
}

/// What its examples for z/OS have: all four namespaces, a TFS, rlimits, hooks, a host name.
#[test]
fn what_the_specification_shows_as_an_example_is_taken() -> Test {
    let least = json!({ "ociVersion": "1.2.1", "process": { "cwd": "/", "args": ["sh"] },
                        "root": { "path": "rootfs" }, "zos": {} });
    let full = json!({
        "ociVersion": "1.2.1", "hostname": "h", "annotations": { "a.b": "c" },
        "process": {
            "terminal": true, "cwd": "/", "args": ["sh"], "env": ["TERM=xterm"], "noNewPrivileges": true,
            "user": { "uid": 1, "gid": 1, "additionalGids": [5] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tfs", "source": "tmpfs", "options": ["nosuid", "-p 1755"] },
        ],
        "hooks": { "poststop": [{ "path": "/bin/x", "args": ["x"] }] },
        "zos": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] },
    });
    for example in [least, full] {
        check(&example)?;
        Schema::ours().validate(&example)?;
    }
    let Some(checkout) = checkout() else {
        return Ok(());
    };
    for name in ["zos-minimal.json", "zos-example.json"] {
        let mut example = read(&checkout.join("schema/test/config/good").join(name))?;
        Schema::of(&checkout)?.validate(&example)?;
        Schema::ours().validate(&example)?;
        // They are of the time before namespaces, and need not be startable.
        example["ociVersion"] = json!("1.2.1");
        if example.get("process").is_none() {
            example["process"] = json!({ "cwd": "/", "args": ["sh"] });
        }
        check(&example).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[test]
fn the_schema_sees_what_is_wrong() -> Test {
    let good = json!({ "ociVersion": "1.2.1", "process": { "cwd": "/", "args": ["sh"] },
                       "root": { "path": "rootfs" }, "zos": { "namespaces": [{ "type": "pid" }] } });
    type Change = fn(&mut Value);
    let changes: [Change; 5] = [
        |s| s["zos"]["namespaces"][0]["type"] = json!("network"),
        |s| s["zos"]["namespaces"][0] = json!({ "path": "/p" }),
        |s| s["process"]["user"] = json!({ "uid": -1 }),
        |s| s["process"]["args"] = json!("sh"),
        |s| s["root"] = json!({}),
    ];
    let mut schemas = vec![Schema::ours()];
    if let Some(checkout) = checkout() {
        schemas.push(Schema::of(&checkout)?);
    }
    for schema in &schemas {
        schema.validate(&good)?;
        for change in changes {
            let mut wrong = good.clone();
            change(&mut wrong);
            ensure!(schema.validate(&wrong).is_err(), "{wrong:#}");
        }
    }
    Ok(())
}
