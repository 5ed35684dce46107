//! A stand-in for z/OS: a TCP/IP stack whose state is a directory, and a console that is standard error.
//!
//! ```text
//! $ZCRI_ZOS_STACK/ranges        the VIPARANGE statements: a prefix of addresses per line ("192.0.2.")
//! $ZCRI_ZOS_STACK/active/IP     an address that is active; the content says who made it
//! $ZCRI_ZOS_STACK/refused       SAF refuses the caller: what it holds is not looked at
//! ```
//!
//! The meanings are those of IBM's table of conflicts (z/OS Communications Server IP Configuration Guide, "Dynamic VIPA
//! creation results"); the numbers are made up, as those of `ezbzdvpc.h` are in no public text.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::console::zos::Message;

/// Numbers of no real system, in the form of [`crate::vipa`].
pub(crate) const DVREQ: &str = "SIOCSVIPA=0xc0180001 SIOCSVIPA6=0xc0280002 size4=24 size6=40 version=0:2:1 length=2:2 \
                                option=4:4:1:2 address4=8 address6=16 already=1121 outside=1122";

/// Names the directory of the stack.
const STACK: &str = "ZCRI_ZOS_STACK";
const COMMANDS: [u32; 2] = [0xc018_0001, 0xc028_0002];
const DEFINE: u32 = 1;
const DELETE: u32 = 2;
const ALREADY: i32 = 1121;
const OUTSIDE: i32 = 1122;
/// EPERM and EINVAL of Linux, which this runs on.
const EPERM: i32 = 1;
const EINVAL: i32 = 22;

/// `SIOCSVIPA` and `SIOCSVIPA6`.
///
/// # Safety
/// None is needed here; the signature is that of the C library's.
///
/// # Errors
/// As the stack's.
pub(crate) unsafe fn socket_ioctl(v6: bool, command: u32, bytes: &mut [u8]) -> io::Result<()> {
    let wrong = || io::Error::from_raw_os_error(EINVAL);
    let (version, rest) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(wrong)?;
    let (option, rest) = rest.split_first_chunk().ok_or_else(wrong)?;
    let sound = command == COMMANDS[usize::from(v6)]
        && u16::from_be_bytes(*version) == 1
        && usize::from(u16::from_be_bytes(*length)) == bytes.len();
    if !sound {
        return Err(wrong());
    }
    let ip = if v6 {
        let octets: [u8; 16] = *rest
            .get(8..)
            .and_then(<[u8]>::first_chunk)
            .ok_or_else(wrong)?;
        IpAddr::from(Ipv6Addr::from(octets))
    } else {
        let octets: [u8; 4] = *rest.first_chunk().ok_or_else(wrong)?;
        IpAddr::from(Ipv4Addr::from(octets))
    };
    let stack = PathBuf::from(std::env::var_os(STACK).ok_or_else(wrong)?);
    match u32::from_be_bytes(*option) {
        _ if stack.join("refused").exists() => Err(io::Error::from_raw_os_error(EPERM)),
        DEFINE => define(&stack, ip),
        DELETE => delete(&stack, ip),
        _ => Err(wrong()),
    }
}

fn define(stack: &std::path::Path, ip: IpAddr) -> io::Result<()> {
    let ranges = std::fs::read_to_string(stack.join("ranges"))?;
    let text = ip.to_string();
    if !ranges.lines().any(|range| text.starts_with(range)) {
        return Err(io::Error::from_raw_os_error(OUTSIDE));
    }
    let mut options = std::fs::OpenOptions::new();
    match options
        .write(true)
        .create_new(true)
        .open(stack.join("active").join(text))
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(io::Error::from_raw_os_error(ALREADY))
        }
        Err(error) => Err(error),
    }
}

fn delete(stack: &std::path::Path, ip: IpAddr) -> io::Result<()> {
    match std::fs::remove_file(stack.join("active").join(ip.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::from_raw_os_error(OUTSIDE))
        }
        result => result,
    }
}

/// Messages go to standard error. There is no operator: a wait for a command fails.
///
/// # Safety
/// Each pointer is null or valid for the call.
///
/// # Errors
/// A command is waited for.
pub(crate) unsafe fn console2(
    message: *const Message,
    _modify: *mut u8,
    command: *mut u32,
) -> io::Result<()> {
    if !message.is_null() {
        // SAFETY: the caller's promise.
        let text = unsafe { (*message).text() };
        eprintln!("{}", String::from_utf8_lossy(text));
    }
    if command.is_null() {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}
