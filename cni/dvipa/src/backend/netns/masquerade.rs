//! Masquerading: what pods send to other networks gets the node's address.
//!
//! All in a table of our own, `inet zcri_dvipa`, that no other program's rules are in. An address costs one element of
//! a map; rules are made once per network and configuration.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};
use zcri_sys::netlink::{
    Socket,
    nft::{self, Names},
};

use crate::{
    backend::host::{EEXIST, ENOENT, errno},
    error::{Error, Failures, Result},
    ranges::Ranges,
};

const TABLE: &str = "zcri_dvipa";

/// The masquerading of one network.
pub(super) struct Masquerade {
    /// Named by what is in it: another configuration of the network gets another chain.
    chain: String,
    /// What is not masqueraded: the ranges, because pods of other nodes are there.
    except: Vec<(IpAddr, u8)>,
}

impl Masquerade {
    pub(super) fn new(network: &str, ranges: &Ranges) -> Self {
        let digest = Sha256::digest(format!("{network}\n{ranges}"));
        let digits: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
        let except = ranges.prefixes().iter().map(|p| (p.ip, p.length));
        Self {
            chain: format!("net-{digits}"),
            except: except.collect(),
        }
    }

    fn names(&self) -> Names<'_> {
        Names {
            table: TABLE,
            chain: &self.chain,
        }
    }

    pub(super) fn add(&self, addresses: &[IpAddr]) -> Result<()> {
        let fail = || Error::system("cannot masquerade what the pod sends");
        let mut socket = Socket::netfilter().map_err(fail())?;
        match nft::add_elements(&mut socket, self.names(), addresses) {
            Err(e) if errno(&e) == Some(ENOENT) => {
                nft::set_up(&mut socket, self.names(), &self.except).map_err(fail())?;
                nft::add_elements(&mut socket, self.names(), addresses).map_err(fail())
            }
            // Left by an ADD of the same address before: perhaps with another chain.
            Err(e) if errno(&e) == Some(EEXIST) => {
                let mut failures = Failures::default();
                drop(self.remove(addresses, &mut failures));
                failures.end()?;
                nft::add_elements(&mut socket, self.names(), addresses).map_err(fail())
            }
            other => other.map_err(fail()),
        }
    }

    /// Gives the socket, whose closing is to be waited for: see [`zcri_sys::netlink::removal`].
    pub(super) fn remove(&self, addresses: &[IpAddr], failures: &mut Failures) -> Option<Socket> {
        let fail = |e| Error::system("cannot end the masquerading of the pod")(e);
        let mut socket = failures.note(Socket::netfilter().map_err(fail))?;
        // One by one: a transaction with one that is missing would remove none.
        for ip in addresses {
            match nft::del_elements(&mut socket, self.names(), &[*ip]) {
                Err(e) if errno(&e) == Some(ENOENT) => {}
                other => drop(failures.note(other.map_err(fail))),
            }
        }
        Some(socket)
    }

    pub(super) fn check(&self, addresses: &[IpAddr]) -> Result<()> {
        let present = self.elements()?;
        match addresses.iter().find(|ip| !present.contains(ip)) {
            Some(ip) => Err(Error::Changed {
                what: format!("{ip} is not masqueraded"),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn sweep(&self, leased: &dyn Fn(IpAddr) -> bool) -> Result<()> {
        let mut lost = self.elements()?;
        lost.retain(|ip| !leased(*ip));
        let mut failures = Failures::default();
        drop(self.remove(&lost, &mut failures));
        failures.end()
    }

    fn elements(&self) -> Result<Vec<IpAddr>> {
        let fail = || Error::system("cannot read the table of masquerading");
        let mut socket = Socket::netfilter().map_err(fail())?;
        nft::elements(&mut socket, TABLE).map_err(fail())
    }
}
