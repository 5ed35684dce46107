//! Dynamic VIPAs of a z/OS TCP/IP stack: the ioctls SIOCSVIPA and SIOCSVIPA6.
//!
//! Source: IBM, z/OS Communications Server IP Programmer's Guide, "Using the SIOCSVIPA or SIOCSVIPA6 ioctl command":
//! the caller fills `struct dvreq` of `ezbzdvpc.h` (version, length, option, address). Neither the layout of that
//! structure nor the numbers in it are in any public text, so that none of them is guessed here: they come from the
//! header itself, on the system that this is built on, in the environment variable `ZCRI_DVREQ`. docs/networking.md has
//! the C program that writes it. Without it, and on every other system, the operation is unsupported.
//!
//! The form is words `NAME=NUMBER[:NUMBER...]`, decimal or with `0x`:
//!
//! ```text
//! SIOCSVIPA=COMMAND SIOCSVIPA6=COMMAND size4=BYTES size6=BYTES
//! version=OFFSET:WIDTH:VALUE length=OFFSET:WIDTH option=OFFSET:WIDTH:DEFINE:DELETE
//! address4=OFFSET address6=OFFSET already=ERRNO outside=ERRNO
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::{Error, Result};

/// What this program was built with.
#[cfg(not(feature = "zos-stub"))]
pub const BUILT_WITH: Option<&str> = option_env!("ZCRI_DVREQ");
/// What this program was built with: the numbers of the stand-in for z/OS.
#[cfg(feature = "zos-stub")]
pub const BUILT_WITH: Option<&str> = Some(crate::zos::DVREQ);

/// What is to be done with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make it a dynamic VIPA of the stack (`DVR_DEFINE`: without affinity to the caller, which ends at once).
    Define,
    /// Remove it.
    Delete,
}

/// What the stack said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// Define: the address is active on this stack, and another application made it. It would be usable, and might go
    /// at any moment.
    AlreadyActive,
    /// Define: no VIPARANGE has the address. Delete: it is not a dynamic VIPA of this stack.
    NotDefined,
}

impl Answer {
    /// By the exit code of MODDVIPA, IBM's program for the same two operations. Source: IBM, z/OS Communications Server
    /// IP Configuration Guide, "Output from the MODDVIPA utility".
    #[must_use]
    pub fn from_utility(code: i32) -> Option<Self> {
        match code {
            0 => Some(Self::Done),
            4 => Some(Self::AlreadyActive),
            8 => Some(Self::NotDefined),
            _ => None,
        }
    }
}

/// A number within the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    offset: usize,
    width: usize,
}

/// The structure, the commands and the error numbers of one z/OS release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    commands: [u32; 2],
    sizes: [usize; 2],
    version: (Field, u64),
    length: Field,
    option: (Field, u64, u64),
    addresses: [usize; 2],
    already: i32,
    outside: i32,
}

/// `ZCRI_DVREQ` is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ZCRI_DVREQ: {what} is missing or wrong")]
pub struct LayoutError {
    /// The word.
    pub what: &'static str,
}

