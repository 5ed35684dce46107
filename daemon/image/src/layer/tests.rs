//! Layers from archives built by hand, byte by byte: good ones, odd ones and hostile ones.

mod hostile;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{DiskUse, Job, LayerError, measure, unpack};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;

/// An archive in the making.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(
        mut self,
        kind: u8,
        path: &str,
        link: &str,
        content: &[u8],
        change: &dyn Fn(&mut [u8; 512]),
    ) -> Self {
        let mut block = [0; 512];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000144\0");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn plain(self, kind: u8, path: &str, link: &str) -> Self {
        self.entry(kind, path, link, b"", &|_| {})
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(b'0', path, "", content.as_bytes(), &|_| {})
    }

    fn mode(self, kind: u8, path: &str, mode: u32, owner: u32) -> Self {
        self.entry(kind, path, "", b"", &|block| {
            block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
            block[108..116].copy_from_slice(format!("{owner:07o}\0").as_bytes());
            block[116..124].copy_from_slice(format!("{owner:07o}\0").as_bytes());
        })
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut length = body.len() + 1;
            while length.to_string().len() + body.len() != length {
                length += 1;
            }
            data.extend(length.to_string().as_bytes());
            data.extend(body);
        }
        self.entry(b'x', "PaxHeaders/x", "", &data, &|_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A layer's root with something beside it that must not change.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn unpack(&self, archive: &[u8]) -> Result<DiskUse, ImageError> {
        self.unpack_blob(archive, &Digest::sha256(archive), &Limits::default())
    }

    fn unpack_blob(
        &self,
        blob: &[u8],
        diff_id: &Digest,
        limits: &Limits,
    ) -> Result<DiskUse, ImageError> {
        let job = Job {
            digest: Digest::sha256(blob),
            size: blob.len() as u64,
            diff_id: diff_id.clone(),
            host: "registry.example".to_owned(),
            limits: limits.clone(),
        };
        self.run(&job, blob)
    }

    fn run(&self, job: &Job, blob: &[u8]) -> Result<DiskUse, ImageError> {
        let (sender, receiver) = mpsc::channel(4);
        let root = File::open(self.path("")).unwrap().into();
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                // Uneven pieces, as networks make them.
                let mut rest = blob;
                let mut length = 1;
                while !rest.is_empty() {
                    let (piece, next) = rest.split_at(length.min(rest.len()));
                    if sender.blocking_send(Bytes::copy_from_slice(piece)).is_err() {
                        return;
                    }
                    (rest, length) = (next, length * 2 % 70_001 + 1);
                }
            });
            unpack(job, receiver, root)
        });
        let secret = fs::read_to_string(self.dir.path().join("outside/secret")).unwrap();
        assert_eq!(secret, "untouched");
        assert_eq!(
            fs::read_dir(self.dir.path().join("outside"))
                .unwrap()
                .count(),
            1
        );
        result.map_err(|error| match error {
            LayerError::Failed(error) => error,
            LayerError::Interrupted => panic!("interrupted"),
        })
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_kind_of_entry() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let device = |block: &mut [u8; 512]| {
        block[329..337].copy_from_slice(b"0000001\0");
        block[337..345].copy_from_slice(b"0000005\0");
    };
    let archive = Tar::default()
        .mode(b'5', "./", 0o755, 0)
        .mode(b'5', "bin/", 0o2775, 7)
        .file("bin/tool", "#!x")
        .mode(b'0', "bin/su", 0o4755, 3)
        .plain(b'1', "bin/same", "bin/tool")
        .plain(b'2', "bin/link", "../../../../outside/secret")
        .entry(b'3', "dev/zero", "", b"", &device)
        .entry(b'4', "dev/disk", "", b"", &device)
        .plain(b'6', "dev/pipe", "")
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"1000000000.123456789"),
            ("uid", b"3000000000"),
        ])
        .file("short", "long")
        .entry(b'L', "././@LongLink", "", b"gnu/name\0", &|_| {})
        .file("x", "gnu")
        .file("implied/by/path", "p")
        .plain(0, "old/", "")
        .mode(b'5', "sticky", 0o1777, 0)
        .end();
    let usage = place.unpack(&archive).unwrap();
    let meta = |path: &str| fs::symlink_metadata(place.path(path)).unwrap();
    assert_eq!(place.read("bin/tool"), "#!x");
    assert_eq!(meta("bin").mode() & 0o7777, 0o2775);
    assert_eq!((meta("bin").uid(), meta("bin").gid()), (7, 7));
    assert_eq!(
        meta("bin/tool").gid(),
        0,
        "a set-group-id directory does not spread its group"
    );
    assert_eq!(meta("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(meta("bin/su").uid(), 3);
    assert_eq!(meta("bin/same").ino(), meta("bin/tool").ino());
    assert_eq!(
        fs::read_link(place.path("bin/link")).unwrap(),
        Path::new("../../../../outside/secret")
    );
    assert!(meta("dev/zero").file_type().is_char_device());
    assert_eq!(meta("dev/zero").rdev(), rustix::fs::makedev(1, 5));
    assert!(meta("dev/disk").file_type().is_block_device());
    assert!(meta("dev/pipe").file_type().is_fifo());
    assert_eq!(place.read(&long), "long");
    assert_eq!(
        (meta(&long).mtime(), meta(&long).mtime_nsec()),
        (1_000_000_000, 123_456_789)
    );
    assert_eq!(meta(&long).uid(), 3_000_000_000);
    assert_eq!(place.read("gnu/name"), "gnu");
    assert_eq!(meta("implied/by").mode() & 0o7777, 0o755);
    assert!(meta("old").is_dir());
    assert_eq!(meta("sticky").mode() & 0o7777, 0o1777);
    for timed in ["bin", "bin/tool", "bin/link", "dev/zero", "sticky", ""] {
        assert_eq!(meta(timed).mtime(), 100, "{timed}");
    }
    assert_eq!(usage, measure(&place.path("")).unwrap());
}

#[test]
fn whiteouts_in_every_order() {
    let place = Place::new();
    let archive = Tar::default()
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "n")
        .file("both", "kept")
        .file(".wh.both", "")
        .file(".wh.later", "")
        .file("later", "file")
        .file("dir/x", "x")
        .file(".wh.dir", "")
        .file(".wh.again", "")
        .plain(b'5', "again/", "")
        .file(".wh..wh.plnk", "")
        .end();
    let usage = place.unpack(&archive).unwrap();
    let gone = fs::symlink_metadata(place.path("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |path: &str| xattr(&place.path(path), "trusted.overlay.opaque");
    assert_eq!(opaque("b").as_deref(), Some(&b"y"[..]));
    assert_eq!(place.read("b/new"), "n");
    assert_eq!(
        place.read("both"),
        "kept",
        "a whiteout is about lower layers"
    );
    assert_eq!(place.read("later"), "file");
    assert_eq!(place.read("dir/x"), "x");
    assert_eq!(opaque("dir").as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque("again").as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque("a"), None);
    let names = fs::read_dir(place.path("")).unwrap();
    assert!(
        names
            .into_iter()
            .all(|n| !n.unwrap().file_name().to_string_lossy().starts_with(".wh."))
    );
    assert_eq!(usage, measure(&place.path("")).unwrap());
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    let archive = Tar::default()
        .file("x", "one")
        .file("x", "two")
        .file("tree/a/b", "deep")
        .file("tree", "file now")
        .file("file", "f")
        .file("other", "kept")
        .plain(b'1', "hard", "other")
        .file("hard", "apart")
        .plain(b'5', "file/", "")
        .mode(b'5', "twice", 0o700, 0)
        .mode(b'5', "twice", 0o711, 4)
        .end();
    let usage = place.unpack(&archive).unwrap();
    assert_eq!(place.read("x"), "two");
    assert_eq!(place.read("tree"), "file now");
    assert!(place.path("file").is_dir());
    assert_eq!(place.read("other"), "kept");
    assert_eq!(place.read("hard"), "apart");
    let twice = fs::metadata(place.path("twice")).unwrap();
    assert_eq!(
        (twice.permissions().mode() & 0o7777, twice.uid()),
        (0o711, 4)
    );
    assert_eq!(usage, measure(&place.path("")).unwrap());
}

#[test]
fn links_inside_are_followed_as_docker_does() {
    let place = Place::new();
    let archive = Tar::default()
        .plain(b'5', "usr/lib/", "")
        .plain(b'2', "lib", "usr/lib")
        .file("lib/x", "through")
        .plain(b'5', "lib/sub/", "")
        .file("lib/sub/y", "deeper")
        .file("lib/new/z", "implied")
        .plain(b'1', "hard", "lib/x")
        .end();
    let usage = place.unpack(&archive).unwrap();
    assert_eq!(place.read("usr/lib/x"), "through");
    assert_eq!(place.read("usr/lib/sub/y"), "deeper");
    assert_eq!(place.read("usr/lib/new/z"), "implied");
    assert_eq!(place.read("hard"), "through");
    assert!(
        fs::symlink_metadata(place.path("lib"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(usage, measure(&place.path("")).unwrap());
}

#[test]
fn attributes_are_set_or_the_layer_fails() {
    let place = Place::new();
    // CAP_NET_BIND_SERVICE, version 2; the value has a newline, which a careless parser splits at.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb=c\n"),
        ])
        .mode(b'0', "ping", 0o755, 9)
        .pax(&[("SCHILY.xattr.trusted.d", b"dir")])
        .plain(b'5', "d/", "")
        .pax(&[("SCHILY.xattr.trusted.l", b"link")])
        .plain(b'2', "l", "x")
        .end();
    place.unpack(&archive).unwrap();
    assert_eq!(
        xattr(&place.path("ping"), "security.capability").as_deref(),
        Some(&capability[..])
    );
    assert_eq!(
        xattr(&place.path("ping"), "user.note").as_deref(),
        Some(&b"a\nb=c\n"[..])
    );
    assert_eq!(
        xattr(&place.path("d"), "trusted.d").as_deref(),
        Some(&b"dir"[..])
    );
    assert_eq!(
        xattr(&place.path("l"), "trusted.l").as_deref(),
        Some(&b"link"[..])
    );
    let unknown = Tar::default()
        .pax(&[("SCHILY.xattr.system.filetag", b"\x04\x17\0\0")])
        .file("f", "")
        .end();
    let error = Place::new().unpack(&unknown).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Attribute { .. }), "{text}");
    assert!(
        text.contains("system.filetag") && text.contains("`f`"),
        "{text}"
    );
}

#[test]
fn compressions_by_their_first_bytes() {
    let archive = Tar::default().file("f", &"content ".repeat(100_000)).end();
    let diff_id = Digest::sha256(&archive);
    let (first, second) = archive.split_at(1000);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(&archive[..], 3).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd].concat();
    let frames = [
        zstd::encode_all(first, 1).unwrap(),
        zstd::encode_all(second, 1).unwrap(),
    ]
    .concat();
    for blob in [
        archive.clone(),
        gzip(&archive),
        members,
        zstd,
        skippable,
        frames,
    ] {
        let place = Place::new();
        place
            .unpack_blob(&blob, &diff_id, &Limits::default())
            .unwrap();
        assert_eq!(fs::metadata(place.path("f")).unwrap().len(), 800_000);
    }
}

