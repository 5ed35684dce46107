//! Whether the program of a handler is there and answers, and what it says that it can do.
//!
//! It is run once and then no more until its file changes: a status that is asked for every few seconds must not
//! cost processes. A program that did not answer is asked again each time.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use super::HandlerFeatures;

/// The program of a handler, and what it answered last.
#[derive(Debug)]
pub(super) struct Probe {
    program: PathBuf,
    last: Mutex<Option<(Identity, HandlerFeatures)>>,
}

/// What tells a file from the one that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    async fn of(path: &Path) -> std::io::Result<Self> {
        let file = tokio::fs::metadata(path).await?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

impl Probe {
    /// Of a program that is not run before somebody asks.
    pub(super) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            last: Mutex::new(None),
        }
    }

    /// What the program can do. Callers at the same time share one run of it.
    ///
    /// # Cancel safety
    /// Safe: another caller asks again.
    ///
    /// # Errors
    /// Why it is no runtime, in words for an administrator.
    pub(super) async fn answer(&self) -> Result<HandlerFeatures, String> {
        let mut last = self.last.lock().await;
        let program = self.program.display();
        // Before the program is run: what replaces it meanwhile is asked the next time.
        let identity = Identity::of(&self.program)
            .await
            .map_err(|error| format!("the OCI runtime {program} is missing: {error}"))?;
        if let Some((of, features)) = last.as_ref()
            && *of == identity
        {
            return Ok(features.clone());
        }
        *last = None;
        let features = HandlerFeatures::ask(&self.program)
            .await
            .map_err(|why| format!("the OCI runtime {program} does not answer: {why}"))?;
        *last = Some((identity, features.clone()));
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Puts a script in the place of the program, as a package does: a new file under the old name.
    fn install(program: &Path, script: &str) {
        let new = program.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, program).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_run_once_until_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (program, runs) = (dir.path().join("runtime"), dir.path().join("runs"));
        let count = format!("echo >> {}", runs.display());
        let probe = Probe::new(&program);
        let missing = probe.answer().await.unwrap_err();
        assert!(missing.contains("is missing"), "{missing}");
        install(
            &program,
            &format!("{count}; echo '{{\"mountOptions\":[\"rro\"]}}'"),
        );
        for _ in 0..5 {
            assert!(probe.answer().await.unwrap().recursive_read_only());
        }
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 1);
        install(&program, &format!("{count}; [ \"$1\" = --version ]"));
        assert!(!probe.answer().await.unwrap().recursive_read_only());
        install(&program, "echo broken library >&2; exit 127");
        for _ in 0..2 {
            let broken = probe.answer().await.unwrap_err();
            assert!(broken.contains("broken library"), "{broken}");
        }
    }
}
