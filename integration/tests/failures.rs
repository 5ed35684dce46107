//! The node's own trouble: runtimes that are missing or fail, a shim that is missing, a full disk.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use zcri_integration::pod::{envs, words};
use zcri_integration::v1::{ContainerState, PodSandboxState};
use zcri_integration::{Pod, Test, TestNode, binaries, wait};

/// A program that says something on its standard error and fails.
fn failing_program(path: &Path, says: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\necho '{says}' >&2\nexit 3\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The error of a container that cannot be made or started in a pod of this handler.
async fn refusal(node: &TestNode, handler: &str) -> Result<String> {
    let pod: Pod<'_> = match node.run_pod_with(node.pod_config(handler)?, handler).await {
        Ok(pod) => pod,
        Err(error) => return Ok(format!("{error:#}")),
    };
    let error = pod
        .start(&node.container_config("c").await?)
        .await
        .err()
        .context("it runs")?;
    Ok(format!("{error:#}"))
}

#[tokio::test]
async fn a_missing_runtime_is_named() -> Test {
    let node = TestNode::builder()
        .config("[runtime.handlers.gone]\npath = \"/no/such/runtime\"")
        .allow_log("/no/such/runtime")
        .start()
        .await?;
    let said = refusal(&node, "gone").await?;
    assert!(said.contains("/no/such/runtime"), "{said}");
    // Other handlers are as good as before.
    assert_eq!(
        node.pod("fine").await?.sh("echo fine").await?.success()?,
        "fine"
    );
    node.finish().await
}

