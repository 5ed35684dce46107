//! The files that records are in: a line of magic, version and checksum, then JSON.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{ContainerRecord, PodRecord};

/// First word of every record.
const MAGIC: &str = "zcri-record";
/// Version of what [`super::record`] describes.
const VERSION: u32 = 1;
/// End of the name of a record that is being written.
const TEMPORARY: &str = ".tmp";

/// Reads and writes the records under `<root>/pods` and `<root>/containers`.
#[derive(Debug)]
pub struct RecordStore {
    pods: PathBuf,
    containers: PathBuf,
}

/// All records that could be read, and the ones that could not.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Pods.
    pub pods: Vec<PodRecord>,
    /// Containers.
    pub containers: Vec<ContainerRecord>,
    /// Files that are no record; they were left where they are.
    pub broken: Vec<RecordError>,
}

/// A record that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} record {path}", path = path.display())]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl RecordStore {
    /// Opens the store below `root`, makes its directories, and removes what a crash left half written.
    ///
    /// # Errors
    /// A directory cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, RecordError> {
        let store = Self {
            pods: root.join("pods"),
            containers: root.join("containers"),
        };
        for dir in [&store.pods, &store.containers] {
            let fail = |source| RecordError {
                action: "open directory of",
                path: dir.clone(),
                source,
            };
            std::fs::create_dir_all(dir).map_err(fail)?;
            for entry in std::fs::read_dir(dir).map_err(fail)? {
                let path = entry.map_err(fail)?.path();
                if path.to_string_lossy().ends_with(TEMPORARY) {
                    std::fs::remove_file(&path).map_err(fail)?;
                }
            }
        }
        Ok(store)
    }

    /// Writes a pod's record over the one before.
    ///
    /// # Errors
    /// The file system refused; the record before is still there.
    pub fn put_pod(&self, record: &PodRecord) -> Result<(), RecordError> {
        put(&self.pods.join(&record.id), record)
    }

    /// Writes a container's record over the one before.
    ///
    /// # Errors
    /// The file system refused; the record before is still there.
    pub fn put_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        put(&self.containers.join(&record.id), record)
    }

    /// Reads a pod's record.
    ///
    /// # Errors
    /// There is none, or it is broken.
    pub fn pod(&self, id: &str) -> Result<PodRecord, RecordError> {
        read(self.pods.join(id))
    }

    /// Reads a container's record.
    ///
    /// # Errors
    /// There is none, or it is broken.
    pub fn container(&self, id: &str) -> Result<ContainerRecord, RecordError> {
        read(self.containers.join(id))
    }

    /// Whether there is a record of that pod, readable or not.
    pub fn has_pod(&self, id: &str) -> bool {
        self.pods.join(id).exists()
    }

    /// Removes a pod's record; none is no error.
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove_pod(&self, id: &str) -> Result<(), RecordError> {
        remove(&self.pods.join(id))
    }

    /// Removes a container's record; none is no error.
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove_container(&self, id: &str) -> Result<(), RecordError> {
        remove(&self.containers.join(id))
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// A directory cannot be listed. A single broken record is no error: it is in [`Loaded::broken`].
    pub fn load(&self) -> Result<Loaded, RecordError> {
        let mut loaded = Loaded::default();
        loaded.pods = load_dir(&self.pods, &mut loaded.broken)?;
        loaded.containers = load_dir(&self.containers, &mut loaded.broken)?;
        Ok(loaded)
    }
}

fn put<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let fail = |source| RecordError {
        action: "write",
        path: path.into(),
        source,
    };
    let body = serde_json::to_string(record).map_err(|e| fail(e.into()))?;
    let text = format!("{MAGIC} {VERSION} {}\n{body}\n", checksum(body.as_bytes()));
    let temporary = path.with_extension(&TEMPORARY[1..]);
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // It takes what little space there may be; if it cannot be removed, the next start does.
        std::fs::remove_file(&temporary).ok();
    }
    written.map_err(fail)
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError {
            action: "remove",
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

fn load_dir<T: DeserializeOwned>(
    dir: &Path,
    broken: &mut Vec<RecordError>,
) -> Result<Vec<T>, RecordError> {
    let fail = |source| RecordError {
        action: "list directory of",
        path: dir.into(),
        source,
    };
    let mut records = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        match read(path) {
            Ok(record) => records.push(record),
            Err(error) => broken.push(error),
        }
    }
    Ok(records)
}

fn read<T: DeserializeOwned>(path: PathBuf) -> Result<T, RecordError> {
    std::fs::read_to_string(&path)
        .and_then(|text| parse(&text))
        .map_err(|source| RecordError {
            action: "read",
            path,
            source,
        })
}

fn parse<T: DeserializeOwned>(text: &str) -> io::Result<T> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (head, body) = text.split_once('\n').ok_or_else(|| bad("no header line"))?;
    let body = body.strip_suffix('\n').ok_or_else(|| bad("cut short"))?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(bad("not a record of zcri"));
    }
    if words.next().and_then(|word| word.parse().ok()) != Some(VERSION) {
        return Err(bad("written by another version of zcri"));
    }
    if words.next() != Some(checksum(body.as_bytes()).as_str()) {
        return Err(bad("checksum does not match"));
    }
    serde_json::from_str(body).map_err(Into::into)
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::{ContainerPhase, PodPhase};
    use super::*;

    fn pod(id: &str) -> PodRecord {
        PodRecord {
            id: id.into(),
            boot_id: "b".into(),
            config: vec![1, 2, 255],
            handler: "runc".into(),
            created_at_ns: 7,
            phase: PodPhase::Ready,
            addresses: vec!["10.0.0.2".into()],
            network_attached: true,
            stack_cgroup: None,
            selinux_label: None,
            init_pid: None,
        }
    }

    #[test]
    fn what_is_put_is_loaded_and_what_is_torn_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::open(dir.path()).unwrap();
        store.put_pod(&pod("a")).unwrap();
        store.put_pod(&pod("b")).unwrap();
        std::fs::write(dir.path().join("pods/c.tmp"), "half").unwrap();
        let b = dir.path().join("pods/b");
        let whole = std::fs::read(&b).unwrap();
        for cut in [0, 5, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&b, &whole[..cut]).unwrap();
            let loaded = RecordStore::open(dir.path()).unwrap().load().unwrap();
            assert_eq!(loaded.pods, vec![pod("a")], "cut at {cut}");
            assert_eq!(loaded.broken.len(), 1);
        }
        store.remove_pod("b").unwrap();
        store.remove_pod("b").unwrap();
        assert!(store.load().unwrap().broken.is_empty());
    }

    /// One file per stored version, kept for ever: what an older daemon wrote must be readable.
    #[test]
    fn version_1_stays_readable() {
        let golden = include_str!("../../tests/golden/container-record-v1");
        let record: ContainerRecord = parse(golden).unwrap();
        assert_eq!(record.user, (1000, 100, vec![5]));
        assert_eq!(
            record.phase,
            ContainerPhase::Running {
                started_at_ns: 2,
                pid: 42
            }
        );
        let golden = include_str!("../../tests/golden/pod-record-v1");
        assert_eq!(parse::<PodRecord>(golden).unwrap(), pod("a"));
    }
}
