//! Namespaces: a pod's are made and pinned, and let go again. PID and mount namespaces are made by the OCI runtime, for
//! the hello container.

use std::path::Path;

use zcri_config::{Config, PlatformKind};
use zcri_sys::namespace::{self, PodNamespaces};

use super::Privilege;
use super::report::Area;
use super::scratch::Scratch;
use crate::error::Chain;

/// Directory for pinned namespaces, below the scratch directory for state.
const DIR: &str = "ns";

pub(super) fn check(config: &Config, scratch: &Scratch, area: &mut Area<'_>) {
    let kind = config.platform.kind;
    let wanted: &[&str] = match kind {
        PlatformKind::Linux => &["ipc", "uts", "net"],
        // A pod has no network namespace there, but an address.
        PlatformKind::Zos => &["ipc", "uts"],
    };
    let Some(state) = scratch.state() else {
        area.skip("all", "there is no directory to pin them in");
        return;
    };
    let dir = state.join(DIR);
    if let Err(error) = std::fs::create_dir_all(&dir) {
        area.fail("all", format!("{}: {error}", dir.display()), "");
        return;
    }
    for name in wanted {
        area.verdict(
            *name,
            make(&dir, name).map(|()| "made, pinned, let go".to_owned()),
            Privilege::Namespaces.advice(kind),
        );
    }
    for name in ["pid", "mnt"] {
        let known = Path::new("/proc/self/ns").join(name).exists();
        if known {
            area.pass(name, "known to the kernel; made for the hello container");
        } else {
            area.fail(
                name,
                format!("/proc/self/ns/{name} is missing"),
                "mount /proc",
            );
        }
    }
}

fn make(dir: &Path, name: &str) -> Result<(), String> {
    let path = dir.join(format!("try-{name}"));
    let pinned = Some(path.clone());
    let mut wanted = PodNamespaces::default();
    match name {
        "ipc" => wanted.ipc = pinned,
        "uts" => {
            wanted.uts = pinned;
            wanted.hostname = Some("zcrid-check".to_owned());
        }
        _ => wanted.net = pinned,
    }
    namespace::create(&wanted).map_err(|e| Chain(&e).to_string())?;
    if !namespace::is_pinned(&path) {
        return Err(format!("nothing is pinned on {}", path.display()));
    }
    namespace::unpin(&path).map_err(|e| Chain(&e).to_string())
}
