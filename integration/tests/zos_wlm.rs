//! Classification of containers for Workload Manager, and its effect: the emulation gives classes CPU shares.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use zcri_integration::lpar::Service;
use zcri_integration::{Test, TestNode};

const RULES: &str = r#"
[wlm]
default_class = "SYSCNTNR"
qualifier_annotation = "example.com/qualifier"
class_env = "WLM_CLASS"
[[wlm.rules]]
namespace = "prod*"
labels = { app = "pay*" }
class = "PRODHI"
qualifier = "PAYROLL"
[[wlm.rules]]
qos = "besteffort"
class = "LOW"
"#;

async fn node() -> Result<TestNode> {
    let service = Service {
        classes: [("PRODHI".to_owned(), 4096), ("SYSCNTNR".to_owned(), 256)].into(),
        ..Service::default()
    };
    TestNode::builder().zos(service).config(RULES).start().await
}

/// CPU shares of a container's first process, by its group.
fn shares(pid: u64) -> Result<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mut lines = groups.lines();
    let cpu = lines.find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == "cpu")
            .then_some((controllers, path))
    });
    if let Some((controllers, path)) = cpu {
        for mount in [controllers, "cpu"] {
            let file = format!("/sys/fs/cgroup/{mount}{path}/cpu.shares");
            if let Ok(text) = std::fs::read_to_string(file) {
                return Ok(text.trim().parse()?);
            }
        }
    }
    // Version 2: weight 1 to 10000 for shares 2 to 262144 (OCI runtimes' formula), here turned round.
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let file = format!("/sys/fs/cgroup{}/cpu.weight", path.context("no group")?);
    let weight: u64 = std::fs::read_to_string(file)?.trim().parse()?;
    Ok((weight - 1) * 262_142 / 9_999 + 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_is_chosen_told_shown_and_has_its_effect() -> Test {
    let node = node().await?;
    let mut config = node.host_pod_config("pay")?;
    config.metadata.get_or_insert_default().namespace = "production".into();
    config.labels.insert("app".into(), "payroll".into());
    let pay = node.run_pod(config).await?;
    let mut config = node.host_pod_config("besteffort")?;
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = format!("{}/pod-besteffort", node.slot().cgroup());
    let low = node.run_pod(config).await?;
    let other = node.run_pod(node.host_pod_config("other")?).await?;
    for (pod, class, expected) in [
        (&pay, "PRODHI", 4096),
        (&low, "LOW", 2),
        (&other, "SYSCNTNR", 256),
    ] {
        let id = pod.sleeper("c").await?;
        let info = node.info(&id).await?;
        ensure!(info["wlm"]["serviceClass"] == class, "{class}: {info:#}");
        let annotations = &info["runtimeSpec"]["annotations"];
        ensure!(annotations["zcri.io/wlm-service-class"] == class);
        let status = node.cri().status(&id).await?;
        let shown = status.annotations.get("zcri.io/wlm.class");
        ensure!(shown.is_some_and(|shown| shown == class), "{status:?}");
        let told = node.exec(&id, "echo $WLM_CLASS").await?;
        ensure!(told.success()? == class, "{told:?}");
        let pid = info["pid"].as_u64().context("no pid")?;
        let found = shares(pid)?;
        ensure!(found.abs_diff(expected) <= 27, "{class}: {found}");
        let qualifier = &annotations["example.com/qualifier"];
        ensure!((class == "PRODHI") == (qualifier == "PAYROLL"));
    }
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_class_when_the_rules_change() -> Test {
    let mut node = node().await?;
    let id = {
        let pod = node.run_pod(node.host_pod_config("p")?).await?;
        pod.sleeper("c").await?
    };
    node.stop_daemon().await?;
    let drop_in = node.files().dir.join("etc/zcri.toml.d/50-test.toml");
    std::fs::write(drop_in, "[wlm]\ndefault_class = \"OTHER\"")?;
    node.start_daemon().await?;
    ensure!(node.info(&id).await?["wlm"]["serviceClass"] == "SYSCNTNR");
    let pod = node.run_pod(node.host_pod_config("q")?).await?;
    let new = pod.sleeper("c").await?;
    ensure!(node.info(&new).await?["wlm"]["serviceClass"] == "OTHER");
    drop(pod);
    node.finish().await
}