#[test]
fn digests_tell_what_is_wrong() {
    let archive = Tar::default().file("f", "content").end();
    let other = Digest::sha256(b"other");
    let error = Place::new()
        .unpack_blob(&gzip(&archive), &other, &Limits::default())
        .unwrap_err();
    assert!(error.to_string().contains("diff id"), "{error}");
    // A damaged blob is reported as such wherever the damage shows first.
    for (blob, at) in [
        (gzip(&archive), 15),
        (archive.clone(), 2),
        (archive.clone(), 514),
    ] {
        let job = Job {
            digest: Digest::sha256(&blob),
            size: blob.len() as u64,
            diff_id: Digest::sha256(&archive),
            host: "registry.example".to_owned(),
            limits: Limits::default(),
        };
        let mut damaged = blob.clone();
        damaged[at] ^= 0x40;
        let error = Place::new().run(&job, &damaged).unwrap_err();
        assert!(
            matches!(&error, ImageError::DigestMismatch { what: "layer", expected, .. } if *expected == job.digest),
            "{error}"
        );
    }
    // Compressed badly by its producer: the digest is right, the content is not.
    let mut broken = gzip(&archive);
    broken[20] ^= 0x40;
    let error = Place::new().unpack_blob(&broken, &Digest::sha256(&archive), &Limits::default());
    assert!(
        matches!(error, Err(ImageError::InvalidLayer { .. })),
        "{error:?}"
    );
}
