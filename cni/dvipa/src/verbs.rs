//! ADD, DEL, CHECK, STATUS and GC: the order of steps that makes each of them whole after a crash at any point.
//!
//! ```text
//! ADD:  claim (owner's file) -> lease -> address active -> result       a failure goes back the same way
//! DEL:  claim found -> address inactive -> lease gone -> claim gone
//! ```
//!
//! So an address is never active without a lease, and a lease never there without its owner's file, by which DEL, GC
//! and the next ADD of the same pod find everything.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};

use crate::{
    backend::{self, Attached, Attachment, Backend, Remains},
    config::Config,
    error::{Error, Failures, Result},
    log::Log,
    probe,
    ranges::Family,
    reply,
    request::{Input, Pod},
    store::{Claim, Key, Owner, Store, Wanted},
};

/// How often an address may turn out to be in use just when it is activated.
const TRIES: usize = 8;

/// The store of this node and stack.
fn store(config: &Config) -> Result<Store> {
    let boot = zcri_sys::node::boot_id().map_err(Error::system("which boot is this?"))?;
    let node = match &config.node {
        Some(node) => node.clone(),
        None => host_name(),
    };
    Store::open(&config.data_dir, &node, &boot, &config.stack)
}

/// The host name as a file name.
fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let name: String = name.chars().filter(|c| sound(*c)).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "node" } else { name }.to_owned()
}

fn joined(ips: &[IpAddr]) -> String {
    let texts: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
    texts.join(" and ")
}

fn owner(config: &Config, pod: &Pod) -> Owner {
    Owner {
        network: config.network.clone(),
        container: pod.container.clone(),
        ifname: pod.ifname.clone(),
        pod: pod.name.as_ref().map(|(ns, name)| format!("{ns}/{name}")),
        ..Owner::default()
    }
}

/// Attaches a pod, or finds it attached.
///
/// # Errors
/// The reason; nothing is left.
pub fn add(input: &Input, pod: &Pod, log: &Log) -> Result<Value> {
    let config = &input.config;
    if pod.netns.is_none() {
        return Err(Error::Environment {
            name: "CNI_NETNS",
            reason: "is missing".to_owned(),
        });
    }
    let mut backend = backend::open(config)?;
    let owner = Owner {
        cgroup: backend.prepare(pod)?,
        ..owner(config, pod)
    };
    let store = store(config)?;
    let key = Key::new(&config.network, &pod.container, &pod.ifname);
    let claim = store.claim(&key, &owner)?;
    let had = store.addresses(&claim)?;
    let adding = Adding {
        store: &store,
        claim: &claim,
        had: &had,
        config,
        pod,
        log,
    };
    let (attached, addresses) = match adding.lease_and_attach(&mut *backend) {
        Ok(done) => done,
        // What an earlier ADD made is not undone by one that wants something else.
        Err(Failed::Lease(error)) if !had.is_empty() => return Err(error),
        Err(Failed::Lease(error) | Failed::Attach(error)) => {
            undo(&store, &claim, &mut *backend, log);
            return Err(error);
        }
    };
    Ok(reply::added(
        &input.version,
        input.prev_result.as_ref(),
        &attached,
        &addresses,
        config.dns.as_ref(),
    ))
}

enum Failed {
    Lease(Error),
    Attach(Error),
}

/// An ADD in progress.
struct Adding<'a> {
    store: &'a Store,
    claim: &'a Claim,
    /// The addresses that an earlier ADD leased.
    had: &'a [IpAddr],
    config: &'a Config,
    pod: &'a Pod,
    log: &'a Log,
}

