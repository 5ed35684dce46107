//! The demo of the z/OS node: two emulated LPARs of one sysplex, pods on both from a zos/s390x image, traffic between
//! them, an LPAR that fails and comes back, and a look at what is left.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use zcri_integration::lpar::{Sysplex, vipas};
use zcri_integration::{TestNode, binaries, wait};

/// What the daemon of an LPAR that failed has to say of it when it comes back.
const EXPECTED: &str = "the shim of this pod is gone";

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lpar-demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(demo()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nlpar-demo FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A web server in a pod of an LPAR.
struct Web {
    lpar: usize,
    name: String,
    pod: String,
    ip: String,
    container: String,
}

async fn demo() -> Result<()> {
    binaries::check()?;
    let begin = Instant::now();
    let plex = Sysplex::new()?;
    let mut lpars = Vec::new();
    for number in 1..=2 {
        let start = Instant::now();
        let place = plex.lpar()?;
        let (home, range) = (place.home(), place.range());
        lpars.push(TestNode::start_lpar(place).await?);
        done(
            &format!("LPAR {number}"),
            start,
            &format!(
                "zcrid with platform zos; stack TCPIP at {home}, VIPARANGE {range} ZCONTAINER"
            ),
        );
    }
    let webs = pods(&lpars).await?;
    traffic(&lpars, &webs).await?;
    let webs = failure(&mut lpars, webs).await?;
    traffic(&lpars, &webs).await?;
    for (number, lpar) in (1..).zip(lpars) {
        let start = Instant::now();
        lpar.finish().await.context("leak check")?;
        done(
            &format!("LPAR {number} ends"),
            start,
            "no mount, process, cgroup, DVIPA, lease, record or directory is left",
        );
    }
    drop(plex);
    println!("\ndone in {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Two pods on each LPAR, all with a server on port 80.
async fn pods(lpars: &[TestNode]) -> Result<Vec<Web>> {
    let mut webs = Vec::new();
    for (lpar, node) in lpars.iter().enumerate() {
        for letter in ["a", "b"] {
            webs.push(web(lpar, node, &format!("pod-{}{letter}", lpar + 1)).await?);
        }
        println!(
            "    active on LPAR {}: {}",
            lpar + 1,
            vipas(node.slot()).join(" ")
        );
    }
    let first = webs.first().context("a pod")?;
    let node = lpars.first().context("an LPAR")?;
    let info = node.info(&first.container).await?;
    let spec = &info["runtimeSpec"];
    println!(
        "    the specification of {}: ociVersion {}, zos {}, no linux object: {}, WLM class {}",
        first.name,
        spec["ociVersion"],
        spec["zos"],
        spec.get("linux").is_none(),
        info["wlm"]["serviceClass"],
    );
    Ok(webs)
}

async fn web(lpar: usize, node: &TestNode, name: &str) -> Result<Web> {
    let start = Instant::now();
    let pod = node.pod(name).await?;
    let ip = pod.ip().await?;
    let container = node.serve(&pod, name).await?;
    let image = node.exec(&container, "echo $IMAGE").await?;
    ensure!(image.success()? == "zos", "not the zos/s390x image");
    done(
        name,
        start,
        &format!("LPAR {}, DVIPA {ip}, port 80, image zos/s390x", lpar + 1),
    );
    Ok(Web {
        lpar,
        name: name.to_owned(),
        pod: pod.id,
        ip,
        container,
    })
}

/// Every pod asks every pod.
async fn traffic(lpars: &[TestNode], webs: &[Web]) -> Result<()> {
    let start = Instant::now();
    for from in webs {
        let node = lpars.get(from.lpar).context("an LPAR")?;
        for to in webs {
            let what = format!("{} to answer {}", to.name, from.name);
            let (name, seen) = wait::until(&what, wait::PATIENCE, async || {
                node.ask(&from.container, &to.ip).await
            })
            .await?;
            ensure!(name == to.name, "{} answered at {}", name, to.ip);
            ensure!(
                seen == from.ip,
                "{} came from {seen}, not {}",
                from.name,
                from.ip
            );
        }
    }
    let note = format!(
        "{} pods asked each other on port 80; each came from its own DVIPA",
        webs.len()
    );
    done("traffic", start, &note);
    Ok(())
}

/// The first LPAR fails and comes back; the kubelet makes its pods anew.
async fn failure(lpars: &mut [TestNode], webs: Vec<Web>) -> Result<Vec<Web>> {
    let [first, second] = lpars else {
        anyhow::bail!("two LPARs");
    };
    let (lost, kept): (Vec<Web>, Vec<Web>) = webs.into_iter().partition(|web| web.lpar == 0);
    let (target, witness) = (
        lost.first().context("a pod")?,
        kept.first().context("a pod")?,
    );
    let start = Instant::now();
    first.allow_log(EXPECTED);
    first.fail_lpar().await?;
    let answer = second.ask(&witness.container, &target.ip).await?;
    ensure!(answer.is_none(), "{} still answers", target.ip);
    done(
        "LPAR 1 fails",
        start,
        &format!("{} cannot reach {} any more", witness.name, target.name),
    );
    let other = kept.last().context("a pod")?;
    let start = Instant::now();
    let answer = second.ask(&witness.container, &other.ip).await?;
    ensure!(answer.is_some(), "LPAR 2 is hurt too");
    done("LPAR 2", start, "goes on as if nothing had happened");
    let start = Instant::now();
    first.ipl().await?;
    done(
        "LPAR 1, IPL",
        start,
        "a new stack without DVIPAs, zcrid serves",
    );
    let mut webs = Vec::new();
    for web in &lost {
        first
            .cri()
            .stop_pod(&web.pod)
            .await
            .context("StopPodSandbox")?;
        first
            .cri()
            .remove_pod(&web.pod)
            .await
            .context("RemovePodSandbox")?;
    }
    for web in &lost {
        webs.push(self::web(0, first, &format!("{}-again", web.name)).await?);
    }
    webs.extend(kept);
    Ok(webs)
}

fn done(step: &str, start: Instant, note: &str) {
    let took = start.elapsed().as_secs_f64() * 1e3;
    println!("  {step:18} {took:9.1} ms  {note}");
}
