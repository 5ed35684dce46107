//! Records of attachments: one file each, `<container id>:<interface>`, in a directory of their own.
//!
//! The first line says what the file is, in which version and with which checksum, the rest is JSON. A file is
//! written beside its name and renamed. It is there before the first plugin runs, so that whatever a plugin did can
//! be found; it goes when every plugin has undone what it did.
//!
//! Nothing is synced to disk: the plugins' own state is not either, and a record that a power failure damaged is
//! told by its checksum.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::{
    attachment::{Attachment, AttachmentKey, is_container_id, is_ifname},
    conf::{Network, PluginConf, is_name, is_program},
    version::SpecVersion,
};

/// The start of a record's first line; version and checksum follow.
const MAGIC: &str = "zcri-cni-attachment";
const VERSION: u32 = 1;

/// At the end of names of files that are being written. No interface is named so.
const TEMPORARY: &str = ":being-written";

/// Between id and interface; neither can contain it.
const SEPARATOR: char = ':';

/// Why a record could not be read or written.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The system said no.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not a record, or not whole.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Everything that is needed to detach: what was asked for, with what, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    pub(crate) netns: PathBuf,
    /// `CNI_ARGS`
    pub(crate) args: String,
    /// By capability.
    pub(crate) capabilities: Map<String, Value>,
    pub(crate) network: Network,
    /// Of the last plugin that succeeded.
    pub(crate) result: Option<Value>,
    /// Whether that was the last of all.
    pub(crate) complete: bool,
}

impl Record {
    pub(crate) fn new(attachment: &Attachment, network: Network) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            netns: attachment.netns.clone(),
            args: attachment.cni_args(),
            capabilities: attachment.runtime_config.capabilities(),
            network,
            result: None,
            complete: false,
        }
    }

    /// In place of a record that is damaged.
    pub(crate) fn bare(key: &AttachmentKey, network: Network) -> Self {
        Self {
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
            netns: PathBuf::new(),
            args: "IgnoreUnknown=1".to_owned(),
            capabilities: Map::new(),
            network,
            result: None,
            complete: false,
        }
    }

    pub(crate) fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// A record as it was found.
#[derive(Debug)]
pub(crate) enum Cached {
    Whole(Box<Record>),
    Damaged(CacheError),
}

/// The directory of records. Its methods do not block the caller's thread.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: Arc<Path>,
}

impl Cache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.into() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a new record; false when there is one of that name.
    pub(crate) async fn create(&self, record: &Record) -> Result<bool, CacheError> {
        let path = self.path(&record.key());
        let text = encode(record);
        self.blocking(move |dir| {
            if path.try_exists().map_err(|source| failed(&path, source))? {
                return Ok(false);
            }
            fs::create_dir_all(dir).map_err(|source| failed(dir, source))?;
            write(&path, &text).map(|()| true)
        })
        .await
    }

    /// Writes over a record.
    pub(crate) async fn replace(&self, record: &Record) -> Result<(), CacheError> {
        let path = self.path(&record.key());
        let text = encode(record);
        self.blocking(move |_| write(&path, &text)).await
    }

    /// Removes a record; one that is gone is removed.
    pub(crate) async fn remove(&self, key: &AttachmentKey) -> Result<(), CacheError> {
        let path = self.path(key);
        self.blocking(move |_| match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&path, e)),
            _ => Ok(()),
        })
        .await
    }

    /// The record of an attachment.
    pub(crate) async fn get(&self, key: &AttachmentKey) -> Result<Option<Cached>, CacheError> {
        let (path, key) = (self.path(key), key.clone());
        self.blocking(move |_| read(&path, &key)).await
    }

    /// All records of a pod, in the order of the interfaces' names.
    pub(crate) async fn of(
        &self,
        container_id: &str,
    ) -> Result<Vec<(AttachmentKey, Cached)>, CacheError> {
        let (cache, id) = (self.clone(), container_id.to_owned());
        self.blocking(move |dir| {
            let keys = keys(dir)?.into_iter().filter(|key| key.container_id == id);
            // One that vanished since was removed by someone, as it should be.
            let each = |key: AttachmentKey| {
                read(&cache.path(&key), &key)
                    .map(|found| Some((key, found?)))
                    .transpose()
            };
            keys.filter_map(each).collect()
        })
        .await
    }

    /// The names of all attachments that there are records of, sorted.
    pub(crate) async fn keys(&self) -> Result<Vec<AttachmentKey>, CacheError> {
        self.blocking(keys).await
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.dir
            .join(format!("{}{SEPARATOR}{}", key.container_id, key.ifname))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, CacheError> {
        let dir = Arc::clone(&self.dir);
        let done = spawn_blocking(move || work(&dir)).await;
        // Only a panic in `work`, or a runtime that is shutting down, gets here without an answer.
        done.unwrap_or_else(|e| Err(failed(&self.dir, io::Error::other(e))))
    }
}