impl Adding<'_> {
    fn lease_and_attach(
        &self,
        backend: &mut dyn Backend,
    ) -> Result<(Attached, Vec<IpAddr>), Failed> {
        let mut avoid = Vec::new();
        let mut taken = 0;
        loop {
            let addresses = self.lease(backend, &avoid).map_err(Failed::Lease)?;
            if let Some((ip, reason)) = self.elsewhere(&addresses) {
                self.unlease(&addresses).map_err(Failed::Attach)?;
                self.skip(ip, reason, &mut avoid)?;
                continue;
            }
            let attachment = Attachment {
                key: self.claim.key(),
                pod: self.pod,
                addresses: &addresses,
                resumed: self.had,
            };
            match backend.attach(&attachment, self.log) {
                Ok(attached) => return Ok((attached, addresses)),
                Err(Error::Taken { ip, reason }) => {
                    self.give_back(backend, &addresses, ip)
                        .map_err(Failed::Attach)?;
                    taken += 1;
                    if taken > TRIES {
                        return Err(Failed::Attach(Error::Taken { ip, reason }));
                    }
                    self.skip(ip, reason, &mut avoid)?;
                }
                Err(error) => return Err(Failed::Attach(error)),
            }
        }
    }

    /// The next one is tried, unless no other will do.
    fn skip(&self, ip: IpAddr, reason: String, avoid: &mut Vec<IpAddr>) -> Result<(), Failed> {
        if self.config.requested.contains(&ip) {
            return Err(Failed::Attach(Error::Taken { ip, reason }));
        }
        self.log.line(format_args!("{ip} is skipped: {reason}"));
        avoid.push(ip);
        Ok(())
    }

    fn lease(&self, backend: &mut dyn Backend, avoid: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut wanted = Wanted {
            ranges: &self.config.ranges,
            requested: &self.config.requested,
            max: self.config.max_vipas,
            avoid,
            active: &mut |ip| backend.active(ip),
            log: self.log,
        };
        let addresses = self.store.allocate(self.claim, &mut wanted)?;
        self.log.line(format_args!("leased {}", joined(&addresses)));
        Ok(addresses)
    }

    /// The first new address that somebody in the network has. It takes as long as nobody answers, so that it is asked
    /// when the address is leased, and nobody waits for the lock of the store.
    fn elsewhere(&self, addresses: &[IpAddr]) -> Option<(IpAddr, String)> {
        self.fresh(addresses)
            .find_map(|ip| Some((ip, probe::elsewhere(ip, self.config.probe)?)))
    }

    /// Before any of them is active: all new ones, lest what is undone later takes one for ours.
    fn unlease(&self, addresses: &[IpAddr]) -> Result<()> {
        self.fresh(addresses)
            .try_for_each(|ip| self.store.release_address(self.claim, ip))
    }

    fn fresh(&self, addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
        let fresh = |ip: &IpAddr| !self.had.contains(ip);
        addresses.iter().copied().filter(fresh)
    }

    /// The lease of an address that is somebody else's goes first, so that nothing takes it for ours.
    fn give_back(&self, backend: &mut dyn Backend, had: &[IpAddr], taken: IpAddr) -> Result<()> {
        self.store.release_address(self.claim, taken)?;
        let ours: Vec<IpAddr> = had.iter().copied().filter(|ip| *ip != taken).collect();
        let remains = Remains {
            key: self.claim.key(),
            addresses: &ours,
            owner: None,
        };
        backend.detach(&remains, self.log)
    }
}

/// After a failed ADD. What cannot be undone is kept with its lease, for DEL.
fn undo(store: &Store, claim: &Claim, backend: &mut dyn Backend, log: &Log) {
    if let Err(error) = detach(store, claim, backend, log) {
        log.line(format_args!("not undone, DEL will: {}", error.chain()));
    }
}

fn detach(store: &Store, claim: &Claim, backend: &mut dyn Backend, log: &Log) -> Result<()> {
    let addresses = store.addresses(claim)?;
    let owner = claim.owner();
    backend.detach(
        &Remains {
            key: claim.key(),
            addresses: &addresses,
            owner: owner.as_ref(),
        },
        log,
    )?;
    let freed = store.release(claim)?;
    if !freed.is_empty() {
        log.line(format_args!("freed {}", joined(&freed)));
    }
    Ok(())
}

/// Detaches a pod; one that is not attached is no error.
///
/// # Errors
/// Something is left; another DEL will find it.
pub fn del(input: &Input, pod: &Pod, log: &Log) -> Result<()> {
    let config = &input.config;
    let mut backend = backend::open(config)?;
    let store = store(config)?;
    let key = Key::new(&config.network, &pod.container, &pod.ifname);
    let claim = match store.find(&key)? {
        Some(claim) => claim,
        // Claimed all the same: what an ADD makes meanwhile must not be taken for what got lost.
        None => store.claim(&key, &owner(config, pod))?,
    };
    if !store.addresses(&claim)?.is_empty() {
        return detach(&store, &claim, &mut *backend, log);
    }
    // Its lease got lost, or it never had one: what is active of it by name, or by the result of its ADD, goes too,
    // unless it is somebody else's by now. It becomes nobody's before it is gone: a lease waits for the lock.
    let lock = store.lock()?;
    let mut addresses = backend::result_addresses(input.prev_result.as_ref());
    addresses.retain(|ip| config.ranges.allows(*ip).is_ok() && !store.is_leased(*ip));
    let owner = claim.owner();
    let remains = Remains {
        key: &key,
        addresses: &addresses,
        owner: owner.as_ref(),
    };
    backend.detach(&remains, log)?;
    drop(lock);
    store.release(&claim)?;
    log.line("has no lease");
    Ok(())
}