#[tokio::test]
async fn a_node_without_its_default_runtime_is_not_ready() -> Test {
    let node = TestNode::builder()
        .config("[runtime]\ndefault_handler = \"gone\"\n[runtime.handlers.gone]\npath = \"/no/such/runtime\"")
        .allow_log("/no/such/runtime")
        .start()
        .await?;
    let conditions = node
        .cri()
        .node_status()
        .await?
        .status
        .context("no conditions")?
        .conditions;
    let ready = conditions
        .iter()
        .find(|c| c.r#type == "RuntimeReady")
        .context("RuntimeReady")?;
    ensure!(
        !ready.status && ready.message.contains("/no/such/runtime"),
        "{ready:?}"
    );
    node.finish().await
}

#[tokio::test]
async fn a_failing_runtime_is_quoted() -> Test {
    let mut node = TestNode::builder().allow_log("headache").prepare().await?;
    let program = node.files().dir.join("runtime");
    failing_program(&program, "the runtime has a headache")?;
    std::fs::write(
        node.files().dir.join("etc/zcri.toml.d/60-handler.toml"),
        format!("[runtime.handlers.bad]\npath = \"{}\"\n", program.display()),
    )?;
    node.start_daemon().await?;
    let said = refusal(&node, "bad").await?;
    assert!(said.contains("the runtime has a headache"), "{said}");
    for container in node.cri().list_containers(Default::default()).await? {
        assert_ne!(container.state(), ContainerState::ContainerRunning);
    }
    node.finish().await
}

/// A runtime that takes its time for one container is no reason not to see what becomes of the others of the pod.
#[tokio::test]
async fn a_slow_start_hides_no_end_of_another_container() -> Test {
    let mut node = TestNode::builder().prepare().await?;
    let dir = node.scratch("slow")?;
    let (held, gate) = (dir.join("held"), dir.join("gate"));
    let program = dir.join("runtime");
    // It works in the container's bundle.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' run '*|'run '*)\n  if grep -q HOLD=1 config.json; then\n    touch {held}\n    \
         while [ ! -e {gate} ]; do sleep 0.02; done\n  fi;;\nesac\nexec {runc} \"$@\"\n",
        held = held.display(),
        gate = gate.display(),
        runc = binaries::system("runc", "runc")?.display(),
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    node.add_config(&format!("[runtime.handlers.slow]\npath = {program:?}\n"))?;
    node.start_daemon().await?;
    let pod = node.run_pod_with(node.pod_config("p")?, "slow").await?;
    let mut config = node.container_config("ends").await?;
    config.command = words(["/bin/sh", "-c", "while [ ! -e /end ]; do sleep 0.02; done"]);
    let (ends, stopped) = (pod.start(&config).await?, pod.sleeper("stopped").await?);
    let mut config = node.container_config("slow").await?;
    config.envs = envs([("HOLD", "1")]);
    let slow = pod.create(&config).await?;
    let others = async {
        wait::until_true("the slow start", wait::PATIENCE, || held.exists()).await?;
        // It ends by itself, and a stop sees the end of what it stopped.
        node.exec(&ends, "touch /end").await?.success()?;
        node.cri().stop(&stopped, 0).await?;
        wait::until("both ends", wait::PATIENCE, async || {
            for id in [&ends, &stopped] {
                if node.cri().status(id).await?.state() != ContainerState::ContainerExited {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
        let state = node.cri().status(&slow).await?.state();
        ensure!(state == ContainerState::ContainerCreated, "{state:?}");
        anyhow::Ok(())
    };
    let start = async {
        let started = node.cri().start(&slow).await;
        started.context("the slow container")
    };
    let gated = async {
        let seen = others.await;
        std::fs::write(&gate, "")?;
        seen
    };
    let (started, seen) = tokio::join!(start, gated);
    seen?;
    started?;
    assert_eq!(node.exec(&slow, "echo runs").await?.success()?, "runs");
    node.finish().await
}

#[tokio::test]
async fn a_missing_shim_fails_the_pod_and_undoes_it() -> Test {
    let node = TestNode::builder()
        .config("[runtime]\nshim = \"/no/such/shim\"")
        .allow_log("/no/such/shim")
        .start()
        .await?;
    let run = tokio::time::timeout(Duration::from_secs(15), async {
        anyhow::Ok(node.cri().run_pod(&node.pod_config("p")?).await)
    });
    let status = run
        .await
        .context("RunPodSandbox hangs")??
        .err()
        .context("a pod without a shim")?;
    assert!(status.message().contains("/no/such/shim"), "{status:?}");
    assert!(node.cri().list_pods(Default::default()).await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn a_container_that_cannot_start_leaves_the_pod_whole() -> Test {
    // A wrong entrypoint is the image's or the manifest's mistake: no WARN is allowed here.
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let neighbour = pod.sleeper("neighbour").await?;
    let mut config = node.container_config("c").await?;
    config.command = vec!["/etc/passwd".to_owned()];
    let id = pod.create(&config).await?;
    let status = node
        .cri()
        .start(&id)
        .await
        .err()
        .context("a file without the x bit was run")?;
    assert!(status.message().contains("/etc/passwd"), "{status:?}");
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    assert_eq!(
        node.cri().status(&id).await?.state(),
        ContainerState::ContainerExited
    );
    assert_eq!(node.exec(&neighbour, "echo fine").await?.success()?, "fine");
    assert_eq!(
        node.cri().pod_status(&pod.id).await?.state(),
        PodSandboxState::SandboxReady
    );
    node.cri().remove(&id).await?;
    node.finish().await
}

/// Fills a file system to its last byte with a file, which the guard removes.
struct Filler(std::path::PathBuf);

impl Filler {
    fn fill(dir: &Path) -> Result<Self> {
        use std::io::Write as _;
        let path = dir.join("filler");
        let mut file = std::fs::File::create(&path)?;
        // Large blocks first, then the rest byte by byte of a page.
        for size in [1 << 20, 4096, 1] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(Self(path))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // A file that stays shows in the audit.
        std::fs::remove_file(&self.0).ok();
    }
}

#[tokio::test]
async fn a_full_disk_fails_what_needs_space_and_frees_what_is_removed() -> Test {
    let node = TestNode::builder()
        .root_size("48m")
        .allow_log("No space left")
        .allow_log("StorageFull")
        .start()
        .await?;
    node.busybox().await?;
    let pod = node.pod("before").await?;
    let id = pod.sleeper("c").await?;
    let filler = Filler::fill(&node.files().root)?;
    let run = node.cri().run_pod(&node.pod_config("during")?).await;
    let status = run.err().context("a pod without space for its record")?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let create = node
        .cri()
        .create(&pod.id, &node.container_config("d").await?, &pod.config)
        .await;
    assert_eq!(
        create.err().context("a container without space")?.code(),
        Code::ResourceExhausted
    );
    // What runs goes on, and what is removed needs no space to be removed.
    assert_eq!(node.exec(&id, "echo fine").await?.success()?, "fine");
    assert_eq!(node.cri().list_pods(Default::default()).await?.len(), 1);
    node.cri().stop(&id, 0).await?;
    node.cri().remove(&id).await?;
    node.cri().stop_pod(&pod.id).await?;
    node.cri().remove_pod(&pod.id).await?;
    let image = node.busybox().await?;
    let image_id = node
        .cri()
        .image_status(&image)
        .await?
        .context("the image")?
        .id;
    node.cri()
        .remove_image(&image_id)
        .await
        .context("an image, with no byte free")?;
    drop(filler);
    node.cri().pull(&image).await?;
    assert_eq!(
        node.pod("after").await?.sh("echo fine").await?.success()?,
        "fine"
    );
    node.finish().await
}
