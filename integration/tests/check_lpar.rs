//! `zcrid check` on an emulated LPAR: fit, and broken in the ways that a newcomer meets.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zcri_integration::lpar::{Service, Sysplex, vipas};
use zcri_integration::zos_runc::Deny;
use zcri_integration::{Test, TestNode, leaks, plugin, wait};

/// Where the steps of the set-up have their checks.
const STEPS: &str = "../docs/zos.md";

/// An LPAR whose daemon was never started, and the sysplex that it is in.
async fn lpar(service: Service, dvipa: Value) -> Result<(Sysplex, TestNode)> {
    let plex = Sysplex::new()?;
    let lpar = plex.lpar()?;
    let range = lpar.range();
    let builder = TestNode::builder().zos(service).lpar(lpar);
    let builder = builder.config("[network]\nstack_name = \"TCPIP\"\n");
    let node = builder.prepare().await?;
    let mut config = json!({
        "backend": "stack", "interface": "lo", "stack": "TCPIP", "vipaRanges": [range],
    });
    let keys = config.as_object_mut().context("an object")?;
    keys.extend(dvipa.as_object().cloned().unwrap_or_default());
    plugin::dvipa(&node, config, &[])?;
    Ok((plex, node))
}

/// The exit code and the report.
fn check(node: &TestNode) -> Result<(Option<i32>, Value)> {
    let output = node.zcrid()?.args(["check", "--json"]).output()?;
    let report = serde_json::from_slice(&output.stdout);
    let report = report.with_context(|| format!("{output:?}"))?;
    let left = leaks::audit(node.slot());
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(vipas(node.slot()).is_empty(), "a VIPA is still active");
    Ok((output.status.code(), report))
}

fn findings(report: &Value) -> Result<&Vec<Value>> {
    report["findings"].as_array().context("findings")
}

fn finding<'a>(report: &'a Value, area: &str, what: &str) -> Result<&'a Value> {
    let mut all = findings(report)?.iter();
    all.find(|f| f["area"] == area && f["what"].as_str().is_some_and(|w| w.ends_with(what)))
        .with_context(|| format!("nothing on {what} in {area}: {report:#}"))
}

/// The node is not fit, and what `what` says and advises holds these words.
async fn fails(node: TestNode, area: &str, what: &str, found: &str, advice: &str) -> Test {
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(1), "{report:#}");
    let finding = finding(&report, area, what)?;
    assert_eq!(finding["outcome"], "fail", "{finding}");
    for (key, words) in [("found", found), ("advice", advice)] {
        let text = finding[key].as_str().unwrap_or_default();
        ensure!(text.contains(words), "{words:?} is not in {text:?}");
    }
    assert_eq!(report["failed"], 1, "{report:#}");
    node.finish().await
}

fn drop_in(node: &TestNode, text: &str) -> Test {
    let path = node.files().dir.join("etc/zcri.toml.d/99-bad.toml");
    Ok(std::fs::write(path, text)?)
}

#[tokio::test]
async fn a_fit_lpar_gets_an_address_on_its_stack_and_gives_it_back() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    for (area, what) in [
        ("storage", "union file system"),
        ("namespaces", "uts"),
        ("network", "TCP/IP stack"),
        ("network", "STATUS"),
        ("network", "address"),
        ("network", "address back"),
        ("images", "platform"),
        ("runtime", "zos features"),
        ("hello", "zos"),
    ] {
        let finding = finding(&report, area, what)?;
        assert_eq!(finding["outcome"], "pass", "{finding}");
    }
    let address = finding(&report, "network", "address")?["found"].clone();
    ensure!(address.as_str().is_some_and(|a| a.starts_with("10.91.1.")));
    // Nothing of Linux alone is asked for.
    for what in ["user namespaces", "IPv4 forwarding", "memory controller"] {
        ensure!(finding(&report, "limits", what).is_err());
        ensure!(finding(&report, "kernel", what).is_err());
        ensure!(finding(&report, "resources", what).is_err());
    }
    // Groups of the emulation alone are left, where `zos-runc` has its classes.
    let unified = Path::new("/sys/fs/cgroup/unified").join(node.slot().name());
    let entries = std::fs::read_dir(unified).into_iter().flatten().flatten();
    let groups: Vec<_> = entries
        .filter(|entry| entry.path().is_dir() && entry.file_name() != "lpar")
        .collect();
    ensure!(groups.is_empty(), "{groups:?}");
    node.finish().await
}

#[tokio::test]
async fn the_address_of_a_killed_check_is_given_back_by_the_next() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    let reached = node.files().dir.join("reached");
    let hang = format!("touch {}; exec sleep 1000", reached.display());
    let script = format!("[ $CNI_COMMAND != ADD ] || {{ {hang}; }}; echo $result");
    plugin::install(&node, "sleeper", &script)?;
    let own = json!({
        "backend": "stack", "interface": "lo", "stack": "TCPIP", "vipaRanges": ["10.91.1.248/29"],
    });
    plugin::dvipa(&node, own, &[json!({ "type": "sleeper" })])?;
    let mut command = node.zcrid()?;
    command
        .arg("check")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    wait::until_true("the second plugin", wait::PATIENCE, || reached.exists()).await?;
    child.kill()?;
    tokio::task::spawn_blocking(move || child.wait()).await??;
    assert_eq!(vipas(node.slot()).len(), 1, "the test is none without it");
    plugin::install(&node, "sleeper", "echo $result")?;
    fits(node).await
}

