//! A number per socket, that programs keep.
//!
//! Source: Linux, Documentation/bpf/map_sk_storage.rst; Documentation/bpf/btf.rst.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use super::{NAME, bpf, own, raw};
use crate::{Error, Result};

// enum bpf_cmd
const MAP_CREATE: libc::c_int = 0;
const BTF_LOAD: libc::c_int = 18;

/// `BPF_MAP_TYPE_SK_STORAGE`
const SK_STORAGE: u32 = 24;
/// `BPF_F_NO_PREALLOC`, which this type wants.
const NO_PREALLOC: u32 = 1;
/// Length of keys, which are sockets, and of values.
const WORD: u32 = 4;

/// 32 bits per socket, 0 at first, that live as long as the socket. Kept by the programs that use it.
#[derive(Debug)]
pub struct SocketStorage {
    fd: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct BtfAttr {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; NAME],
    ifindex: u32,
    btf: u32,
    btf_key_type: u32,
    btf_value_type: u32,
}

impl SocketStorage {
    /// Makes one.
    ///
    /// # Errors
    /// The kernel has none (it needs Linux 5.2 with CONFIG_BPF_SYSCALL), or refused.
    pub fn new() -> Result<Self> {
        let fail = |e| Error::call("make an eBPF storage for sockets", e);
        let types = types();
        let mut attr = BtfAttr {
            btf: types.as_ptr() as u64,
            size: u32::try_from(types.len()).unwrap_or(u32::MAX),
            ..BtfAttr::default()
        };
        // SAFETY: `attr` is what BTF_LOAD reads; it points to `types`, which outlives the call.
        let types = own(unsafe { bpf(BTF_LOAD, &mut attr) }.map_err(fail)?);
        let mut attr = MapAttr {
            map_type: SK_STORAGE,
            key_size: WORD,
            value_size: WORD,
            flags: NO_PREALLOC,
            btf: raw(types.as_fd()),
            btf_key_type: 1,
            btf_value_type: 1,
            ..MapAttr::default()
        };
        // SAFETY: `attr` is what MAP_CREATE reads; it has no pointers.
        let fd = own(unsafe { bpf(MAP_CREATE, &mut attr) }.map_err(fail)?);
        Ok(Self { fd })
    }

    /// How a program that is loaded while this lives names it.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The kernel wants to know the types of what is stored: here it is one, `int`.
fn types() -> Vec<u8> {
    const STRINGS: &[u8] = b"\0int\0";
    const TYPES: [u32; 4] = [
        1,                      // name: its place in the strings
        1 << 24,                // BTF_KIND_INT
        WORD,                   // size in bytes
        (1 << 24) | (WORD * 8), // signed; size in bits
    ];
    let types: Vec<u8> = TYPES.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut btf = Vec::new();
    // struct btf_header: magic, version 1, no flags; its own length; where types and strings are, after it.
    btf.extend(0xeb9f_u16.to_ne_bytes());
    btf.extend([1, 0]);
    let header = [24, 0, length(&types), length(&types), length(STRINGS)];
    btf.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
    btf.extend(types);
    btf.extend(STRINGS);
    btf
}
