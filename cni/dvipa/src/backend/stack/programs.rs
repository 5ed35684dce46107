//! The eBPF programs that confine a pod to its addresses. Pure: rules in, instructions out.
//!
//! | call of the pod | becomes |
//! |---|---|
//! | bind to 0.0.0.0 or `::` | bind to the VIPA; after IPV6_V6ONLY, to that of IPv6 |
//! | bind to the VIPA | itself |
//! | bind to 127.0.0.0/8 or `::1` | itself where loopback is shared, else EADDRNOTAVAIL |
//! | bind to anything else | EADDRNOTAVAIL |
//! | connect, or send without connect, from an unbound socket | the same from the VIPA |
//! | connect or send to 0.0.0.0 or `::` | to the VIPA |
//! | connect or send to loopback | itself where loopback is shared, else ECONNREFUSED |
//! | connect or send in a family that the pod has no VIPA of | ENETUNREACH |
//! | a packet from or to another address than the VIPA (or shared loopback) | dropped, but for ICMP |
//!
//! An IPv4 address mapped into IPv6 counts as IPv4. A program that rewrites an address runs before the kernel looks at
//! it, so that two pods may bind the same port. The packet filters are what holds where no call can be rewritten: a
//! socket that the kernel bound to all addresses itself (listen or sendto without bind), a raw socket. ICMP passes them
//! because its sockets cannot be given an address by any hook.
//!
//! Source: Linux, `struct bpf_sock_addr` and `struct bpf_sock` in `linux/bpf.h`; `net/core/filter.c`.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use zcri_sys::bpf::{
    Hook,
    asm::{
        Helper, Instruction, Program,
        Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10},
    },
};

use crate::{
    backend::host::EADDRNOTAVAIL,
    config::{Loopback, WildcardV6},
};

/// What a pod may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Its IPv4 VIPA.
    pub(super) v4: Option<Ipv4Addr>,
    /// Its IPv6 VIPA.
    pub(super) v6: Option<Ipv6Addr>,
    /// Whether its primary address is of IPv4.
    pub(super) primary_v4: bool,
    pub(super) loopback: Loopback,
    pub(super) wildcard_v6: WildcardV6,
}

/// Where programs run, and their names: how they are known again.
pub(super) const HOOKS: [(Hook, &str); 9] = [
    (Hook::Bind4, "dvipa_bind4"),
    (Hook::Bind6, "dvipa_bind6"),
    (Hook::Connect4, "dvipa_connect4"),
    (Hook::Connect6, "dvipa_connect6"),
    (Hook::Sendmsg4, "dvipa_sendmsg4"),
    (Hook::Sendmsg6, "dvipa_sendmsg6"),
    (Hook::Ingress, "dvipa_ingress"),
    (Hook::Egress, "dvipa_egress"),
    (Hook::Setsockopt, "dvipa_sockopt"),
];

/// The program for a hook. `v6_only` is the storage in which the programs of a group remember IPV6_V6ONLY, which the
/// kernel does not tell them.
pub(super) fn program(rules: &Rules, hook: Hook, v6_only: RawFd) -> Option<Vec<Instruction>> {
    match hook {
        Hook::Bind4 => bind4(rules),
        Hook::Bind6 => bind6(rules, v6_only),
        Hook::Setsockopt => setsockopt(rules, v6_only),
        Hook::Connect4 => connect4(rules),
        Hook::Connect6 => connect6(rules),
        Hook::Sendmsg4 => sendmsg4(rules),
        Hook::Sendmsg6 => sendmsg6(rules),
        Hook::Ingress => packets(rules, Direction::In),
        Hook::Egress => packets(rules, Direction::Out),
    }
    .assemble()
}

// struct bpf_sock_addr
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const SOURCE_IP4: i16 = 40;
const SOURCE_IP6: i16 = 44;
const SOCKET: i16 = 64;
// struct bpf_sock
const BOUND_IP4: i16 = 24;
const BOUND_IP6: i16 = 28;

const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Where an address of a call is taken from and put to: the four registers that hold an IPv6 one.
const WORDS: [zcri_sys::bpf::asm::Reg; 4] = [R2, R3, R4, R5];

