//! Backend `stack`: no network namespace. The VIPA is an address of the host's own stack, and eBPF programs on the
//! pod's control group confine the pod to it.
//!
//! ```text
//!   host stack: lo 192.0.2.249/32, 192.0.2.250/32       (IFA_PROTO 122: ours)
//!        ^ bind 0.0.0.0:80 -> 192.0.2.249:80                  ^ bind 0.0.0.0:80 -> 192.0.2.250:80
//!   cgroup .../pod1 [bind4 bind6 connect4 ...]           cgroup .../pod2 [bind4 bind6 connect4 ...]
//! ```
//!
//! The programs are attached before the address is active. They belong to the control group, and stay as long as it
//! has processes: one that outlives DEL can still use nothing but an address that is gone.

mod cgroup;
mod programs;

use std::{collections::BTreeSet, net::IpAddr};

use zcri_sys::{
    bpf::{Program, SocketStorage},
    netlink::{
        Socket,
        route::{self, Address},
    },
};

use super::{
    Attached, Attachment, Backend, Interface, OWNER, Remains,
    host::{self, EADDRNOTAVAIL, EEXIST, errno, find_link, full_prefix},
};
use crate::{
    config::{Config, Confine},
    error::{Error, Failures, Result},
    log::Log,
    ranges::{Family, Ranges},
    request::Pod,
    store::{Key, OwnedCgroup},
};
use cgroup::Group;
use programs::{HOOKS, Rules};

/// How often an address is looked for that the routing tables have and a listing lacks. What so many of them lack is no
/// address, but somebody's route.
const LISTINGS: usize = 20;

pub(super) struct Stack {
    host: Socket,
    interface: String,
    confine: Option<Confine>,
    cgroup_path: Option<String>,
    ranges: Ranges,
}

impl Stack {
    pub(super) fn open(config: &Config, interface: &str, confine: Option<Confine>) -> Result<Self> {
        Ok(Self {
            host: Socket::route().map_err(Error::system("open the host's network"))?,
            interface: interface.to_owned(),
            confine,
            cgroup_path: config.cgroup_path.clone(),
            ranges: config.ranges.clone(),
        })
    }

    fn index(&mut self) -> Result<u32> {
        let link = find_link(&mut self.host, &self.interface)?;
        link.map(|link| link.index).ok_or_else(|| Error::Config {
            key: "interface",
            reason: format!("there is no interface {:?}", self.interface),
        })
    }

    /// The pod's control group, where it is confined.
    fn group(&self) -> Result<Option<(Group, Confine)>> {
        let Some(confine) = self.confine else {
            return Ok(None);
        };
        let path = self.cgroup_path.as_deref().ok_or_else(|| Error::Unconfined {
                reason: "the runtime gives no cgroupPath: it must be among the capabilities of the configuration, and \
                         zcrid gives it with network.isolation = \"stack\""
                .to_owned(),
        })?;
        Ok(Some((Group::locate(path)?, confine)))
    }

    fn rules(&self, addresses: &[IpAddr], confine: Confine) -> Rules {
        let v4 = addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        Rules {
            v4,
            v6,
            primary_v4: self.ranges.families().next() == Some(Family::V4),
            loopback: confine.loopback,
            wildcard_v6: confine.wildcard_v6,
        }
    }

    /// The group that an attachment was confined in, and the programs that it had there.
    fn left(&self, remains: &Remains<'_>) -> Option<(OwnedCgroup, Vec<Program>)> {
        let confine = self.confine?;
        let recorded = remains.owner.and_then(|owner| owner.cgroup.clone());
        // Without a lease nobody knows what of it was there before.
        let owned = recorded.or_else(|| {
            let dir = Group::locate(self.cgroup_path.as_deref()?)
                .ok()?
                .dir()
                .to_owned();
            Some(OwnedCgroup {
                found: dir.clone(),
                dir,
            })
        })?;
        let programs = if remains.addresses.is_empty() {
            Vec::new()
        } else {
            load(&self.rules(remains.addresses, confine)).unwrap_or_default()
        };
        Some((owned, programs))
    }

    /// The addresses that this plugin made on the interface. Of `wanted` it has each one that is there: a listing may
    /// lack some while others are removed, so that one that the routing tables have is looked for again.
    fn ours(&mut self, index: u32, wanted: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut ours = Vec::new();
        for _ in 0..LISTINGS {
            let mut all = BTreeSet::new();
            ours.clear();
            self.host
                .ask("list addresses", route::dump_addresses(), |m| {
                    let Some(address) = Address::parse(m) else {
                        return;
                    };
                    all.insert(address.ip);
                    if address.index == index && address.protocol == OWNER {
                        ours.push(address.ip);
                    }
                })
                .map_err(Error::system("list the host's addresses"))?;
            let mut lacking = false;
            for ip in wanted.iter().filter(|ip| !all.contains(ip)) {
                let entry = host::matched(&mut self.host, *ip)?;
                lacking |= entry.is_some_and(|e| e.local && e.prefix == full_prefix(*ip));
            }
            if !lacking {
                break;
            }
        }
        Ok(ours)
    }

    fn activate(&mut self, index: u32, ip: IpAddr) -> Result<()> {
        let add = address(index, ip).add();
        match self.host.send_one("add an address", add) {
            Ok(()) => Ok(()),
            // An earlier ADD of this attachment made it, or somebody else did since it was looked for.
            Err(e) if errno(&e) == Some(EEXIST) => {
                if self.ours(index, &[ip])?.contains(&ip) {
                    return Ok(());
                }
                let reason = format!("{} has it already", self.interface);
                Err(Error::Taken { ip, reason })
            }
            Err(e) => {
                let what = format!("cannot add {ip} to {}", self.interface);
                Err(Error::system(what)(e))
            }
        }
    }

