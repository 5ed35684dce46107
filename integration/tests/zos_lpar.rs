//! Two emulated LPARs of one sysplex: pods without network namespaces, each with a DVIPA of its LPAR's range.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::lpar::{Sysplex, vipas};
use zcri_integration::v1::PodSandboxState;
use zcri_integration::{Test, TestNode, wait};

/// What a killed daemon or LPAR has to say of it.
const EXPECTED: [&str; 3] = ["shim", "could not be", "is attached"];

async fn two() -> Result<(Sysplex, TestNode, TestNode)> {
    let plex = Sysplex::new()?;
    let one = TestNode::start_lpar(plex.lpar()?).await?;
    let two = TestNode::start_lpar(plex.lpar()?).await?;
    Ok((plex, one, two))
}

/// Asks until there is an answer: a server may still be starting.
async fn answer(node: &TestNode, from: &str, to: &str) -> Result<(String, String)> {
    let what = format!("an answer from {to} to {from}");
    wait::until(&what, wait::PATIENCE, async || node.ask(from, to).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_two_lpars_have_the_same_port_and_reach_each_other() -> Test {
    let (_plex, one, two) = two().await?;
    let mut web = Vec::new();
    for (lpar, node) in [("a", &one), ("b", &two)] {
        for number in 1..=2 {
            let says = format!("{lpar}{number}");
            let pod = node.pod(&says).await?;
            let ip = pod.ip().await?;
            let id = node.serve(&pod, &says).await?;
            web.push((node, says, ip, id));
        }
    }
    for (node, _, own, id) in &web {
        for (_, says, ip, _) in &web {
            let (name, from) = answer(node, id, ip).await?;
            ensure!(name == *says, "{ip} answered as {name}, not {says}");
            ensure!(from == *own, "asked from {from}, not from {own}");
        }
    }
    ensure!(web[0].2.starts_with("10.91.1.") && web[2].2.starts_with("10.91.2."));
    let net = one.exec(&web[0].3, "readlink /proc/self/ns/net").await?;
    let daemon = one.daemon_pid()?.as_raw_nonzero();
    let stack = std::fs::read_link(format!("/proc/{daemon}/ns/net"))?;
    ensure!(
        net.success()? == stack.display().to_string(),
        "the pod has a network namespace"
    );
    ensure!(vipas(one.slot()).len() == 2, "{:?}", vipas(one.slot()));
    drop(web);
    one.finish().await?;
    two.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lpar_fails_and_comes_back() -> Test {
    let (_plex, mut one, two) = two().await?;
    EXPECTED.iter().for_each(|text| one.allow_log(text));
    let (lost, lost_ip) = {
        let pod = one.pod("lost").await?;
        one.serve(&pod, "lost").await?;
        let ip = pod.ip().await?;
        (pod.id.clone(), ip)
    };
    let pod = two.pod("stays").await?;
    let client = two.serve(&pod, "stays").await?;
    answer(&two, &client, &lost_ip).await?;

    one.fail_lpar().await?;
    ensure!(
        two.ask(&client, &lost_ip).await?.is_none(),
        "it still answers"
    );
    answer(&two, &client, &pod.ip().await?).await?;

    one.ipl().await?;
    let status = one.cri().pod_status(&lost).await?;
    ensure!(status.state == i32::from(PodSandboxState::SandboxNotready));
    // As the kubelet does: the old one goes, a new one comes.
    one.cri().stop_pod(&lost).await?;
    one.cri().remove_pod(&lost).await?;
    ensure!(vipas(one.slot()).is_empty(), "{:?}", vipas(one.slot()));
    let again = one.pod("again").await?;
    let web = one.serve(&again, "again").await?;
    let (name, _) = answer(&two, &client, &again.ip().await?).await?;
    ensure!(name == "again");
    answer(&one, &web, &pod.ip().await?).await?;
    drop((again, pod));
    one.finish().await?;
    two.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lpar_that_is_cut_off_goes_on_alone() -> Test {
    let (_plex, one, two) = two().await?;
    let (a, b) = (one.pod("a").await?, one.pod("b").await?);
    let (ip_a, ip_b) = (a.ip().await?, b.ip().await?);
    let (web_a, web_b) = (one.serve(&a, "a").await?, one.serve(&b, "b").await?);
    let far = two.pod("far").await?;
    let far_web = two.serve(&far, "far").await?;
    answer(&two, &far_web, &ip_a).await?;
    one.cut_off(true)?;
    ensure!(two.ask(&far_web, &ip_a).await?.is_none(), "it is reachable");
    let (name, _) = answer(&one, &web_a, &ip_b).await?;
    ensure!(name == "b");
    let late = one.pod("late").await?;
    ensure!(late.ip().await?.starts_with("10.91.1."));
    one.cut_off(false)?;
    let (name, _) = answer(&two, &far_web, &ip_b).await?;
    ensure!(name == "b");
    answer(&one, &web_b, &far.ip().await?).await?;
    drop((a, b, late, far));
    one.finish().await?;
    two.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_answer_while_the_daemon_is_away() -> Test {
    let plex = Sysplex::new()?;
    let mut node = TestNode::start_lpar(plex.lpar()?).await?;
    let (ip, web) = {
        let (a, b) = (node.pod("a").await?, node.pod("b").await?);
        node.serve(&a, "a").await?;
        (a.ip().await?, node.serve(&b, "b").await?)
    };
    answer(&node, &web, &ip).await?;
    let before = vipas(node.slot());
    node.kill_daemon().await?;
    ensure!(
        vipas(node.slot()) == before,
        "addresses do not depend on it"
    );
    node.start_daemon().await?;
    ensure!(vipas(node.slot()) == before, "{:?}", vipas(node.slot()));
    answer(&node, &web, &ip).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_without_a_free_address_says_so() -> Test {
    let plex = Sysplex::new()?;
    let node = TestNode::start_lpar(plex.lpar()?).await?;
    node.allow_log("RunPodSandbox");
    node.allow_log("exhausted");
    for number in 1..=6 {
        node.pod(&format!("p{number}")).await?;
    }
    let one_more = node.pod_config("one-more")?;
    let status = node.cri().run_pod(&one_more).await.err();
    let status = status.context("a seventh pod has an address")?;
    ensure!(
        status.code() != Code::Ok && status.message().contains("10.91.1.248/29"),
        "{status:?}"
    );
    ensure!(vipas(node.slot()).len() == 6);
    node.finish().await
}