fn word(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

/// In network order, as the kernel has them.
fn words(ip: Ipv6Addr) -> [u32; 4] {
    let octets = ip.octets();
    std::array::from_fn(|i| {
        let at = i * 4;
        word([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    })
}

fn mapped(ip: Ipv4Addr) -> Ipv6Addr {
    ip.to_ipv6_mapped()
}

/// The third word of an IPv4 address mapped into IPv6.
fn mapped_mark() -> u32 {
    word([0, 0, 0xff, 0xff])
}

impl Rules {
    fn shares_loopback(&self) -> bool {
        self.loopback == Loopback::Shared
    }

    /// What `::` stands for.
    fn wildcard(&self) -> Option<Ipv6Addr> {
        let v4 = self.v4.map(mapped);
        let wants_v4 = match self.wildcard_v6 {
            WildcardV6::Primary => self.primary_v4,
            WildcardV6::Ipv4 => true,
            WildcardV6::Ipv6 => false,
        };
        if wants_v4 {
            v4.or(self.v6)
        } else {
            self.v6.or(v4)
        }
    }
}

/// Allows the call; and, for jumps, how each error is given.
fn endings(p: &mut Program) {
    if p.leads_to("allow") {
        p.label("allow").finish_with(1);
    }
    for (label, errno) in [
        ("foreign", EADDRNOTAVAIL),
        ("unreachable", ENETUNREACH),
        ("refused", ECONNREFUSED),
    ] {
        if p.leads_to(label) {
            p.label(label)
                .set(R1, -errno)
                .call(Helper::SetRetval)
                .finish_with(0);
        }
    }
}

/// Loads four words at `offset` of the context into [`WORDS`].
fn load_words(p: &mut Program, from: zcri_sys::bpf::asm::Reg, offset: i16) {
    for (i, reg) in (0..).zip(WORDS) {
        p.load32(reg, from, offset + i * 4);
    }
}

fn store_words(p: &mut Program, offset: i16, ip: Ipv6Addr) {
    for (i, word) in (0..).zip(words(ip)) {
        p.store32(R6, offset + i * 4, word);
    }
}

/// Jumps to `label` if [`WORDS`] are this address; goes on at `other`, which it sets, if not.
fn jump_if_ip6(p: &mut Program, ip: Ipv6Addr, label: &'static str, other: &'static str) {
    for (reg, word) in WORDS.into_iter().zip(words(ip)) {
        p.jump_unless_equal(reg, word, other);
    }
    p.jump(label).label(other);
}

/// Jumps to `label` if `reg` is an address of 127.0.0.0/8; destroys `reg`.
fn jump_if_loopback4(p: &mut Program, reg: zcri_sys::bpf::asm::Reg, label: &'static str) {
    p.and32(reg, word([255, 0, 0, 0]))
        .jump_if_equal(reg, word([127, 0, 0, 0]), label);
}

/// Decides on a bind to the IPv4 address in `reg`, which it destroys: jumps to "allow", to "foreign", or to `any` if the
/// address is 0.0.0.0 and the pod has one that stands for it.
fn decide4(p: &mut Program, rules: &Rules, reg: zcri_sys::bpf::asm::Reg, any: &'static str) {
    if let Some(v4) = rules.v4 {
        p.jump_if_equal(reg, 0, any)
            .jump_if_equal(reg, word(v4.octets()), "allow");
    }
    if rules.shares_loopback() {
        jump_if_loopback4(p, reg, "allow");
    }
    p.jump("foreign");
}

fn bind4(rules: &Rules) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1).load32(R2, R6, USER_IP4);
    decide4(&mut p, rules, R2, "any");
    if let Some(v4) = rules.v4 {
        p.label("any").store32(R6, USER_IP4, word(v4.octets()));
    }
    endings(&mut p);
    p
}

fn bind6(rules: &Rules, v6_only: RawFd) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1);
    load_words(&mut p, R6, USER_IP6);
    jump_if_ip6(&mut p, Ipv6Addr::UNSPECIFIED, "any", "given");
    if let Some(v6) = rules.v6 {
        jump_if_ip6(&mut p, v6, "allow", "not v6");
    }
    if rules.shares_loopback() {
        jump_if_ip6(&mut p, Ipv6Addr::LOCALHOST, "allow", "not loopback");
    }
    // Is it an IPv4 address?
    p.jump_unless_equal(R2, 0, "foreign")
        .jump_unless_equal(R3, 0, "foreign")
        .jump_unless_equal(R4, mapped_mark(), "foreign");
    decide4(&mut p, rules, R5, "any mapped");
    if let Some(v4) = rules.v4 {
        p.label("any mapped");
        store_words(&mut p, USER_IP6, mapped(v4));
        p.jump("allow");
    }
    p.label("any")
        .load_map(R1, v6_only)
        .load64(R2, R6, SOCKET)
        .set(R3, 0)
        .set(R4, 0)
        .call(Helper::SkStorageGet)
        .jump_if_clear(R0, "both families")
        .load32(R2, R0, 0)
        .jump_if_equal(R2, 0, "both families");
    if let Some(v6) = rules.v6 {
        store_words(&mut p, USER_IP6, v6);
        p.jump("allow");
    } else {
        p.jump("foreign");
    }
    p.label("both families");
    match rules.wildcard() {
        Some(ip) => store_words(&mut p, USER_IP6, ip),
        None => {
            p.jump("foreign");
        }
    }
    endings(&mut p);
    p
}

