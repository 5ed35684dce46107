//! Processes made without `exec`. Only a process with a single thread may do that from safe code: the child of
//! another one would find locks held by threads that do not exist in it.

use std::io;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that forked, with the number of its child.
    Parent(u32),
    /// The new process.
    Child,
}

fn require_single_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        Ok(())
    } else {
        Err(io::Error::other(
            "a process with several threads cannot fork safely",
        ))
    }
}

/// Forks.
///
/// # Errors
/// The process has more than one thread, or the kernel refuses.
pub fn fork() -> io::Result<Side> {
    require_single_thread()?;
    // SAFETY: there is no other thread (checked above), so no lock is held by one that the child lacks.
    side(i64::from(unsafe { libc::fork() }))
}

/// Forks a child that is process 1 of a new PID namespace, with a mount namespace of its own.
///
/// `clone3` is called directly, so the C library of the child believes to have its parent's thread number; the
/// child must not create threads or raise signals at itself.
pub(crate) fn fork_as_namespace_init(parent: ParentIs) -> io::Result<Side> {
    require_single_thread()?;
    let mut args = CloneArgs::default();
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    match parent {
        ParentIs::Caller => args.exit_signal = libc::SIGCHLD.unsigned_abs().into(),
        // The signal is then that of the caller itself.
        ParentIs::CallersParent => flags |= libc::CLONE_PARENT,
    }
    args.flags = flags.unsigned_abs().into();
    // SAFETY: without CLONE_VM and with a null stack this is a fork; `args` lives across the call, and its size
    // is given. No other thread exists (checked above).
    side(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })
}

/// The first version of the kernel's structure (clone(2), "struct clone_args"); the crate libc has it for some machines
/// only. All zeroes: no flag, no pointer.
#[derive(Debug, Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

fn side(result: i64) -> io::Result<Side> {
    match result {
        0 => Ok(Side::Child),
        pid if pid > 0 => u32::try_from(pid)
            .map(Side::Parent)
            .map_err(io::Error::other),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whose child a new process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParentIs {
    /// That of the process that forks.
    Caller,
    /// That of the parent of the process that forks.
    CallersParent,
}

/// Ends this process at once, without the exit handlers that belong to the process it was forked from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}
