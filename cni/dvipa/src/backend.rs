//! What makes an address active, and inactive again.

mod host;
mod netns;
mod stack;
mod zos;

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use crate::{
    config::{BackendConfig, Config},
    error::Result,
    log::Log,
    request::Pod,
    store::{Key, OwnedCgroup, Owner},
};

/// An attachment as ADD and CHECK know it.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Its key, from which names follow.
    pub key: &'a Key,
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses, the primary one first.
    pub addresses: &'a [IpAddr],
    /// Those of them that it had before: an earlier ADD leased them, and may have made them active.
    pub resumed: &'a [IpAddr],
}

/// An attachment as DEL and GC know it, after whatever has happened to it.
#[derive(Debug, Clone, Copy)]
pub struct Remains<'a> {
    /// Its key, from which names follow.
    pub key: &'a Key,
    /// Its addresses; nobody else has them.
    pub addresses: &'a [IpAddr],
    /// What its lease says.
    pub owner: Option<&'a Owner>,
}

/// What ADD tells the runtime. Source: SPEC.md section 5, "Success".
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attached {
    /// Interfaces of the host, then that of the pod.
    pub interfaces: Vec<Interface>,
    /// The index in `interfaces` of the one that has the addresses.
    pub addresses_on: Option<usize>,
    /// The gateways of the pod.
    pub gateways: Vec<IpAddr>,
}

/// An interface of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// The namespace it is in; none is the host's.
    pub sandbox: Option<String>,
}

/// Makes addresses active. Whatever it does, it can do again: after a crash the same call with the same attachment
/// completes it, and `detach` undoes it from any point.
pub trait Backend {
    /// What ADD will have to clean up by more than the key, if it is killed after this.
    ///
    /// # Errors
    /// The attachment cannot be made at all.
    fn prepare(&self, _pod: &Pod) -> Result<Option<OwnedCgroup>> {
        Ok(None)
    }

    /// Where an address is active, if it is.
    ///
    /// # Errors
    /// That cannot be found out.
    fn active(&mut self, ip: IpAddr) -> Result<Option<String>>;

    /// Attaches a pod.
    ///
    /// # Errors
    /// The reason; [`Backend::detach`] removes what is there by then.
    fn attach(&mut self, attachment: &Attachment<'_>, log: &Log) -> Result<Attached>;

    /// Detaches a pod; what is not there is no error.
    ///
    /// # Errors
    /// Something is left.
    fn detach(&mut self, remains: &Remains<'_>, log: &Log) -> Result<()>;

    /// Is the attachment as it was made?
    ///
    /// # Errors
    /// What is not.
    fn check(&mut self, attachment: &Attachment<'_>) -> Result<()>;

    /// Could a pod be attached?
    ///
    /// # Errors
    /// Why not.
    fn ready(&mut self) -> Result<()>;

    /// Removes what `detach` of an attachment whose lease got lost would have removed: all of this network but what
    /// belongs to attachments in `keep` and addresses for which `leased` says yes.
    ///
    /// # Errors
    /// Something is left.
    fn sweep(
        &mut self,
        keep: &BTreeSet<Key>,
        leased: &dyn Fn(IpAddr) -> bool,
        log: &Log,
    ) -> Result<()>;
}

/// The backend that is configured.
///
/// # Errors
/// This system cannot have it.
pub fn open(config: &Config) -> Result<Box<dyn Backend>> {
    Ok(match &config.backend {
        BackendConfig::Netns { .. } => Box::new(netns::Netns::open(config)?),
        BackendConfig::Stack { interface, confine } => {
            Box::new(stack::Stack::open(config, interface, *confine)?)
        }
        BackendConfig::Zos => Box::new(zos::Zos::open(config)?),
    })
}

/// Who made an address or a route, in the kernel's own field for it (`IFA_PROTO`, `rtm_protocol`): a number that no
/// routing daemon of iproute2's `rt_protos` has.
const OWNER: u8 = 122;

/// The addresses of a result.
#[must_use]
pub fn result_addresses(result: Option<&Value>) -> Vec<IpAddr> {
    let ips = result.and_then(|r| r.get("ips")).and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect()
}