/// Takes note of IPV6_V6ONLY, for [`bind6`].
fn setsockopt(rules: &Rules, v6_only: RawFd) -> Program {
    // struct bpf_sockopt
    const SOCKET: i16 = 0;
    const VALUE: i16 = 8;
    const VALUE_END: i16 = 16;
    const LEVEL: i16 = 24;
    const NAME: i16 = 28;
    const LENGTH: i16 = 32;
    const IPPROTO_IPV6: u32 = 41;
    const IPV6_V6ONLY: u32 = 26;
    const CREATE: i32 = 1;
    let mut p = Program::new();
    p.copy(R6, R1);
    // Of no use but to make this another program when the rules, and with them the storage, are others.
    for word in words(rules.v6.unwrap_or(Ipv6Addr::UNSPECIFIED)) {
        p.set(R7, word.cast_signed());
    }
    p.set(
        R7,
        word(rules.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets()).cast_signed(),
    );
    p.load32(R8, R6, LEVEL)
        .load32(R9, R6, NAME)
        .load64(R2, R6, VALUE)
        .load64(R3, R6, VALUE_END);
    // The kernel goes on with the caller's value, of any length, instead of its copy.
    p.store32(R6, LENGTH, 0)
        .jump_unless_equal(R8, IPPROTO_IPV6, "allow")
        .jump_unless_equal(R9, IPV6_V6ONLY, "allow")
        .copy(R4, R2)
        .add(R4, 4)
        .jump_if_greater(R4, R3, "allow")
        .load32(R7, R2, 0)
        .load64(R2, R6, SOCKET)
        .load_map(R1, v6_only)
        .set(R3, 0)
        .set(R4, CREATE)
        .call(Helper::SkStorageGet)
        .jump_if_clear(R0, "allow")
        .store_reg32(R0, 0, R7);
    endings(&mut p);
    p
}

/// Binds the socket to an address and any port; jumps to "allow", or to "foreign" if the kernel refuses.
fn bind_source(p: &mut Program, ip: Result<Ipv4Addr, Ipv6Addr>) {
    // struct sockaddr_in, or sockaddr_in6: the family, port 0, and the rest.
    let half = |family: u16| {
        let [a, b] = family.to_ne_bytes();
        word([a, b, 0, 0])
    };
    let length: i16 = match ip {
        Ok(_) => 16,
        Err(_) => 28,
    };
    let at = -32;
    for offset in (0..length).step_by(4) {
        p.store32(R10, at + offset, 0);
    }
    match ip {
        Ok(v4) => {
            p.store32(R10, at, half(AF_INET))
                .store32(R10, at + 4, word(v4.octets()));
        }
        Err(v6) => {
            p.store32(R10, at, half(AF_INET6));
            for (i, word) in (0..).zip(words(v6)) {
                p.store32(R10, at + 8 + i * 4, word);
            }
        }
    }
    p.copy(R1, R6)
        .copy(R2, R10)
        .add(R2, at.into())
        .set(R3, length.into())
        .call(Helper::Bind)
        .jump_if_set(R0, "foreign")
        .jump("allow");
}

