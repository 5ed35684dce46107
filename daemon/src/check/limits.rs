//! Limits that the daemon and its pods live under.

use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use zcri_config::{Config, PlatformKind};

use super::report::Area;
use super::zos;

/// A pod takes a handful of descriptors (shim connection, log, FIFOs): this is enough for more pods than a kubelet runs.
const DESCRIPTORS: u64 = 65_536;
/// With fewer the daemon has none for its own files.
const DESCRIPTORS_LEAST: u64 = 1024;

/// A number from `/proc/sys`, with the least for a node of usual size.
struct Knob {
    what: &'static str,
    file: &'static str,
    least: u64,
    advice: &'static str,
}

const KNOBS: &[Knob] = &[
    Knob {
        what: "process numbers",
        file: "/proc/sys/kernel/pid_max",
        least: 32_768,
        advice: "sysctl kernel.pid_max: pods of a full node need more",
    },
    Knob {
        what: "threads",
        file: "/proc/sys/kernel/threads-max",
        least: 16_384,
        advice: "sysctl kernel.threads-max: pods of a full node need more",
    },
    Knob {
        what: "inotify instances",
        file: "/proc/sys/fs/inotify/max_user_instances",
        least: 128,
        advice: "sysctl fs.inotify.max_user_instances: the daemon, the kubelet and pods watch files",
    },
    Knob {
        what: "inotify watches",
        file: "/proc/sys/fs/inotify/max_user_watches",
        least: 8192,
        advice: "sysctl fs.inotify.max_user_watches: the daemon, the kubelet and pods watch files",
    },
    Knob {
        what: "user namespaces",
        file: "/proc/sys/user/max_user_namespaces",
        least: 1,
        advice: "sysctl user.max_user_namespaces: pods with `hostUsers: false` are refused",
    },
];

pub(super) fn check(config: &Config, area: &mut Area<'_>) {
    descriptors(config, area);
    if config.platform.kind == PlatformKind::Zos {
        zos::shared_pages(area);
    }
    if std::env::consts::OS != "linux" {
        area.skip(
            "processes",
            "MAXPROCSYS and MAXPROCUSER of BPXPRMxx: `D OMVS,L` shows both with what is used",
        );
        return;
    }
    // An emulated LPAR is Linux, but its pods have no user namespaces.
    let zos = config.platform.kind == PlatformKind::Zos;
    for knob in KNOBS.iter().filter(|k| !zos || k.what != "user namespaces") {
        match std::fs::read_to_string(knob.file) {
            Ok(text) => number(area, knob, text.trim()),
            Err(error) => area.skip(knob.what, format!("{}: {error}", knob.file)),
        }
    }
}

fn number(area: &mut Area<'_>, knob: &Knob, text: &str) {
    match text.parse::<u64>() {
        Ok(value) if value >= knob.least => area.pass(knob.what, text),
        _ => area.warn(
            knob.what,
            format!("{text}, less than {}", knob.least),
            knob.advice,
        ),
    }
}

/// Those of the daemon that runs, as its service manager set them, or else of this process.
fn descriptors(config: &Config, area: &mut Area<'_>) {
    let running = UnixStream::connect(&config.api.listen)
        .ok()
        .and_then(|socket| zcri_sys::node::peer_pid(socket).ok())
        .and_then(|pid| Some((pid, open_files(&Path::new("/proc").join(pid.to_string()))?)));
    let (limit, whose) = match running {
        Some((pid, limit)) => (limit, format!("of zcrid, process {pid}")),
        None => (
            getrlimit(Resource::Nofile).current,
            "of this shell; zcrid does not run".to_owned(),
        ),
    };
    let advice = "LimitNOFILE=1048576 in the unit, MAXFILEPROC in BPXPRMxx or FILEPROCMAX in the user's OMVS segment";
    match limit {
        None => area.pass("open files", format!("no limit ({whose})")),
        Some(limit) if limit >= DESCRIPTORS => {
            area.pass("open files", format!("{limit} ({whose})"))
        }
        Some(limit) if limit >= DESCRIPTORS_LEAST => area.warn(
            "open files",
            format!("{limit}, less than {DESCRIPTORS} ({whose})"),
            advice,
        ),
        Some(limit) => area.fail("open files", format!("{limit} ({whose})"), advice),
    }
}

/// The soft limit of a process; the inner none is no limit (proc_pid_limits(5)).
fn open_files(proc: &Path) -> Option<Option<u64>> {
    let text = std::fs::read_to_string(proc.join("limits")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" {
        Some(None)
    } else {
        soft.parse().ok().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_process_is_read() {
        let own = open_files(Path::new("/proc/self")).unwrap();
        assert_eq!(own, getrlimit(Resource::Nofile).current);
        assert_eq!(open_files(Path::new("/nowhere")), None);
    }
}
