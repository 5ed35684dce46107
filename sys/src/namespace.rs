//! Namespaces that live without a process: made by a thread, kept alive by a bind mount.
//!
//! A pod has no pause container. Its network, IPC and UTS namespaces are made by a thread that enters new ones,
//! sets them up (loopback, host name, sysctls), bind-mounts its `/proc/thread-self/ns/*` files onto files in
//! the pod's bundle, and ends. A pod with a user namespace has them made as that namespace's own, see [`user`].

pub mod user;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use crate::{Error, Result};

/// What a pod wants of its own. A namespace whose path is `None` is the host's.
#[derive(Debug, Clone, Default)]
pub struct PodNamespaces {
    /// File to pin the network namespace on.
    pub net: Option<PathBuf>,
    /// File to pin the IPC namespace on.
    pub ipc: Option<PathBuf>,
    /// File to pin the UTS namespace on.
    pub uts: Option<PathBuf>,
    /// The user namespace that the others belong to.
    pub user: Option<PodUserNamespace>,
    /// Host name inside the UTS namespace.
    pub hostname: Option<String>,
    /// Sysctls of these namespaces, by dotted name.
    pub sysctls: Vec<(String, String)>,
}

/// A pod's user namespace.
#[derive(Debug, Clone)]
pub struct PodUserNamespace {
    /// File to pin it on.
    pub path: PathBuf,
    /// Its id maps.
    pub maps: user::IdMaps,
}

/// Makes and pins the namespaces; on failure nothing stays pinned.
///
/// Blocks for the time of a few system calls, in a thread of its own that ends before this returns.
///
/// # Errors
/// The step that failed, with its path or sysctl.
pub fn create(wanted: &PodNamespaces) -> Result<()> {
    let spawned = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("pod-namespaces".into())
            .spawn_scoped(scope, || create_in_this_thread(wanted))
            .map(std::thread::ScopedJoinHandle::join)
    });
    let result = match spawned {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => Err(Error::call(
            "create namespaces",
            std::io::Error::other("the thread panicked"),
        )),
        Err(source) => Err(Error::call("start a thread for namespaces", source)),
    };
    if result.is_err() {
        let user = wanted.user.as_ref().map(|user| &user.path);
        let others = [&wanted.net, &wanted.ipc, &wanted.uts];
        for path in others.into_iter().flatten().chain(user) {
            // The first error is the one to report; what never was pinned has nothing to undo.
            drop(unpin(path));
        }
    }
    result
}

fn create_in_this_thread(wanted: &PodNamespaces) -> Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, wanted.net.is_some());
    flags.set(UnshareFlags::NEWIPC, wanted.ipc.is_some());
    flags.set(UnshareFlags::NEWUTS, wanted.uts.is_some());
    match &wanted.user {
        Some(user) => enter_new_of_user(user, flags)?,
        // SAFETY: the flags name no namespace whose change breaks other threads (no CLONE_FILES, CLONE_FS,
        // CLONE_VM); the calling thread was made for this and ends afterwards.
        None => unsafe { rustix::thread::unshare_unsafe(flags) }
            .map_err(|e| Error::call("unshare namespaces", e))?,
    }
    if wanted.net.is_some() {
        loopback_up()?;
    }
    if let Some(name) = wanted.hostname.as_ref().filter(|_| wanted.uts.is_some()) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| Error::call("set the host name", e))?;
    }
    for (name, value) in &wanted.sysctls {
        set_sysctl(name, value)?;
    }
    for (path, kind) in [
        (&wanted.net, "net"),
        (&wanted.ipc, "ipc"),
        (&wanted.uts, "uts"),
    ] {
        if let Some(path) = path {
            pin(&Path::new("/proc/thread-self/ns").join(kind), path)?;
        }
    }
    Ok(())
}

/// Puts the calling process into new IPC and UTS namespaces, as asked for: what it starts is in them too.
///
/// The process must have one thread, because a namespace belongs to a thread.
///
/// # Errors
/// The kernel refused.
pub fn enter_new(ipc: bool, hostname: Option<&str>) -> Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWIPC, ipc);
    flags.set(UnshareFlags::NEWUTS, hostname.is_some());
    if flags.is_empty() {
        return Ok(());
    }
    // SAFETY: the flags name no namespace whose change breaks other threads (no CLONE_FILES, CLONE_FS, CLONE_VM).
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|e| Error::call("unshare namespaces", e))?;
    match hostname {
        Some(name) => rustix::system::sethostname(name.as_bytes())
            .map_err(|e| Error::call("set the host name", e)),
        None => Ok(()),
    }
}