/// For connect and sendmsg: what is to be done with an IPv4 destination in `R2`. Goes on with one elsewhere; jumps to
/// "to any" if it is 0.0.0.0.
fn destination4(p: &mut Program, rules: &Rules) {
    if rules.v4.is_some() {
        p.jump_if_equal(R2, 0, "to any");
    }
    let loopback = if rules.shares_loopback() {
        "allow"
    } else {
        "refused"
    };
    jump_if_loopback4(p, R2, loopback);
    if rules.v4.is_none() {
        p.jump("unreachable");
    }
}

fn connect4(rules: &Rules) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1).load32(R2, R6, USER_IP4);
    destination4(&mut p, rules);
    if let Some(v4) = rules.v4 {
        p.jump("source").label("to any");
        p.store32(R6, USER_IP4, word(v4.octets()));
        p.label("source")
            .load64(R7, R6, SOCKET)
            .load32(R2, R7, BOUND_IP4)
            .jump_if_equal(R2, word(v4.octets()), "allow")
            .jump_unless_equal(R2, 0, "foreign");
        bind_source(&mut p, Ok(v4));
    }
    endings(&mut p);
    p
}

fn connect6(rules: &Rules) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1);
    load_words(&mut p, R6, USER_IP6);
    jump_if_ip6(&mut p, Ipv6Addr::UNSPECIFIED, "to any", "given");
    let loopback = if rules.shares_loopback() {
        "allow"
    } else {
        "refused"
    };
    jump_if_ip6(&mut p, Ipv6Addr::LOCALHOST, loopback, "not loopback");
    p.jump_unless_equal(R2, 0, "to v6")
        .jump_unless_equal(R3, 0, "to v6")
        .jump_unless_equal(R4, mapped_mark(), "to v6");
    // An IPv4 destination.
    p.jump_if_equal(R5, 0, "to any mapped");
    jump_if_loopback4(&mut p, R5, loopback);
    p.jump("from v4").label("to any mapped");
    if let Some(v4) = rules.v4 {
        store_words(&mut p, USER_IP6, mapped(v4));
    }
    p.jump("from v4").label("to any");
    if let Some(ip) = rules.wildcard() {
        store_words(&mut p, USER_IP6, ip);
        if ip.to_ipv4_mapped().is_none() {
            p.jump("to v6");
        }
    }
    p.label("from v4");
    source6(&mut p, rules.v4.map(mapped), "not bound to v4");
    p.label("to v6");
    source6(&mut p, rules.v6, "not bound to v6");
    endings(&mut p);
    p
}

/// Lets the socket of connect6 have this source, or none in a family that the pod has not. Goes on at `not_bound`, a
/// label of its own, for a socket that has another one.
fn source6(p: &mut Program, source: Option<Ipv6Addr>, not_bound: &'static str) {
    let Some(ip) = source else {
        p.jump("unreachable");
        return;
    };
    let (unbound, other) = if not_bound == "not bound to v4" {
        ("v4 unbound", "v4 other")
    } else {
        ("v6 unbound", "v6 other")
    };
    p.load64(R7, R6, SOCKET);
    load_words(p, R7, BOUND_IP6);
    jump_if_ip6(p, ip, "allow", not_bound);
    jump_if_ip6(p, Ipv6Addr::UNSPECIFIED, unbound, other);
    p.jump("foreign").label(unbound);
    bind_source(p, Err(ip));
}

fn sendmsg4(rules: &Rules) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1).load32(R2, R6, USER_IP4);
    destination4(&mut p, rules);
    if let Some(v4) = rules.v4 {
        p.jump("source").label("to any");
        p.store32(R6, USER_IP4, word(v4.octets()));
        p.label("source")
            .load32(R2, R6, SOURCE_IP4)
            .jump_if_equal(R2, word(v4.octets()), "allow")
            .jump_unless_equal(R2, 0, "foreign")
            .store32(R6, SOURCE_IP4, word(v4.octets()));
    }
    endings(&mut p);
    p
}

