//! The leases: which address belongs to whom, in a directory that any number of processes share, also of several
//! nodes.
//!
//! ```text
//! DATA_DIR/
//!   leases/192.0.2.249                    one file per address that is given out
//!   owners/NODE/.lock                     held while this node changes leases/
//!   owners/NODE/BOOT/STACK/NET-KEY        one file per attachment: NET of the network, KEY of network, container
//!                                         and interface
//!   owners/NODE/BOOT/STACK/.last-NET      the addresses that were given out last
//! ```
//!
//! A lease **is** its owner's file: a hard link to it. link(2) fails when the name is there, on every file system that
//! nodes share, so that an address has one owner; and what is linked was written whole before, so that a lease is never
//! half written. Which addresses an owner has is which leases are the same inode. So everything that can be found
//! after a crash is found from the owner's file, whose name follows from the attachment. Its content is for people, but
//! for the control group that the backend `stack` made: DEL knows from it which directories to remove.
//!
//! - The owner's file is locked (flock) by whoever works on the attachment: two ADDs of one pod come one after the
//!   other, and the second finds the first one's addresses. Locks end with their process.
//! - `.lock` makes the count of a stack's leases, and the order in which addresses are given out, exact. It is held for
//!   a few system calls. Between nodes only link(2) decides.
//! - A boot has a directory. What stands under another boot of the same node is stale, because addresses do not survive
//!   a reboot: the next ADD frees it. No clock is read.

mod allocate;
mod owner;

pub use allocate::Wanted;
pub use owner::{OwnedCgroup, Owner};

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    net::IpAddr,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Names an attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    network: String,
    attachment: String,
}

impl Key {
    /// Of an attachment.
    #[must_use]
    pub fn new(network: &str, container: &str, ifname: &str) -> Self {
        let attachment = digest(&[network, container, ifname]);
        Self {
            network: Self::network(network),
            attachment: attachment[..32].to_owned(),
        }
    }

    /// The part that all attachments of a network share.
    fn network(name: &str) -> String {
        digest(&[name])[..12].to_owned()
    }

    /// 32 hexadecimal digits that are this attachment's own.
    #[must_use]
    pub fn digits(&self) -> &str {
        &self.attachment
    }

    fn file_name(&self) -> String {
        format!("{}-{}", self.network, self.attachment)
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let (network, attachment) = name.split_once('-')?;
        let sound = network.len() == 12 && attachment.len() == 32;
        sound.then(|| Self {
            network: network.to_owned(),
            attachment: attachment.to_owned(),
        })
    }
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The store, as this node and stack see it.
#[derive(Debug)]
pub struct Store {
    leases: PathBuf,
    owners: PathBuf,
    node: String,
    boot: String,
    stack: String,
}

/// An inode.
type Ino = u64;

/// An attachment, locked.
#[derive(Debug)]
pub struct Claim {
    key: Key,
    path: PathBuf,
    file: File,
    ino: Ino,
}

impl Claim {
    /// The attachment.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What is written about it; none when that cannot be read.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let mut text = String::new();
        let mut file = &self.file;
        file.rewind().ok()?;
        file.take(owner::MAX_BYTES).read_to_string(&mut text).ok()?;
        Owner::parse(&text)
    }
}

impl Store {
    /// Opens it, and makes what is missing of it.
    ///
    /// # Errors
    /// A directory cannot be made or read.
    pub fn open(dir: &Path, node: &str, boot: &str, stack: &str) -> Result<Self> {
        let owners = dir.join("owners");
        // A node has one name as long as it runs, even if its host name is changed: boot ids are unique.
        let node = names(&owners)?
            .into_iter()
            .find(|name| owners.join(name).join(boot).is_dir())
            .unwrap_or_else(|| node.to_owned());
        let store = Self {
            leases: dir.join("leases"),
            owners,
            node,
            boot: boot.to_owned(),
            stack: stack.to_owned(),
        };
        for dir in [store.leases.clone(), store.place()] {
            fs::create_dir_all(&dir).map_err(Error::store("create", &dir))?;
        }
        Ok(store)
    }

    fn node_dir(&self) -> PathBuf {
        self.owners.join(&self.node)
    }

    /// Where the owners of this node, boot and stack are.
    fn place(&self) -> PathBuf {
        self.node_dir().join(&self.boot).join(&self.stack)
    }