impl Layout {
    /// From the form above.
    ///
    /// # Errors
    /// The first word that is missing, malformed, or names a place outside of the structure.
    pub fn parse(text: &str) -> Result<Self, LayoutError> {
        let words: BTreeMap<&str, Vec<u64>> = text
            .split_whitespace()
            .filter_map(|word| {
                let (name, numbers) = word.split_once('=')?;
                let numbers: Option<Vec<u64>> = numbers.split(':').map(number).collect();
                Some((name, numbers?))
            })
            .collect();
        let get = |what: &'static str, count: usize| {
            let numbers = words.get(what).filter(|numbers| numbers.len() == count);
            numbers.cloned().ok_or(LayoutError { what })
        };
        let small = |what, value: u64| usize::try_from(value).map_err(|_| LayoutError { what });
        let single = |what| small(what, get(what, 1)?[0]);
        let sizes = [single("size4")?, single("size6")?];
        let least = sizes[0].min(sizes[1]);
        let field = |what, numbers: &[u64]| {
            let field = Field {
                offset: small(what, numbers[0])?,
                width: small(what, numbers[1])?,
            };
            let fits = [1, 2, 4, 8].contains(&field.width)
                && field
                    .offset
                    .checked_add(field.width)
                    .is_some_and(|end| end <= least);
            if fits {
                Ok(field)
            } else {
                Err(LayoutError { what })
            }
        };
        let address = |what, size: usize, length: usize| {
            let offset = single(what)?;
            match offset.checked_add(length) {
                Some(end) if end <= size => Ok(offset),
                _ => Err(LayoutError { what }),
            }
        };
        let command = |what| u32::try_from(get(what, 1)?[0]).map_err(|_| LayoutError { what });
        let errno = |what| i32::try_from(get(what, 1)?[0]).map_err(|_| LayoutError { what });
        let (version, option) = (get("version", 3)?, get("option", 4)?);
        Ok(Self {
            commands: [command("SIOCSVIPA")?, command("SIOCSVIPA6")?],
            sizes,
            version: (field("version", &version)?, version[2]),
            length: field("length", &get("length", 2)?)?,
            option: (field("option", &option)?, option[2], option[3]),
            addresses: [
                address("address4", sizes[0], 4)?,
                address("address6", sizes[1], 16)?,
            ],
            already: errno("already")?,
            outside: errno("outside")?,
        })
    }

    /// The ioctl's command.
    #[must_use]
    pub fn command(&self, ip: IpAddr) -> u32 {
        self.commands[usize::from(ip.is_ipv6())]
    }

    /// The structure for a request: numbers big-endian, as the machine has them, and the address in network order. What
    /// has no field here is zero.
    #[must_use]
    pub fn encode(&self, action: Action, ip: IpAddr) -> Vec<u8> {
        let family = usize::from(ip.is_ipv6());
        let size = self.sizes[family];
        let mut bytes = vec![0; size];
        let mut put = |field: Field, value: u64| {
            let whole = value.to_be_bytes();
            bytes[field.offset..field.offset + field.width]
                .copy_from_slice(&whole[8 - field.width..]);
        };
        put(self.version.0, self.version.1);
        put(self.length, size as u64);
        let option = match action {
            Action::Define => self.option.1,
            Action::Delete => self.option.2,
        };
        put(self.option.0, option);
        let at = self.addresses[family];
        match ip {
            IpAddr::V4(ip) => bytes[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes[at..at + 16].copy_from_slice(&ip.octets()),
        }
        bytes
    }

    /// What an error number of the ioctl means, if it is more than a failure.
    #[must_use]
    pub fn meaning(&self, errno: i32) -> Option<Answer> {
        match errno {
            0 => Some(Answer::Done),
            e if e == self.already => Some(Answer::AlreadyActive),
            e if e == self.outside => Some(Answer::NotDefined),
            _ => None,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Asks the stack that this process has affinity to.
///
/// # Errors
/// The stack refused for another reason than [`Answer`] has, or this is not z/OS.
pub fn request(layout: &Layout, action: Action, ip: IpAddr) -> Result<Answer> {
    match ioctl(layout, action, ip) {
        Ok(()) => Ok(Answer::Done),
        Err(source) => source
            .raw_os_error()
            .and_then(|errno| layout.meaning(errno))
            .ok_or(Error::Call {
                op: "ioctl SIOCSVIPA",
                source,
            }),
    }
}

#[cfg(any(target_os = "zos", feature = "zos-stub"))]
fn ioctl(layout: &Layout, action: Action, ip: IpAddr) -> io::Result<()> {
    let mut bytes = layout.encode(action, ip);
    // SAFETY: `bytes` is the whole structure that the command reads and writes, by the system's own header.
    unsafe { crate::zos::socket_ioctl(ip.is_ipv6(), layout.command(ip), &mut bytes) }
}

#[cfg(not(any(target_os = "zos", feature = "zos-stub")))]
fn ioctl(_layout: &Layout, _action: Action, _ip: IpAddr) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "dynamic VIPAs are of z/OS",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made up: no real system's numbers.
    const SAMPLE: &str = "SIOCSVIPA=0xc0180001 SIOCSVIPA6=0xc0280002 size4=24 size6=40 version=0:2:1 length=2:2 \
                          option=4:4:1:2 address4=8 address6=16 already=1121 outside=1122";

    #[test]
    fn a_request_has_the_size_the_places_and_the_order_of_the_header() {
        let layout = Layout::parse(SAMPLE).unwrap();
        let ip = "192.0.2.249".parse().unwrap();
        assert_eq!(layout.command(ip), 0xc018_0001);
        let mut expected = vec![0, 1, 0, 24, 0, 0, 0, 1, 192, 0, 2, 249];
        expected.resize(24, 0);
        assert_eq!(layout.encode(Action::Define, ip), expected);
        expected[7] = 2;
        assert_eq!(layout.encode(Action::Delete, ip), expected);

        let ip = "2001:db8::f9".parse().unwrap();
        assert_eq!(layout.command(ip), 0xc028_0002);
        let bytes = layout.encode(Action::Define, ip);
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..8], [0, 1, 0, 40, 0, 0, 0, 1]);
        assert_eq!(bytes[8..16], [0; 8]);
        assert_eq!(bytes[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(bytes[31], 0xf9);
    }

    #[test]
    fn answers_mean_what_ibms_program_says() {
        let layout = Layout::parse(SAMPLE).unwrap();
        for (errno, utility, meaning) in [
            (0, 0, Some(Answer::Done)),
            (1121, 4, Some(Answer::AlreadyActive)),
            (1122, 8, Some(Answer::NotDefined)),
            (111, 12, None),
        ] {
            assert_eq!(layout.meaning(errno), meaning);
            assert_eq!(Answer::from_utility(utility), meaning);
        }
    }

    #[test]
    fn a_word_that_is_missing_or_leads_out_of_the_structure_is_named() {
        for (from, to, what) in [
            ("size4=24 ", "", "size4"),
            ("address6=16", "address6=25", "address6"),
            ("address4=8", "address4=99999999999999999999", "address4"),
            ("length=2:2", "length=2:3", "length"),
            ("length=2:2", "length=23:2", "length"),
            ("version=0:2:1", "version=0:2", "version"),
            ("option=4:4:1:2", "option=x", "option"),
            ("SIOCSVIPA=0xc0180001", "SIOCSVIPA=0xfffffffff", "SIOCSVIPA"),
            ("already=1121", "already=", "already"),
        ] {
            let error = Layout::parse(&SAMPLE.replace(from, to)).unwrap_err();
            assert_eq!(error.what, what);
        }
    }

    #[cfg(not(feature = "zos-stub"))]
    #[test]
    fn elsewhere_it_is_unsupported() {
        let layout = Layout::parse(SAMPLE).unwrap();
        let error = request(&layout, Action::Define, "192.0.2.1".parse().unwrap()).unwrap_err();
        let kind = error.io().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::Unsupported));
    }
}
