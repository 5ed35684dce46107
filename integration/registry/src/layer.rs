//! Layers: tar archives written entry by entry, so that hostile and odd ones can be made as well as proper ones.

use std::io::Write as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// Modification time of every entry that does not ask for another one: 2024-01-02T03:04:05Z.
const DEFAULT_MTIME: u64 = 1_704_164_645;

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Bytes with their digest, as a registry stores them.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The content.
    pub data: Bytes,
}

impl Blob {
    /// Wraps `data`, computing its digest.
    pub fn new(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self {
            digest: digest_of(&data),
            data,
        }
    }
}

/// The digest of `data` in the form that registries use: `sha256:` and hexadecimal digits.
pub fn digest_of(data: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(data) {
        write!(text, "{byte:02x}").expect("a string takes every text");
    }
    text
}

/// One layer of an image: the compressed blob and the digest of the tar archive in it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob as it is served.
    pub blob: Blob,
    /// Digest of the archive before compression.
    pub diff_id: String,
    /// Bytes of the archive before compression.
    pub tar_size: usize,
    /// How the blob is compressed.
    pub compression: Compression,
}

impl Layer {
    /// A layer of any bytes that claim to be a tar archive.
    pub fn from_tar(tar: Vec<u8>, compression: Compression) -> Self {
        let diff_id = digest_of(&tar);
        let tar_size = tar.len();
        let data = match compression {
            Compression::None => tar,
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).expect("memory takes every write");
                encoder.finish().expect("memory takes every write")
            }
            Compression::Zstd => {
                zstd::encode_all(tar.as_slice(), 1).expect("memory takes every write")
            }
        };
        Self {
            blob: Blob::new(data),
            diff_id,
            tar_size,
            compression,
        }
    }

    /// The same blob under another diff id: an image whose configuration lies about its layer.
    #[must_use]
    pub fn with_diff_id(mut self, diff_id: impl Into<String>) -> Self {
        self.diff_id = diff_id.into();
        self
    }
}

/// Writes the entries of a layer. Paths are taken as they are: no check refuses `..` or a leading `/`.
///
/// The methods [`owner`](Self::owner), [`mtime`](Self::mtime) and [`xattr`](Self::xattr) concern the entry
/// that follows them, and only that one.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
    owner: (u64, u64),
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
            owner: (0, 0),
            mtime: DEFAULT_MTIME,
            xattrs: Vec::new(),
        }
    }

    /// User and group of the next entry.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Modification time of the next entry, in seconds since 1970.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// An extended attribute of the next entry.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, "", (0, 0), &[])
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, mode, "", (0, 0), content.as_ref())
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, target, (0, 0), &[])
    }

    /// A hard link to an entry of this layer or a lower one.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, target, (0, 0), &[])
    }

    /// A character device.
    #[must_use]
    pub fn char_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        self.entry(path, EntryType::Char, mode, "", (major, minor), &[])
    }

    /// A block device.
    #[must_use]
    pub fn block_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        self.entry(path, EntryType::Block, mode, "", (major, minor), &[])
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Fifo, mode, "", (0, 0), &[])
    }

    /// Removes `path` of the lower layers (an OCI whiteout, `.wh.NAME`).
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let marker = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&marker, 0o644, "")
    }

    /// Hides what the lower layers have in the directory `path` (`.wh..wh..opq`).
    #[must_use]
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, "")
    }

    /// Finishes the archive and compresses it.
    pub fn build(self, compression: Compression) -> Layer {
        Layer::from_tar(self.into_tar(), compression)
    }

    /// Finishes the archive.
    pub fn into_tar(self) -> Vec<u8> {
        self.tar.into_inner().expect("memory takes every write")
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        link: &str,
        device: (u32, u32),
        content: &[u8],
    ) -> Self {
        let mut pax: Vec<(String, Vec<u8>)> = std::mem::take(&mut self.xattrs)
            .into_iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value))
            .collect();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        header.set_size(content.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header
                .set_device_major(device.0)
                .expect("a ustar header has device numbers");
            header
                .set_device_minor(device.1)
                .expect("a ustar header has device numbers");
        }
        // Header::set_path refuses the hostile names that the tests need, so the fields are written here.
        let fields = header.as_ustar_mut().expect("made as ustar above");
        set_name(&mut fields.name, path, "path", &mut pax);
        set_name(&mut fields.linkname, link, "linkpath", &mut pax);
        header.set_cksum();
        if !pax.is_empty() {
            let records = pax
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar
                .append_pax_extensions(records)
                .expect("memory takes every write");
        }
        self.tar
            .append(&header, content)
            .expect("memory takes every write");
        self.owner = (0, 0);
        self.mtime = DEFAULT_MTIME;
        self
    }
}

/// Writes `value` into a name field of a header, or into a pax record where the field is too short.
fn set_name(field: &mut [u8], value: &str, key: &str, pax: &mut Vec<(String, Vec<u8>)>) {
    let bytes = value.as_bytes();
    let fits = bytes.len().min(field.len());
    field[..fits].copy_from_slice(&bytes[..fits]);
    if fits < bytes.len() {
        pax.push((key.to_owned(), bytes.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn entries_keep_what_was_asked() {
        let long = "d/".repeat(80) + "end";
        let tar = LayerBuilder::new()
            .owner(10, 20)
            .mtime(7)
            .xattr("user.x", b"v\0w".to_vec())
            .file("a", 0o4755, "data")
            .file("../out", 0o644, "")
            .char_device("c", 0o600, 1, 3)
            .file(&long, 0o644, "far")
            .into_tar();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.header().mode().unwrap(), 0o4755);
        assert_eq!(
            (first.header().uid().unwrap(), first.header().gid().unwrap()),
            (10, 20)
        );
        assert_eq!(first.header().mtime().unwrap(), 7);
        let pax = first
            .pax_extensions()
            .unwrap()
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(
            (pax.key().unwrap(), pax.value_bytes()),
            ("SCHILY.xattr.user.x", b"v\0w".as_slice())
        );
        let mut text = String::new();
        first.read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
        let second = entries.next().unwrap().unwrap();
        assert_eq!(second.path_bytes().as_ref(), b"../out");
        assert_eq!(
            second.header().uid().unwrap(),
            0,
            "owner concerns one entry only"
        );
        assert_eq!(
            entries
                .next()
                .unwrap()
                .unwrap()
                .header()
                .device_minor()
                .unwrap(),
            Some(3)
        );
        assert_eq!(
            entries.next().unwrap().unwrap().path_bytes().as_ref(),
            long.as_bytes()
        );
    }

    #[test]
    fn compressions_unpack_to_the_diff_id() {
        let tar = LayerBuilder::new()
            .file("a", 0o644, vec![7; 10_000])
            .into_tar();
        let gzip = Layer::from_tar(tar.clone(), Compression::Gzip);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&gzip.blob.data[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(digest_of(&plain), gzip.diff_id);
        let zstd = Layer::from_tar(tar, Compression::Zstd);
        assert_eq!(
            digest_of(&zstd::decode_all(&zstd.blob.data[..]).unwrap()),
            gzip.diff_id
        );
    }
}
