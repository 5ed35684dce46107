//! Reading the small files of one group, many of them and often: one buffer for all, three system calls per file.

use std::io::Read as _;
use std::path::PathBuf;

use super::Tree;

/// Room for a file of a group at first; `memory.stat`, the longest, takes about 3 KiB.
const FILE_BYTES: usize = 8 << 10;

/// The files of one group.
pub(super) struct Files<'t> {
    tree: &'t Tree,
    group: &'t str,
    buffer: Vec<u8>,
}

impl<'t> Files<'t> {
    pub(super) fn new(tree: &'t Tree, group: &'t str) -> Self {
        Self {
            tree,
            group,
            buffer: vec![0; FILE_BYTES],
        }
    }

    /// The text of a file; `None` if it is not there or is no text.
    pub(super) fn text(&mut self, controller: &str, file: &str) -> Option<&str> {
        let dir = self.tree.dir(controller, self.group)?;
        self.read(dir.join(file))
    }

    /// The number that a file holds; "max" and "-1" are none.
    pub(super) fn number(&mut self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    /// The text of a file of the hugetlb controller.
    pub(super) fn hugetlb_number(&mut self, file: &str) -> Option<u64> {
        let dir = self.tree.hugetlb_dir(self.group)?;
        self.read(dir.join(file))?.trim().parse().ok()
    }

    /// Names in the directory of the hugetlb controller.
    pub(super) fn hugetlb_names(&self) -> Vec<String> {
        let Some(entries) = self
            .tree
            .hugetlb_dir(self.group)
            .and_then(|dir| std::fs::read_dir(dir).ok())
        else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("hugetlb."))
            .collect()
    }

    fn read(&mut self, path: PathBuf) -> Option<&str> {
        let mut file = std::fs::File::open(path).ok()?;
        let mut length = 0;
        loop {
            if length == self.buffer.len() {
                self.buffer.resize(length * 2, 0);
            }
            match file.read(self.buffer.get_mut(length..)?) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // A group that is removed meanwhile says ENODEV.
                Err(_) => return None,
            }
        }
        std::str::from_utf8(self.buffer.get(..length)?).ok()
    }
}

/// The value of a key in the "flat keyed" format: a name, a space, a number, one per line.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}
