//! Notice of changes to the directory of configurations, by inotify(7).
//!
//! The directory may be deleted, renamed and made again, and so may each directory above it: every component of the
//! path is watched for its own end, and the deepest that exists for the birth of the next. After each notice all
//! watches are made anew, before the caller looks, so that no change falls between looking and watching.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::net::unix::pipe::Receiver;

/// What happens to a directory itself, or to a symbolic link.
const OWN_END: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

/// How a name appears.
const BIRTH: WatchFlags = WatchFlags::CREATE.union(WatchFlags::MOVED_TO);

/// What changes the configurations in a directory: a file is looked at when it is closed, not while it is written.
const CONTENT: WatchFlags = BIRTH
    .union(OWN_END)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ATTRIB);

/// Waits for changes of a directory that need not exist.
#[derive(Debug)]
pub struct ConfWatcher {
    dir: PathBuf,
    events: Receiver,
}

impl ConfWatcher {
    /// Begins to watch; `dir` is absolute. Needs a runtime of tokio around it.
    ///
    /// # Errors
    /// The system has no watch to give (`fs.inotify.max_user_instances`, `max_user_watches`).
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            events: arm(dir)?,
        })
    }

    /// Resolves when something may have changed since the last call. What the caller reads afterwards is no older
    /// than the watches that tell of the next change.
    ///
    /// # Errors
    /// The system has no watch to give. A later call tries again.
    ///
    /// # Cancel safety
    /// Safe: a notice that was not returned is kept.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.events.readable().await?;
        self.events = arm(&self.dir)?;
        Ok(())
    }
}

fn arm(dir: &Path) -> io::Result<Receiver> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    if walk(&events, dir)? {
        watch(&events, dir, CONTENT | WatchFlags::ONLYDIR)?;
        // The plugins of a list may be in a directory named as the network.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                watch(&events, &entry.path(), CONTENT | WatchFlags::ONLYDIR)?;
            }
        }
    }
    // What is readable like a pipe is waited for like one: the safe way into tokio's poll.
    Receiver::from_owned_fd_unchecked(events)
}

/// Watches every component down to the first that is missing; true when none is.
fn walk(events: &OwnedFd, dir: &Path) -> io::Result<bool> {
    let mut parent = PathBuf::from("/");
    for component in dir.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        // The parent first: a child that is born after the look at it is told of.
        if !watch(events, &parent, BIRTH | OWN_END)? {
            return Ok(false);
        }
        let child = parent.join(name);
        if !watch(events, &child, OWN_END | WatchFlags::DONT_FOLLOW)? {
            return Ok(false);
        }
        // It is there: what else is born beside it is of no interest.
        watch(events, &parent, OWN_END)?;
        parent = child;
    }
    Ok(parent.is_dir())
}

/// False when there is nothing to watch.
fn watch(events: &OwnedFd, path: &Path, what: WatchFlags) -> io::Result<bool> {
    match inotify::add_watch(events, path, what) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Does something, and sees it noticed.
    async fn noticed(watcher: &mut ConfWatcher, what: &str, act: impl FnOnce() -> io::Result<()>) {
        act().unwrap_or_else(|e| panic!("{what}: {e}"));
        timeout(DEADLINE, watcher.changed())
            .await
            .unwrap_or_else(|_| panic!("{what}: not noticed"))
            .unwrap();
        // One act may make several events; all of them are of the past.
        while timeout(Duration::from_millis(20), watcher.changed())
            .await
            .is_ok()
        {}
    }

    #[tokio::test]
    async fn the_directory_may_come_and_go_with_all_above_it() {
        let root = TempDir::new().unwrap();
        let (top, away) = (root.path().join("etc"), root.path().join("away"));
        let dir = top.join("cni/net.d");
        let file = dir.join("10-pods.conflist");
        let mut watcher = ConfWatcher::new(&dir).unwrap();
        let watcher = &mut watcher;
        noticed(watcher, "top", || fs::create_dir(&top)).await;
        noticed(watcher, "the rest", || fs::create_dir_all(&dir)).await;
        noticed(watcher, "a file", || fs::write(&file, "{}")).await;
        noticed(watcher, "a change", || fs::write(&file, "{ }")).await;
        noticed(watcher, "a removal", || fs::remove_file(&file)).await;
        noticed(watcher, "renamed away", || fs::rename(&top, &away)).await;
        noticed(watcher, "renamed back", || fs::rename(&away, &top)).await;
        noticed(watcher, "a file after it", || fs::write(&file, "{}")).await;
        let aside = top.join("cni/aside");
        noticed(watcher, "itself renamed", || fs::rename(&dir, &aside)).await;
        noticed(watcher, "itself back", || fs::rename(&aside, &dir)).await;
        noticed(watcher, "removed whole", || fs::remove_dir_all(&top)).await;
        noticed(watcher, "made again", || fs::create_dir_all(&dir)).await;
        noticed(watcher, "a file in the new one", || fs::write(&file, "{}")).await;
    }

    #[tokio::test]
    async fn a_link_that_leads_elsewhere_is_noticed() {
        let root = TempDir::new().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("a")).unwrap();
        fs::create_dir(path("b")).unwrap();
        symlink("a", path("net.d")).unwrap();
        let mut watcher = ConfWatcher::new(&path("net.d")).unwrap();
        let watcher = &mut watcher;
        noticed(watcher, "a file behind it", || {
            fs::write(path("a/x.conf"), "")
        })
        .await;
        symlink("b", path("new")).unwrap();
        noticed(watcher, "another target", || {
            fs::rename(path("new"), path("net.d"))
        })
        .await;
        noticed(watcher, "a file behind that", || {
            fs::write(path("b/x.conf"), "")
        })
        .await;
    }

    #[tokio::test]
    async fn plugins_in_a_folder_are_watched_too() {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("net.d");
        fs::create_dir(&dir).unwrap();
        let mut watcher = ConfWatcher::new(&dir).unwrap();
        let watcher = &mut watcher;
        noticed(watcher, "the folder", || fs::create_dir(dir.join("pods"))).await;
        noticed(watcher, "a plugin in it", || {
            fs::write(dir.join("pods/10-dvipa.conf"), "{}")
        })
        .await;
    }

    #[tokio::test]
    async fn nothing_is_told_of_what_is_beside_the_path() {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("net.d");
        fs::create_dir(&dir).unwrap();
        let mut watcher = ConfWatcher::new(&dir).unwrap();
        fs::write(root.path().join("beside"), "").unwrap();
        // An event would be there before this one, and would be told first.
        let early = timeout(Duration::from_millis(50), watcher.changed()).await;
        assert!(early.is_err(), "told of a file beside the directory");
        noticed(&mut watcher, "a file in it", || {
            fs::write(dir.join("x"), "")
        })
        .await;
    }
}