    /// Claims an attachment, waiting for whoever works on it.
    ///
    /// # Errors
    /// The file cannot be made, locked or written.
    pub fn claim(&self, key: &Key, owner: &Owner) -> Result<Claim> {
        let path = self.place().join(key.file_name());
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(Error::store("open", &path))?;
            let Some(claim) = lock(key, &path, file, FlockOperation::LockExclusive)? else {
                continue;
            };
            if claim.owner().is_none() {
                self.write_owner(&claim, owner)?;
            }
            return Ok(claim);
        }
    }

    fn write_owner(&self, claim: &Claim, owner: &Owner) -> Result<()> {
        let fail = || Error::store("write", &claim.path);
        let owner = owner.at(&self.node, &self.boot, &self.stack);
        let mut file = &claim.file;
        file.set_len(0).map_err(fail())?;
        file.rewind().map_err(fail())?;
        file.write_all(owner.as_bytes()).map_err(fail())
    }

    /// The attachment, if there is one, also of an earlier boot; waits for whoever works on it.
    ///
    /// # Errors
    /// A directory or file cannot be read.
    pub fn find(&self, key: &Key) -> Result<Option<Claim>> {
        let mut places = vec![self.place()];
        for boot in names(&self.node_dir())? {
            let dir = self.node_dir().join(boot);
            let stacks = names(&dir)?.into_iter().map(|stack| dir.join(stack));
            places.extend(stacks);
        }
        for place in places {
            let path = place.join(key.file_name());
            if let Some(claim) = open_claim(key, &path, FlockOperation::LockExclusive)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// The addresses of an attachment.
    ///
    /// # Errors
    /// The leases cannot be listed.
    pub fn addresses(&self, claim: &Claim) -> Result<Vec<IpAddr>> {
        let mine = self.leases()?.into_iter();
        Ok(mine
            .filter(|(_, ino)| *ino == claim.ino)
            .map(|(ip, _)| ip)
            .collect())
    }

    /// Gives up an attachment with all its addresses.
    ///
    /// # Errors
    /// A file cannot be removed; the attachment is still there.
    pub fn release(&self, claim: &Claim) -> Result<Vec<IpAddr>> {
        let _lock = self.lock()?;
        let addresses = self.addresses(claim)?;
        for ip in &addresses {
            remove(&self.leases.join(ip.to_string()))?;
        }
        remove(&claim.path)?;
        Ok(addresses)
    }

    /// Gives up one address of an attachment.
    ///
    /// # Errors
    /// As [`Store::release`].
    pub fn release_address(&self, claim: &Claim, ip: IpAddr) -> Result<()> {
        let _lock = self.lock()?;
        if self.addresses(claim)?.contains(&ip) {
            remove(&self.leases.join(ip.to_string()))?;
        }
        Ok(())
    }

    /// Who has an address, as far as its lease says.
    #[must_use]
    pub fn owner_of(&self, ip: IpAddr) -> Option<Owner> {
        Owner::parse(&read_some(&self.leases.join(ip.to_string())).ok()?)
    }

    /// Whether an address has a lease, of whomever.
    #[must_use]
    pub fn is_leased(&self, ip: IpAddr) -> bool {
        self.leases.join(ip.to_string()).exists()
    }

    /// How many leases this node and stack have.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn used(&self) -> Result<usize> {
        let ours = inodes(&self.place())?;
        Ok(self
            .leases()?
            .values()
            .filter(|ino| ours.contains(ino))
            .count())
    }

    /// All leases.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn leases(&self) -> Result<BTreeMap<IpAddr, Ino>> {
        let fail = || Error::store("read", &self.leases);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.leases).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            if let Some(ip) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.insert(ip, entry.ino());
            }
        }
        Ok(found)
    }

    /// The attachments of a network on this node and stack that nobody works on and that are not in `valid`.
    ///
    /// # Errors
    /// A directory or file cannot be read.
    pub fn invalid(&self, network: &str, valid: &BTreeSet<Key>) -> Result<Vec<Claim>> {
        let network = Key::network(network);
        let mut claims = Vec::new();
        for name in names(&self.place())? {
            let key = Key::from_file_name(&name).filter(|key| key.network == network);
            if let Some(key) = key.filter(|key| !valid.contains(key)) {
                let path = self.place().join(name);
                let claim = open_claim(&key, &path, FlockOperation::NonBlockingLockExclusive)?;
                claims.extend(claim);
            }
        }
        Ok(claims)
    }

    /// The attachments of this node and stack.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let names = names(&self.place())?;
        Ok(names
            .iter()
            .filter_map(|name| Key::from_file_name(name))
            .collect())
    }

    /// Frees what earlier boots of this node had; says which addresses. What a DEL works on is left to it.
    ///
    /// # Errors
    /// A directory cannot be read or a file not be removed.
    pub fn free_stale(&self) -> Result<Vec<IpAddr>> {
        let _lock = self.lock()?;
        self.free_stale_locked()
    }

    fn free_stale_locked(&self) -> Result<Vec<IpAddr>> {
        let mut stale = names(&self.node_dir())?;
        stale.retain(|boot| *boot != self.boot);
        let mut freed = Vec::new();
        if stale.is_empty() {
            return Ok(freed);
        }
        let mut leases: BTreeMap<Ino, Vec<IpAddr>> = BTreeMap::new();
        for (ip, ino) in self.leases()? {
            leases.entry(ino).or_default().push(ip);
        }
        for boot in stale {
            let dir = self.node_dir().join(boot);
            let mut empty = true;
            for stack in names(&dir)? {
                empty &= self.free_place(&dir.join(stack), &leases, &mut freed)?;
            }
            if empty {
                fs::remove_dir_all(&dir).map_err(Error::store("remove", &dir))?;
            }
        }
        freed.sort();
        Ok(freed)
    }

    /// Frees what nobody works on; whether that is all.
    fn free_place(
        &self,
        place: &Path,
        leases: &BTreeMap<Ino, Vec<IpAddr>>,
        freed: &mut Vec<IpAddr>,
    ) -> Result<bool> {
        let mut all = true;
        for name in names(place)? {
            let Some(key) = Key::from_file_name(&name) else {
                continue;
            };
            let path = place.join(name);
            let claim = open_claim(&key, &path, FlockOperation::NonBlockingLockExclusive)?;
            let Some(claim) = claim else {
                all &= !path.exists();
                continue;
            };
            for ip in leases.get(&claim.ino).into_iter().flatten() {
                remove(&self.leases.join(ip.to_string()))?;
                freed.push(*ip);
            }
            remove(&claim.path)?;
        }
        Ok(all)
    }

    /// Leases without an owner's file on this or any other node: damaged, copied, or made by someone else. With
    /// `free`, those for which it says yes are removed.
    ///
    /// # Errors
    /// A directory cannot be read or a file not be removed.
    pub fn orphans(&self, mut free: impl FnMut(IpAddr) -> bool) -> Result<Vec<IpAddr>> {
        let _lock = self.lock()?;
        let mut owned = BTreeSet::new();
        for node in names(&self.owners)? {
            for boot in names(&self.owners.join(&node))? {
                let dir = self.owners.join(&node).join(boot);
                for stack in names(&dir)? {
                    owned.extend(inodes(&dir.join(stack))?);
                }
            }
        }
        let mut orphans = Vec::new();
        for (ip, ino) in self.leases()? {
            if !owned.contains(&ino) {
                if free(ip) {
                    remove(&self.leases.join(ip.to_string()))?;
                }
                orphans.push(ip);
            }
        }
        Ok(orphans)
    }

    /// Whether other nodes keep their leases here, too.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_shared(&self) -> Result<bool> {
        Ok(names(&self.owners)?.iter().any(|name| *name != self.node))
    }

    /// Held while this node changes leases. Ends when it is dropped. Whoever works on an attachment claims it first.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn lock(&self) -> Result<File> {
        let path = self.node_dir().join(".lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::store("open", &path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(Error::store("lock", &path))?;
        Ok(file)
    }
}

