//! An assembler for eBPF: instructions by name, jumps by label. No system call here.
//!
//! Source: Linux, Documentation/bpf/standardization/instruction-set.rst.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// A register. `R0` is the result, `R1` to `R5` are arguments that a call destroys, `R6` to `R9` are kept, `R10` is
/// the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they have no more than their names")]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// A function of the kernel. The numbers are those of `linux/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `bpf_skb_load_bytes(skb, offset, to, length)`
    SkbLoadBytes = 26,
    /// `bpf_bind(ctx, address, length)`
    Bind = 64,
    /// `bpf_sk_storage_get(map, socket, first value, flags)`
    SkStorageGet = 107,
    /// `bpf_set_retval(errno)`, of Linux 5.18
    SetRetval = 187,
}

/// One instruction, as the kernel takes it.
pub type Instruction = [u8; 8];

// Operation codes: class | size or operation | mode or source.
const LDX_MEM: u8 = 0x61;
const LDX_MEM_DW: u8 = 0x79;
const LDX_MEM_B: u8 = 0x71;
const LD_IMM64: u8 = 0x18;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const ADD64_IMM: u8 = 0x07;
const AND32_IMM: u8 = 0x54;
const JEQ32_IMM: u8 = 0x16;
const JNE32_IMM: u8 = 0x56;
const JEQ64_IMM: u8 = 0x15;
const JNE64_IMM: u8 = 0x55;
const JGT64_REG: u8 = 0x2d;
const JA: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// A program in the making. Jumps go forward only, as a label that is set once and last makes them.
#[derive(Debug, Default)]
pub struct Program {
    code: Vec<(Instruction, Option<&'static str>)>,
    labels: BTreeMap<&'static str, usize>,
}

impl Program {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `to = 32 bits at from + offset`
    pub fn load32(&mut self, to: Reg, from: Reg, offset: i16) -> &mut Self {
        self.push(LDX_MEM, to, from, offset, 0, None)
    }

    /// `to = 64 bits at from + offset`
    pub fn load64(&mut self, to: Reg, from: Reg, offset: i16) -> &mut Self {
        self.push(LDX_MEM_DW, to, from, offset, 0, None)
    }

    /// `to = 8 bits at from + offset`
    pub fn load8(&mut self, to: Reg, from: Reg, offset: i16) -> &mut Self {
        self.push(LDX_MEM_B, to, from, offset, 0, None)
    }

    /// `32 bits at to + offset = value`, by way of `R1` where the kernel wants a register: in a context.
    pub fn store32(&mut self, to: Reg, offset: i16, value: u32) -> &mut Self {
        if to == Reg::R10 {
            return self.push(ST_MEM, to, Reg::R0, offset, value.cast_signed(), None);
        }
        self.set(Reg::R1, value.cast_signed());
        self.push(STX_MEM, to, Reg::R1, offset, 0, None)
    }

    /// `32 bits at to + offset = from`
    pub fn store_reg32(&mut self, to: Reg, offset: i16, from: Reg) -> &mut Self {
        self.push(STX_MEM, to, from, offset, 0, None)
    }

    /// `to = the map of that descriptor`
    pub fn load_map(&mut self, to: Reg, map: RawFd) -> &mut Self {
        /// `BPF_PSEUDO_MAP_FD`, in the place of a register.
        const MAP: Reg = Reg::R1;
        // The only instruction of twice the size.
        self.push(LD_IMM64, to, MAP, 0, map, None);
        self.push(0, Reg::R0, Reg::R0, 0, 0, None)
    }

    /// `to = value`
    pub fn set(&mut self, to: Reg, value: i32) -> &mut Self {
        self.push(MOV64_IMM, to, Reg::R0, 0, value, None)
    }

    /// `to = from`
    pub fn copy(&mut self, to: Reg, from: Reg) -> &mut Self {
        self.push(MOV64_REG, to, from, 0, 0, None)
    }

    /// `to += value`
    pub fn add(&mut self, to: Reg, value: i32) -> &mut Self {
        self.push(ADD64_IMM, to, Reg::R0, 0, value, None)
    }

    /// `to &= value`, in 32 bits
    pub fn and32(&mut self, to: Reg, value: u32) -> &mut Self {
        self.push(AND32_IMM, to, Reg::R0, 0, value.cast_signed(), None)
    }

    /// Jumps if the lower 32 bits are `value`.
    pub fn jump_if_equal(&mut self, reg: Reg, value: u32, label: &'static str) -> &mut Self {
        self.push(JEQ32_IMM, reg, Reg::R0, 0, value.cast_signed(), Some(label))
    }

