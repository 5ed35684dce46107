//! eBPF programs of a control group: loaded, attached to its directory, found there again.
//!
//! An attachment belongs to the control group and ends with it. No file, no link object and no process holds it, so
//! that nothing is to be kept or cleaned up: that is why programs are attached by `BPF_PROG_ATTACH` and not by a link,
//! which would end with its last descriptor unless it were pinned in a file system for that.
//!
//! Source: bpf(2); `linux/bpf.h`; Linux, Documentation/bpf/prog_cgroup_sockopt.rst and `kernel/bpf/cgroup.c`.

pub mod asm;
mod storage;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{Error, Result};
use asm::Instruction;
pub use storage::SocketStorage;

/// Where a program of a control group runs. The numbers are those of `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// A packet for a socket.
    Ingress = 0,
    /// A packet from a socket.
    Egress = 1,
    /// bind(2) of IPv4.
    Bind4 = 8,
    /// bind(2) of IPv6.
    Bind6 = 9,
    /// connect(2) of IPv4.
    Connect4 = 10,
    /// connect(2) of IPv6.
    Connect6 = 11,
    /// sendmsg(2) of an unconnected UDP socket, IPv4.
    Sendmsg4 = 14,
    /// sendmsg(2) of an unconnected UDP socket, IPv6.
    Sendmsg6 = 15,
    /// setsockopt(2).
    Setsockopt = 22,
}

impl Hook {
    /// `enum bpf_prog_type`
    fn program_type(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => 8,
            Self::Setsockopt => 25,
            _ => 18,
        }
    }
}

// enum bpf_cmd
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

/// Others may attach programs, too: all of them must agree.
const ALLOW_MULTI: u32 = 2;
/// Programs of one hook of one control group. Source: Linux, `BPF_CGROUP_MAX_PROGS`.
const MAX_PROGRAMS: u32 = 64;
/// Room for what the verifier has to say.
const LOG: u32 = 64 * 1024;
/// Length of a program's name with the NUL at its end.
const NAME: usize = 16;

/// A program in the kernel.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
    ifindex: u32,
    attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replace: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to what is read of it.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    uid: u32,
    map_count: u32,
    maps: u64,
    name: [u8; NAME],
}

/// What is known of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// A digest of its instructions.
    pub tag: [u8; 8],
}

impl Program {
    /// Loads a program for one hook. Of `name` 15 letters, digits and `_` count.
    ///
    /// # Errors
    /// The kernel has no such hook or function, or refuses the program: then with what its verifier said last.
    pub fn load(hook: Hook, name: &str, code: &[Instruction]) -> Result<Self> {
        let mut text = [0; NAME];
        for (to, from) in text.iter_mut().take(NAME - 1).zip(name.bytes()) {
            *to = from;
        }
        let mut attr = LoadAttr {
            program_type: hook.program_type(),
            instruction_count: u32::try_from(code.len()).unwrap_or(u32::MAX),
            instructions: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            name: text,
            attach_type: hook as u32,
            ..LoadAttr::default()
        };
        // SAFETY: `attr` is what PROG_LOAD reads; it points to `code` and a static text, which outlive the call.
        let first = match unsafe { bpf(PROG_LOAD, &mut attr) } {
            Ok(fd) => return Ok(Self { fd: own(fd) }),
            Err(e) => e,
        };
        let mut log = vec![0_u8; LOG as usize];
        attr.log_level = 1;
        attr.log_size = LOG;
        attr.log = log.as_mut_ptr() as u64;
        // SAFETY: as above; the kernel writes at most `log_size` bytes to `log`.
        match unsafe { bpf(PROG_LOAD, &mut attr) } {
            Ok(fd) => Ok(Self { fd: own(fd) }),
            Err(_) => Err(Error::Call {
                op: "load an eBPF program",
                source: explain(first, &log),
            }),
        }
    }

    /// Attaches it to a control group, beside what is attached already.
    ///
    /// # Errors
    /// The kernel refused, or another program is attached that wants to be alone.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, hook: Hook) -> Result<()> {
        self.change(PROG_ATTACH, cgroup, hook, ALLOW_MULTI)
            .map_err(|e| Error::call("attach an eBPF program to a control group", e))
    }

    /// Detaches it.
    ///
    /// # Errors
    /// It is not attached.
    pub fn detach(&self, cgroup: BorrowedFd<'_>, hook: Hook) -> Result<()> {
        self.change(PROG_DETACH, cgroup, hook, 0)
            .map_err(|e| Error::call("detach an eBPF program from a control group", e))
    }

    fn change(
        &self,
        command: libc::c_int,
        cgroup: BorrowedFd<'_>,
        hook: Hook,
        flags: u32,
    ) -> io::Result<()> {
        let mut attr = AttachAttr {
            target: raw(cgroup),
            program: raw(self.fd.as_fd()),
            attach_type: hook as u32,
            flags,
            replace: 0,
        };
        // SAFETY: `attr` is what both commands read; it has no pointers.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// The programs that are attached to this control group itself.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> Result<Vec<Self>> {
        let fail = |e| Error::call("ask for the eBPF programs of a control group", e);
        let mut ids = [0_u32; MAX_PROGRAMS as usize];
        let mut attr = QueryAttr {
            target: raw(cgroup),
            attach_type: hook as u32,
            ids: ids.as_mut_ptr() as u64,
            count: MAX_PROGRAMS,
            ..QueryAttr::default()
        };
        // SAFETY: `attr` is what PROG_QUERY reads; the kernel writes at most `count` ids to `ids`.
        unsafe { bpf(PROG_QUERY, &mut attr) }.map_err(fail)?;
        let count = usize::try_from(attr.count).unwrap_or(0).min(ids.len());
        let mut programs = Vec::new();
        for id in &ids[..count] {
            let mut attr = IdAttr {
                id: *id,
                ..IdAttr::default()
            };
            // SAFETY: `attr` is what PROG_GET_FD_BY_ID reads; it has no pointers.
            match unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) } {
                Ok(fd) => programs.push(Self { fd: own(fd) }),
                // Detached since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(e)),
            }
        }
        Ok(programs)
    }

    /// What is known of it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn info(&self) -> Result<Info> {
        let mut info = ProgInfo::default();
        let mut attr = InfoAttr {
            fd: raw(self.fd.as_fd()),
            length: u32::try_from(size_of::<ProgInfo>()).unwrap_or(0),
            info: (&raw mut info) as u64,
        };
        // SAFETY: `attr` is what OBJ_GET_INFO_BY_FD reads; the kernel writes at most `length` bytes to `info`, which
        // is plain data.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }
            .map_err(|e| Error::call("ask for an eBPF program", e))?;
        let end = info.name.iter().position(|b| *b == 0).unwrap_or(NAME);
        Ok(Info {
            name: String::from_utf8_lossy(&info.name[..end]).into_owned(),
            tag: info.tag,
        })
    }
}

/// The error with the last line of the verifier's log that says something.
fn explain(error: io::Error, log: &[u8]) -> io::Error {
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let said = text
        .lines()
        .rev()
        .find(|line| !line.is_empty() && !line.starts_with("processed "));
    match said {
        Some(line) => io::Error::new(error.kind(), format!("{error}; the verifier: {line}")),
        None => error,
    }
}

/// # Safety
/// `attr` must be the member of `union bpf_attr` that the command reads, and what it points to must live, and be
/// writable where the command writes, as long as the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for `attr`; its true size is passed, so that the kernel reads no further.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor (it sets close-on-exec itself), and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
