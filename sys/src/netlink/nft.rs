//! The packet filter: as many messages of nf_tables as masquerading needs.
//!
//! A table of the family `inet` has one chain that source NAT goes through; a verdict map in it leads the traffic of
//! each address to a chain of its network. So an address costs one element of a map, found by hashing, and a
//! network one chain.
//!
//! ```text
//! table inet T {
//!   map M4 { type ipv4_addr : verdict; elements = { 192.0.2.249 : goto N, ... } }
//!   map M6 { type ipv6_addr : verdict; }
//!   chain C { type nat hook postrouting priority srcnat; ip saddr vmap @M4; ip6 saddr vmap @M6; }
//!   chain N { ip daddr 192.0.2.248/29 return; ...; masquerade }
//! }
//! ```
//!
//! Source: `linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`.

use std::net::IpAddr;

use super::Socket;
use super::message::Message;
use crate::Result;

/// Names of a table and of what is in it.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The table.
    pub table: &'a str,
    /// The chain of the network.
    pub chain: &'a str,
}

const BASE_CHAIN: &str = "postrouting";
const MAP_V4: &str = "pods4";
const MAP_V6: &str = "pods6";

/// Lets `addresses` be masqueraded by the chain of their network. The chain must be there, see [`set_up`].
///
/// # Errors
/// ENOENT when the table, the map or the chain is missing.
pub fn add_elements(socket: &mut Socket, names: Names<'_>, addresses: &[IpAddr]) -> Result<()> {
    let requests = addresses
        .iter()
        .map(|ip| element(NEWSETELEM, libc::NLM_F_CREATE, names, *ip))
        .collect();
    transact(socket, requests)
}

/// Lets `addresses` be masqueraded no longer.
///
/// # Errors
/// ENOENT when one is not in the map, and then none is removed.
pub fn del_elements(socket: &mut Socket, names: Names<'_>, addresses: &[IpAddr]) -> Result<()> {
    let requests = addresses
        .iter()
        .map(|ip| element(DELSETELEM, 0, names, *ip))
        .collect();
    transact(socket, requests)
}

/// Makes, or makes anew, all but the elements, in one step that no packet sees half done. What is not masqueraded is
/// what goes to `except`.
///
/// # Errors
/// The kernel cannot do it: it is too old (Linux 5.2 has NAT in `inet`), or a module is missing.
pub fn set_up(socket: &mut Socket, names: Names<'_>, except: &[(IpAddr, u8)]) -> Result<()> {
    let table = |m: Message| m.text(1, names.table);
    let create = libc::NLM_F_CREATE;
    let append = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
    let mut requests = vec![
        table(message(NEWTABLE, create)),
        map(names.table, MAP_V4, 4, 7, 1),
        map(names.table, MAP_V6, 16, 8, 2),
        base_chain(names.table),
        table(message(NEWCHAIN, create)).text(CHAIN_NAME, names.chain),
    ];
    for chain in [BASE_CHAIN, names.chain] {
        requests.push(table(message(DELRULE, 0)).text(RULE_CHAIN, chain));
    }
    let rule = |chain: &str, expressions: Vec<Expression>| {
        table(message(NEWRULE, append))
            .text(RULE_CHAIN, chain)
            .nest(RULE_EXPRESSIONS, |m| {
                expressions.into_iter().fold(m, |m, e| e.write(m))
            })
    };
    for (map, v4) in [(MAP_V4, true), (MAP_V6, false)] {
        let source = if v4 { (12, 4) } else { (8, 16) };
        let mut expressions = family_is(v4);
        expressions.push(payload(source.0, source.1));
        expressions.push(Expression::new("lookup", move |m| {
            m.text(1, map)
                .u32(2, REG_1)
                .u32(3, REG_VERDICT)
                .u32(4, if v4 { 1_u32 } else { 2 }.to_be())
        }));
        requests.push(rule(BASE_CHAIN, expressions));
    }
    for (ip, prefix) in except {
        requests.push(rule(names.chain, goes_to(*ip, *prefix)));
    }
    requests.push(rule(names.chain, vec![Expression::new("masq", |m| m)]));
    transact(socket, requests)
}

