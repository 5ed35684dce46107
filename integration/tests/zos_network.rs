//! The network of a z/OS node: whose address a pod has, which stack it belongs to, and what is nobody else's business.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tonic::Code;
use zcri_integration::lpar::{Service, Sysplex, namespaces, vipas};
use zcri_integration::v1::NamespaceMode;
use zcri_integration::{Builder, Test, TestNode, plugin};

const OVERRIDE: &str = "zoscp.ibm.com/override-networking";

fn zos() -> Builder {
    TestNode::builder().zos(Service::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_gives_a_pod_the_network_of_the_node() -> Test {
    let plex = Sysplex::new()?;
    let mut node = TestNode::start_lpar(plex.lpar()?).await?;
    node.allow_log("RunPodSandbox");
    let id = {
        let mut config = node.pod_config("tools")?;
        config.annotations.insert(OVERRIDE.into(), "host".into());
        let pod = node.run_pod(config).await?;
        pod.sleeper("c").await?
    };
    let shown = async |node: &TestNode| {
        let pod = node.cri().list_pods(Default::default()).await?;
        let pod = pod.first().context("a pod")?;
        let status = node.cri().pod_status(&pod.id).await?;
        let ip = status.network.unwrap_or_default().ip;
        let linux = status.linux.unwrap_or_default();
        let options = linux.namespaces.unwrap_or_default().options;
        Ok::<_, anyhow::Error>((ip, options.unwrap_or_default().network))
    };
    let host = (String::new(), i32::from(NamespaceMode::Node));
    ensure!(shown(&node).await? == host, "{:?}", shown(&node).await?);
    ensure!(vipas(node.slot()).is_empty(), "{:?}", vipas(node.slot()));
    let name = node.exec(&id, "hostname").await?;
    let own = rustix::system::uname();
    ensure!(name.success()? == own.nodename().to_string_lossy());
    // A later daemon understands the record in the same way.
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(shown(&node).await? == host, "{:?}", shown(&node).await?);

    let mut config = node.pod_config("odd")?;
    config.annotations.insert(OVERRIDE.into(), "bridge".into());
    let status = node.cri().run_pod(&config).await.err().context("it ran")?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    ensure!(status.message().contains(OVERRIDE), "{status:?}");
    node.finish().await
}

/// Linux knows nothing of that annotation.
#[tokio::test(flavor = "multi_thread")]
async fn the_annotation_means_nothing_on_linux() -> Test {
    let node = TestNode::start().await?;
    let mut config = node.pod_config("p")?;
    config.annotations.insert(OVERRIDE.into(), "host".into());
    let pod = node.run_pod(config).await?;
    ensure!(pod.ip().await?.starts_with("10.77."));
    drop(pod);
    node.finish().await
}

/// CINET: the plugin, the shim and with it the OCI runtime have affinity to the stack that is configured.
#[tokio::test(flavor = "multi_thread")]
async fn affinity_to_a_stack_is_passed_on() -> Test {
    let node = zos()
        .config("[network]\nstack_name = \"TCPIPB\"\nisolation = \"stack\"")
        .start()
        .await?;
    let told = node.files().dir.join("told");
    let script = format!(
        "echo $CNI_COMMAND $_BPXK_SETIBMOPT_TRANSPORT $CNI_NETNS >> {}; echo $result",
        told.display()
    );
    plugin::install(&node, "teller", &script)?;
    plugin::only(&node, "teller", &[])?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let text = std::fs::read_to_string(&told)?;
    // What stands for the path of a network namespace is never empty.
    let expected = format!("ADD TCPIPB zcri-{}", pod.id);
    ensure!(text.lines().any(|line| line == expected), "{text}");
    let pid = node.info(&id).await?["pid"].as_u64().context("no pid")?;
    let shim = parent(pid)?;
    let environment = std::fs::read(format!("/proc/{shim}/environ"))?;
    let mut variables = environment.split(|byte| *byte == 0);
    ensure!(
        variables.any(|variable| variable == b"_BPXK_SETIBMOPT_TRANSPORT=TCPIPB"),
        "the shim, from which the runtime inherits, has no affinity"
    );
    drop(pod);
    node.finish().await
}

/// The parent of a process.
fn parent(pid: u64) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("no PPid")?.trim().parse()?)
}

