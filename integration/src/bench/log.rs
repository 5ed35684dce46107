//! What the output of a container costs on its way into its log.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::io::Errno;

use super::endpoint::{Endpoint, bounded};
use super::process;
use super::work::{mebibytes, turn};
use crate::pod::{container_config, words};
use crate::v1::Mount;
use crate::wait;

/// The program reads this much, in lines of 100 bytes, as often as it takes.
const PIECE_LINES: usize = 1 << 17;
/// Where the container has what it needs.
const INSIDE: &str = "/bench";
/// How often the log is looked at: no program waits for that.
const PERIOD: Duration = Duration::from_millis(1);
/// The end of an entry that says `last`, in the format of CRI.
const LAST: &[u8] = b" F last\n";

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Containers of each kind.
    pub rounds: usize,
    /// What each of them writes, at least.
    pub bytes: u64,
}

/// What a container writes.
struct Kind {
    /// Names of the figures: speed, and CPU time of daemon and monitor.
    figures: [&'static str; 2],
    /// The code page that its output is converted from; "" is none.
    code_page: &'static str,
    /// A line of 100 bytes, and the last one.
    line: Vec<u8>,
    last: &'static [u8],
}

/// As it is; and in IBM-1047, where every tenth character takes two bytes in UTF-8.
fn kinds() -> [Kind; 2] {
    let plain = [&[b'y'; 99][..], b"\n"].concat();
    let ten = [&[0xa8; 9][..], &[0x43]].concat();
    let ebcdic = [&ten.repeat(10)[..99], &[0x15]].concat();
    [
        Kind {
            figures: ["container log", "container log, CPU"],
            code_page: "",
            line: plain,
            last: b"last\n",
        },
        Kind {
            figures: ["container log, IBM-1047", "container log, IBM-1047, CPU"],
            code_page: "IBM-1047",
            line: ebcdic,
            last: &[0x93, 0x81, 0xa2, 0xa3, 0x15],
        },
    ]
}

/// Measures it on each endpoint in turn.
///
/// # Errors
/// A call failed, or a log did not become whole.
pub async fn measure(endpoints: &mut [Endpoint], image: &str, plan: Plan) -> Result<()> {
    for round in 0..plan.rounds {
        for index in turn(round, endpoints.len()) {
            for kind in kinds() {
                // Others know no code pages.
                if kind.code_page.is_empty() || endpoints[index].is_zcri() {
                    one(&mut endpoints[index], image, plan.bytes, &kind)
                        .await
                        .with_context(|| endpoints[index].name.clone())?;
                }
            }
        }
    }
    Ok(())
}

async fn one(endpoint: &mut Endpoint, image: &str, bytes: u64, kind: &Kind) -> Result<()> {
    let dir = tempfile::tempdir().context("a directory for the container")?;
    let piece = kind.line.repeat(PIECE_LINES);
    let pieces = usize::try_from(bytes)?.div_ceil(piece.len());
    fs::write(dir.path().join("piece"), &piece)?;
    fs::write(dir.path().join("last"), kind.last)?;
    let gate = dir.path().join("gate");
    mkfifoat(CWD, &gate, Mode::RWXU)?;

    let mut config = container_config("bench", image);
    // It goes on for ever: some monitors end with their container, and their CPU time with them.
    let all = format!("{INSIDE}/piece ").repeat(pieces);
    let script = format!("read x < {INSIDE}/gate; cat {all} {INSIDE}/last; exec sleep 1000000");
    config.command = words(["/bin/sh", "-c", &script]);
    config.mounts = vec![Mount {
        container_path: INSIDE.to_owned(),
        host_path: dir.path().display().to_string(),
        readonly: true,
        ..Default::default()
    }];
    if !kind.code_page.is_empty() {
        let name = "zcri.io/output-code-page".to_owned();
        config.annotations = [(name, kind.code_page.to_owned())].into();
    }
    let (running, log) = endpoint.run_with_log(&config).await?;
    // It can be opened when the container reads from it.
    let open = async || match open(&gate, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
        Ok(gate) => Ok(Some(File::from(gate))),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    };
    let mut gate = wait::until("the container to read", wait::PATIENCE, open).await?;

    let servers = endpoint.servers(&running)?;
    let (before, start) = (process::cpu(&servers)?, Instant::now());
    gate.write_all(b"\n")?;
    while !is_whole(&log)? {
        ensure!(
            start.elapsed() < 4 * wait::PATIENCE,
            "{} does not become whole",
            log.display()
        );
        tokio::time::sleep(PERIOD).await;
    }
    let took = start.elapsed();
    let spent = process::cpu(&servers)?.saturating_sub(before);
    let written = fs::metadata(&log)?.len();
    let least = (pieces * piece.len()) as u64;
    ensure!(written > least, "{written} of {least} bytes are in the log");
    let size = mebibytes(least);
    let [speed, work] = kind.figures;
    endpoint.record(speed, size / took.as_secs_f64());
    endpoint.record(work, spent.as_secs_f64() / (size / 1024.0));
    bounded("StopPodSandbox", endpoint.cri.stop_pod(&running.pod)).await?;
    bounded("RemovePodSandbox", endpoint.cri.remove_pod(&running.pod)).await?;
    fs::remove_file(log).context("the log")
}

/// Whether the last line is there.
fn is_whole(log: &Path) -> Result<bool> {
    let mut file = File::open(log).with_context(|| format!("opening {}", log.display()))?;
    let length = file.metadata()?.len();
    let Some(at) = length.checked_sub(LAST.len() as u64) else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(at))?;
    let mut end = [0; LAST.len()];
    file.read_exact(&mut end)?;
    Ok(end == LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_hundred_bytes_and_one_end() {
        for (kind, end) in kinds().into_iter().zip([b'\n', 0x15]) {
            assert_eq!(kind.line.len(), 100);
            let ends: Vec<usize> = (0..100).filter(|at| kind.line[*at] == end).collect();
            assert_eq!(ends, [99]);
        }
    }

    #[test]
    fn a_log_is_whole_with_its_last_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, whole) in [
            ("", false),
            ("last\n", false),
            ("2026-01-01T00:00:00Z stdout F last", false),
            ("2026-01-01T00:00:00Z stdout P last\n", false),
            ("2026-01-01T00:00:00Z stdout F last\n", true),
        ] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(is_whole(file.path()).unwrap(), whole, "{text:?}");
        }
    }
}
