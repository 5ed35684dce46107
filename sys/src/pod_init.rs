//! Process 1 of a pod whose containers share a PID namespace.
//!
//! It is a fork of its monitor, without a program of its own. It lives in an empty read-only root, holds no
//! capability and no descriptor, cannot be traced, and does two things: it lets the kernel reap what the pod
//! orphans, and it ends on SIGTERM, SIGINT or SIGQUIT.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::fork::{Side, exit_now, fork_as_namespace_init};
use crate::{process, signal};

/// Title of the process in `ps`.
pub const TITLE: &str = "zcri-init";

/// What the init says when it is ready; anything else is the reason why it is not.
pub const READY: u8 = 0;

const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// What the init needs to know.
#[derive(Debug, Clone)]
pub struct PodInit {
    /// Files of the namespaces it joins (network, IPC, UTS), in this order.
    pub namespaces: Vec<PathBuf>,
    /// An existing directory on which it mounts its empty root, in its own mount namespace.
    pub root: PathBuf,
}

impl PodInit {
    /// Forks the init. Returns its number and a pipe on which it writes [`READY`] or a reason, and closes.
    ///
    /// # Errors
    /// The caller has several threads, or the kernel refuses the new namespaces.
    pub fn spawn(&self) -> io::Result<(u32, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        match fork_as_namespace_init()? {
            Side::Parent(pid) => Ok((pid, reader)),
            Side::Child => self.run(writer),
        }
    }

    fn run(&self, report: OwnedFd) -> ! {
        let outcome = self.prepare(report);
        match outcome {
            Ok(report) => {
                let told = File::from(report).write_all(&[READY]);
                // A monitor that died meanwhile cannot be told; the pod's containers need the init all the same.
                drop(told);
                exit_now(i32::from(signal::wait_for_any(&ENDING).is_err()))
            }
            Err(()) => exit_now(1),
        }
    }

    fn prepare(&self, report: OwnedFd) -> Result<OwnedFd, ()> {
        let report = match keep_only(report) {
            Ok(report) => report,
            Err(_unreportable) => return Err(()),
        };
        match self.enter() {
            Ok(()) => Ok(report),
            Err(failure) => {
                // If this write fails too, the exit status is all that can be said.
                drop(File::from(report).write_all(failure.as_bytes()));
                Err(())
            }
        }
    }

    fn enter(&self) -> Result<(), String> {
        let step = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
        let io_step = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        signal::reap_automatically_and_default(&[
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGPIPE,
        ])
        .map_err(io_step("reset signals"))?;
        rustix::process::setsid().map_err(step("setsid"))?;
        for path in &self.namespaces {
            let file =
                File::open(path).map_err(|e| format!("open namespace {}: {e}", path.display()))?;
            rustix::thread::move_into_link_name_space(file.as_fd(), None)
                .map_err(|e| format!("join namespace {}: {e}", path.display()))?;
        }
        // Needs /proc, so it comes before the empty root.
        process::set_title(TITLE).map_err(io_step("set the title"))?;
        empty_root(&self.root).map_err(step("change to an empty root"))?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(step("forbid tracing"))?;
        drop_privileges().map_err(step("drop privileges"))
    }
}

/// Closes every descriptor but `report`, which becomes number 3, and puts `/dev/null` on the first three.
fn keep_only(report: OwnedFd) -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    process::only_descriptor(report, 3)
}

fn empty_root(root: &Path) -> rustix::io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(
        "zcri-init",
        root,
        "tmpfs",
        flags,
        Some(c"size=4k,nr_inodes=2,mode=0555"),
    )?;
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    rustix::process::chdir("/")
}

fn drop_privileges() -> rustix::io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number the kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}