/// Makes a user namespace with the others in it, pins it, and moves this thread into the others (no thread can enter
/// a user namespace, but root may act in those that belong to it).
fn enter_new_of_user(user: &PodUserNamespace, others: UnshareFlags) -> Result<()> {
    let flags = libc::c_int::try_from(others.bits())
        .map_err(|_| Error::call("unshare namespaces", std::io::ErrorKind::InvalidInput))?;
    let holder = user::Holder::start(&user.maps, flags)?;
    for (flag, kind) in [
        (UnshareFlags::NEWNET, "net"),
        (UnshareFlags::NEWIPC, "ipc"),
        (UnshareFlags::NEWUTS, "uts"),
    ] {
        if others.contains(flag) {
            let path = holder.namespace(kind);
            let file = std::fs::File::open(&path).map_err(|e| Error::path("open", &path, e))?;
            rustix::thread::move_into_link_name_space(file.as_fd(), None)
                .map_err(|e| Error::path("enter", &path, e))?;
        }
    }
    pin(&holder.namespace("user"), &user.path)
}

/// The family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Makes a TCP socket in the network namespace that is pinned on `namespace`. It does not block, and stays in that
/// namespace whoever uses it.
///
/// Blocks for the time of a few system calls, in a thread of its own that ends before this returns.
///
/// # Errors
/// The namespace is gone, or the system is short of something.
pub fn tcp_socket(namespace: &Path, family: AddressFamily) -> Result<OwnedFd> {
    use rustix::net::{SocketFlags, SocketType};
    let file = std::fs::File::open(namespace).map_err(|e| Error::path("open", namespace, e))?;
    let make = move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind)
            .map_err(|e| Error::call("enter a network namespace", e))?;
        let family = match family {
            AddressFamily::V4 => rustix::net::AddressFamily::INET,
            AddressFamily::V6 => rustix::net::AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|e| Error::call("make a socket", e))
    };
    let thread = std::thread::Builder::new()
        .name("pod-socket".into())
        .spawn(make)
        .map_err(|e| Error::call("start a thread for a socket", e))?;
    thread.join().unwrap_or_else(|_panic| {
        let source = std::io::Error::other("the thread panicked");
        Err(Error::call("make a socket", source))
    })
}

/// Pins the namespace `kind` ("pid", "net", ...) of a living process on `path`.
///
/// # Errors
/// The process is gone, or the mount was refused.
pub fn pin_of_process(pid: u32, kind: &str, path: &Path) -> Result<()> {
    pin(&PathBuf::from(format!("/proc/{pid}/ns/{kind}")), path)
}

fn pin(from: &Path, path: &Path) -> Result<()> {
    std::fs::File::create(path).map_err(|e| Error::path("create", path, e))?;
    rustix::mount::mount_bind(from, path)
        .map_err(|e| Error::path("pin a namespace on", path, e))?;
    // A namespace file that travels to every other mount namespace of the host could never be let go.
    rustix::mount::mount_change(path, rustix::mount::MountPropagationFlags::PRIVATE)
        .map_err(|e| Error::path("make private", path, e))
}

/// Lets a pinned namespace go; it ends with the last process in it. Nothing pinned there is no error.
///
/// # Errors
/// The mount could not be detached or the file not be removed.
pub fn unpin(path: &Path) -> Result<()> {
    crate::mount::unmount(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::path("remove", path, e)),
        _ => Ok(()),
    }
}

/// Kills the process `pid` if its PID namespace is the one pinned on `path`, that is, if it is the init of that
/// namespace and not a stranger that got its number; everything in the namespace ends with it.
///
/// # Errors
/// It lives and could not be killed.
pub fn kill_init(pid: u32, path: &Path) -> Result<()> {
    let Some(process) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return Ok(());
    };
    // The descriptor first: what it names cannot change after the comparison.
    let Ok(process) = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())
    else {
        return Ok(());
    };
    let own = rustix::fs::stat(format!("/proc/{pid}/ns/pid"));
    let pinned = rustix::fs::stat(path);
    match (own, pinned) {
        (Ok(own), Ok(pinned)) if (own.st_dev, own.st_ino) == (pinned.st_dev, pinned.st_ino) => {}
        _ => return Ok(()),
    }
    match rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL) {
        Err(e) if e != rustix::io::Errno::SRCH => Err(Error::call("kill the init of a pod", e)),
        _ => Ok(()),
    }
}

/// Sets a sysctl as the calling thread's namespaces see it.
fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let fail = |source| Error::Sysctl {
        name: name.into(),
        value: value.into(),
        source,
    };
    // sysctl(8): the first separator decides. Where dots separate, a slash in a name stands for a dot within a part
    // (net.ipv4.conf.eth0/1.forwarding).
    let dots = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('.'));
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let relative: String = if dots {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    if relative
        .split('/')
        .any(|part| part.is_empty() || part == "..")
    {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    }
    let path = Path::new("/proc/sys").join(relative);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(fail)?;
    file.write_all(value.as_bytes()).map_err(fail)
}

