//! The OCI runtime: its command lines, and what it says when it fails.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::bootstrap::MAX_SOCKET_PATH;

/// Name of the file in a container's bundle that tells the `delete` action which runtime to call.
const RECORD: &str = "runtime.json";

/// Most bytes of a runtime's last words that are passed on.
const MAX_MESSAGE: usize = 4096;

/// Variables that concern the daemon and must not reach a runtime: runc would wait for a container that it believes
/// to notify systemd.
const NOT_INHERITED: [&str; 5] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
];

/// Which runtime a container uses, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub(crate) binary: String,
    pub(crate) root: String,
    pub(crate) systemd_cgroup: bool,
    pub(crate) no_pivot_root: bool,
    pub(crate) no_new_keyring: bool,
    /// Found out: its `exec` knows no `--cgroup`.
    #[serde(skip)]
    pub(crate) execs_without_cgroup: bool,
}

impl Runtime {
    /// Remembers the runtime in the bundle.
    pub(crate) fn record(&self, bundle: &Path) -> io::Result<()> {
        fs::write(bundle.join(RECORD), serde_json::to_vec(self)?)
    }

    /// What [`Runtime::record`] wrote, if it did.
    pub(crate) fn recorded(bundle: &Path) -> io::Result<Option<Self>> {
        match fs::read(bundle.join(RECORD)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Does its `exec` put a process into a cgroup below the container's and keep it in all others? crun does not on
    /// cgroup version 1, where it leaves every other controller.
    pub(crate) fn execs_into_cgroups(&self) -> bool {
        let name = Path::new(&self.binary)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.starts_with("runc") && !self.execs_without_cgroup
    }

    fn command(&self, bundle: &Path, log: &Path, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        if !self.root.is_empty() {
            command.arg("--root").arg(&self.root);
        }
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json", verb]);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// `run --detach`: create and start in one.
    pub(crate) fn run(
        &self,
        call: &Invocation<'_>,
        pid_file: &Path,
        console: Option<&Path>,
    ) -> Command {
        let mut command = self.command(call.bundle, call.log, "run");
        command
            .arg("--detach")
            .arg("--bundle")
            .arg(call.bundle)
            .arg("--pid-file")
            .arg(pid_file);
        for (wanted, flag) in [
            (self.no_pivot_root, "--no-pivot"),
            (self.no_new_keyring, "--no-new-keyring"),
        ] {
            if wanted {
                command.arg(flag);
            }
        }
        if let Some(console) = console {
            command.arg("--console-socket").arg(socket_name(console));
        }
        command.arg(call.id);
        command
    }

    /// `exec --detach` of the process that a file describes.
    pub(crate) fn exec(
        &self,
        call: &Invocation<'_>,
        process: &Path,
        pid_file: &Path,
        console: Option<&Path>,
        cgroup: Option<&str>,
    ) -> Command {
        let mut command = self.command(call.bundle, call.log, "exec");
        command
            .arg("--detach")
            .arg("--process")
            .arg(process)
            .arg("--pid-file")
            .arg(pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(socket_name(console));
        }
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg(call.id);
        command
    }

    /// `delete --force`: also ends what may still run.
    pub(crate) fn delete(&self, call: &Invocation<'_>) -> Command {
        self.plain(call, "delete", &["--force"])
    }

    /// `pause` or `resume`.
    pub(crate) fn plain(&self, call: &Invocation<'_>, verb: &str, flags: &[&str]) -> Command {
        let mut command = self.command(call.bundle, call.log, verb);
        command.args(flags).arg(call.id);
        command
    }

    /// `update` with a file of resources as in the OCI spec.
    pub(crate) fn update(&self, call: &Invocation<'_>, resources: &Path) -> Command {
        let mut command = self.command(call.bundle, call.log, "update");
        command.arg("--resources").arg(resources).arg(call.id);
        command
    }
}

/// The console's socket as a runtime is told it: where its path is longer than an address may be, relative to the bundle,
/// in which a runtime is started. (youki looks elsewhere.)
fn socket_name(console: &Path) -> &std::ffi::OsStr {
    let whole = console.as_os_str();
    if whole.len() <= MAX_SOCKET_PATH {
        return whole;
    }
    console.file_name().unwrap_or(whole)
}

/// What every call of a runtime is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Invocation<'a> {
    pub(crate) bundle: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) id: &'a str,
}

/// Lets a command's standard error go to the end of its log file, where [`failure`] finds it.
pub(crate) fn errors_to_log(command: &mut Command, log: &Path) -> io::Result<()> {
    command.stderr(File::options().append(true).create(true).open(log)?);
    Ok(())
}

/// One line of a runtime's log.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    /// `message` is youki's word.
    #[serde(default, alias = "message")]
    msg: String,
}

