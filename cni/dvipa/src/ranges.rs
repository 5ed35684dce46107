//! The addresses that may be given out: as VIPARANGE statements have them, for IPv4, IPv6 or both.

use std::{fmt, net::IpAddr};

use crate::error::{Error, Result};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As people write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn ip(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => std::net::Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            Self::V6 => std::net::Ipv6Addr::from(number).into(),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// A prefix: an address whose host bits are 0, and how many bits are not host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The first address.
    pub ip: IpAddr,
    /// At most 32 or 128.
    pub length: u8,
}

impl Prefix {
    fn parse(text: &str) -> Result<Self, String> {
        let (ip, length) = text
            .split_once('/')
            .ok_or("has no prefix length, such as /29")?;
        let ip: IpAddr = ip
            .parse()
            .map_err(|_| format!("{ip:?} is not an IP address"))?;
        let length: u8 = length
            .parse()
            .ok()
            .filter(|length| *length <= Family::of(ip).bits())
            .ok_or_else(|| format!("{length:?} is not a prefix length"))?;
        let prefix = Self { ip, length };
        let first = Self {
            ip: Family::of(ip).ip(number(ip) & !prefix.host_bits()),
            length,
        };
        if first == prefix {
            Ok(prefix)
        } else {
            Err(format!("is not a network address; {first} is"))
        }
    }

    fn host_bits(self) -> u128 {
        let bits = u32::from(Family::of(self.ip).bits() - self.length);
        1_u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1)
    }

    fn span(self) -> Span {
        let first = number(self.ip);
        Span {
            first,
            last: first | self.host_bits(),
        }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        Family::of(self.ip) == Family::of(ip) && self.span().contains(number(ip))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

/// Addresses from the first to the last, both of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u128,
    last: u128,
}

impl Span {
    fn contains(self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// What is left of it when `hole` is taken out.
    fn without(self, hole: Span) -> impl Iterator<Item = Span> {
        let before = (hole.first > self.first).then(|| Span {
            first: self.first,
            last: self.last.min(hole.first - 1),
        });
        let after = (hole.last < self.last).then(|| Span {
            first: self.first.max(hole.last + 1),
            last: self.last,
        });
        let all = if hole.last < self.first || hole.first > self.last {
            [Some(self), None]
        } else {
            [before, after]
        };
        all.into_iter().flatten()
    }
}

/// What may be given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    ranges: Vec<Prefix>,
    /// What is left of the ranges, in their order.
    usable: Vec<(Family, Span)>,
}

impl Ranges {
    /// From the keys `vipaRanges` and `exclude` of the configuration.
    ///
    /// # Errors
    /// A range that is malformed, of a kind that hosts do not have, too small, or overlaps another; an exclusion of
    /// what is in no range; nothing left.
    pub fn parse(ranges: &[String], exclude: &[String]) -> Result<Self> {
        let wrong = |key, text: &str, reason: String| Error::Config {
            key,
            reason: format!("{text:?} {reason}"),
        };
        let mut parsed: Vec<Prefix> = Vec::new();
        let mut usable = Vec::new();
        for text in ranges {
            let range = Prefix::parse(text).map_err(|reason| wrong("vipaRanges", text, reason))?;
            if let Some(kind) = not_for_hosts(range) {
                return Err(wrong("vipaRanges", text, format!("is {kind}")));
            }
            if let Some(other) = parsed
                .iter()
                .find(|other| other.contains(range.ip) || range.contains(other.ip))
            {
                return Err(wrong("vipaRanges", text, format!("overlaps {other}")));
            }
            let span = hosts(range).ok_or_else(|| {
                let reason = "is too small: its first and last address are the network's and the broadcast address";
                wrong("vipaRanges", text, reason.to_owned())
            })?;
            usable.push((Family::of(range.ip), span));
            parsed.push(range);
        }
        if parsed.is_empty() {
            return Err(Error::Config {
                key: "vipaRanges",
                reason: "names no range".to_owned(),
            });
        }
        for text in exclude {
            let (family, hole) = excluded(text).map_err(|reason| wrong("exclude", text, reason))?;
            let ip = family.ip(hole.first);
            if !parsed.iter().any(|range| range.contains(ip)) {
                return Err(wrong(
                    "exclude",
                    text,
                    "is in none of vipaRanges".to_owned(),
                ));
            }
            usable = usable
                .into_iter()
                .flat_map(|(of, span)| {
                    let hole = if of == family { hole } else { NO_HOLE };
                    span.without(hole).map(move |span| (of, span))
                })
                .collect();
        }
        let all = Self {
            ranges: parsed,
            usable,
        };
        let empty = all.families().find(|family| all.size(*family) == 0);
        match empty {
            Some(family) => Err(Error::Config {
                key: "exclude",
                reason: format!("leaves no {} address of vipaRanges", family.as_str()),
            }),
            None => Ok(all),
        }
    }

