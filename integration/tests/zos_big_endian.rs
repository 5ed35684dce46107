//! Real s390x code in a container of an emulated LPAR: big-endian, by QEMU's user emulation, which stands for the
//! machine and therefore is in the image.
//!
//! `make big-endian` builds the program and names it in `ZCRI_BIG_ENDIAN`; without it there is nothing to run.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use zcri_integration::lpar::Sysplex;
use zcri_integration::registry::{Compression, Image, Index, LayerBuilder};
use zcri_integration::{Test, TestNode, binaries, wait};

/// The statically linked demo payload for s390x-unknown-linux-gnu.
const PROGRAM: &str = "ZCRI_BIG_ENDIAN";

/// An index as the field has them: linux/amd64 beside zos/s390x, the latter with s390x code.
fn index(program: &str) -> Result<Index> {
    let payload = std::fs::read(program).with_context(|| format!("reading {program}"))?;
    // elf(5): class 64, big-endian; e_machine 22 is EM_S390.
    ensure!(
        payload.get(4..6) == Some(&[2, 2]) && payload.get(18..20) == Some(&[0, 22]),
        "{program} is no program for s390x"
    );
    let qemu = std::fs::read(binaries::system("qemu-s390x-static", "qemu-user-static")?)?;
    let build = |platform: &str, payload: &[u8]| {
        let layer = LayerBuilder::new()
            .dir("bin", 0o755)
            .file("bin/qemu", 0o755, &qemu)
            .file("bin/payload", 0o755, payload);
        Image::builder(platform)
            .layer(layer.build(Compression::Gzip))
            .entrypoint(["/bin/qemu", "/bin/payload"])
            .build()
    };
    Ok(Index::docker([
        build("linux/amd64", b"not this one"),
        build("zos/s390x", &payload),
    ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_for_s390x_runs_and_serves_at_its_dvipa() -> Test {
    let Ok(program) = std::env::var(PROGRAM) else {
        eprintln!("skipped: {PROGRAM} names no program for s390x (make big-endian builds one)");
        return Ok(());
    };
    let plex = Sysplex::new()?;
    let node = TestNode::start_lpar(plex.lpar()?).await?;
    node.registry.push("payload", "1", index(&program)?);
    let image = node.registry.reference("payload", "1");
    node.cri().pull(&image).await?;
    let pod = node.pod("big").await?;
    let config = zcri_integration::pod::container_config("payload", &image);
    let id = pod.start(&config).await?;
    let said = wait::until("the payload to speak", wait::PATIENCE, async || {
        let lines = pod.log(&config)?;
        Ok(lines
            .into_iter()
            .find(|line| line.text.contains("hello from")))
    })
    .await?;
    ensure!(said.text.contains("s390x"), "{said:?}");
    let words = ["/bin/qemu", "/bin/payload", "say", "big", "endian"];
    let answer = node.cri().exec(&id, words, 30).await?;
    ensure!(answer.stdout == b"big endian\n", "{answer:?}");

    let ip = pod.ip().await?;
    let other = node.pod("client").await?;
    let client = other.sleeper("c").await?;
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {ip} 8080");
    let body = wait::until("an answer", wait::PATIENCE, async || {
        let output = node.exec(&client, &script).await?;
        Ok((!output.stdout.is_empty()).then_some(output.stdout))
    })
    .await?;
    ensure!(body.contains("s390x read 18 bytes"), "{body}");
    drop((pod, other));
    node.finish().await
}
