//! Open files of processes, and how many they may have.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of some processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// All descriptors.
    pub descriptors: u64,
    /// Of these, sockets.
    pub sockets: u64,
}

/// Counts the open files of these processes; one that ends meanwhile counts nothing.
pub fn of(pids: &[u32]) -> OpenFiles {
    let mut found = OpenFiles::default();
    for pid in pids {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            found.descriptors += 1;
            let socket = std::fs::read_link(entry.path()).is_ok_and(|target| {
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"socket:")
            });
            found.sockets += u64::from(socket);
        }
    }
    found
}

/// The soft limit of open files of a process; `None` when it has none or is gone.
pub fn soft_limit(pid: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("limits"));
    soft_limit_in(&limits.ok()?)
}

/// proc(5): `Max open files            1024                 524288               files`.
fn soft_limit_in(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Lets this process open as many files as it may allow itself: the soft limit becomes the hard one. Gives the soft
/// limit before if it was lower.
///
/// What the process starts inherits the limit, and programs that use `select` or close every possible descriptor
/// suffer from a high one: it is to be put back for them by [`set_soft_limit`].
///
/// # Errors
/// The kernel refused.
pub fn raise_soft_limit() -> std::io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(before) = current.filter(|soft| maximum.is_none_or(|hard| *soft < hard)) else {
        return Ok(None);
    };
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(Some(before))
}

/// Sets the soft limit of open files of this process, for it and for what it starts.
///
/// # Errors
/// It is above the hard limit.
pub fn set_soft_limit(soft: u64) -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(soft),
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_and_put_back() {
        let before = getrlimit(Resource::Nofile);
        let hard = before.maximum.unwrap_or(1 << 20);
        set_soft_limit(hard / 2).unwrap();
        assert_eq!(raise_soft_limit().unwrap(), Some(hard / 2));
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
        assert_eq!(raise_soft_limit().unwrap(), None, "there is no more");
        assert_eq!(set_soft_limit(hard / 2).ok(), Some(()));
        assert_eq!(soft_limit(std::process::id()), Some(hard / 2));
        setrlimit(Resource::Nofile, before).unwrap();
    }

    #[test]
    fn files_and_sockets_of_this_process_are_counted() {
        let own = std::process::id();
        let before = of(&[own]);
        let _sockets = std::os::unix::net::UnixStream::pair().unwrap();
        let _file = std::fs::File::open("/dev/null").unwrap();
        let after = of(&[own, u32::MAX]);
        // Other tests of this process open files meanwhile.
        assert!(after.descriptors >= 3 && after.sockets >= 2, "{after:?}");
        assert!(before.descriptors > 0);
        assert!(soft_limit(own).is_some_and(|limit| limit > 0));
        assert_eq!(of(&[u32::MAX]), OpenFiles::default());
    }

    #[test]
    fn a_missing_limit_is_none() {
        let line =
            |soft: &str| format!("Limit  Soft Limit\nMax open files   {soft}   524288  files \n");
        assert_eq!(soft_limit_in(&line("1024")), Some(1024));
        assert_eq!(soft_limit_in(&line("unlimited")), None);
        assert_eq!(soft_limit_in(""), None);
    }
}
