//! Process 1 of a pod whose containers share a PID namespace.
//!
//! It is a fork of its monitor, without a program of its own. It lives in an empty read-only root, holds no
//! capability and no descriptor, cannot be traced, and does two things: it lets the kernel reap what the pod
//! orphans, and it ends on SIGTERM, SIGINT or SIGQUIT.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::fork::{ParentIs, Side, exit_now, fork, fork_as_namespace_init};
use crate::{mount, process, signal};

/// Title of the process in `ps`.
pub const TITLE: &str = "zcri-init";

/// What the init says when it is ready; anything else is the reason why it is not.
pub const READY: u8 = 0;

const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// What the init needs to know.
#[derive(Debug, Clone)]
pub struct PodInit {
    /// Files of the namespaces it joins (network, IPC, UTS), in this order. If a user namespace is among them, the new
    /// PID namespace belongs to it, and the init is its root.
    pub namespaces: Vec<PathBuf>,
    /// An existing directory on which it mounts its empty root, in its own mount namespace.
    pub root: PathBuf,
    /// SELinux labels of the process and of its root, if it gets some.
    pub labels: Option<(String, String)>,
}

impl PodInit {
    /// Forks the init. Returns its number and a pipe on which it writes [`READY`] or a reason, and closes.
    ///
    /// # Errors
    /// The caller has several threads, or the kernel refuses the new namespaces.
    pub fn spawn(&self) -> io::Result<(u32, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        if let Some(user) = self.user_namespace()? {
            return Ok((self.spawn_in(&user, writer)?, reader));
        }
        match fork_as_namespace_init(ParentIs::Caller)? {
            Side::Parent(pid) => Ok((pid, reader)),
            Side::Child => self.run(writer),
        }
    }

    fn user_namespace(&self) -> io::Result<Option<File>> {
        for path in &self.namespaces {
            // One that is not there is the init's to tell.
            if let Ok(file) = File::open(path)
                && is_user_namespace(&file)?
            {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Only a process that is in a user namespace makes namespaces that belong to it. So a child enters it, forks the
    /// init as its sibling, tells the number, and ends.
    fn spawn_in(&self, user: &File, report: OwnedFd) -> io::Result<u32> {
        let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let between = match fork()? {
            Side::Parent(pid) => pid,
            Side::Child => {
                let entered = rustix::thread::move_into_link_name_space(user.as_fd(), None);
                let forked = entered
                    .map_err(io::Error::from)
                    .and_then(|()| fork_as_namespace_init(ParentIs::CallersParent));
                let answer = match forked {
                    Ok(Side::Child) => self.run(report),
                    Ok(Side::Parent(pid)) => i64::from(pid),
                    Err(e) => -i64::from(e.raw_os_error().unwrap_or(libc::EIO)),
                };
                let said = File::from(tell).write_all(&answer.to_ne_bytes());
                exit_now(i32::from(said.is_err()))
            }
        };
        drop((tell, report));
        let mut answer = [0; 8];
        let read = File::from(told).read_exact(&mut answer);
        wait_for(between)?;
        read?;
        let answer = i64::from_ne_bytes(answer);
        u32::try_from(answer)
            .map_err(|_| io::Error::from_raw_os_error(i32::try_from(-answer).unwrap_or(libc::EIO)))
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
        let mut in_user_namespace = false;
        for path in &self.namespaces {
            let file =
                File::open(path).map_err(|e| format!("open namespace {}: {e}", path.display()))?;
            if is_user_namespace(&file).map_err(io_step("look at a namespace"))? {
                in_user_namespace = true;
                continue;
            }
            rustix::thread::move_into_link_name_space(file.as_fd(), None)
                .map_err(|e| format!("join namespace {}: {e}", path.display()))?;
        }
        // Need /proc, so they come before the empty root.
        process::set_title(TITLE).map_err(io_step("set the title"))?;
        let labelled = match &self.labels {
            Some((label, _)) => Some((label, own_label().map_err(io_step("open its label"))?)),
            None => None,
        };
        let of_root = self.labels.as_ref().map(|(_, label)| label.as_str());
        empty_root(&self.root, of_root).map_err(step("change to an empty root"))?;
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(step("forbid tracing"))?;
        if in_user_namespace {
            // Not before: the files of the node were reached as their owner.
            become_root().map_err(step("become the root of the user namespace"))?;
        }
        drop_privileges().map_err(step("drop privileges"))?;
        // From here on it may do no more than the pod's containers, so it comes last.
        match labelled {
            Some((label, mut file)) => match file.write_all(label.as_bytes()) {
                // A policy may let the runtime's domain change at an execve only. Then the pod's containers cannot look at
                // this process, which is all that they miss.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other.map_err(|e| format!("take the SELinux label {label}: {e}")),
            },
            None => Ok(()),
        }
    }
}

/// The file by which this process changes its own label.
fn own_label() -> io::Result<File> {
    File::options().write(true).open("/proc/self/attr/current")
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

fn empty_root(root: &Path, label: Option<&str>) -> rustix::io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let label = label.map(mount::context).transpose()?.unwrap_or_default();
    let options = CString::new(format!("size=4k,nr_inodes=2,mode=0555{label}"))
        .map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::mount::mount("zcri-init", root, "tmpfs", flags, options.as_c_str())?;
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    rustix::process::chdir("/")
}

/// Takes the ids 0 of the user namespace that this process is in; until then it has none of its ids.
fn become_root() -> rustix::io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// ioctl_ns(2)
fn is_user_namespace(file: &File) -> io::Result<bool> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind == libc::CLONE_NEWUSER)
}

fn wait_for(child: u32) -> io::Result<()> {
    let pid = i32::try_from(child)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
    })?;
    Ok(())
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