    /// Jumps if the lower 32 bits are not `value`.
    pub fn jump_unless_equal(&mut self, reg: Reg, value: u32, label: &'static str) -> &mut Self {
        self.push(JNE32_IMM, reg, Reg::R0, 0, value.cast_signed(), Some(label))
    }

    /// Jumps if the register, all of it, is not 0.
    pub fn jump_if_set(&mut self, reg: Reg, label: &'static str) -> &mut Self {
        self.push(JNE64_IMM, reg, Reg::R0, 0, 0, Some(label))
    }

    /// Jumps if the register, all of it, is 0.
    pub fn jump_if_clear(&mut self, reg: Reg, label: &'static str) -> &mut Self {
        self.push(JEQ64_IMM, reg, Reg::R0, 0, 0, Some(label))
    }

    /// Jumps if `reg` is greater than `other`.
    pub fn jump_if_greater(&mut self, reg: Reg, other: Reg, label: &'static str) -> &mut Self {
        self.push(JGT64_REG, reg, other, 0, 0, Some(label))
    }

    /// Jumps.
    pub fn jump(&mut self, label: &'static str) -> &mut Self {
        self.push(JA, Reg::R0, Reg::R0, 0, 0, Some(label))
    }

    /// Calls a function of the kernel.
    pub fn call(&mut self, helper: Helper) -> &mut Self {
        self.push(CALL, Reg::R0, Reg::R0, 0, helper as i32, None)
    }

    /// Ends with this result.
    pub fn finish_with(&mut self, result: i32) -> &mut Self {
        self.set(Reg::R0, result);
        self.push(EXIT, Reg::R0, Reg::R0, 0, 0, None)
    }

    /// Here jumps to `label` arrive.
    pub fn label(&mut self, label: &'static str) -> &mut Self {
        self.labels.insert(label, self.code.len());
        self
    }

    /// Whether anything leads to `label`, set here: a jump, or the instruction before. The kernel takes no instruction
    /// that nothing leads to.
    #[must_use]
    pub fn leads_to(&self, label: &str) -> bool {
        let jumps = self.code.iter().any(|(_, to)| *to == Some(label));
        let falls = self
            .code
            .last()
            .is_none_or(|(last, _)| last[0] != JA && last[0] != EXIT);
        jumps || falls
    }

    /// The instructions; none when a jump leads to no label, or backward.
    #[must_use]
    pub fn assemble(&self) -> Option<Vec<Instruction>> {
        let resolve =
            |(at, (instruction, label)): (usize, &(Instruction, Option<&'static str>))| {
                let mut instruction = *instruction;
                if let Some(label) = label {
                    let distance = self.labels.get(label)?.checked_sub(at + 1)?;
                    let distance = i16::try_from(distance).ok()?;
                    instruction[2..4].copy_from_slice(&distance.to_ne_bytes());
                }
                Some(instruction)
            };
        self.code.iter().enumerate().map(resolve).collect()
    }

    fn push(
        &mut self,
        code: u8,
        to: Reg,
        from: Reg,
        offset: i16,
        value: i32,
        label: Option<&'static str>,
    ) -> &mut Self {
        let (to, from) = (to as u8, from as u8);
        // Two bit fields in a byte: which comes first depends on the machine.
        let registers = if cfg!(target_endian = "little") {
            from << 4 | to
        } else {
            to << 4 | from
        };
        let [o1, o2] = offset.to_ne_bytes();
        let [v1, v2, v3, v4] = value.to_ne_bytes();
        self.code
            .push(([code, registers, o1, o2, v1, v2, v3, v4], label));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let mut program = Program::new();
        program
            .copy(Reg::R6, Reg::R1)
            .load32(Reg::R2, Reg::R6, 4)
            .jump_if_equal(Reg::R2, 0x0100_007f, "local")
            .finish_with(0)
            .label("local")
            .finish_with(1);
        let code = program.assemble().unwrap();
        assert_eq!(
            code,
            [
                [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
                [0x61, 0x62, 4, 0, 0, 0, 0, 0],
                [0x16, 0x02, 2, 0, 0x7f, 0, 0, 1],
                [0xb7, 0, 0, 0, 0, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
                [0xb7, 0, 0, 0, 1, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }

    #[test]
    fn a_jump_to_nowhere_or_back_is_no_program() {
        assert!(Program::new().jump("nowhere").assemble().is_none());
        let mut back = Program::new();
        back.label("start").set(Reg::R0, 0).jump("start");
        assert!(back.assemble().is_none());
    }
}
