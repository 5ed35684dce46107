//! Whether pods can get a network: the configuration, and what its plugins answer to STATUS.
//!
//! One task looks when the configuration changes, when an attachment failed, and when somebody asks and the last look
//! is old. Who asks gets the last answer and never waits for a plugin; when nobody asks, nothing runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use zcri_cni::{Cni, ConfWatcher, NetworkList};

use super::failed;
use crate::error::Chain;
use crate::messages;
use crate::node::blocking;

/// An older answer makes the next question look again. The kubelet asks every 5 s, and each look starts a process for
/// each plugin.
const MAX_AGE: Duration = Duration::from_secs(30);

/// A plugin that takes longer to say that it is well is not.
const STATUS_MAX: Duration = Duration::from_secs(10);

/// How long the first question may wait for the first look, which a start has just begun.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(1);

/// What the last look found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkState {
    /// Name of the network in use.
    pub name: Option<String>,
    /// The file that it is configured in.
    pub file: Option<PathBuf>,
    /// Its plugins, in their order.
    pub plugins: Vec<String>,
    /// Files that come first by name and are not valid, with what is wrong with each.
    pub skipped: Vec<String>,
    /// Why no pod can get a network, if so.
    pub problem: Option<String>,
    #[serde(skip)]
    looked_at: Instant,
}

impl NetworkState {
    fn unknown() -> Self {
        Self::with_problem("the network's plugins have not answered yet".into())
    }

    fn with_problem(problem: String) -> Self {
        Self {
            name: None,
            file: None,
            plugins: Vec::new(),
            skipped: Vec::new(),
            problem: Some(problem),
            looked_at: Instant::now(),
        }
    }

    fn of(list: &NetworkList, problem: Option<String>) -> Self {
        let skipped = list.skipped().iter();
        Self {
            name: Some(list.name().to_owned()),
            file: Some(list.file().to_owned()),
            plugins: list.plugins().map(str::to_owned).collect(),
            skipped: skipped
                .map(|s| format!("{}: {}", s.path.display(), s.reason))
                .collect(),
            problem,
            looked_at: Instant::now(),
        }
    }

    /// Whether an operator sees the same in both.
    fn tells_the_same(&self, other: &Self) -> bool {
        let told = |state: &Self| {
            let Self {
                name,
                file,
                plugins,
                skipped,
                problem,
                looked_at: _,
            } = state.clone();
            (name, file, plugins, skipped, problem)
        };
        told(self) == told(other)
    }
}

/// The last answer, and the wish for a new one.
pub(super) struct Readiness {
    last: watch::Sender<Option<Arc<NetworkState>>>,
    wish: Notify,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            last: watch::Sender::new(None),
            wish: Notify::new(),
        }
    }
}

impl Readiness {
    /// The last answer.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn state(&self) -> Arc<NetworkState> {
        let mut answers = self.last.subscribe();
        let first = timeout(FIRST_LOOK_MAX, answers.wait_for(Option::is_some)).await;
        let known = match first {
            Ok(Ok(answer)) => answer.clone(),
            _ => None,
        };
        let Some(state) = known else {
            return Arc::new(NetworkState::unknown());
        };
        if state.looked_at.elapsed() > MAX_AGE {
            self.look_again();
        }
        state
    }

    /// Has the task look again.
    pub(super) fn look_again(&self) {
        self.wish.notify_one();
    }

    /// The task.
    pub(super) async fn keep(self: Arc<Self>, cni: Cni, conf_dir: PathBuf) {
        let mut watcher = None;
        loop {
            // Before the look, so that nothing that changes after it is missed.
            if watcher.is_none() {
                watcher = ConfWatcher::new(&conf_dir)
                    .inspect_err(|error| {
                        tracing::warn!(%error, dir = %conf_dir.display(), "changes of the CNI configuration are only seen when it is needed");
                    })
                    .ok();
            }
            self.publish(look(&cni).await);
            tokio::select! {
                () = changed(&mut watcher) => {}
                () = self.wish.notified() => {}
            }
        }
    }

    fn publish(&self, state: NetworkState) {
        let before = self.last.borrow().clone();
        if before.is_none_or(|before| !before.tells_the_same(&state)) {
            tell(&state);
        }
        self.last.send_replace(Some(Arc::new(state)));
    }
}

/// Resolves when the configuration may have changed; never when it cannot be watched.
async fn changed(watcher: &mut Option<ConfWatcher>) {
    let Some(armed) = watcher else {
        return std::future::pending().await;
    };
    if let Err(error) = armed.changed().await {
        tracing::warn!(%error, "the CNI configuration is no longer watched");
        *watcher = None;
    }
}

async fn look(cni: &Cni) -> NetworkState {
    let from = cni.clone();
    let list = match blocking(move || from.load().map_err(|e| failed("configuration", e))).await {
        Ok(list) => list,
        Err(error) => return NetworkState::with_problem(Chain(&error).to_string()),
    };
    let problem = match timeout(STATUS_MAX, list.status()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Chain(&error).to_string()),
        Err(_elapsed) => Some(format!(
            "network {}: its plugins gave no STATUS within {} s",
            list.name(),
            STATUS_MAX.as_secs()
        )),
    };
    NetworkState::of(&list, problem)
}

fn tell(state: &NetworkState) {
    for skipped in &state.skipped {
        tracing::warn!(%skipped, "a CNI configuration is not valid and was passed over");
    }
    match (&state.problem, &state.name, &state.file) {
        (Some(problem), ..) => {
            tracing::info!(zcr = messages::NETWORK_DOWN, %problem, "no pod can get a network");
            tell_if_exhausted(problem);
        }
        (None, Some(network), Some(file)) => {
            tracing::info!(zcr = messages::NETWORK_UP, %network, file = %file.display(), plugins = state.plugins.join(","), "pods get their network from here");
        }
        (None, ..) => {}
    }
}

/// Tells the operator when what a plugin says means that its range is used up: somebody has to give it more.
pub(super) fn tell_if_exhausted(problem: &str) {
    if says_exhausted(problem) {
        tracing::info!(zcr = messages::RANGE_EXHAUSTED, %problem, "no address is free");
    }
}

/// The specification has no code for it: these are the words of dvipa, host-local, and IPAM plugins in their manner.
fn says_exhausted(problem: &str) -> bool {
    let problem = problem.to_ascii_lowercase();
    let no_free = problem.contains("no ") && problem.contains(" address is free");
    no_free
        || ["no ip addresses available", "no free address", "exhausted"]
            .iter()
            .any(|words| problem.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_say_that_their_range_is_used_up_in_many_words() {
        for words in [
            "CNI plugin dvipa ADD: no IPv4 address is free in 192.0.2.0/29: 6 leased, 0 in use without a lease",
            "failed to allocate for range 0: no IP addresses available in range set: 10.1.1.1-10.1.1.2",
            "range exhausted (code 11)",
        ] {
            assert!(says_exhausted(words), "{words}");
        }
        assert!(!says_exhausted("no such plugin in /opt/cni/bin"));
    }
}
