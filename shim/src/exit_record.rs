//! `<bundle>/exit.json`: how a container ended, for a daemon that was not there when it did.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the record in a bundle.
const FILE: &str = "exit.json";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The status given to `exit`, or 128 + the signal that killed it.
    pub(crate) code: u32,
    /// When it was reaped, since the epoch of Unix.
    pub(crate) at: Duration,
}

/// The record, exactly as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) pid: u32,
    pub(crate) exit_code: u32,
    pub(crate) exited_at_ns: u64,
    pub(crate) oom_killed: bool,
}

impl ExitRecord {
    pub(crate) fn new(pid: u32, exit: Exit, oom_killed: bool) -> Self {
        let exited_at_ns = u64::try_from(exit.at.as_nanos()).unwrap_or(u64::MAX);
        Self {
            pid,
            exit_code: exit.code,
            exited_at_ns,
            oom_killed,
        }
    }

    /// Puts the record into place in one step. Not synced: it describes processes, which no reboot survives either.
    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(".exit.json.new");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, bundle.join(FILE))
    }

    /// The record of a bundle, if it has one.
    pub(crate) fn read(bundle: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(bundle.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_and_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ExitRecord::read(dir.path()).unwrap(), None);
        let record = ExitRecord::new(
            7,
            Exit {
                code: 137,
                at: Duration::new(1, 2),
            },
            true,
        );
        record.write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("exit.json")).unwrap();
        assert_eq!(
            text,
            r#"{"pid":7,"exit_code":137,"exited_at_ns":1000000002,"oom_killed":true}"#
        );
        assert_eq!(ExitRecord::read(dir.path()).unwrap(), Some(record));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