fn failed(path: &Path, source: io::Error) -> CacheError {
    CacheError::Io {
        path: path.to_owned(),
        source,
    }
}

fn keys(dir: &Path) -> Result<Vec<AttachmentKey>, CacheError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(dir, e)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| failed(dir, e))?.file_name();
        let parsed = name.to_str().and_then(|name| name.split_once(SEPARATOR));
        // What is being written has another name, what is not ours none of this form.
        if let Some((id, ifname)) =
            parsed.filter(|(id, ifname)| is_container_id(id) && is_ifname(ifname))
        {
            keys.push(AttachmentKey {
                container_id: id.to_owned(),
                ifname: ifname.to_owned(),
            });
        }
    }
    keys.sort();
    Ok(keys)
}

fn write(path: &Path, text: &str) -> Result<(), CacheError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // On a full disk even the empty file counts.
        drop(fs::remove_file(&temporary));
        failed(path, source)
    })
}

fn read(path: &Path, key: &AttachmentKey) -> Result<Option<Cached>, CacheError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path, e)),
    };
    let record = decode(&text).and_then(|record| {
        if record.key() == *key {
            Ok(record)
        } else {
            Err(format!("is the record of {}", record.key()))
        }
    });
    Ok(Some(match record {
        Ok(record) => Cached::Whole(Box::new(record)),
        Err(reason) => Cached::Damaged(CacheError::Damaged {
            path: path.to_owned(),
            reason,
        }),
    }))
}

/// The stored form of version 1. Never changes; a golden file holds it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    container_id: String,
    ifname: String,
    netns: String,
    args: String,
    capabilities: Map<String, Value>,
    network: String,
    cni_version: String,
    disable_check: bool,
    disable_gc: bool,
    plugins: Vec<Map<String, Value>>,
    result: Option<Value>,
    complete: bool,
}

fn encode(record: &Record) -> String {
    let network = &record.network;
    let stored = Stored {
        container_id: record.container_id.clone(),
        ifname: record.ifname.clone(),
        netns: record.netns.to_string_lossy().into_owned(),
        args: record.args.clone(),
        capabilities: record.capabilities.clone(),
        network: network.name.clone(),
        cni_version: network.version.as_str().to_owned(),
        disable_check: network.disable_check,
        disable_gc: network.disable_gc,
        plugins: network
            .plugins
            .iter()
            .map(|plugin| plugin.config.clone())
            .collect(),
        result: record.result.clone(),
        complete: record.complete,
    };
    // Strings, booleans and JSON values always become JSON.
    let body = serde_json::to_string(&stored).unwrap_or_default();
    format!("{MAGIC} {VERSION} {}\n{body}\n", checksum(body.as_bytes()))
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn decode(text: &[u8]) -> Result<Record, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not text")?;
    let (head, body) = text.split_once('\n').ok_or("not whole")?;
    let head = head.split(' ').collect::<Vec<_>>();
    let [MAGIC, version, sum] = head[..] else {
        return Err("not a record of an attachment".to_owned());
    };
    if version != VERSION.to_string() {
        return Err(format!(
            "of version {version}, which this program does not know"
        ));
    }
    let body = body.trim_end_matches('\n');
    if checksum(body.as_bytes()) != sum {
        return Err("its checksum is wrong".to_owned());
    }
    let stored: Stored = serde_json::from_str(body).map_err(|e| e.to_string())?;
    record(stored).ok_or_else(|| "its content is not valid".to_owned())
}

