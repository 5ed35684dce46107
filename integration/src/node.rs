//! A node for one test: its own directories, network, registry, and a real `zcrid`.

mod daemon;
mod files;
mod slot;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use zcri_test_registry::Registry;

use crate::Test;
use crate::client::Cri;
use crate::lpar::{Lpar, sysplex};
use crate::{binaries, images, leaks, lpar, wait};
use daemon::{Daemon, Surroundings};
pub use files::Files;
pub(crate) use slot::LPAR_CGROUP;
pub use slot::Slot;

/// Time that a daemon may take to end after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What a node shall be like, before it is started.
#[derive(Debug, Default)]
pub struct Builder {
    drop_in: String,
    cdi: Option<String>,
    registries: String,
    no_cni: bool,
    root_size: Option<String>,
    allowed: Vec<String>,
    surroundings: Surroundings,
    registry: Option<Registry>,
    zos: Option<lpar::Service>,
    lpar: Option<Lpar>,
}

impl Builder {
    /// The node has a TCP/IP stack of its own, in a sysplex.
    #[must_use]
    pub fn lpar(mut self, lpar: Lpar) -> Self {
        self.lpar = Some(lpar);
        self
    }

    /// A z/OS node: the zos platform with `zos-runc` as its runtime, which is like this.
    #[must_use]
    pub fn zos(mut self, service: lpar::Service) -> Self {
        self.zos = Some(service);
        self
    }

    /// Text of a drop-in that is merged over the node's `zcri.toml`.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.drop_in.push_str(toml);
        self.drop_in.push('\n');
        self
    }

    /// CDI devices are described in the scratch directory of that name alone.
    #[must_use]
    pub fn no_cdi_but(mut self, scratch: &str) -> Self {
        self.cdi = Some(scratch.to_owned());
        self
    }

    /// Text of `registries.conf`.
    #[must_use]
    pub fn registries(mut self, toml: &str) -> Self {
        self.registries.push_str(toml);
        self
    }

    /// A registry that was started, and filled, before.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// No CNI configuration.
    #[must_use]
    pub fn no_cni(mut self) -> Self {
        self.no_cni = true;
        self
    }

    /// The storage root is a tmpfs of this size, as in mount options: `16m`.
    #[must_use]
    pub fn root_size(mut self, size: &str) -> Self {
        self.root_size = Some(size.to_owned());
        self
    }

    /// WARN and ERROR lines with this text in them are expected.
    #[must_use]
    pub fn allow_log(mut self, text: &str) -> Self {
        self.allowed.push(text.to_owned());
        self
    }

    /// An environment variable of the daemon.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let pair = (name.to_owned(), value.to_owned());
        self.surroundings.env.push(pair);
        self
    }

    /// The daemon and all that it starts lack a capability, named as in setpriv(1): what SAF refuses on z/OS.
    #[must_use]
    pub fn without(mut self, capability: &str) -> Self {
        self.surroundings.lacking.push(capability.to_owned());
        self
    }

    /// Makes the node and starts its daemon.
    ///
    /// # Errors
    /// A prerequisite is missing, or the daemon does not serve.
    pub async fn start(self) -> Result<TestNode> {
        let mut node = self.prepare().await?;
        node.start_daemon().await?;
        Ok(node)
    }

    /// Makes the node without starting its daemon.
    ///
    /// # Errors
    /// A prerequisite is missing, or a file cannot be written.
    pub async fn prepare(self) -> Result<TestNode> {
        binaries::check()?;
        let slot = Slot::take()?;
        leaks::clear(&slot);
        let files = Files::new(&slot);
        if let Some(size) = &self.root_size {
            std::fs::create_dir_all(&files.root)?;
            let options = std::ffi::CString::new(format!("size={size}"))?;
            mount(
                "tmpfs",
                &files.root,
                "tmpfs",
                MountFlags::empty(),
                options.as_c_str(),
            )?;
        }
        let mut drop_in = self.drop_in;
        if let Some(cdi) = &self.cdi {
            let dir = files.dir.join("scratch").join(cdi).display().to_string();
            drop_in.push_str(&format!("[runtime]\ncdi_spec_dirs = [{dir:?}]\n"));
        }
        files.write(&slot, &drop_in, &self.registries)?;
        let mut surroundings = self.surroundings;
        if let Some(service) = &self.zos {
            surroundings.env.push(files.write_zos(&slot, service)?);
        }
        if !self.no_cni {
            files.write_conflist(&slot)?;
        }
        let registry = match self.registry {
            Some(registry) => registry,
            None => Registry::start().await,
        };
        let mut node = TestNode {
            registry,
            root_mounted: self.root_size.is_some(),
            allowed: Mutex::new(self.allowed),
            surroundings,
            zos: self.zos.is_some(),
            lpar: self.lpar,
            way_out: None,
            cri: None,
            daemon: None,
            busybox: OnceCell::new(),
            finished: false,
            files,
            slot,
        };
        node.start_stack().await?;
        Ok(node)
    }
}