    /// The families, that of the first range first: it is the family of a pod's primary address.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let first = self.ranges.first().map(|range| Family::of(range.ip));
        let other = self
            .ranges
            .iter()
            .map(|range| Family::of(range.ip))
            .find(|family| Some(*family) != first);
        first.into_iter().chain(other)
    }

    /// As they were configured.
    #[must_use]
    pub fn prefixes(&self) -> &[Prefix] {
        &self.ranges
    }

    /// How many addresses of a family may be given out.
    #[must_use]
    pub fn size(&self, family: Family) -> u128 {
        self.spans(family)
            .map(|span| (span.last - span.first).saturating_add(1))
            .fold(0, u128::saturating_add)
    }

    /// Whether an address may be given out; if not, why.
    ///
    /// # Errors
    /// The reason.
    pub fn allows(&self, ip: IpAddr) -> Result<(), &'static str> {
        let wanted = number(ip);
        if self.spans(Family::of(ip)).any(|span| span.contains(wanted)) {
            return Ok(());
        }
        match self.ranges.iter().find(|range| range.contains(ip)) {
            None => Err("it is in none of vipaRanges"),
            Some(range) if hosts(*range).is_some_and(|span| span.contains(wanted)) => {
                Err("it is excluded")
            }
            Some(_) if ip.is_ipv4() => Err("it is the network's own or its broadcast address"),
            Some(_) => Err("it is the anycast address of the network's routers"),
        }
    }

    /// All addresses of a family, once, from the one after `last`.
    pub fn after(&self, family: Family, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let spans: Vec<Span> = self.spans(family).collect();
        let last = last.filter(|ip| Family::of(*ip) == family).map(number);
        let found = last.and_then(|last| {
            let index = spans.iter().position(|span| span.contains(last))?;
            Some((index, last))
        });
        let (mut order, mut tail) = (spans.clone(), None);
        if let Some((index, last)) = found {
            order.rotate_left(index);
            let first = order.remove(0);
            tail = Some(Span { last, ..first });
            if last < first.last {
                let rest = Span {
                    first: last + 1,
                    ..first
                };
                order.insert(0, rest);
            }
        }
        order
            .into_iter()
            .chain(tail)
            .flat_map(|span| span.first..=span.last)
            .map(move |number| family.ip(number))
    }

    fn spans(&self, family: Family) -> impl Iterator<Item = Span> {
        self.usable
            .iter()
            .filter(move |(of, _)| *of == family)
            .map(|(_, span)| *span)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// Takes nothing out of anything but the address 0, which is in no range.
const NO_HOLE: Span = Span { first: 0, last: 0 };

/// The addresses of a range that hosts may have. IPv4: not the first and last, as z/OS reserves them (IBM, z/OS
/// Container Platform, "IP addresses"). IPv6: not the first, which all routers answer to (RFC 4291, section 2.6.1),
/// except where there is no room for it (RFC 6164).
fn hosts(range: Prefix) -> Option<Span> {
    let span = range.span();
    match Family::of(range.ip) {
        Family::V4 => (range.length <= 30).then(|| Span {
            first: span.first + 1,
            last: span.last - 1,
        }),
        Family::V6 if range.length >= 127 => Some(span),
        Family::V6 => Some(Span {
            first: span.first + 1,
            ..span
        }),
    }
}

/// Addresses that no host has as its own.
fn not_for_hosts(range: Prefix) -> Option<&'static str> {
    let any = |text: &str| {
        Prefix::parse(text).is_ok_and(|kind| kind.contains(range.ip) || range.contains(kind.ip))
    };
    let kinds = [
        ("0.0.0.0/8", "not for hosts"),
        ("127.0.0.0/8", "for loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "for multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/127", "not for hosts"),
        ("::ffff:0:0/96", "for IPv4 addresses in IPv6 sockets"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "for multicast"),
    ];
    kinds
        .into_iter()
        .find(|(text, _)| any(text))
        .map(|(_, kind)| kind)
}

/// An address, a prefix, or a first and last address with a hyphen between.
fn excluded(text: &str) -> Result<(Family, Span), String> {
    let address = |text: &str| -> Result<IpAddr, String> {
        text.trim()
            .parse()
            .map_err(|_| format!("{text:?} is not an IP address"))
    };
    if text.contains('/') {
        let prefix = Prefix::parse(text)?;
        return Ok((Family::of(prefix.ip), prefix.span()));
    }
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (address(first)?, address(last)?),
        None => (address(text)?, address(text)?),
    };
    if Family::of(first) != Family::of(last) || last < first {
        return Err("does not go from a lower to a higher address of one family".to_owned());
    }
    let span = Span {
        first: number(first),
        last: number(last),
    };
    Ok((Family::of(first), span))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(ranges: &[&str], exclude: &[&str]) -> Result<Ranges> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Ranges::parse(&owned(ranges), &owned(exclude))
    }

    fn listed(ranges: &Ranges, family: Family, last: Option<&str>) -> Vec<String> {
        let last = last.map(|ip| ip.parse().unwrap());
        let all = ranges.after(family, last);
        all.map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn the_range_of_ibms_example_has_six_addresses() {
        let ranges = ranges(&["192.0.2.248/29"], &[]).unwrap();
        let six = [249, 250, 251, 252, 253, 254].map(|last| format!("192.0.2.{last}"));
        assert_eq!(listed(&ranges, Family::V4, None), six);
        assert_eq!(ranges.size(Family::V4), 6);
        let rotated = [252, 253, 254, 249, 250, 251].map(|last| format!("192.0.2.{last}"));
        assert_eq!(listed(&ranges, Family::V4, Some("192.0.2.251")), rotated);
        assert_eq!(listed(&ranges, Family::V4, Some("192.0.2.254")), six);
        assert_eq!(listed(&ranges, Family::V4, Some("10.0.0.1")), six);
        let reserved = ranges.allows("192.0.2.255".parse().unwrap()).unwrap_err();
        assert!(reserved.contains("broadcast"));
    }

    #[test]
    fn families_come_in_the_order_of_the_ranges() {
        let both = ranges(&["2001:db8::/126", "192.0.2.0/30", "198.51.100.0/30"], &[]).unwrap();
        assert_eq!(
            both.families().collect::<Vec<_>>(),
            [Family::V6, Family::V4]
        );
        assert_eq!(
            listed(&both, Family::V6, None),
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"]
        );
        assert_eq!(
            listed(&both, Family::V4, Some("192.0.2.2")),
            ["198.51.100.1", "198.51.100.2", "192.0.2.1", "192.0.2.2"]
        );
        let single = ranges(&["2001:db8::7/128"], &[]).unwrap();
        assert_eq!(listed(&single, Family::V6, None), ["2001:db8::7"]);
    }

    #[test]
    fn exclusions_are_taken_out() {
        let some = ranges(
            &["192.0.2.248/29"],
            &["192.0.2.249", "192.0.2.252-192.0.2.253", "192.0.2.254/32"],
        )
        .unwrap();
        assert_eq!(
            listed(&some, Family::V4, None),
            ["192.0.2.250", "192.0.2.251"]
        );
        let why = some.allows("192.0.2.249".parse().unwrap()).unwrap_err();
        assert_eq!(why, "it is excluded");
        assert_eq!(
            listed(&some, Family::V4, Some("192.0.2.253")),
            ["192.0.2.250", "192.0.2.251"]
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (with, without, names) in [
            (&["192.0.2.249/29"][..], &[][..], "192.0.2.248/29"),
            (&["192.0.2.0/31"], &[], "too small"),
            (&["192.0.2.1/32"], &[], "too small"),
            (&["192.0.2.0"], &[], "prefix length"),
            (&["192.0.2.0/33"], &[], "33"),
            (&["192.0.2/29"], &[], "192.0.2"),
            (&["2001:db8::/129"], &[], "129"),
            (&[], &[], "no range"),
            (
                &["192.0.2.0/24", "192.0.2.128/25"],
                &[],
                "overlaps 192.0.2.0/24",
            ),
            (
                &["192.0.2.128/25", "192.0.2.0/24"],
                &[],
                "overlaps 192.0.2.128/25",
            ),
            (&["127.0.1.0/24"], &[], "loopback"),
            (&["0.0.0.0/0"], &[], "not for hosts"),
            (&["224.0.0.0/24"], &[], "multicast"),
            (&["169.254.0.0/24"], &[], "link-local"),
            (&["fe80::/64"], &[], "link-local"),
            (&["ff02::/64"], &[], "multicast"),
            (&["::ffff:192.0.2.0/120"], &[], "IPv4 addresses"),
            (&["192.0.2.0/29"], &["192.0.3.1"], "in none of vipaRanges"),
            (
                &["192.0.2.0/29"],
                &["192.0.2.5-192.0.2.1"],
                "lower to a higher",
            ),
            (&["192.0.2.0/29"], &["192.0.2.0/29"], "leaves no IPv4"),
            (&["192.0.2.0/29"], &["x"], "not an IP address"),
        ] {
            let error = ranges(with, without).unwrap_err();
            assert_eq!(error.code(), 7);
            let text = error.chain();
            assert!(text.contains(names), "{with:?} {without:?}: {text}");
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_once_and_the_last_one_last(
            base in 0_u32..0x00ff_ffff, length in 24_u8..=30, last in any::<u8>(), hole in any::<u8>(),
        ) {
            let net = std::net::Ipv4Addr::from((0x0a00_0000 | base) & !(u32::MAX >> length));
            let hole = std::net::Ipv4Addr::from(u32::from(net) | (u32::from(hole) & (u32::MAX >> length)));
            let Ok(ranges) = ranges(&[&format!("{net}/{length}")], &[&hole.to_string()]) else {
                return Ok(());
            };
            let host = u32::from(last) & (u32::MAX >> length);
            let last: IpAddr = std::net::Ipv4Addr::from(u32::from(net) | host).into();
            let all: Vec<_> = ranges.after(Family::V4, Some(last)).collect();
            prop_assert_eq!(all.len() as u128, ranges.size(Family::V4));
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            prop_assert_eq!(distinct.len(), all.len());
            prop_assert!(all.iter().all(|ip| ranges.allows(*ip).is_ok()));
            if ranges.allows(last).is_ok() {
                prop_assert_eq!(all.last(), Some(&last));
            }
        }
    }
}