/// A conflist of plugins that nobody here has heard of, with keys that nobody here knows: each plugin gets its own
/// part as it stands, and Podman's addresses are not collected.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflist_of_other_plugins_is_opaque() -> Test {
    let mut node = zos().start().await?;
    let told = node.files().dir.join("told");
    let script = format!(
        "[ $CNI_COMMAND = ADD ] && cat >> {0} || echo $CNI_COMMAND >> {0}; echo $result",
        told.display()
    );
    plugin::install(&node, "zoscni", &script)?;
    let list = json!({
        "cniVersion": "1.1.0", "name": "zoscni", "vendorKey": { "IPv4": true, "IPv6": false },
        "plugins": [{ "type": "zoscni", "ipv4": true, "Odd-Key": [1, { "deep": null }] }],
    });
    let path = node.files().cni.join("10-test.conflist");
    std::fs::write(path, list.to_string())?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.pod("p").await?;
    node.remove_pods().await?;
    let text = std::fs::read_to_string(&told)?;
    for part in ["\"Odd-Key\":[1,{\"deep\":null}]", "\"ipv4\":true", "DEL"] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    ensure!(!text.contains("GC"), "garbage is collected: {text}");
    node.finish().await
}

/// An address of the range that another application made on this stack, and one that is active on another LPAR whose
/// range overlaps by mistake, are skipped and stay where they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_dvipa_of_another_stack_is_not_stolen() -> Test {
    let plex = Sysplex::new()?;
    let owner = TestNode::start_lpar(plex.lpar()?).await?;
    let first = owner.pod("first").await?;
    let taken = first.ip().await?;
    let web = owner.serve(&first, "first").await?;

    let lpar = plex.lpar()?;
    let both = json!({ "vipaRanges": ["10.91.1.248/29"], "probeMilliseconds": 500 });
    let mut thief = zos().lpar(lpar).prepare().await?;
    thief.use_stack(both)?;
    thief.start_daemon().await?;
    thief.allow_log("RunPodSandbox");
    let mut config = thief.pod_config("asks")?;
    config
        .annotations
        .insert("zcri.io/ips".into(), taken.clone());
    let status = thief.cri().run_pod(&config).await.err();
    let status = status.context("it was stolen")?;
    ensure!(status.message().contains(&taken), "{status:?}");
    let second = thief.pod("second").await?;
    ensure!(second.ip().await? != taken, "it was stolen");
    let (name, _) = owner.ask(&web, &taken).await?.context("no answer")?;
    ensure!(name == "first");
    drop((first, second));
    owner.finish().await?;
    thief.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dvipa_that_another_application_made_is_skipped_and_left() -> Test {
    let plex = Sysplex::new()?;
    let node = TestNode::start_lpar(plex.lpar()?).await?;
    let foreign = "10.91.1.249/32";
    let ip = |verb: &str| {
        let stack = node.slot().name();
        let words = ["-n", &stack, "addr", verb, foreign, "dev", "lo"];
        let status = std::process::Command::new("ip").args(words).status()?;
        ensure!(status.success(), "ip addr {verb}");
        Ok(())
    };
    ip("add")?;
    let pod = node.pod("p").await?;
    ensure!(pod.ip().await? == "10.91.1.250", "{}", pod.ip().await?);
    drop(pod);
    node.remove_pods().await?;
    ensure!(vipas(node.slot()) == [foreign], "{:?}", vipas(node.slot()));
    ip("del")?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn host_networking_by_cri() -> Test {
    let plex = Sysplex::new()?;
    let node = TestNode::start_lpar(plex.lpar()?).await?;
    let mut config = node.pod_config("host")?;
    namespaces(&mut config).network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let web = node.serve(&pod, "host").await?;
    let home = "10.90.0.1";
    let answer =
        zcri_integration::wait::until("an answer", zcri_integration::wait::PATIENCE, async || {
            node.ask(&web, home).await
        });
    ensure!(answer.await?.0 == "host");
    ensure!(vipas(node.slot()).is_empty());
    drop(pod);
    node.finish().await
}
