//! Which address an attachment gets.

use std::{collections::BTreeMap, fs, io, net::IpAddr};

use super::{Claim, Ino, Store, inodes, read_some, remove};
use crate::{
    error::{Error, Result},
    log::Log,
    ranges::{Family, Ranges},
};

/// What an attachment wants.
pub struct Wanted<'a> {
    /// One address of every family in these.
    pub ranges: &'a Ranges,
    /// These, of their families.
    pub requested: &'a [IpAddr],
    /// `maxVipas`
    pub max: usize,
    /// Addresses that turned out to be in use a moment ago.
    pub avoid: &'a [IpAddr],
    /// Whether an address without a lease is active, and where.
    pub active: &'a mut dyn FnMut(IpAddr) -> Result<Option<String>>,
    /// For what is skipped.
    pub log: &'a Log,
}

impl Store {
    /// The addresses of an attachment: those that it has, and new ones for families of which it has none. In the order
    /// of the ranges' families.
    ///
    /// The next address after the one that the network got last is given, so that one that was given back is not in use
    /// again at once.
    ///
    /// # Errors
    /// No address is free, the stack has as many as it may have, or an address that was asked for cannot be had. No
    /// address that was not there before is left then.
    pub fn allocate(&self, claim: &Claim, wanted: &mut Wanted<'_>) -> Result<Vec<IpAddr>> {
        let _lock = self.lock()?;
        let freed = self.free_stale_locked()?;
        if !freed.is_empty() {
            let list = freed.iter().map(IpAddr::to_string).collect::<Vec<_>>();
            wanted.log.line(format_args!(
                "freed {} leased before the last reboot",
                list.join(", ")
            ));
        }
        let leases = self.leases()?;
        let has = |family| {
            leases
                .iter()
                .find(|(ip, ino)| **ino == claim.ino && Family::of(**ip) == family)
                .map(|(ip, _)| *ip)
        };
        let families: Vec<Family> = wanted.ranges.families().collect();
        self.check_requests(wanted, &families, has)?;
        let missing = families.iter().filter(|f| has(**f).is_none()).count();
        self.check_limit(wanted.max, missing, &leases)?;

        let mut given: Vec<IpAddr> = Vec::new();
        let mut new = Vec::new();
        for family in families {
            let chosen = match has(family) {
                Some(ip) => Ok(ip),
                None => self
                    .choose(claim, wanted, family, &leases)
                    .inspect(|ip| new.push(*ip)),
            };
            match chosen {
                Ok(ip) => given.push(ip),
                Err(error) => {
                    for ip in new {
                        remove(&self.leases.join(ip.to_string()))?;
                    }
                    return Err(error);
                }
            }
        }
        if !new.is_empty() {
            self.remember(claim, &new);
        }
        Ok(given)
    }

    fn check_requests(
        &self,
        wanted: &Wanted<'_>,
        families: &[Family],
        has: impl Fn(Family) -> Option<IpAddr>,
    ) -> Result<()> {
        for ip in wanted.requested {
            let family = Family::of(*ip);
            let reason = match has(family) {
                Some(other) if other != *ip => format!("the container has {other} already"),
                Some(_) => continue,
                None if !families.contains(&family) => "no range is of its family".to_owned(),
                None => match wanted.ranges.allows(*ip) {
                    Ok(()) => continue,
                    Err(reason) => reason.to_owned(),
                },
            };
            return Err(Error::Requested { ip: *ip, reason });
        }
        Ok(())
    }

    fn check_limit(&self, max: usize, wanted: usize, leases: &BTreeMap<IpAddr, Ino>) -> Result<()> {
        let ours = inodes(&self.place())?;
        let used = leases.values().filter(|ino| ours.contains(ino)).count();
        if wanted > 0 && used + wanted > max {
            return Err(Error::Limit {
                stack: self.stack.clone(),
                used,
                max,
                wanted,
            });
        }
        Ok(())
    }

    fn choose(
        &self,
        claim: &Claim,
        wanted: &mut Wanted<'_>,
        family: Family,
        leases: &BTreeMap<IpAddr, Ino>,
    ) -> Result<IpAddr> {
        if let Some(ip) = wanted
            .requested
            .iter()
            .find(|ip| Family::of(**ip) == family)
        {
            return self.take_requested(claim, wanted, *ip);
        }
        let last = self.last_given(claim, family);
        let mut skipped = 0;
        for ip in wanted.ranges.after(family, last) {
            if leases.contains_key(&ip) {
                continue;
            }
            if wanted.avoid.contains(&ip) {
                skipped += 1;
                continue;
            }
            if let Some(place) = (wanted.active)(ip)? {
                skipped += 1;
                wanted.log.line(format_args!(
                    "{ip} is skipped: it is active {place}, and no lease says whose it is"
                ));
                continue;
            }
            if self.link(claim, ip)? {
                return Ok(ip);
            }
        }
        let leased = leases
            .keys()
            .filter(|ip| Family::of(**ip) == family && wanted.ranges.allows(**ip).is_ok())
            .count();
        Err(Error::Exhausted {
            family: family.as_str(),
            ranges: wanted.ranges.to_string(),
            leased,
            skipped,
        })
    }

    fn take_requested(&self, claim: &Claim, wanted: &mut Wanted<'_>, ip: IpAddr) -> Result<IpAddr> {
        let leased = |store: &Self| {
            let reason = match store.owner_of(ip) {
                Some(owner) => format!("it belongs to {}", owner.describe()),
                None => "its lease is damaged".to_owned(),
            };
            Error::Requested { ip, reason }
        };
        if self.is_leased(ip) {
            return Err(leased(self));
        }
        if let Some(place) = (wanted.active)(ip)? {
            let reason = format!("it is active {place}, and no lease says whose it is");
            return Err(Error::Requested { ip, reason });
        }
        if self.link(claim, ip)? {
            Ok(ip)
        } else {
            Err(leased(self))
        }
    }

    /// Whether the lease could be made; it cannot when it is there.
    fn link(&self, claim: &Claim, ip: IpAddr) -> Result<bool> {
        let path = self.leases.join(ip.to_string());
        match fs::hard_link(&claim.path, &path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::store("create", path)(e)),
        }
    }

    fn last_file(&self, claim: &Claim) -> std::path::PathBuf {
        self.place().join(format!(".last-{}", claim.key.network))
    }

    fn last_given(&self, claim: &Claim, family: Family) -> Option<IpAddr> {
        let text = read_some(&self.last_file(claim)).ok()?;
        text.lines()
            .filter_map(|line| line.parse().ok())
            .find(|ip| Family::of(*ip) == family)
    }

    /// It decides the order of addresses and nothing else, so that a failure, or a write cut short, does no harm.
    fn remember(&self, claim: &Claim, new: &[IpAddr]) {
        let kept = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| !new.iter().any(|ip| Family::of(*ip) == *family))
            .filter_map(|family| self.last_given(claim, family));
        let lines: String = new
            .iter()
            .copied()
            .chain(kept)
            .map(|ip| format!("{ip}\n"))
            .collect();
        drop(fs::write(self.last_file(claim), lines));
    }
}