fn flock(file: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

fn open_claim(key: &Key, path: &Path, operation: FlockOperation) -> Result<Option<Claim>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => lock(key, path, file, operation),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::store("open", path)(e)),
    }
}

/// None when the file was removed by the one that had the lock, or is locked and that is not waited for.
fn lock(key: &Key, path: &Path, file: File, operation: FlockOperation) -> Result<Option<Claim>> {
    match flock(&file, operation) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        other => other.map_err(Error::store("lock", path))?,
    }
    let locked = file.metadata().map_err(Error::store("look at", path))?;
    match fs::metadata(path) {
        Ok(named) if named.ino() == locked.ino() => Ok(Some(Claim {
            key: key.clone(),
            path: path.to_owned(),
            ino: locked.ino(),
            file,
        })),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::store("look at", path)(e)),
    }
}

/// Names in a directory but those that begin with a dot; none in one that is not there.
fn names(dir: &Path) -> Result<Vec<String>> {
    Ok(list(dir)?.into_iter().map(|(name, _)| name).collect())
}

fn inodes(dir: &Path) -> Result<BTreeSet<Ino>> {
    Ok(list(dir)?.into_iter().map(|(_, ino)| ino).collect())
}

fn list(dir: &Path) -> Result<Vec<(String, Ino)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::store("read", dir)(e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::store("read", dir))?;
        match entry.file_name().into_string() {
            Ok(name) if !name.starts_with('.') => all.push((name, entry.ino())),
            _ => {}
        }
    }
    Ok(all)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::store("remove", path)(e)),
        _ => Ok(()),
    }
}

fn read_some(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(owner::MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
