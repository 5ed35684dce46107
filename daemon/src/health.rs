//! Whether this node could run a container now: its storage can be written, processes can be made, the programs
//! that it needs are there and answer.
//!
//! A status is asked for every few seconds, so that a check is a handful of system calls. They are made on a thread
//! that is started for them: that it can be started shows that the kernel still gives out processes, which are
//! counted together with threads, and storage that hangs hangs nobody but it.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::Chain;
use crate::messages;
use crate::node::Node;

/// Storage that takes longer than this for a write of a few bytes does not work.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a check writes into: a file of its own in each directory. Not that of the daemon's lock, which would go when
/// any descriptor of that file is closed (fcntl(2)).
const FILE: &str = "zcrid.health";

type Outcome = Option<Result<(), String>>;

/// Checks of a node, one at a time.
#[derive(Debug, Default)]
pub struct Health {
    running: Mutex<Option<watch::Receiver<Outcome>>>,
    /// The last answer, so that only a change of it is told.
    last: Mutex<Option<String>>,
}

/// Why no container could run now, if so.
pub(crate) async fn problem(node: &Node) -> Option<String> {
    let problem = find_problem(node).await;
    node.health.tell(problem.as_deref());
    problem
}

async fn find_problem(node: &Node) -> Option<String> {
    if let Err(problem) = node.health.check(node).await {
        return Some(problem);
    }
    let Some(handler) = node.handlers.default_handler() else {
        return Some("the default runtime handler is not configured".into());
    };
    node.handlers.answer(handler).await.err()
}

impl Health {
    /// Checks storage, processes and the shim's program; joins a check that is going on.
    async fn check(&self, node: &Node) -> Result<(), String> {
        let mut outcome = self.running(|| {
            let dirs = [node.root.clone(), node.state.clone()];
            let shim = node.launcher.program.clone();
            move || {
                dirs.iter()
                    .try_for_each(|dir| writable(dir))
                    .and_then(|()| runnable(&shim))
            }
        })?;
        let outcome = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        match outcome {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
            Ok(Err(_)) => Err("the check of the storage ended without a result".into()),
            Err(_elapsed) => Err(format!(
                "the storage below {} or {} has not answered for {} s",
                node.root.display(),
                node.state.display(),
                PATIENCE.as_secs()
            )),
        }
    }

    /// Tells the operator of a change.
    fn tell(&self, problem: Option<&str>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() == problem {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::info!(zcr = messages::RUNTIME_DOWN, %problem, "no container can run");
            }
            None => tracing::info!(zcr = messages::RUNTIME_UP, "containers can run again"),
        }
        *last = problem.map(str::to_owned);
    }

    /// The check that is going on, or a new one.
    fn running<W: FnOnce() -> Result<(), String> + Send + 'static>(
        &self,
        work: impl FnOnce() -> W,
    ) -> Result<watch::Receiver<Outcome>, String> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(going_on) = running.as_ref()
            && going_on.borrow().is_none()
            && going_on.has_changed().is_ok()
        {
            return Ok(going_on.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let work = work();
        std::thread::Builder::new()
            .name("health".into())
            .spawn(move || sender.send_replace(Some(work())))
            .map_err(|error| format!("no process can be started: {error}"))?;
        *running = Some(receiver.clone());
        Ok(receiver)
    }
}

/// Writes into a directory. A full disk is no failure: what is on it can be removed, and how much is left is told
/// elsewhere.
fn writable(dir: &Path) -> Result<(), String> {
    let file = dir.join(FILE);
    let write = || {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
    };
    match write() {
        Err(error) if !is_full(&error) => {
            Err(format!("{} cannot be written: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn runnable(program: &Path) -> Result<(), String> {
    rustix::fs::access(program, rustix::fs::Access::EXEC_OK)
        .map_err(|error| format!("{} cannot be run: {}", program.display(), Chain(&error)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_directory_is_writable_or_not() {
        let dir = tempfile::tempdir().unwrap();
        writable(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        let error = writable(&dir.path().join("missing")).unwrap_err();
        assert!(error.contains("missing cannot be written"), "{error}");
        assert!(runnable(&dir.path().join("no-program")).is_err());
    }

    #[tokio::test]
    async fn who_comes_during_a_check_joins_it() {
        let health = Health::default();
        let (finish, wait) = mpsc::channel::<()>();
        let mut first = health
            .running(|| {
                move || {
                    wait.recv().ok();
                    Err("of the first".to_owned())
                }
            })
            .unwrap();
        let mut second = health.running(|| || Ok(())).unwrap();
        finish.send(()).unwrap();
        for outcome in [&mut first, &mut second] {
            let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
            assert_eq!(outcome, Some(Err("of the first".to_owned())));
        }
        let mut third = health.running(|| || Ok(())).unwrap();
        let outcome = third.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(outcome, Some(Ok(())), "a result is not kept");
    }

    #[tokio::test]
    async fn a_check_that_panics_does_not_block_the_next() {
        let health = Health::default();
        let mut first = health.running(|| || panic!("on purpose")).unwrap();
        assert!(first.wait_for(Option::is_some).await.is_err());
        health.running(|| || Ok(())).unwrap();
    }
}
