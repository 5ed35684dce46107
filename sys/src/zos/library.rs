//! The C library of z/OS. Declared here rather than taken from the crate libc, which does not have this system; numbers
//! are those of golang.org/x/sys/unix (`zerrors_zos_s390x.go`).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::console::zos::Message;

const AF_INET: c_int = 2;
const AF_INET6: c_int = 19;
const SOCK_DGRAM: c_int = 2;

unsafe extern "C" {
    /// z/OS UNIX Assembler Callable Services, "__console() (BPX1CCS, BPX4CCS)".
    fn __console2(message: *const Message, modify: *mut u8, command: *mut u32) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(descriptor: c_int, command: c_int, ...) -> c_int;
}

/// `__console2`.
///
/// # Safety
/// Each pointer is null or valid for the call; there is room for a command's text.
///
/// # Errors
/// The system's errno.
pub(crate) unsafe fn console2(
    message: *const Message,
    modify: *mut u8,
    command: *mut u32,
) -> io::Result<()> {
    // SAFETY: the caller's promise is that of the C function.
    if unsafe { __console2(message, modify, command) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An ioctl of a datagram socket of IPv6 or IPv4, made for it.
///
/// # Safety
/// `bytes` is the whole structure that the command reads and writes.
///
/// # Errors
/// The system's errno.
pub(crate) unsafe fn socket_ioctl(v6: bool, command: u32, bytes: &mut [u8]) -> io::Result<()> {
    let family = if v6 { AF_INET6 } else { AF_INET };
    // SAFETY: the call has no pointers.
    let descriptor = unsafe { socket(family, SOCK_DGRAM, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else knows it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: the caller's promise.
    let answer = unsafe { ioctl(owned.as_raw_fd(), command.cast_signed(), bytes.as_mut_ptr()) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