/// The addresses that are masqueraded.
///
/// # Errors
/// The table cannot be read; one that is not there holds none.
pub fn elements(socket: &mut Socket, table: &str) -> Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for map in [MAP_V4, MAP_V6] {
        let request = message(GETSETELEM, libc::NLM_F_DUMP)
            .text(ELEM_TABLE, table)
            .text(ELEM_SET, map);
        let answer = socket.ask("list masqueraded addresses", request, |received| {
            found.extend(read_elements(received.payload));
        });
        match answer {
            Err(e) if e.io().and_then(super::errno) == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(found)
}

fn read_elements(payload: &[u8]) -> Vec<IpAddr> {
    use super::message::attributes;
    let inside = |bytes, wanted| {
        attributes(bytes)
            .filter(move |(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let Some(attrs) = payload.get(4..) else {
        return Vec::new();
    };
    inside(attrs, ELEM_LIST)
        .flat_map(|list| inside(list, LIST_ELEM))
        .flat_map(|element| inside(element, ELEM_KEY))
        .flat_map(|key| inside(key, DATA_VALUE))
        .filter_map(|value| {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
                .ok()
        })
        .collect()
}

// enum nf_tables_msg_types
const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

// Attributes.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEM: u16 = 1;
const ELEM_TABLE: u16 = 1;
const ELEM_SET: u16 = 2;
const ELEM_LIST: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

// enum nft_registers: the verdict, and the first of 16 bytes.
const REG_VERDICT: u32 = 0_u32.to_be();
const REG_1: u32 = 1_u32.to_be();
// enum nft_verdicts
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;
/// A set whose elements lead to data.
const NFT_SET_MAP: u32 = 0x8;
/// The type of a verdict as data.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// `NF_IP_PRI_NAT_SRC`
const PRIORITY_SRCNAT: u32 = 100;
/// `NF_INET_POST_ROUTING`
const HOOK_POSTROUTING: u32 = 4;
/// `NFPROTO_INET`
const FAMILY_INET: u8 = 1;

/// A message of nf_tables with `struct nfgenmsg`.
fn message(kind: u16, flags: libc::c_int) -> Message {
    let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or(0) << 8;
    Message::new(
        subsystem | kind,
        u16::try_from(flags).unwrap_or(0),
        &[FAMILY_INET, 0, 0, 0],
    )
}

/// All or nothing.
fn transact(socket: &mut Socket, requests: Vec<Message>) -> Result<()> {
    // The resource id of nfgenmsg, in network order, is the subsystem that the batch is for.
    let subsystem = u8::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or(0);
    let edge = |kind| Message::new(u16::try_from(kind).unwrap_or(0), 0, &[0, 0, 0, subsystem]);
    socket.batch(
        edge(libc::NFNL_MSG_BATCH_BEGIN),
        requests,
        edge(libc::NFNL_MSG_BATCH_END),
    )
}

fn base_chain(table: &str) -> Message {
    message(NEWCHAIN, libc::NLM_F_CREATE)
        .text(1, table)
        .text(CHAIN_NAME, BASE_CHAIN)
        .nest(CHAIN_HOOK, |m| {
            m.u32(1, HOOK_POSTROUTING.to_be())
                .u32(2, PRIORITY_SRCNAT.to_be())
        })
        .text(CHAIN_TYPE, "nat")
}

/// A map from addresses to verdicts. `kind` is the type of the key in nft's own numbering (for `nft list`), `id` what
/// this batch calls it.
fn map(table: &str, name: &str, key_length: u32, kind: u32, id: u32) -> Message {
    message(NEWSET, libc::NLM_F_CREATE)
        .text(1, table)
        .text(2, name)
        .u32(3, NFT_SET_MAP.to_be())
        .u32(4, kind.to_be())
        .u32(5, key_length.to_be())
        .u32(6, NFT_DATA_VERDICT.to_be())
        .u32(10, id.to_be())
}

fn element(kind: u16, flags: libc::c_int, names: Names<'_>, ip: IpAddr) -> Message {
    let (map, octets) = match ip {
        IpAddr::V4(ip) => (MAP_V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (MAP_V6, ip.octets().to_vec()),
    };
    message(kind, flags)
        .text(ELEM_TABLE, names.table)
        .text(ELEM_SET, map)
        .nest(ELEM_LIST, |m| {
            m.nest(LIST_ELEM, |m| {
                let m = m.nest(ELEM_KEY, |m| m.attr(DATA_VALUE, &octets));
                if kind == DELSETELEM {
                    return m;
                }
                m.nest(ELEM_DATA, |m| verdict(m, NFT_GOTO, Some(names.chain)))
            })
        })
}

fn verdict(message: Message, code: i32, chain: Option<&str>) -> Message {
    message.nest(DATA_VERDICT, |m| {
        let m = m.attr(VERDICT_CODE, &code.to_be_bytes());
        match chain {
            Some(chain) => m.text(VERDICT_CHAIN, chain),
            None => m,
        }
    })
}

/// One expression of a rule.
struct Expression {
    name: &'static str,
    data: Box<dyn FnOnce(Message) -> Message>,
}

impl Expression {
    fn new(name: &'static str, data: impl FnOnce(Message) -> Message + 'static) -> Self {
        Self {
            name,
            data: Box::new(data),
        }
    }

    fn write(self, message: Message) -> Message {
        message.nest(1, |m| m.text(1, self.name).nest(2, self.data))
    }
}

/// The packet is of IPv4, or of IPv6.
fn family_is(v4: bool) -> Vec<Expression> {
    /// `NFT_META_NFPROTO`
    const NFPROTO: u32 = 15;
    let wanted = if v4 { 2 } else { 10 };
    vec![
        Expression::new("meta", |m| m.u32(1, REG_1).u32(2, NFPROTO.to_be())),
        compare(vec![wanted]),
    ]
}

/// Register 1 holds these bytes.
fn compare(bytes: Vec<u8>) -> Expression {
    Expression::new("cmp", move |m| {
        m.u32(1, REG_1)
            .u32(2, 0)
            .nest(3, |m| m.attr(DATA_VALUE, &bytes))
    })
}

/// Loads bytes of the network header into register 1.
fn payload(offset: u32, length: u32) -> Expression {
    /// `NFT_PAYLOAD_NETWORK_HEADER`
    const NETWORK: u32 = 1;
    Expression::new("payload", move |m| {
        m.u32(1, REG_1)
            .u32(2, NETWORK.to_be())
            .u32(3, offset.to_be())
            .u32(4, length.to_be())
    })
}

/// What goes to this prefix returns.
fn goes_to(ip: IpAddr, prefix: u8) -> Vec<Expression> {
    let (offset, octets) = match ip {
        IpAddr::V4(ip) => (16, ip.octets().to_vec()),
        IpAddr::V6(ip) => (24, ip.octets().to_vec()),
    };
    let length = u32::try_from(octets.len()).unwrap_or(0);
    let mask: Vec<u8> = (0..octets.len())
        .map(|byte| {
            let bits = usize::from(prefix).saturating_sub(byte * 8).min(8);
            u8::MAX
                .checked_shl(8 - u32::try_from(bits).unwrap_or(0))
                .unwrap_or(0)
        })
        .collect();
    let wanted = octets.iter().zip(&mask).map(|(a, b)| a & b).collect();
    let mut expressions = family_is(ip.is_ipv4());
    expressions.push(payload(offset, length));
    expressions.push(Expression::new("bitwise", move |m| {
        let zero = vec![0; mask.len()];
        m.u32(1, REG_1)
            .u32(2, REG_1)
            .u32(3, length.to_be())
            .nest(4, |m| m.attr(DATA_VALUE, &mask))
            .nest(5, |m| m.attr(DATA_VALUE, &zero))
    }));
    expressions.push(compare(wanted));
    expressions.push(Expression::new("immediate", |m| {
        m.u32(1, REG_VERDICT)
            .nest(2, |m| verdict(m, NFT_RETURN, None))
    }));
    expressions
}