/// docs/zos.md says of each step of the set-up which check finds it missing, or why none does.
#[tokio::test]
async fn every_step_of_the_set_up_has_its_check_or_its_sentence() -> Test {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(STEPS))?;
    let (_, table) = text
        .split_once("<!-- steps -->")
        .context("the table of steps")?;
    let rows = table.trim_start().lines().skip(2);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 12);
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    let store = node.scratch("storage")?;
    drop_in(
        &node,
        &format!("[image]\nadditional_stores = [{store:?}]\n"),
    )?;
    let (_, report) = check(&node)?;
    let mut known = BTreeSet::new();
    for finding in findings(&report)? {
        let what = finding["what"].as_str().context("what")?;
        // Paths and handlers have names of the node's own.
        let what = what.rsplit_once(" (").map_or(what, |(_, kind)| kind);
        let word = |text: &Value| text.as_str().unwrap_or_default().to_owned();
        // Or all of an area.
        known.insert(word(&finding["area"]));
        known.insert(format!(
            "{}: {}",
            word(&finding["area"]),
            what.trim_end_matches(')')
        ));
    }
    for row in &rows {
        let [number, what, checks, why] = row[..] else {
            anyhow::bail!("{row:?} has no four columns")
        };
        ensure!(!number.is_empty() && !what.is_empty());
        ensure!(
            !checks.is_empty() || why.ends_with('.'),
            "{what} has neither a check nor a sentence"
        );
        for check in checks.split('`').skip(1).step_by(2) {
            ensure!(known.contains(check), "{check:?} is none of {known:#?}");
        }
    }
    node.finish().await
}

/// Podman, or who else shares the range, has the only address that is left to pods.
#[tokio::test]
async fn a_range_that_others_have_used_up() -> Test {
    let all_but_one = json!({ "exclude": ["10.91.1.250-10.91.1.254"] });
    let (_plex, node) = lpar(Service::default(), all_but_one).await?;
    let ip = |what: &str| -> Test {
        let command = format!(
            "-n {} addr {what} 10.91.1.249/32 dev lo",
            node.slot().name()
        );
        let output = Command::new("ip").args(command.split(' ')).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    ip("add")?;
    let output = node.zcrid()?.args(["check", "--json"]).output()?;
    assert_eq!(vipas(node.slot()), ["10.91.1.249/32"], "it is another's");
    ip("del")?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        (&report["fit"], &report["failed"]),
        (&json!(false), &json!(1))
    );
    let finding = findings(&report)?.iter().find(|f| f["outcome"] == "fail");
    let text = finding
        .and_then(|f| f["found"].as_str())
        .unwrap_or_default();
    ensure!(text.contains("10.91.1.249"), "{text}");
    // And without the other the same node is fit.
    fits(node).await
}

async fn fits(node: TestNode) -> Test {
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    node.finish().await
}

#[tokio::test]
async fn a_runtime_that_knows_no_zos() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    drop_in(&node, "[runtime]\ndefault_handler = \"runc\"\n")?;
    let advice = "runC of z/OS Container Platform";
    fails(node, "runtime", "runc features", "1.2.1", advice).await
}

#[tokio::test]
async fn missing_authority_names_the_profile() -> Test {
    let service = Service {
        deny: vec![Deny::Clone],
        ..Service::default()
    };
    let (_plex, node) = lpar(service, json!({})).await?;
    let advice = "READ to CONTAINERS in class UNIXPRIV";
    fails(node, "hello", "zos", "not permitted", advice).await
}

#[tokio::test]
async fn no_policy() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    std::fs::remove_file(node.files().dir.join("etc/policy.json"))?;
    let advice = "{\"default\":[{\"type\":\"reject\"}]";
    fails(node, "images", "policy.json", "no image is let in", advice).await
}

#[tokio::test]
async fn plugins_that_are_not_installed() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    plugin::only(&node, "zoscni", &[])?;
    fails(node, "network", "plugins", "zoscni", "install it into").await
}

#[tokio::test]
async fn an_additional_store_that_is_not_mounted_is_a_warning() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    drop_in(&node, "[image]\nadditional_stores = [\"/no/storage\"]\n")?;
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    let finding = finding(&report, "images", "(additional store)")?;
    assert_eq!(finding["outcome"], "warn");
    node.finish().await
}

#[tokio::test]
async fn another_stack_than_that_of_the_network_is_a_warning() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({ "stack": "TCPIPB" })).await?;
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    let finding = finding(&report, "network", "TCP/IP stack")?;
    assert_eq!(finding["outcome"], "warn");
    let advice = finding["advice"].as_str().unwrap_or_default();
    ensure!(advice.contains("stack_name = \"TCPIPB\""), "{advice}");
    node.finish().await
}

#[tokio::test]
async fn a_class_that_the_runtime_is_not_told_of_is_a_warning() -> Test {
    let (_plex, node) = lpar(Service::default(), json!({})).await?;
    drop_in(&node, "[wlm]\nclass_annotation = \"\"\n")?;
    let (code, report) = check(&node)?;
    assert_eq!(code, Some(0), "{report:#}");
    let finding = finding(&report, "resources", "WLM")?;
    assert_eq!(finding["outcome"], "warn");
    ensure!(
        finding["found"]
            .as_str()
            .is_some_and(|f| f.contains("SYSCNTNR"))
    );
    node.finish().await
}
