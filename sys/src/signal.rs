//! Signals without a signal mask.
//!
//! A blocked or ignored signal stays so across `exec`, and a supervisor starts programs that must find the
//! defaults. A handler does not survive `exec`. So SIGCHLD is caught by a handler that wakes a descriptor, and
//! signals that shall do nothing get a handler that does nothing.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The descriptor that the handler of SIGCHLD wakes. It is process-wide because the disposition of a signal is;
/// the descriptor behind it is never closed, so that a late signal cannot write into a file that reused the number.
static CHILD_EVENTS: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_signal: libc::c_int) {
    let one: u64 = 1;
    // SAFETY: `errno` is thread local and always readable; `write` is async-signal-safe and reads 8 bytes of a
    // live stack variable. A failure (counter full) loses nothing: the descriptor is readable already.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(
            CHILD_EVENTS.load(Ordering::Relaxed),
            (&raw const one).cast(),
            size_of::<u64>(),
        );
        *libc::__errno_location() = errno;
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn handle(signal: i32, handler: libc::sighandler_t, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid value of that C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is initialised; the handlers given here are async-signal-safe functions of the right type.
    if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A non-blocking descriptor (an eventfd) that becomes readable when a child of this process has ended.
///
/// All descriptors that this returns share one counter: read 8 bytes, then wait for every child that is there.
///
/// # Errors
/// No descriptor can be made, or the handler not be set.
pub fn child_events() -> io::Result<OwnedFd> {
    if CHILD_EVENTS.load(Ordering::Relaxed) < 0 {
        // SAFETY: `eventfd` takes no pointers; its result is checked before it is owned.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just opened by this function and belongs to nothing else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        if CHILD_EVENTS
            .compare_exchange(-1, fd.as_raw_fd(), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            // Kept open for ever on purpose, see `CHILD_EVENTS`.
            std::mem::forget(fd);
        }
        handle(
            libc::SIGCHLD,
            on_child as *const () as libc::sighandler_t,
            libc::SA_RESTART | libc::SA_NOCLDSTOP,
        )?;
    }
    // SAFETY: the descriptor is open for the rest of the process's life.
    let events =
        unsafe { std::os::fd::BorrowedFd::borrow_raw(CHILD_EVENTS.load(Ordering::Relaxed)) };
    events.try_clone_to_owned()
}

/// Makes the given signals do nothing in this process, and only in this process: programs started later find the
/// default.
///
/// # Errors
/// A signal that cannot be caught.
pub fn disregard(signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| {
        handle(
            *signal,
            do_nothing as *const () as libc::sighandler_t,
            libc::SA_RESTART,
        )
    })
}

/// Gives every signal its default disposition and unblocks all. What is ignored or blocked by whoever started this
/// process would reach every program that it starts.
pub fn reset_all() {
    for signal in 1..=64 {
        // SIGKILL, SIGSTOP and the C library's own two cannot be changed, and need not be.
        handle(signal, libc::SIG_DFL, 0).ok();
    }
    // SAFETY: `sigset_t` is plain data that `sigemptyset` initialises, and every pointer is to it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Lets the kernel reap this process's children by itself (`SIGCHLD` ignored), and undoes what [`disregard`] did
/// for the given signals.
pub(crate) fn reap_automatically_and_default(signals: &[i32]) -> io::Result<()> {
    handle(libc::SIGCHLD, libc::SIG_IGN, 0)?;
    signals
        .iter()
        .try_for_each(|signal| handle(*signal, libc::SIG_DFL, 0))
}

/// Blocks until one of the given signals arrives.
pub(crate) fn wait_for_any(signals: &[i32]) -> io::Result<()> {
    // SAFETY: `sigset_t` is plain data that `sigemptyset` initialises, and every pointer is to it; the signal
    // number goes nowhere.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            if libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) > 0 {
                return Ok(());
            }
        }
    }
}

/// Sends any signal, real-time ones included, to one process.
///
/// Only for a child that was not waited for yet (its number cannot be reused), or where a wrong receiver is ruled
/// out otherwise.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for a number that is no signal or no process.
pub fn send(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    if pid == 0 {
        // 0 would be the caller's own process group.
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `kill` takes no pointers; a positive number names one process.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_wakes_the_descriptor_and_inherits_no_disposition() {
        let events = child_events().unwrap();
        disregard(&[libc::SIGTERM]).unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "kill -TERM $$; sleep 60"])
            .spawn()
            .unwrap();
        let mut poll = [rustix::event::PollFd::new(
            &events,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::time::Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        loop {
            match rustix::event::poll(&mut poll, Some(&limit)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => {
                    assert_eq!(ready.unwrap(), 1);
                    break;
                }
            }
        }
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn process_zero_is_refused() {
        assert_eq!(
            send(0, libc::SIGTERM).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
