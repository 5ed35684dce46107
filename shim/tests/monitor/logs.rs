//! What ends up in the log file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::ttrpc::Code;

use crate::pod::{Pod, code, parse_log};

#[test]
fn long_lines_tails_and_carriage_returns() {
    let pod = Pod::new();
    let c = pod.container(
        "c1",
        "printf 'a\\r\\n\\n'; head -c 40000 /dev/zero | tr '\\0' x; echo; printf tail",
    );
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/tr")).unwrap();
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/printf")).unwrap();
    c.run();
    c.wait();
    let got: Vec<(String, usize)> = c
        .entries()
        .into_iter()
        .map(|(_, tag, text)| (tag, text.len()))
        .collect();
    let want = [
        ("F", 2),
        ("F", 0),
        ("P", 16384),
        ("P", 16384),
        ("F", 40000 - 2 * 16384),
        ("P", 4),
    ];
    assert_eq!(got, want.map(|(tag, len)| (tag.to_owned(), len)));
    assert!(c.text().starts_with("a\r\n\nxxx") && c.text().ends_with("x\ntail"));
    let mode = fs::metadata(&c.log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn every_byte_of_a_big_output_is_there_though_nobody_reads_it_until_the_end() {
    let pod = Pod::new();
    // 20 MB in lines of 100 bytes, then the process is gone at once.
    let c = pod.container(
        "c1",
        "yes $(head -c 99 /dev/zero | tr '\\0' y) | head -c 20000000",
    );
    std::os::unix::fs::symlink("busybox", pod.path().join("root/bin/tr")).unwrap();
    c.run();
    assert_eq!(c.wait(), 0);
    let entries = c.entries();
    assert_eq!(entries.len(), 200_000);
    assert!(
        entries
            .iter()
            .all(|(_, tag, text)| tag == "F" && text.len() == 99)
    );
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn reopening_goes_on_in_a_new_file() {
    let pod = Pod::new();
    let c = pod.container(
        "c1",
        "echo one; until test -e /tmp/go; do sleep 0.01; done; echo two; sleep 1000",
    );
    let pid = c.run();
    c.wait_for_text("one\n");
    let old = c.log.with_extension("old");
    fs::rename(&c.log, &old).unwrap();
    pod.reopen_log("c1").unwrap();
    assert_eq!(
        fs::metadata(&c.log).unwrap().permissions().mode() & 0o777,
        0o640
    );
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    c.wait_for_text("two\n");
    assert_eq!(c.text(), "two\n");
    assert_eq!(parse_log(&fs::read_to_string(&old).unwrap()).len(), 1);
    c.kill(9, false).unwrap();
    c.wait();
    // After the end it still can be reopened, and a container without a log says so.
    pod.reopen_log("c1").unwrap();
    c.delete().unwrap();
    let mut c = pod.container("c2", "true");
    c.request.stdout = String::new();
    c.request.stderr = String::new();
    c.run();
    assert_eq!(code(pod.reopen_log("c2")).0, Code::FAILED_PRECONDITION);
    assert_eq!(c.wait(), 0);
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn a_full_disk_neither_blocks_nor_kills_and_logging_resumes() {
    let pod = Pod::new();
    let script = "yes 0123456789012345678901234567890123456789 | head -c 1000000; echo >/tmp/full; \
                  until test -e /tmp/go; do sleep 0.01; done; echo resumed";
    let c = pod.container("c1", script);
    let disk = c.log.parent().unwrap().to_owned();
    fs::create_dir_all(&disk).unwrap();
    let status = std::process::Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            "size=256k",
            "tmpfs",
            disk.to_str().unwrap(),
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let unmount = scopeguard(|| {
        let status = std::process::Command::new("umount")
            .args(["-l", disk.to_str().unwrap()])
            .status();
        assert!(status.unwrap().success());
    });
    let pid = c.run();
    let go = |name: &str| format!("/proc/{pid}/root/tmp/{name}");
    crate::pod::eventually("the end of the flood", || fs::metadata(go("full")).ok());
    // The last of the flood may still be in the pipe; the log is full and whole when it was dropped.
    crate::pod::eventually("a full log", || {
        pod.shim_log().contains("dropping output").then_some(())
    });
    let kept = c.entries();
    assert!(
        kept.len() > 1000
            && kept
                .iter()
                .all(|(_, tag, text)| tag == "F" && text.len() == 40)
    );
    // A rotation makes room, as the kubelet would.
    fs::remove_file(&c.log).unwrap();
    pod.reopen_log("c1").unwrap();
    fs::write(go("go"), "").unwrap();
    assert_eq!(c.wait(), 0);
    assert!(c.text().ends_with("resumed\n"), "{}", c.text());
    assert!(
        pod.shim_log().contains("bytes were dropped"),
        "{}",
        pod.shim_log()
    );
    c.delete().unwrap();
    drop(unmount);
    pod.finish();
}

/// Runs an action when dropped, also on failure.
fn scopeguard<F: FnMut()>(action: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(action)
}

#[test]
fn a_runaway_holder_of_the_pipe_does_not_hold_the_exit() {
    let pod = Pod::new();
    let c = pod.container(
        "c1",
        "echo started; until test -e /tmp/go; do sleep 0.01; done; exit 3",
    );
    let pid = c.run();
    c.wait_for_text("started\n");
    // A process outside of the container gets hold of its standard output, as one that was sent it would.
    let mut outsider = std::process::Command::new("sleep")
        .arg("1000")
        .stdout(
            fs::File::options()
                .write(true)
                .open(format!("/proc/{pid}/fd/1"))
                .unwrap(),
        )
        .spawn()
        .unwrap();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    assert_eq!(c.wait(), 3);
    outsider.kill().unwrap();
    outsider.wait().unwrap();
    c.delete().unwrap();
    pod.finish();
}