/// A node. [`finish`](Self::finish) ends it with an audit; a node that is merely dropped, by a failing test, is
/// removed from the machine after its log was shown.
#[derive(Debug)]
pub struct TestNode {
    /// The registry of this node.
    pub registry: Registry,
    files: Files,
    root_mounted: bool,
    allowed: Mutex<Vec<String>>,
    surroundings: Surroundings,
    zos: bool,
    lpar: Option<Lpar>,
    /// The way to the registry from the node's own stack.
    way_out: Option<JoinHandle<()>>,
    cri: Option<Cri>,
    daemon: Option<Daemon>,
    busybox: OnceCell<String>,
    finished: bool,
    // Last: the lock goes when everything else is gone.
    slot: Slot,
}

impl TestNode {
    /// A node like the default one, to be changed.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Makes and starts a node.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// The client.
    ///
    /// # Panics
    /// The daemon was never started.
    pub fn cri(&self) -> &Cri {
        #[expect(
            clippy::expect_used,
            reason = "a test that asks a daemon it did not start is wrong"
        )]
        self.cri
            .as_ref()
            .expect("the daemon of this node was started")
    }

    /// Where the node's files are.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The names of the node.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn daemon_pid(&self) -> Result<Pid> {
        self.daemon.as_ref().context("zcrid does not run")?.pid()
    }

    /// WARN and ERROR lines with this text in them are expected from now on.
    pub fn allow_log(&self, text: &str) {
        self.allowed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(text.to_owned());
    }

    /// What the daemons of this node wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.files.log).unwrap_or_default()
    }

    /// The reference of the busybox image, which is pulled at the first call.
    ///
    /// # Errors
    /// busybox-static is missing, or the pull fails.
    pub async fn busybox(&self) -> Result<String> {
        let pull = async || {
            if self.zos {
                let index = images::zos_busybox()?;
                self.registry.push("library/busybox", "1", index);
            } else {
                let image = images::busybox()?.build();
                self.registry.push("library/busybox", "1", image);
            }
            let reference = self.registry.reference("library/busybox", "1");
            self.cri().pull(&reference).await?;
            Ok::<_, anyhow::Error>(reference)
        };
        self.busybox.get_or_try_init(pull).await.cloned()
    }

    /// Adds a drop-in to the configuration of the next daemon.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add_config(&self, toml: &str) -> Result<()> {
        let path = self.files.dir.join("etc/zcri.toml.d/60-test.toml");
        Ok(std::fs::write(path, toml)?)
    }

    /// Starts the daemon, and waits until it serves. Gives the time from the start of the process to that.
    ///
    /// # Errors
    /// It runs already, or does not serve.
    pub async fn start_daemon(&mut self) -> Result<Duration> {
        ensure!(self.daemon.is_none(), "zcrid runs already");
        let start = Instant::now();
        let stack = sysplex::stack(&self.slot);
        let (daemon, cri) = Daemon::start(&self.files, &self.surroundings, stack).await?;
        (self.daemon, self.cri) = (Some(daemon), Some(cri));
        Ok(start.elapsed())
    }

    /// Ends the daemon with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_daemon(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("zcrid does not run")?;
        daemon.end(Signal::KILL, SHUTDOWN).await.map(drop)
    }

    async fn start_stack(&mut self) -> Result<()> {
        let Some(lpar) = &self.lpar else {
            return Ok(());
        };
        lpar.start_stack(&self.slot)?;
        let way_out = sysplex::forward(&self.slot, self.registry.addr()).await?;
        self.way_out = Some(way_out);
        Ok(())
    }

    /// The LPAR fails: everything that runs on it ends at once, and its stack with all addresses is gone. Files stay,
    /// but for those of the daemon's state, which are in memory.
    ///
    /// # Errors
    /// Something goes on running.
    pub async fn fail_lpar(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("zcrid does not run")?;
        daemon.end(Signal::KILL, SHUTDOWN).await?;
        if let Some(way_out) = self.way_out.take() {
            way_out.abort();
        }
        leaks::power_off(&self.slot);
        Ok(std::fs::create_dir_all(&self.files.state)?)
    }

    /// The LPAR comes back: a new stack without dynamic VIPAs, and the daemon.
    ///
    /// # Errors
    /// As [`TestNode::start_daemon`].
    pub async fn ipl(&mut self) -> Result<()> {
        self.start_stack().await?;
        self.start_daemon().await.map(drop)
    }

    /// Cuts the LPAR off from all others, or undoes that.
    ///
    /// # Errors
    /// It is in no sysplex.
    pub fn cut_off(&self, cut: bool) -> Result<()> {
        let lpar = self.lpar.as_ref().context("the node is in no sysplex")?;
        lpar.cut_off(&self.slot, cut)
    }

    /// Ends the daemon with SIGTERM.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub async fn stop_daemon(&mut self) -> Result<ExitStatus> {
        let daemon = self.daemon.take().context("zcrid does not run")?;
        daemon.end(Signal::TERM, SHUTDOWN).await
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_daemon(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.daemon_pid()?, signal)?)
    }

    /// Another daemon on the same configuration, for tests of what happens then: its status and output.
    ///
    /// # Errors
    /// It cannot be started, or does not end by itself.
    pub async fn run_second_daemon(&self) -> Result<(ExitStatus, String)> {
        let mut command =
            daemon::command(&self.files, &self.surroundings, sysplex::stack(&self.slot))?;
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let output = tokio::time::timeout(wait::PATIENCE, command.output())
            .await
            .context("it goes on running")??;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Ends the node as a kubelet would drain it: every pod is stopped and removed, the daemon ends, nothing is left,
    /// and the log holds no complaint.
    ///
    /// # Errors
    /// Something failed or is left.
    pub async fn finish(mut self) -> Test {
        if self.daemon.is_none() {
            self.start_daemon().await?;
        }
        self.remove_pods().await?;
        let slot = &self.slot;
        let emptied = wait::until_true("pod directories to be emptied", SHUTDOWN, || {
            leaks::daemon_paths(slot).is_empty()
        });
        if emptied.await.is_err() {
            bail!(
                "left behind after the pods were removed: {:#?}",
                leaks::daemon_paths(slot)
            );
        }
        let status = self.stop_daemon().await?;
        ensure!(status.success(), "zcrid ended with {status}");
        ensure!(
            !self.files.socket().exists(),
            "the socket is left after an orderly end"
        );
        if self.root_mounted {
            rustix::mount::unmount(&self.files.root, rustix::mount::UnmountFlags::empty())
                .context("the storage root is still in use")?;
        }
        // A shim that was told to end may be seen for a moment more.
        let slot = &self.slot;
        let nothing = || leaks::audit(slot).is_empty();
        wait::until_true("nothing to be left", SHUTDOWN, nothing)
            .await
            .ok();
        let left = leaks::audit(&self.slot);
        ensure!(left.is_empty(), "left behind: {left:#?}");
        let allowed = self
            .allowed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let complaints = daemon::complaints(&self.files.log, &allowed);
        ensure!(
            complaints.is_empty(),
            "unexpected in the daemon's log: {complaints:#?}"
        );
        leaks::clear(&self.slot);
        self.finished = true;
        Ok(())
    }

    /// Stops and removes every pod.
    ///
    /// # Errors
    /// As the daemon says.
    pub async fn remove_pods(&self) -> Result<()> {
        for pod in self.cri().list_pods(Default::default()).await? {
            self.cri()
                .stop_pod(&pod.id)
                .await
                .context("StopPodSandbox")?;
            self.cri()
                .remove_pod(&pod.id)
                .await
                .context("RemovePodSandbox")?;
        }
        let left = self.cri().list_containers(Default::default()).await?;
        ensure!(left.is_empty(), "containers without a pod: {left:?}");
        Ok(())
    }

    /// `zcrid` with the node's configuration, where its daemon would run: for commands that are no daemon.
    ///
    /// # Errors
    /// It is not built.
    pub fn zcrid(&self) -> Result<std::process::Command> {
        daemon::program(&self.files, &self.surroundings, sysplex::stack(&self.slot))
    }

    /// The storage root of the images alone.
    pub fn image_root(&self) -> PathBuf {
        self.files.root.join("images")
    }

    /// A directory of the test's own on the node, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.files.dir.join("scratch").join(Path::new(name));
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if std::env::var_os("ZCRI_KEEP").is_some() {
            eprintln!(
                "ZCRI_KEEP is set: {} and {} are kept",
                self.files.dir.display(),
                self.files.state.display()
            );
            return;
        }
        eprintln!(
            "--- log of zcrid, last lines\n{}\n---",
            daemon::tail(&self.files.log)
        );
        leaks::clear(&self.slot);
    }
}