/// IPv4 destinations do not come here: the kernel has sent them to sendmsg4 by then.
fn sendmsg6(rules: &Rules) -> Program {
    let mut p = Program::new();
    p.copy(R6, R1);
    load_words(&mut p, R6, USER_IP6);
    let loopback = if rules.shares_loopback() {
        "allow"
    } else {
        "refused"
    };
    jump_if_ip6(&mut p, Ipv6Addr::LOCALHOST, loopback, "not loopback");
    let Some(v6) = rules.v6 else {
        p.jump("unreachable");
        endings(&mut p);
        return p;
    };
    jump_if_ip6(&mut p, Ipv6Addr::UNSPECIFIED, "to any", "given");
    p.jump("source").label("to any");
    store_words(&mut p, USER_IP6, v6);
    p.label("source");
    load_words(&mut p, R6, SOURCE_IP6);
    jump_if_ip6(&mut p, v6, "allow", "not ours");
    jump_if_ip6(&mut p, Ipv6Addr::UNSPECIFIED, "unbound", "other");
    p.jump("foreign").label("unbound");
    store_words(&mut p, SOURCE_IP6, v6);
    endings(&mut p);
    p
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Drops packets that are not from (or to) the pod's own address.
fn packets(rules: &Rules, direction: Direction) -> Program {
    // struct __sk_buff
    const PROTOCOL: i16 = 16;
    const IPV4: [u8; 2] = [0x08, 0x00];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    let protocol = |ether: [u8; 2]| u32::from(u16::from_ne_bytes(ether));
    let mut p = Program::new();
    p.copy(R6, R1)
        .load32(R7, R6, PROTOCOL)
        .jump_if_equal(R7, protocol(IPV4), "v4")
        .jump_if_equal(R7, protocol(IPV6), "v6")
        .jump("allow");

    let at = -40;
    p.label("v4");
    load_header(&mut p, at, 20);
    p.load8(R8, R10, at + 9).jump_if_equal(R8, 1, "allow");
    let offset = if direction == Direction::In { 16 } else { 12 };
    p.load32(R9, R10, at + offset);
    if let Some(v4) = rules.v4 {
        p.jump_if_equal(R9, word(v4.octets()), "allow");
    }
    if rules.shares_loopback() {
        jump_if_loopback4(&mut p, R9, "allow");
    }
    p.jump("drop");

    p.label("v6");
    load_header(&mut p, at, 40);
    p.load8(R8, R10, at + 6).jump_if_equal(R8, 58, "allow");
    let offset = if direction == Direction::In { 24 } else { 8 };
    load_words(&mut p, R10, at + offset);
    if let Some(v6) = rules.v6 {
        jump_if_ip6(&mut p, v6, "allow", "not v6");
    }
    if rules.shares_loopback() {
        jump_if_ip6(&mut p, Ipv6Addr::LOCALHOST, "allow", "not loopback");
    }
    p.label("drop").finish_with(0);
    p.label("allow").finish_with(1);
    p
}

/// Loads the beginning of the network header to the frame; what is too short is dropped.
fn load_header(p: &mut Program, at: i16, length: i32) {
    p.copy(R1, R6)
        .set(R2, 0)
        .copy(R3, R10)
        .add(R3, at.into())
        .set(R4, length)
        .call(Helper::SkbLoadBytes)
        .jump_if_set(R0, "drop");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_every_program_of_every_rule() {
        let v4 = Some(Ipv4Addr::new(192, 0, 2, 249));
        let v6 = Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        for (v4, v6) in [(v4, v6), (v4, None), (None, v6)] {
            for loopback in [Loopback::Shared, Loopback::Refused] {
                for wildcard_v6 in [WildcardV6::Primary, WildcardV6::Ipv4, WildcardV6::Ipv6] {
                    let rules = Rules {
                        v4,
                        v6,
                        primary_v4: v4.is_some(),
                        loopback,
                        wildcard_v6,
                    };
                    let v6_only = zcri_sys::bpf::SocketStorage::new().unwrap();
                    for (hook, name) in HOOKS {
                        let code = program(&rules, hook, v6_only.descriptor())
                            .expect("every jump has its label");
                        let loaded = zcri_sys::bpf::Program::load(hook, name, &code);
                        let loaded = loaded.unwrap_or_else(|e| {
                            panic!("{rules:?} {hook:?}: {e}: {:?}", e.io());
                        });
                        assert_eq!(loaded.info().unwrap().name, name);
                    }
                }
            }
        }
    }

    #[test]
    fn a_program_that_the_verifier_refuses_is_refused_with_its_words() {
        let mut p = Program::new();
        p.copy(R0, R9);
        let code = p.assemble().unwrap();
        let error = zcri_sys::bpf::Program::load(Hook::Bind4, "wrong", &code).unwrap_err();
        let text = error.io().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains("verifier"), "{text}");
    }
}