/// As strict as where the values came from: what is here goes to programs.
fn record(stored: Stored) -> Option<Record> {
    let plugin = |config: Map<String, Value>| {
        let kind = config
            .get("type")?
            .as_str()
            .filter(|kind| is_program(kind))?
            .to_owned();
        Some(PluginConf { kind, config })
    };
    let valid = is_container_id(&stored.container_id)
        && is_ifname(&stored.ifname)
        && is_name(&stored.network);
    let network = Network {
        name: stored.network,
        version: SpecVersion::parse(&stored.cni_version)?,
        disable_check: stored.disable_check,
        disable_gc: stored.disable_gc,
        plugins: stored
            .plugins
            .into_iter()
            .map(plugin)
            .collect::<Option<Vec<_>>>()?,
    };
    valid.then_some(Record {
        container_id: stored.container_id,
        ifname: stored.ifname,
        netns: PathBuf::from(stored.netns),
        args: stored.args,
        capabilities: stored.capabilities,
        network,
        result: stored.result,
        complete: stored.complete,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A record of version 1 as the first program that wrote one did. It stays for ever.
    const GOLDEN_1: &str = include_str!("../tests/golden/attachment-1");

    fn record() -> Record {
        let plugin = |value: Value| {
            let config = value.as_object().cloned().unwrap();
            PluginConf {
                kind: config["type"].as_str().unwrap().to_owned(),
                config,
            }
        };
        Record {
            container_id: "9f2c".to_owned(),
            ifname: "eth0".to_owned(),
            netns: PathBuf::from("/run/zcri/pods/9f2c/ns/net"),
            args: "IgnoreUnknown=1;K8S_POD_NAME=web".to_owned(),
            capabilities: json!({"portMappings": [{"hostPort": 8080}]})
                .as_object()
                .cloned()
                .unwrap(),
            network: Network {
                name: "pods".to_owned(),
                version: SpecVersion::V1_0_0,
                disable_check: true,
                disable_gc: false,
                plugins: vec![
                    plugin(json!({"type": "bridge", "ipam": {"type": "host-local"}})),
                    plugin(json!({"type": "portmap", "capabilities": {"portMappings": true}})),
                ],
            },
            result: Some(json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]})),
            complete: true,
        }
    }

    #[test]
    fn version_1_is_read_for_ever() {
        assert_eq!(decode(GOLDEN_1.as_bytes()), Ok(record()));
        assert_eq!(encode(&record()), GOLDEN_1, "version 1 is what is written");
    }

    #[test]
    fn damage_is_told() {
        let good = encode(&record());
        for length in 0..good.len() - 1 {
            assert!(
                decode(&good.as_bytes()[..length]).is_err(),
                "cut at {length}"
            );
        }
        let mut flipped = good.clone().into_bytes();
        for i in 0..flipped.len() - 1 {
            flipped[i] ^= 1;
            assert!(decode(&flipped).is_err(), "flipped at {i}");
            flipped[i] ^= 1;
        }
        let newer = good.replacen(&format!("{MAGIC} 1 "), &format!("{MAGIC} 2 "), 1);
        assert!(decode(newer.as_bytes()).unwrap_err().contains("version 2"));
    }

    /// The checksum keeps accidents out, not people: the content is checked too.
    #[test]
    fn content_is_checked() {
        for (from, to) in [
            ("\"type\":\"bridge\"", "\"type\":\"../sh\""),
            ("\"containerId\":\"9f2c\"", "\"containerId\":\"../9f\""),
            ("\"ifname\":\"eth0\"", "\"ifname\":\"a/b\""),
            (
                "\"cniVersion\":\"1.0.0\",\"disable",
                "\"cniVersion\":\"9.0.0\",\"disable",
            ),
            ("\"complete\":true", "\"complete\":true,\"more\":1"),
        ] {
            let text = encode(&record());
            let body = text.lines().nth(1).unwrap().replace(from, to);
            assert_ne!(body, text.lines().nth(1).unwrap(), "{from}");
            let text = format!("{MAGIC} 1 {}\n{body}\n", checksum(body.as_bytes()));
            assert!(decode(text.as_bytes()).is_err(), "{to}");
        }
    }

    proptest! {
        #[test]
        fn a_record_survives(
            id in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,40}",
            args in "\\PC{0,30}",
            result in proptest::option::of("\\PC{0,30}"),
            complete in any::<bool>(),
        ) {
            let result = result.map(|text| json!({ "dns": { "domain": text } }));
            let record = Record { container_id: id, args, result, complete, ..record() };
            prop_assert_eq!(decode(encode(&record).as_bytes()), Ok(record));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
