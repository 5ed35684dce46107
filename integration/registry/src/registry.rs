//! The registry as a test holds it: content, faults, the record of requests.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::fault::Fault;
use crate::image::{Content, Manifest};
use crate::server;

/// A running registry. It ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// A request as it was received and answered.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, without `?`.
    pub query: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Accept` header.
    pub accept: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// Whether there was an `Authorization` header.
    pub authorized: bool,
    /// The answer's status; none while there is no answer.
    pub status: Option<StatusCode>,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1, on the current tokio runtime.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start() -> Self {
        Self::bind(0).await.expect("a free port on 127.0.0.1")
    }

    /// Starts a registry on a given port of 127.0.0.1; 0 is any free one.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn bind(port: u16) -> std::io::Result<Self> {
        Self::bind_to(([127, 0, 0, 1], port).into()).await
    }

    /// Starts a registry on an address of this machine, for clients that tell loopback from the rest.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind_to(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let store = TcpListener::bind(("127.0.0.1", 0)).await?;
        let shared = Arc::new(Shared {
            addr: listener.local_addr()?,
            store: store.local_addr()?,
            state: Mutex::default(),
            sent: Arc::default(),
        });
        let serve = server::accept(listener, store, Arc::clone(&shared));
        let task = tokio::spawn(serve);
        Ok(Self { shared, task })
    }

    /// Address and port; as text, the host part of image references.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// The full reference `127.0.0.1:PORT/repo:tag`.
    pub fn reference(&self, repo: &str, tag: &str) -> String {
        format!("{}/{repo}:{tag}", self.addr())
    }

    /// Stores `content` in `repo` and lets `tag` point to it. Gives the digest of the manifest or index.
    pub fn push(&self, repo: &str, tag: &str, content: impl Into<Content>) -> String {
        let content = content.into();
        let digest = content.digest().to_owned();
        let mut state = self.shared.state();
        let repository = state.repositories.entry(repo.to_owned()).or_default();
        for manifest in content.manifests.into_iter().chain([content.top]) {
            repository
                .manifests
                .insert(manifest.blob.digest.clone(), manifest);
        }
        repository.blobs.extend(
            content
                .blobs
                .into_iter()
                .map(|blob| (blob.digest, blob.data)),
        );
        repository.tags.insert(tag.to_owned(), digest.clone());
        digest
    }

    /// Removes a blob, so that its digest is unknown from now on.
    pub fn remove_blob(&self, repo: &str, digest: &str) {
        if let Some(repository) = self.shared.state().repositories.get_mut(repo) {
            repository.blobs.remove(digest);
        }
    }

    /// Replaces the faults of `repo` by this one.
    pub fn set_fault(&self, repo: &str, fault: Fault) {
        self.shared
            .state()
            .faults
            .insert(repo.to_owned(), vec![fault]);
    }

    /// Adds a fault to those that `repo` has.
    pub fn add_fault(&self, repo: &str, fault: Fault) {
        self.shared
            .state()
            .faults
            .entry(repo.to_owned())
            .or_default()
            .push(fault);
    }

    /// Lets `repo` behave again.
    pub fn clear_faults(&self, repo: &str) {
        self.shared.state().faults.remove(repo);
    }

    /// Every request so far, in the order of arrival.
    pub fn request_log(&self) -> Vec<RequestRecord> {
        self.shared.state().requests.clone()
    }

    /// How many requests had a path with `part` in it, of any method and status.
    pub fn requests(&self, part: &str) -> usize {
        self.shared
            .state()
            .requests
            .iter()
            .filter(|record| record.path.contains(part))
            .count()
    }

    /// How many GET requests for `digest` as a blob were answered with content (200 or 206).
    pub fn blob_downloads(&self, digest: &str) -> usize {
        let path_end = format!("/blobs/{digest}");
        let served = |record: &&RequestRecord| {
            record.method == Method::GET
                && record.path.ends_with(&path_end)
                && record.status.is_some_and(|status| status.is_success())
        };
        self.shared.state().requests.iter().filter(served).count()
    }

    /// Bytes of bodies that were handed to connections.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Forgets the requests and bytes so far.
    pub fn reset_counters(&self) {
        self.shared.state().requests.clear();
        self.shared.sent.store(0, Ordering::Relaxed);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The task owns the connections: they end with it.
        self.task.abort();
    }
}

/// What the server's connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) addr: SocketAddr,
    /// Where redirected blobs are: another host to every client, as object stores are.
    pub(crate) store: SocketAddr,
    state: Mutex<State>,
    pub(crate) sent: Arc<AtomicU64>,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) repositories: HashMap<String, Repository>,
    pub(crate) faults: HashMap<String, Vec<Fault>>,
    pub(crate) requests: Vec<RequestRecord>,
    /// Repository and token of every grant.
    pub(crate) tokens: HashSet<(String, String)>,
}

impl State {
    /// Runs through the faults of `repo`, counting one use of those that `pick` takes.
    pub(crate) fn take_fault<T>(
        &mut self,
        repo: &str,
        pick: impl Fn(&Fault) -> Option<T>,
    ) -> Option<T> {
        let faults = self.faults.get_mut(repo)?;
        faults.iter_mut().find_map(|fault| {
            let picked = pick(fault)?;
            fault.take().then_some(picked)
        })
    }

    pub(crate) fn has_fault(&self, repo: &str, wanted: impl Fn(&Fault) -> bool) -> bool {
        self.faults
            .get(repo)
            .is_some_and(|faults| faults.iter().any(wanted))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) manifests: HashMap<String, Manifest>,
    pub(crate) tags: HashMap<String, String>,
    pub(crate) blobs: HashMap<String, Bytes>,
}