/// Brings `lo` up in the calling thread's network namespace.
fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::call("open a socket to bring lo up", e))?;
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        // Signed on some machines only.
        *to = libc::c_char::try_from(*from).unwrap_or_default();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| {
        Error::call(
            "bring lo up",
            std::io::Error::from(std::io::ErrorKind::InvalidInput),
        )
    })?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq with a terminated name and the flags, both set above; it outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if answer < 0 {
        return Err(Error::call("bring lo up", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Whether `path` holds a pinned namespace (and not a plain file that a crash left behind).
pub fn is_pinned(path: &Path) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    rustix::fs::statfs(path)
        .is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == NSFS_MAGIC))
}

/// Bind-mounts `from` on `to`, which must exist, without its submounts.
///
/// # Errors
/// The mount was refused.
pub fn bind(from: &Path, to: &Path) -> Result<()> {
    rustix::mount::mount(from, to, "", MountFlags::BIND, None)
        .map_err(|e| Error::path("bind mount on", to, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_cannot_leave_proc_sys() {
        for name in ["net..ipv4", "../x", "", "kernel.", "a.//.b"] {
            assert!(
                matches!(set_sysctl(name, "1"), Err(Error::Sysctl { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn a_pod_gets_namespaces_of_its_own_and_loses_them() {
        if !rustix::process::geteuid().is_root() {
            panic!("this test needs root");
        }
        let dir = std::env::temp_dir().join(format!("zcri-ns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let wanted = PodNamespaces {
            net: Some(dir.join("net")),
            ipc: Some(dir.join("ipc")),
            uts: Some(dir.join("uts")),
            user: None,
            hostname: Some("pod-a".into()),
            sysctls: vec![
                ("net.ipv4.ip_forward".into(), "1".into()),
                ("kernel/shm_rmid_forced".into(), "1".into()),
            ],
        };
        create(&wanted).unwrap();
        for name in ["net", "ipc", "uts"] {
            assert!(is_pinned(&dir.join(name)));
            let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            let ours = rustix::fs::stat(dir.join(name)).unwrap().st_ino;
            assert!(!own.to_string_lossy().contains(&ours.to_string()));
            unpin(&dir.join(name)).unwrap();
            unpin(&dir.join(name)).unwrap();
        }
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn namespaces_belong_to_the_user_namespace_of_the_pod() {
        let dir = std::env::temp_dir().join(format!("zcri-uns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let range = user::IdRange {
            inside: 0,
            outside: 200_000,
            length: 65536,
        };
        let wanted = PodNamespaces {
            net: Some(dir.join("net")),
            ipc: Some(dir.join("ipc")),
            uts: Some(dir.join("uts")),
            user: Some(PodUserNamespace {
                path: dir.join("user"),
                maps: user::IdMaps {
                    users: vec![range],
                    groups: vec![range],
                },
            }),
            hostname: Some("pod-u".into()),
            sysctls: vec![("net.ipv4.ip_forward".into(), "1".into())],
        };
        create(&wanted).unwrap();
        let user = rustix::fs::stat(dir.join("user")).unwrap().st_ino;
        // ioctl_ns(2): the owner of a namespace.
        const NS_GET_USERNS: libc::c_ulong = 0xb701;
        for name in ["net", "ipc", "uts"] {
            let file = std::fs::File::open(dir.join(name)).unwrap();
            // SAFETY: this request takes no argument and gives a descriptor.
            let owner = unsafe {
                let number = libc::ioctl(file.as_raw_fd(), NS_GET_USERNS as _);
                assert!(number >= 0);
                <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number)
            };
            assert_eq!(rustix::fs::fstat(&owner).unwrap().st_ino, user, "{name}");
        }
        for name in ["net", "ipc", "uts", "user"] {
            assert!(is_pinned(&dir.join(name)));
            unpin(&dir.join(name)).unwrap();
        }
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn only_the_init_of_the_pinned_namespace_is_killed() {
        let dir = std::env::temp_dir().join(format!("zcri-init-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let stranger = dir.join("stranger");
        let ours = dir.join("ours");
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        std::fs::write(&stranger, "").unwrap();
        kill_init(child.id(), &stranger).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the file pins nothing");
        pin_of_process(child.id(), "pid", &ours).unwrap();
        kill_init(child.id(), &ours).unwrap();
        assert!(!child.wait().unwrap().success());
        kill_init(child.id(), &ours).unwrap();
        unpin(&ours).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failure_leaves_nothing_pinned() {
        let dir = std::env::temp_dir().join(format!("zcri-nsf-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let wanted = PodNamespaces {
            net: Some(dir.join("net")),
            uts: Some(dir.join("missing/uts")),
            ..PodNamespaces::default()
        };
        let error = create(&wanted).unwrap_err();
        assert!(error.to_string().contains("missing/uts"), "{error}");
        std::fs::remove_dir(&dir).expect("nothing is left in the directory");
    }
}