/// Why a runtime failed: the last error of its log, else its last words that are no JSON, else its status.
pub(crate) fn failure(log: &Path, spoken: &[u8], code: u32) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut error = None;
    let mut words = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match serde_json::from_str::<LogLine>(line) {
            Ok(entry)
                if ["error", "fatal"].contains(&entry.level.to_ascii_lowercase().as_str()) =>
            {
                error = Some(entry.msg)
            }
            Ok(_) => {}
            Err(_) => words = Some(line.to_owned()),
        }
    }
    let spoken = String::from_utf8_lossy(spoken);
    let spoken = spoken
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .map(str::to_owned);
    let mut message = error
        .or(words)
        .or(spoken)
        .unwrap_or_else(|| format!("exit status {code}, without a word"));
    if let Some((cut, _)) = message.char_indices().find(|(at, _)| *at >= MAX_MESSAGE) {
        message.truncate(cut);
    }
    message
}

/// Reads a file that a runtime wrote a process number to.
pub(crate) fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    let pid = text.trim().parse().ok().filter(|pid| *pid != 0);
    pid.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no process number: {text:?}"),
        )
    })
}

/// Names of the files that one call needs in a bundle.
#[derive(Debug, Clone)]
pub(crate) struct CallFiles {
    pub(crate) log: PathBuf,
    pub(crate) input: PathBuf,
    pub(crate) pid: PathBuf,
    pub(crate) console: PathBuf,
}

impl CallFiles {
    /// `number` is unique within the monitor.
    pub(crate) fn new(bundle: &Path, number: u64) -> Self {
        let file = |suffix: &str| bundle.join(format!(".call-{number}.{suffix}"));
        Self {
            log: file("log"),
            input: file("json"),
            pid: file("pid"),
            console: file("sock"),
        }
    }

    /// Removes what is there of them.
    pub(crate) fn remove(&self) {
        for path in [&self.log, &self.input, &self.pid, &self.console] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    eprintln!("remove {}: {e}", path.display())
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(binary: &str) -> Runtime {
        Runtime {
            binary: binary.into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: false,
            no_new_keyring: false,
            execs_without_cgroup: false,
        }
    }

    #[test]
    fn a_console_that_is_too_far_away_is_named_from_the_bundle() {
        let far = PathBuf::from(format!("/{}/tty.sock", "b".repeat(MAX_SOCKET_PATH)));
        assert_eq!(socket_name(&far), "tty.sock");
        assert_eq!(socket_name(Path::new("/b/tty.sock")), "/b/tty.sock");
    }

    #[test]
    fn youki_writes_its_log_in_other_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let said = r#"{"timestamp":"x","level":"INFO","message":"starting"}
            {"timestamp":"x","level":"ERROR","message":"error in executing command: no"}"#;
        fs::write(&log, said).unwrap();
        assert_eq!(failure(&log, b"", 255), "error in executing command: no");
    }

    #[test]
    fn the_command_line_of_run() {
        let call = Invocation {
            bundle: Path::new("/b"),
            log: Path::new("/b/l"),
            id: "c1",
        };
        let command =
            runtime("/usr/sbin/runc").run(&call, Path::new("/b/init.pid"), Some(Path::new("/b/s")));
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_str().unwrap())
            .collect();
        let want = "--root /r --systemd-cgroup --log /b/l --log-format json run --detach --bundle /b \
                    --pid-file /b/init.pid --console-socket /b/s c1";
        assert_eq!(words.join(" "), want);
        assert!(
            command
                .get_envs()
                .any(|(name, value)| name == "NOTIFY_SOCKET" && value.is_none())
        );
    }

    #[test]
    fn only_runc_gets_execs_with_a_cgroup() {
        assert!(runtime("/usr/sbin/runc").execs_into_cgroups());
        assert!(runtime("runc-1.2").execs_into_cgroups());
        assert!(!runtime("/usr/bin/crun").execs_into_cgroups());
    }

    #[test]
    fn the_last_error_wins() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(failure(&log, b"\nsh: boom\n", 1), "sh: boom");
        assert_eq!(failure(&log, b"", 7), "exit status 7, without a word");
        fs::write(&log, "plain words\n").unwrap();
        assert_eq!(failure(&log, b"", 1), "plain words");
        fs::write(
            &log,
            "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"msg\":\"first\",\"level\":\"error\"}\n\
             {\"level\":\"error\",\"msg\":\"exec: \\\"nope\\\": not found\"}\nrest\n",
        )
        .unwrap();
        assert_eq!(failure(&log, b"said", 1), "exec: \"nope\": not found");
        fs::write(&log, "é".repeat(MAX_MESSAGE)).unwrap();
        assert!(failure(&log, b"", 1).len() <= MAX_MESSAGE + 1);
    }

    #[test]
    fn records_and_pids() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Runtime::recorded(dir.path()).unwrap(), None);
        runtime("crun").record(dir.path()).unwrap();
        assert_eq!(
            Runtime::recorded(dir.path()).unwrap(),
            Some(runtime("crun"))
        );
        let pid = dir.path().join("pid");
        for (text, want) in [
            ("123", Some(123)),
            ("123\n", Some(123)),
            ("0", None),
            ("", None),
            ("-1", None),
        ] {
            fs::write(&pid, text).unwrap();
            assert_eq!(read_pid(&pid).ok(), want);
        }
    }
}
