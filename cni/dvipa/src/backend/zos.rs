//! Backend `zos`: a dynamic VIPA of a z/OS TCP/IP stack, within a `VIPARANGE ... ZCONTAINER`.
//!
//! The stack itself says whether an address is active, when it is defined: one that another application made is
//! reported and skipped. Whether it is active on another system of the sysplex it does not say, and takes it over: see
//! docs/networking.md for why ranges must not overlap.

use std::{collections::BTreeSet, net::IpAddr};

use zcri_sys::vipa::{self, Action, Answer, Layout};

use super::{Attached, Attachment, Backend, Remains};
use crate::{
    config::Config,
    error::{Error, Failures, Result},
    log::Log,
    store::Key,
};

/// The stack that sockets of a process use, where a system has several. Source: IBM, z/OS UNIX System Services
/// Planning, "_BPXK_SETIBMOPT_TRANSPORT".
const AFFINITY: &str = "_BPXK_SETIBMOPT_TRANSPORT";

pub(super) struct Zos {
    layout: Layout,
    stack: String,
    /// In an ADD: the addresses that are active by this attachment. What it has leased and not defined may be another
    /// application's, and is not deleted when the ADD is undone.
    added: Option<BTreeSet<IpAddr>>,
}

impl Zos {
    pub(super) fn open(config: &Config) -> Result<Self> {
        let wrong = |key, reason: String| Error::Config { key, reason };
        let built_with = vipa::BUILT_WITH.ok_or_else(|| {
            let reason =
                "zos: this program was built without the numbers of ezbzdvpc.h (ZCRI_DVREQ)";
            wrong("backend", reason.to_owned())
        })?;
        let layout = Layout::parse(built_with).map_err(|e| wrong("backend", e.to_string()))?;
        let affinity = std::env::var(AFFINITY).unwrap_or_default();
        if config.stack != "default" && config.stack != affinity {
            let reason = format!(
                "{:?} is not the stack that {AFFINITY} names ({affinity:?})",
                config.stack
            );
            return Err(wrong("stack", reason));
        }
        Ok(Self {
            layout,
            stack: config.stack.clone(),
            added: None,
        })
    }

    fn request(&self, action: Action, ip: IpAddr) -> Result<Answer> {
        let verb = match action {
            Action::Define => "define",
            Action::Delete => "delete",
        };
        vipa::request(&self.layout, action, ip)
            .map_err(Error::system(format!("cannot {verb} VIPA {ip}")))
    }
}

impl Backend for Zos {
    fn active(&mut self, _ip: IpAddr) -> Result<Option<String>> {
        Ok(None)
    }

    fn attach(&mut self, attachment: &Attachment<'_>, log: &Log) -> Result<Attached> {
        let mut added: BTreeSet<IpAddr> = attachment.resumed.iter().copied().collect();
        for ip in attachment.addresses {
            self.added = Some(added.clone());
            match self.request(Action::Define, *ip)? {
                Answer::Done => log.line(format_args!("defined VIPA {ip}")),
                // Its lease is older than this ADD: an earlier one had come this far.
                Answer::AlreadyActive if attachment.resumed.contains(ip) => {}
                Answer::AlreadyActive => {
                    let reason = format!("another application made it on stack {:?}", self.stack);
                    return Err(Error::Taken { ip: *ip, reason });
                }
                Answer::NotDefined => {
                    let reason = format!(
                        "{ip} is in no VIPARANGE of stack {:?}: vipaRanges must be within its VIPARANGE statements",
                        self.stack
                    );
                    return Err(Error::Config {
                        key: "vipaRanges",
                        reason,
                    });
                }
            }
            added.insert(*ip);
        }
        self.added = Some(added);
        Ok(Attached::default())
    }

    fn detach(&mut self, remains: &Remains<'_>, log: &Log) -> Result<()> {
        let ours = |ip: &&IpAddr| self.added.as_ref().is_none_or(|added| added.contains(*ip));
        let mut failures = Failures::default();
        for ip in remains.addresses.iter().filter(ours) {
            if failures.note(self.request(Action::Delete, *ip)) == Some(Answer::Done) {
                log.line(format_args!("deleted VIPA {ip}"));
            }
        }
        failures.end()
    }

    /// There is no way to ask but to define an address: one that is there stays as it is, and the answer says so. One
    /// that was missing is there again by that, and the fault is reported all the same: its connections are lost.
    fn check(&mut self, attachment: &Attachment<'_>) -> Result<()> {
        for ip in attachment.addresses {
            if self.request(Action::Define, *ip)? != Answer::AlreadyActive {
                let what = format!("VIPA {ip} was not active on stack {:?}", self.stack);
                return Err(Error::Changed { what });
            }
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<()> {
        Ok(())
    }

    /// A VIPA without a lease cannot be told from another program's: Podman shares the ranges.
    fn sweep(
        &mut self,
        _keep: &BTreeSet<Key>,
        _leased: &dyn Fn(IpAddr) -> bool,
        _log: &Log,
    ) -> Result<()> {
        Ok(())
    }
}
