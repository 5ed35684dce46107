//! The hello program: an ELF executable of a few hundred bytes for each architecture, written by code, so that the
//! binary carries an image of its own and its build needs no other compiler.
//!
//! Sources: System V ABI (gABI, "Object Files" and "Program Loading"); the processors' instruction manuals; system call
//! numbers of Linux (`arch/*/tools/syscall.tbl`, `asm-generic/unistd.h` for aarch64).

/// What the program writes.
pub(in crate::check) const GREETING: &str = "hello from a zcri container\n";

/// Where the one segment is loaded. Any page-aligned address above the lowest ones will do.
const BASE: u64 = 0x1_0000;
/// Sizes of the ELF header and of one program header.
const HEADERS: usize = 64 + 56;

/// The machines that there is a program for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::check) enum Machine {
    X86_64,
    Aarch64,
    S390x,
}

impl Machine {
    /// By Rust's name of an architecture.
    pub(in crate::check) fn of(arch: &str) -> Option<Self> {
        match arch {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "s390x" => Some(Self::S390x),
            _ => None,
        }
    }

    /// `e_machine`.
    fn number(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
            Self::S390x => 22,
        }
    }

    /// `write(1, text, len); exit(0)`, with the text right behind it.
    fn code(self, len: u8) -> Vec<u8> {
        match self {
            Self::X86_64 => x86_64(len),
            Self::Aarch64 => aarch64(len),
            Self::S390x => s390x(len),
        }
    }

    /// The executable.
    pub(in crate::check) fn program(self) -> Vec<u8> {
        let text = GREETING.as_bytes();
        let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
        let mut body = self.code(len);
        body.extend_from_slice(text);
        let mut out = Writer {
            bytes: Vec::with_capacity(HEADERS + body.len()),
            big_endian: self == Self::S390x,
        };
        out.headers(self.number(), (HEADERS + body.len()) as u64);
        out.bytes.extend_from_slice(&body);
        out.bytes
    }
}

/// Writes numbers in the machine's byte order.
struct Writer {
    bytes: Vec<u8>,
    big_endian: bool,
}

impl Writer {
    fn put<const N: usize>(&mut self, little_endian: [u8; N]) {
        let mut bytes = little_endian;
        if self.big_endian {
            bytes.reverse();
        }
        self.bytes.extend_from_slice(&bytes);
    }

    fn headers(&mut self, machine: u16, size: u64) {
        let data = if self.big_endian { 2 } else { 1 };
        self.bytes
            .extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, data, 1, 0]);
        self.bytes.extend_from_slice(&[0; 8]);
        self.put(2_u16.to_le_bytes()); // e_type: ET_EXEC
        self.put(machine.to_le_bytes());
        self.put(1_u32.to_le_bytes()); // e_version
        self.put((BASE + HEADERS as u64).to_le_bytes()); // e_entry
        self.put(64_u64.to_le_bytes()); // e_phoff
        self.put(0_u64.to_le_bytes()); // e_shoff
        self.put(0_u32.to_le_bytes()); // e_flags
        for half in [64_u16, 56, 1, 64, 0, 0] {
            self.put(half.to_le_bytes()); // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
        }
        self.put(1_u32.to_le_bytes()); // p_type: PT_LOAD
        self.put(5_u32.to_le_bytes()); // p_flags: read, execute
        for word in [0, BASE, BASE, size, size, 0x1000] {
            self.put(word.to_le_bytes()); // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
        }
    }
}

fn x86_64(len: u8) -> Vec<u8> {
    let mut code = vec![
        0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16]: behind the last instruction
        0xba, len, 0, 0, 0, // mov edx, len
        0x0f, 0x05, // syscall
    ];
    code.extend_from_slice(&[
        0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
        0x31, 0xff, // xor edi, edi
        0x0f, 0x05, // syscall
    ]);
    code
}

fn aarch64(len: u8) -> Vec<u8> {
    let code: [u32; 8] = [
        0xd280_0020,                       // mov x0, #1
        0x1000_0001 | (28 / 4) << 5,       // adr x1, . + 28: behind the last instruction
        0xd280_0002 | u32::from(len) << 5, // mov x2, #len
        0xd280_0808,                       // mov x8, #64 (write)
        0xd400_0001,                       // svc #0
        0xd280_0000,                       // mov x0, #0
        0xd280_0ba8,                       // mov x8, #93 (exit)
        0xd400_0001,                       // svc #0
    ];
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn s390x(len: u8) -> Vec<u8> {
    vec![
        0xa7, 0x29, 0, 1, // lghi %r2, 1
        0xc0, 0x30, 0, 0, 0, 9, // larl %r3, . + 18: behind the last instruction
        0xa7, 0x49, 0, len, // lghi %r4, len
        0x0a, 4, // svc 4 (write)
        0xa7, 0x29, 0, 0, // lghi %r2, 0
        0x0a, 1, // svc 1 (exit)
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    const MACHINES: [(Machine, &str); 3] = [
        (Machine::X86_64, "x86_64"),
        (Machine::Aarch64, "aarch64"),
        (Machine::S390x, "s390x"),
    ];

    #[test]
    fn the_programs_are_small_and_end_with_their_text() {
        for (machine, name) in MACHINES {
            assert_eq!(Machine::of(name), Some(machine));
            let program = machine.program();
            assert!(program.len() < 256, "{name}: {}", program.len());
            assert!(program.ends_with(GREETING.as_bytes()));
        }
        assert_eq!(Machine::of("m68k"), None);
    }

    /// The host's own runs as it is; the others where qemu's user mode emulation is installed.
    #[test]
    fn the_programs_greet_and_end_with_0() {
        let dir = tempfile::tempdir().unwrap();
        let mut ran = 0;
        for (machine, name) in MACHINES {
            let path = dir.path().join(name);
            std::fs::write(&path, machine.program()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mut command = if name == std::env::consts::ARCH {
                Command::new(&path)
            } else {
                let mut emulator = Command::new(format!("qemu-{name}-static"));
                emulator.arg(&path);
                emulator
            };
            let output = match command.output() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    eprintln!("{name} is not run: there is no qemu-{name}-static");
                    continue;
                }
                other => other.unwrap(),
            };
            assert!(output.status.success(), "{name}: {output:?}");
            assert_eq!(output.stdout, GREETING.as_bytes(), "{name}");
            ran += 1;
        }
        assert!(ran > 0, "no program for {}", std::env::consts::ARCH);
    }
}