    fn deactivate(&mut self, index: u32, ips: &[IpAddr], log: &Log) -> Result<()> {
        let ours = self.ours(index, ips)?;
        let mut failures = Failures::default();
        for ip in ips.iter().filter(|ip| ours.contains(ip)) {
            let remove = address(index, *ip).remove();
            match self.host.send_one("remove an address", remove) {
                Ok(()) => log.line(format_args!("removed {ip} from {}", self.interface)),
                Err(e) if errno(&e) == Some(EADDRNOTAVAIL) => {}
                Err(e) => {
                    let what = format!("cannot remove {ip} from {}", self.interface);
                    failures.note::<()>(Err(Error::system(what)(e)));
                }
            }
        }
        failures.end()
    }

    /// Without the interface there are no addresses on it.
    fn deactivate_any(&mut self, ips: &[IpAddr], log: &Log) -> Result<()> {
        match find_link(&mut self.host, &self.interface)? {
            Some(link) => self.deactivate(link.index, ips, log),
            None => Ok(()),
        }
    }
}

/// Deprecated in IPv6: the host never takes it as a source of its own.
fn address(index: u32, ip: IpAddr) -> Address {
    Address {
        index,
        ip,
        prefix: full_prefix(ip),
        protocol: OWNER,
        deprecated: ip.is_ipv6(),
    }
}

/// Loads all programs; the kernel says here whether it can confine.
fn load(rules: &Rules) -> Result<Vec<Program>> {
    let unconfined = |what: &'static str| {
        move |e| Error::Unconfined {
            reason: format!(
                "{}; Linux 5.18 or newer with CONFIG_CGROUP_BPF is needed",
                Error::system(what)(e).chain()
            ),
        }
    };
    let v6_only = SocketStorage::new().map_err(unconfined("IPV6_V6ONLY"))?;
    let load = |(hook, name)| {
        let code = programs::program(rules, hook, v6_only.descriptor()).ok_or_else(|| {
            Error::Unconfined {
                reason: format!("the program {name} cannot be made"),
            }
        })?;
        Program::load(hook, name, &code).map_err(unconfined(name))
    };
    HOOKS.into_iter().map(load).collect()
}

impl Backend for Stack {
    fn prepare(&self, _pod: &Pod) -> Result<Option<OwnedCgroup>> {
        let group = self.group()?;
        Ok(group.map(|(group, _)| group.owned()))
    }

    fn active(&mut self, ip: IpAddr) -> Result<Option<String>> {
        host::active(&mut self.host, ip)
    }

    fn attach(&mut self, attachment: &Attachment<'_>, log: &Log) -> Result<Attached> {
        let index = self.index()?;
        if let Some((group, confine)) = self.group()? {
            let programs = load(&self.rules(attachment.addresses, confine))?;
            group.confine(&programs)?;
            log.line(format_args!("confined {}", group.dir().display()));
        } else {
            log.line("is not confined: confine is off");
        }
        for ip in attachment.addresses {
            self.activate(index, *ip)?;
            log.line(format_args!("added {ip} to {}", self.interface));
        }
        Ok(Attached {
            interfaces: vec![Interface {
                name: self.interface.clone(),
                mac: "00:00:00:00:00:00".to_owned(),
                mtu: None,
                sandbox: None,
            }],
            // An address of an interface without a sandbox would be the host's; these are the pod's.
            addresses_on: None,
            gateways: Vec::new(),
        })
    }

    fn detach(&mut self, remains: &Remains<'_>, log: &Log) -> Result<()> {
        let mut failures = Failures::default();
        failures.note(self.deactivate_any(remains.addresses, log));
        if let Some((owned, programs)) = self.left(remains) {
            failures.note(cgroup::leave(&owned, &programs, log));
        }
        failures.end()
    }

    fn check(&mut self, attachment: &Attachment<'_>) -> Result<()> {
        let index = self.index()?;
        let ours = self.ours(index, attachment.addresses)?;
        if let Some(ip) = attachment.addresses.iter().find(|ip| !ours.contains(ip)) {
            let what = format!("{} has not {ip}", self.interface);
            return Err(Error::Changed { what });
        }
        match self.group()? {
            Some((group, _)) => group.check(),
            None => Ok(()),
        }
    }

    fn ready(&mut self) -> Result<()> {
        let limited = |reason: String| Error::NotReady {
            reason,
            limited: true,
        };
        let link = find_link(&mut self.host, &self.interface)?;
        match link {
            Some(link) if link.up => {}
            Some(_) => return Err(limited(format!("interface {:?} is down", self.interface))),
            None => return Err(limited(format!("no interface {:?}", self.interface))),
        }
        if let Some(confine) = self.confine {
            cgroup::unified()?;
            let families = self.ranges.families();
            let sample: Vec<IpAddr> = families
                .filter_map(|family| self.ranges.after(family, None).next())
                .collect();
            load(&self.rules(&sample, confine))?;
        }
        Ok(())
    }

    fn sweep(
        &mut self,
        _keep: &BTreeSet<Key>,
        leased: &dyn Fn(IpAddr) -> bool,
        log: &Log,
    ) -> Result<()> {
        let Some(link) = find_link(&mut self.host, &self.interface)? else {
            return Ok(());
        };
        let mut lost = self.ours(link.index, &[])?;
        lost.retain(|ip| self.ranges.allows(*ip).is_ok() && !leased(*ip));
        self.deactivate(link.index, &lost, log)
    }
}
