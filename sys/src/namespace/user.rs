//! User namespaces, and the namespaces that belong to them.
//!
//! A thread of a process cannot enter a user namespace, so these are made by a short-lived child that does nothing
//! but unshare and wait; the caller writes its id maps and takes the namespaces from its `/proc` directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::fork::exit_now;
use crate::{Error, Result};

/// One range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// Number of ids, not 0.
    pub length: u32,
}

/// Id maps of a user namespace (user_namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub users: Vec<IdRange>,
    /// Group ids.
    pub groups: Vec<IdRange>,
}

/// A child that holds new namespaces until this is dropped.
pub(super) struct Holder {
    pid: libc::pid_t,
    /// Closing it lets the child end.
    hold: Option<OwnedFd>,
}

impl Holder {
    /// Makes a user namespace with these maps and, belonging to it, the namespaces that `others` names (`CLONE_NEW*`).
    pub(super) fn start(maps: &IdMaps, others: libc::c_int) -> Result<Self> {
        let pipe = || {
            pipe_with(PipeFlags::CLOEXEC)
                .map_err(|e| Error::call("make a pipe", io::Error::from(e)))
        };
        let (told, tell) = pipe()?;
        let (held, hold) = pipe()?;
        // SAFETY: the child runs `wait_in_namespaces` alone, which makes system calls and nothing else: no
        // allocation, no lock that another thread may have held.
        let pid = unsafe { libc::fork() };
        match pid {
            0 => wait_in_namespaces(
                libc::CLONE_NEWUSER | others,
                tell.as_raw_fd(),
                held.as_raw_fd(),
            ),
            -1 => return Err(Error::call("fork", io::Error::last_os_error())),
            _ => {}
        }
        let holder = Self {
            pid,
            hold: Some(hold),
        };
        drop((tell, held));
        let mut answer = [0; 4];
        File::from(told)
            .read_exact(&mut answer)
            .map_err(|e| Error::call("wait for new namespaces", e))?;
        match i32::from_ne_bytes(answer) {
            0 => {}
            number => {
                let source = io::Error::from_raw_os_error(number);
                return Err(Error::call("unshare namespaces", source));
            }
        }
        holder.write_map("uid_map", &maps.users)?;
        holder.write_map("gid_map", &maps.groups)?;
        Ok(holder)
    }

    fn write_map(&self, name: &str, ranges: &[IdRange]) -> Result<()> {
        let path = self.proc(name);
        let text: String = ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length))
            .collect();
        // The kernel takes a map in one write.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Error::path("write", path, e))
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// The file of one of its namespaces: "user", "net", ...
    pub(super) fn namespace(&self, kind: &str) -> PathBuf {
        self.proc("ns").join(kind)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.hold.take());
        let mut status = 0;
        // SAFETY: `pid` is a child of this process that nobody else waits for; `status` outlives the call.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

/// What the child does: says 0 or an error number on `tell`, and waits for the end of `held`.
fn wait_in_namespaces(flags: libc::c_int, tell: RawFd, held: RawFd) -> ! {
    // Everything else that the parent had open must not stay open because of this process, above all the other end
    // of `held`.
    let (low, high) = (tell.min(held).unsigned_abs(), tell.max(held).unsigned_abs());
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process is alone, and of the descriptors only the two that are kept are used again.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    // SAFETY: this process has a single thread.
    let answer = unsafe { libc::unshare(flags) };
    let number = if answer == 0 {
        0
    } else {
        io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    };
    let mut byte = 0_u8;
    // SAFETY: both buffers live across the calls, with the lengths that are given. Nothing can be done about an
    // error: the parent sees the end of the pipe.
    unsafe {
        libc::write(tell, number.to_ne_bytes().as_ptr().cast(), size_of::<i32>());
        libc::read(held, (&raw mut byte).cast(), 1);
    }
    exit_now(0)
}

/// A user namespace with these maps; it lives as long as the descriptor.
///
/// Blocks for the time of a fork.
///
/// # Errors
/// The kernel refuses the namespace or the maps.
pub fn with_maps(maps: &IdMaps) -> Result<OwnedFd> {
    let holder = Holder::start(maps, 0)?;
    let path = holder.namespace("user");
    let file = File::open(&path).map_err(|e| Error::path("open", path, e))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn maps(outside: u32) -> IdMaps {
        let range = IdRange {
            inside: 0,
            outside,
            length: 1000,
        };
        IdMaps {
            users: vec![range],
            groups: vec![range],
        }
    }

    #[test]
    fn a_mount_shows_its_files_with_the_owners_of_the_namespace() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = std::env::temp_dir().join(format!("zcri-idmap-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("source/sub")).unwrap();
        std::fs::write(dir.join("source/sub/file"), "x").unwrap();
        let namespace = with_maps(&maps(300_000)).unwrap();
        assert!(crate::mount::maps_ids(&dir, namespace.as_fd()));
        let tree = crate::mount::DetachedTree::copy_of(&dir.join("source")).unwrap();
        tree.map_ids(namespace.as_fd()).unwrap();
        tree.attach(&dir.join("mapped")).unwrap();
        let of = |path: &str| {
            let found = std::fs::metadata(dir.join(path)).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(of("mapped/sub/file"), (300_000, 300_000));
        assert_eq!(of("source/sub/file"), (0, 0));
        let sub = crate::mount::DetachedTree::copy_beneath(
            &dir.join("mapped"),
            std::path::Path::new("sub/file"),
        );
        sub.unwrap().attach(&dir.join("file")).unwrap();
        assert_eq!(of("file"), (300_000, 300_000));
        crate::mount::unmount(&dir.join("file")).unwrap();
        crate::mount::unmount(&dir.join("mapped")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_the_kernel_refuses_is_said() {
        let overlapping = IdMaps {
            users: [maps(1).users, maps(500).users].concat(),
            groups: maps(1).groups,
        };
        let error = with_maps(&overlapping).unwrap_err();
        assert!(error.to_string().contains("uid_map"), "{error}");
    }
}
