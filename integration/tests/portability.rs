//! What keeps the port to z/OS possible, read off the sources: where a system may be asked for, and where the byte order
//! of the machine may be used. z/OS is big-endian, and nothing here runs on it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use zcri_integration::Test;

/// Directories that are not the workspace's sources.
const NOT_OURS: [&str; 2] = ["target", ".git"];

/// Beginnings of the names of files that may ask for a system: the two places that differ between systems, the list of
/// values that the compiler shall know, and this one.
const MAY_ASK: [&str; 4] = [
    "sys/src/",
    "daemon/src/platform",
    "Cargo.toml",
    "integration/tests/portability.rs",
];

/// Words that ask for a system.
const SYSTEMS: [&str; 7] = [
    "target_os",
    "target_family",
    "target_vendor",
    "cfg(unix",
    "cfg(windows",
    "cfg(not(unix",
    "cfg(not(windows",
];

/// Words for numbers as they lie in the memory of this machine.
const NATIVE: [&str; 5] = ["_ne_bytes", "transmute", "align_to", "bytemuck", "zerocopy"];

/// Files that may use them, and why: none of it is a format of the wire or of a file.
const NATIVE_HERE: [(&str, &str); 10] = [
    (
        "sys/src/netlink/message.rs",
        "netlink has the byte order of the host (RFC 3549, section 2.3.2)",
    ),
    (
        "sys/src/netlink/route.rs",
        "netlink has the byte order of the host",
    ),
    (
        "sys/src/netlink/removal.rs",
        "a pipe between two processes of this program",
    ),
    (
        "sys/src/pod_init.rs",
        "a pipe between two processes of this program",
    ),
    (
        "sys/src/namespace/user.rs",
        "a pipe between two processes of this program",
    ),
    (
        "sys/src/bpf/asm.rs",
        "instructions have the byte order of the host (linux/bpf.h, struct bpf_insn)",
    ),
    (
        "sys/src/bpf/storage.rs",
        "types for the kernel have the byte order of the host (Documentation/bpf/btf.rst)",
    ),
    (
        "cni/dvipa/src/backend/stack/programs.rs",
        "what a program of the kernel loads from bytes in network order, as it loads it",
    ),
    (
        "daemon/streaming/src/websocket/frame.rs",
        "a mask in words: the order in which bytes are read is that in which they are written",
    ),
    ("integration/tests/portability.rs", "these words"),
];

/// A file of the workspace.
struct Source {
    /// Its path there.
    name: String,
    text: String,
}

impl Source {
    /// Lines of code, not comments, with one of the words in them.
    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let lines = self.text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
            .map(|(at, line)| format!("{}:{}: {}", self.name, at + 1, line.trim()))
            .collect()
    }
}

/// The sources and manifests of the workspace.
fn sources() -> Result<Vec<Source>> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().context("the workspace")?;
    let (mut found, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path: PathBuf = entry?.path();
            let last = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !NOT_OURS.contains(&&*last) {
                    pending.push(path);
                }
            } else if last.ends_with(".rs") || last == "Cargo.toml" {
                let name = path.strip_prefix(root)?.display().to_string();
                let text = std::fs::read_to_string(&path)?;
                found.push(Source { name, text });
            }
        }
    }
    ensure!(found.len() > 300, "only {} sources", found.len());
    Ok(found)
}

#[test]
fn only_sys_and_platform_ask_for_a_system() -> Test {
    let mut asking = 0;
    for source in sources()? {
        let lines = source.lines_with(&SYSTEMS);
        let may = MAY_ASK.iter().any(|place| source.name.starts_with(place));
        ensure!(may || lines.is_empty(), "{lines:#?}");
        asking += lines.len();
    }
    ensure!(
        asking > SYSTEMS.len(),
        "nothing is found: is this test blind?"
    );
    Ok(())
}

#[test]
fn the_byte_order_of_the_machine_is_used_for_nothing_that_leaves_it() -> Test {
    let mut used = BTreeSet::new();
    for source in sources()? {
        let lines = source.lines_with(&NATIVE);
        if lines.is_empty() {
            continue;
        }
        let known = NATIVE_HERE.iter().any(|(file, _)| *file == source.name);
        ensure!(
            known,
            "say the byte order, or give the reason in this test: {lines:#?}"
        );
        used.insert(source.name);
    }
    for (file, reason) in NATIVE_HERE {
        ensure!(
            used.contains(file),
            "{file} is on the list ({reason}) and uses nothing of it"
        );
    }
    Ok(())
}

#[test]
fn words_in_comments_are_none_and_others_are_found() {
    let source = Source {
        name: "a.rs".into(),
        text: "// from_ne_bytes\nlet x = u32::from_ne_bytes(b);\n#[cfg(target_os = \"zos\")]\n"
            .into(),
    };
    assert_eq!(
        source.lines_with(&NATIVE),
        ["a.rs:2: let x = u32::from_ne_bytes(b);"]
    );
    assert_eq!(
        source.lines_with(&SYSTEMS),
        ["a.rs:3: #[cfg(target_os = \"zos\")]"]
    );
}
