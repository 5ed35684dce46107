//! The files of a pod's bundle: where they are and what zcrid writes into them.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::config::{Dns, PodConfig, PodScope, UserNamespace};
use crate::confinement::label_file;

/// Size of a pod's `/dev/shm`, in bytes: what every runtime of the field gives.
const SHM_BYTES: u64 = 64 << 20;
/// The host's resolver configuration, for pods that bring none.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Paths inside a pod's bundle.
#[derive(Debug, Clone)]
pub(crate) struct PodFiles {
    pub(crate) bundle: PathBuf,
}

impl PodFiles {
    pub(crate) fn new(bundle: PathBuf) -> Self {
        Self { bundle }
    }

    /// File that pins a namespace: "net", "ipc", "uts", "pid" or "user".
    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        self.bundle.join("ns").join(kind)
    }

    pub(crate) fn shm(&self) -> PathBuf {
        self.bundle.join("shm")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.bundle.join("resolv.conf")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.bundle.join("hostname")
    }

    /// Namespaces and mounts that may be there, for whoever takes the pod down.
    pub(crate) fn namespaces(&self) -> [PathBuf; 5] {
        ["net", "ipc", "uts", "pid", "user"].map(|kind| self.namespace(kind))
    }

    /// Makes the bundle with the files that depend on nothing but the configuration.
    /// Their SELinux label is `label`.
    pub(crate) fn write(&self, config: &PodConfig, label: Option<&str>) -> io::Result<()> {
        std::fs::create_dir_all(self.bundle.join("ns"))?;
        std::fs::write(self.resolv_conf(), resolv_conf(config.dns.as_ref())?)?;
        std::fs::write(self.hostname(), format!("{}\n", host_name(config)?))?;
        if let Some((uid, gid)) = owner(config) {
            for file in [self.resolv_conf(), self.hostname()] {
                std::os::unix::fs::chown(file, Some(uid), Some(gid))?;
            }
        }
        if let Some(label) = label {
            for file in [self.resolv_conf(), self.hostname()] {
                label_file(&file, label)?;
            }
        }
        Ok(())
    }

    /// Mounts the pod's `/dev/shm`, if it has one of its own.
    pub(crate) fn mount_shm(
        &self,
        config: &PodConfig,
        label: Option<&str>,
    ) -> zcri_sys::Result<()> {
        if config.namespaces.ipc == PodScope::Node {
            return Ok(());
        }
        let shm = self.shm();
        // An error of mkdir shows as the error of the mount.
        std::fs::create_dir(&shm).ok();
        zcri_sys::mount::shm(&shm, SHM_BYTES, owner(config).unwrap_or((0, 0)), label)
    }
}

/// Ids on the node of the root of the pod's user namespace, if it has one.
fn owner(config: &PodConfig) -> Option<(u32, u32)> {
    config
        .namespaces
        .user
        .as_ref()
        .and_then(UserNamespace::root)
}

/// The pod's host name; on the host's network and without one of its own it is the host's.
pub(crate) fn host_name(config: &PodConfig) -> io::Result<String> {
    if !config.hostname.is_empty() {
        return Ok(config.hostname.clone());
    }
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?
        .trim()
        .to_owned())
}

/// resolv.conf(5) from the pod's DNS configuration, or the host's when it has none.
fn resolv_conf(dns: Option<&Dns>) -> io::Result<String> {
    let given = dns.filter(|dns| {
        !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty())
    });
    let Some(dns) = given else {
        return match std::fs::read_to_string(Path::new(HOST_RESOLV_CONF)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        };
    };
    let mut text = String::new();
    let line = |text: &mut String, keyword: &str, words: &[String]| {
        if !words.is_empty() {
            writeln!(text, "{keyword} {}", words.join(" ")).ok();
        }
    };
    line(&mut text, "search", &dns.searches);
    for server in &dns.servers {
        line(&mut text, "nameserver", std::slice::from_ref(server));
    }
    line(&mut text, "options", &dns.options);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_becomes_resolv_conf() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)).unwrap(),
            "search a.svc.cluster.local cluster.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        let only_options = Dns {
            options: vec!["edns0".into()],
            ..Dns::default()
        };
        assert_eq!(resolv_conf(Some(&only_options)).unwrap(), "options edns0\n");
    }
}
