//! The pod's control group in the unified hierarchy, and the programs on it.
//!
//! Programs on control groups are of the unified hierarchy only, which is there, without controllers, on hybrid nodes
//! too. Where it has no group for the pod yet, ADD makes one, and whoever starts the pod's processes puts them there.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Component, Path, PathBuf},
};

use zcri_sys::bpf::{Hook, Program};

use super::programs::HOOKS;
use crate::{
    error::{Error, Failures, Result},
    log::Log,
    store::OwnedCgroup,
};

/// Digest of a program's instructions.
type Tag = [u8; 8];

/// What is on the way to a group may be removed by others while it is made.
const TRIES: usize = 10;

/// Mount point of the unified hierarchy.
pub(super) fn unified() -> Result<PathBuf> {
    let tree = zcri_sys::cgroup::Tree::detect()
        .map_err(Error::system("cannot find the control groups"))?;
    let unified = tree.unified().ok_or_else(|| Error::Unconfined {
        reason: "no unified hierarchy (cgroup2) is mounted".to_owned(),
    })?;
    Ok(unified.to_owned())
}

/// A pod's control group, which need not be there.
#[derive(Debug)]
pub(super) struct Group {
    root: PathBuf,
    dir: PathBuf,
}

impl Group {
    /// By `cgroupPath`: within the hierarchy, or a directory beneath its mount point, or a systemd slice.
    pub(super) fn locate(path: &str) -> Result<Self> {
        let root = unified()?;
        let within = relative(path, &root).ok_or_else(|| Error::Config {
            key: "cgroupPath",
            reason: format!("{path:?} is not a path of a control group beneath the root"),
        })?;
        Ok(Self {
            dir: root.join(within),
            root,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What of it is there.
    pub(super) fn owned(&self) -> OwnedCgroup {
        let found = self.dir.ancestors().find(|dir| dir.is_dir());
        OwnedCgroup {
            dir: self.dir.clone(),
            found: found.unwrap_or(&self.root).to_owned(),
        }
    }

    /// Makes it, with what is missing of the way to it.
    fn create(&self) -> Result<()> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..TRIES {
            match fs::create_dir_all(&self.dir) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
                Err(e) => return Err(unconfined("create", &self.dir, &e)),
            }
        }
        Err(unconfined("create", &self.dir, &last))
    }

    /// Makes the group where it is missing, attaches the programs, then detaches those of an earlier ADD: it is
    /// confined all the time. The new ones are in the order of [`HOOKS`].
    ///
    /// Those of an earlier ADD stay if they are the same, and all there: they share a storage, which a digest of their
    /// instructions does not cover, and programs of two ADDs have two. So nothing is added to what an ADD left that was
    /// killed. That one left the first hooks, and so does a removal, which begins at the last hook; of any mixture the
    /// first hook has more than one.
    pub(super) fn confine(&self, programs: &[Program]) -> Result<()> {
        let _lock = lock(&self.root)?;
        self.create()?;
        let dir = self.open()?;
        let fail = |e| Error::system(format!("cannot confine {}", self.dir.display()))(e);
        let mut before = Vec::new();
        let mut complete = true;
        for ((hook, name), program) in HOOKS.into_iter().zip(programs) {
            let tag = program.info().map_err(fail)?.tag;
            let old = ours(&dir, hook, name).map_err(fail)?;
            complete &= matches!(&old[..], [(_, only)] if *only == tag);
            before.push((hook, old));
        }
        if complete {
            return Ok(());
        }
        for ((hook, _), program) in HOOKS.into_iter().zip(programs) {
            program.attach(dir.as_fd(), hook).map_err(fail)?;
        }
        for (hook, old) in before.into_iter().rev() {
            for (program, _) in old {
                program.detach(dir.as_fd(), hook).map_err(fail)?;
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        let dir = self.open()?;
        for (hook, name) in HOOKS {
            let fail = |e| Error::system(format!("look at {}", self.dir.display()))(e);
            if ours(&dir, hook, name).map_err(fail)?.is_empty() {
                let what = format!("{} is not confined: {name} is missing", self.dir.display());
                return Err(Error::Changed { what });
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<File> {
        File::open(&self.dir).map_err(|e| unconfined("open", &self.dir, &e))
    }
}

/// The programs of this plugin on a hook of a group, with the digests of their instructions.
fn ours(group: &File, hook: Hook, name: &str) -> zcri_sys::Result<Vec<(Program, Tag)>> {
    let mut found = Vec::new();
    for program in Program::attached(group.as_fd(), hook)? {
        let info = program.info()?;
        if info.name == name {
            found.push((program, info.tag));
        }
    }
    Ok(found)
}

fn unconfined(op: &str, dir: &Path, error: &io::Error) -> Error {
    Error::Unconfined {
        reason: format!("{op} {}: {error}", dir.display()),
    }
}

/// Held while a group is confined or left: an old sandbox of a pod may be deleted after a new one was added to the same
/// group. Ends when it is dropped.
fn lock(root: &Path) -> Result<File> {
    let fail = |e: io::Error| unconfined("lock", root, &e);
    let file = File::open(root).map_err(fail)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| fail(e.into()))?;
    Ok(file)
}

/// At DEL: removes the directories that ADD made, as far as nothing is in them. If processes are left, all stays as it
/// is, and confined; if the group is somebody else's, it loses the programs. One that has the programs of another
/// attachment by now is left alone.
pub(super) fn leave(owned: &OwnedCgroup, ours: &[Program], log: &Log) -> Result<()> {
    let _lock = lock(&unified()?)?;
    if let Ok(dir) = File::open(&owned.dir) {
        if !is_ours(&dir, &owned.dir, ours)? {
            log.line(format_args!(
                "{} belongs to another attachment: it is left",
                owned.dir.display()
            ));
            return Ok(());
        }
        if is_populated(&owned.dir) {
            log.line(format_args!(
                "{} still has processes: it is left, and confined",
                owned.dir.display()
            ));
            return Ok(());
        }
    }
    let made = owned
        .dir
        .ancestors()
        .take_while(|dir| *dir != owned.found.as_path() && dir.starts_with(&owned.found));
    for dir in made {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => break,
        }
    }
    release(&owned.dir)
}

/// Whether all programs of this plugin on a group are these. They are told by their instructions, in which the
/// addresses are.
fn is_ours(group: &File, dir: &Path, ours: &[Program]) -> Result<bool> {
    let fail = |e| Error::system(format!("look at {}", dir.display()))(e);
    for (i, (hook, name)) in HOOKS.into_iter().enumerate() {
        let tag = match ours.get(i) {
            Some(program) => Some(program.info().map_err(fail)?.tag),
            None => None,
        };
        let attached = self::ours(group, hook, name).map_err(fail)?;
        if attached.iter().any(|(_, there)| Some(*there) != tag) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "cgroup.events".
fn is_populated(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// From the last hook to the first, see [`Group::confine`].
fn release(dir: &Path) -> Result<()> {
    let Ok(file) = File::open(dir) else {
        return Ok(());
    };
    let fail = || Error::system(format!("release {}", dir.display()));
    let mut failures = Failures::default();
    for (hook, name) in HOOKS.into_iter().rev() {
        let found = ours(&file, hook, name).map_err(fail());
        for (program, _) in failures.note(found).unwrap_or_default() {
            failures.note(program.detach(file.as_fd(), hook).map_err(fail()));
        }
    }
    failures.end()
}

/// The path below the root of the hierarchy; none when it leads elsewhere, or is the root.
fn relative(path: &str, root: &Path) -> Option<PathBuf> {
    let whole = Path::new(path);
    let within = whole
        .strip_prefix(root)
        .or_else(|_| whole.strip_prefix("/"))
        .unwrap_or(whole);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if within.as_os_str().is_empty() || !within.components().all(plain) {
        return None;
    }
    let mut parts = within.components();
    match (parts.next(), parts.next()) {
        (Some(only), None) => Some(slice(only.as_os_str().to_str()?)),
        _ => Some(within.to_owned()),
    }
}

/// Where systemd puts a slice: `a-b.slice` is in `a.slice`. Source: systemd.slice(5).
fn slice(name: &str) -> PathBuf {
    let Some(stem) = name
        .strip_suffix(".slice")
        .filter(|stem| stem.contains('-'))
    else {
        return name.into();
    };
    let mut path = PathBuf::new();
    for (end, _) in stem.match_indices('-') {
        path.push(format!("{}.slice", &stem[..end]));
    }
    path.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_each_form_of_its_path() {
        let root = Path::new("/sys/fs/cgroup/unified");
        for (path, expected) in [
            ("/kubepods/pod1", Some("kubepods/pod1")),
            ("kubepods/pod1", Some("kubepods/pod1")),
            (
                "/sys/fs/cgroup/unified/kubepods/pod1",
                Some("kubepods/pod1"),
            ),
            ("/pod1", Some("pod1")),
            (
                "kubepods-burstable-pod1.slice",
                Some("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"),
            ),
            ("pods.slice", Some("pods.slice")),
            ("/", None),
            ("", None),
            ("/sys/fs/cgroup/unified", None),
            ("/a/../../b", None),
        ] {
            assert_eq!(
                relative(path, root),
                expected.map(PathBuf::from),
                "{path:?}"
            );
        }
    }
}