/// Is everything as ADD left it?
///
/// # Errors
/// What is not.
pub fn check(input: &Input, pod: &Pod) -> Result<()> {
    let config = &input.config;
    let mut backend = backend::open(config)?;
    let store = store(config)?;
    let key = Key::new(&config.network, &pod.container, &pod.ifname);
    let unknown = || Error::Unknown {
        container: pod.container.clone(),
        network: config.network.clone(),
    };
    let claim = store.find(&key)?.ok_or_else(unknown)?;
    let addresses = store.addresses(&claim)?;
    if addresses.is_empty() {
        return Err(unknown());
    }
    let before = backend::result_addresses(input.prev_result.as_ref());
    if input.prev_result.is_some() {
        if let Some(ip) = addresses.iter().find(|ip| !before.contains(ip)) {
            let what = format!("{ip} is leased, and the result of ADD does not have it");
            return Err(Error::Changed { what });
        }
        let missing = config.ranges.families().find(|family| {
            !addresses.iter().any(|ip| Family::of(*ip) == *family)
                && before
                    .iter()
                    .any(|ip| Family::of(*ip) == *family && config.ranges.allows(*ip).is_ok())
        });
        if let Some(family) = missing {
            let what = format!("the pod's {} address has lost its lease", family.as_str());
            return Err(Error::Changed { what });
        }
    }
    backend.check(&Attachment {
        key: &key,
        pod,
        addresses: &addresses,
        resumed: &addresses,
    })
}

/// Could a pod be attached?
///
/// # Errors
/// Why not.
pub fn status(input: &Input, log: &Log) -> Result<()> {
    let config = &input.config;
    let not_ready = |reason: String| Error::NotReady {
        reason,
        limited: false,
    };
    let wrapped = |error: Error| match error {
        ready @ Error::NotReady { .. } => ready,
        other => not_ready(other.chain()),
    };
    let mut backend = backend::open(config).map_err(wrapped)?;
    let store = store(config).map_err(wrapped)?;
    let freed = store.free_stale().map_err(wrapped)?;
    if !freed.is_empty() {
        log.line(format_args!("freed {} of an earlier boot", joined(&freed)));
    }
    for ip in store.orphans(|_| false).map_err(wrapped)? {
        log.line(format_args!(
            "the lease of {ip} is damaged or nobody's: the address is not given out before GC or an administrator \
             removes it"
        ));
    }
    let used = store.used().map_err(wrapped)?;
    if used >= config.max_vipas {
        let max = config.max_vipas;
        let stack = &config.stack;
        let reason = format!("stack {stack:?} has {used} of at most {max} VIPAs (maxVipas)");
        return Err(not_ready(reason));
    }
    let leases = store.leases().map_err(wrapped)?;
    for family in config.ranges.families() {
        let of = |ip: &&IpAddr| Family::of(**ip) == family && config.ranges.allows(**ip).is_ok();
        let leased = leases.keys().filter(of).count();
        if leased as u128 >= config.ranges.size(family) {
            let ranges = &config.ranges;
            let reason = format!(
                "all {leased} {} addresses of {ranges} are leased",
                family.as_str()
            );
            return Err(not_ready(reason));
        }
    }
    backend.ready().map_err(wrapped)
}

/// Frees what is of this network, node and stack, and of no attachment that the runtime lists.
///
/// # Errors
/// Everything that could not be freed; the rest was.
pub fn gc(input: &Input, log: &Log) -> Result<()> {
    let config = &input.config;
    let mut backend = backend::open(config)?;
    let store = store(config)?;
    let keep: BTreeSet<Key> = input
        .valid
        .iter()
        .map(|one| Key::new(&config.network, &one.container, &one.ifname))
        .collect();
    let mut failures = Failures::default();
    failures.note(store.free_stale());
    for claim in store.invalid(&config.network, &keep)? {
        failures.note(detach(&store, &claim, &mut *backend, log));
    }
    failures.note(sweep(&store, keep, &mut *backend, log));
    failures.note(free_orphans(&store, &mut *backend, log));
    failures.end()
}

/// What lost its lease. No address gets one meanwhile, and nothing is made without one: what is nobody's now stays so.
fn sweep(
    store: &Store,
    mut keep: BTreeSet<Key>,
    backend: &mut dyn Backend,
    log: &Log,
) -> Result<()> {
    let _lock = store.lock()?;
    keep.extend(store.keys()?);
    backend.sweep(&keep, &|ip| store.is_leased(ip), log)
}

/// Leases that are damaged or nobody's. On a store that several nodes share only an administrator can know.
fn free_orphans(store: &Store, backend: &mut dyn Backend, log: &Log) -> Result<()> {
    let shared = store.is_shared()?;
    let orphans = store.orphans(|ip| {
        let free = !shared && matches!(backend.active(ip), Ok(None));
        let what = if free {
            "freed: its lease was damaged or nobody's"
        } else {
            "not freed: its lease is damaged or nobody's, and it may be in use"
        };
        log.line(format_args!("{ip} {what}"));
        free
    })?;
    drop(orphans);
    Ok(())
}

/// The answer to VERSION.
#[must_use]
pub fn version(stdin: &[u8]) -> Value {
    let value: Value = serde_json::from_slice(stdin).unwrap_or_else(|_| json!({}));
    reply::versions(&crate::request::version_of(&value))
}
