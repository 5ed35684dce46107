//! Archives that want out, want too much, or are no archives.

use std::path::Path;

use super::{Place, Tar, gzip};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::Limits;

#[test]
fn nothing_leads_out() {
    let with_link = |target: &str| Tar::default().plain(b'2', "out", target);
    let outside = "../outside";
    for (name, tar) in [
        ("dot dot", Tar::default().file("../outside/evil", "e")),
        (
            "dot dot within",
            Tar::default().file("a/../../outside/evil", "e"),
        ),
        ("absolute", Tar::default().file("/etc/zcri-evil", "e")),
        ("relative link", with_link(outside).file("out/evil", "e")),
        (
            "absolute link",
            with_link("/tmp").file("out/zcri-evil", "e"),
        ),
        (
            "over the secret",
            with_link(outside).file("out/secret", "e"),
        ),
        ("directory", with_link(outside).plain(b'5', "out/evil/", "")),
        ("implied directory", with_link(outside).file("out/a/b", "e")),
        ("symlink", with_link(outside).plain(b'2', "out/evil", "x")),
        ("device", with_link(outside).plain(b'6', "out/evil", "")),
        ("whiteout", with_link(outside).file("out/.wh.secret", "")),
        ("opaque", with_link(outside).file("out/.wh..wh..opq", "")),
        (
            "magic link",
            with_link("/proc/self/cwd").file("out/zcri-evil", "e"),
        ),
        (
            "link to link",
            with_link("b")
                .plain(b'2', "b", outside)
                .file("out/evil", "e"),
        ),
        ("loop", with_link("out").file("out/evil", "e")),
        (
            "link to nowhere",
            with_link("nowhere").file("out/evil", "e"),
        ),
        (
            "hard link out",
            Tar::default().plain(b'1', "h", "../outside/secret"),
        ),
        (
            "absolute hard link",
            Tar::default().plain(b'1', "h", "/etc/passwd"),
        ),
        (
            "hard link by link",
            with_link(outside).plain(b'1', "h", "out/secret"),
        ),
        (
            "hard link to itself",
            Tar::default().file("h", "").plain(b'1', "h", "h"),
        ),
        (
            "hard link to nothing",
            Tar::default().plain(b'1', "h", "absent"),
        ),
        (
            "hard link to the root",
            Tar::default().plain(b'1', "h", "."),
        ),
        ("file as root", Tar::default().file("./", "e")),
        ("below a file", Tar::default().file("f", "").file("f/g", "")),
        ("whiteout of dot", Tar::default().file("a/.wh..", "")),
        ("whiteout of dot dot", Tar::default().file("a/.wh...", "")),
        ("whiteout of nothing", Tar::default().file("a/.wh.", "")),
        (
            "nul",
            Tar::default().pax(&[("path", b"a\0b")]).file("x", ""),
        ),
        ("no name", Tar::default().file("", "")),
        (
            "long component",
            Tar::default().pax(&[("path", &[b'n'; 300])]).file("x", ""),
        ),
        (
            "overlay attribute",
            Tar::default()
                .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
                .plain(b'5', "d/", ""),
        ),
        (
            "overlay attribute of a link",
            Tar::default()
                .pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")])
                .plain(b'2', "l", "x"),
        ),
    ] {
        let place = Place::new();
        let error = place.unpack(&tar.end()).unwrap_err();
        assert!(
            matches!(error, ImageError::UnsafePath { .. }),
            "{name}: {error}"
        );
        assert!(!Path::new("/tmp/zcri-evil").exists() && !Path::new("/etc/zcri-evil").exists());
    }
    // A link that leads out is kept as it is; only its use is refused. In a container it leads to its own root.
    let place = Place::new();
    place.unpack(&with_link("/etc").end()).unwrap();
    // An entry takes the place of such a link instead of following it.
    let place = Place::new();
    place
        .unpack(&with_link("../outside/secret").file("out", "mine").end())
        .unwrap();
    assert_eq!(place.read("out"), "mine");
    let place = Place::new();
    place
        .unpack(
            &with_link(outside)
                .plain(b'5', "out/", "")
                .file("out/secret", "mine")
                .end(),
        )
        .unwrap();
    assert_eq!(place.read("out/secret"), "mine");
}

#[test]
fn malformed_archives() {
    let good = Tar::default().file("file", "content").file("g", "h").end();
    let cut = |length: usize| good[..length].to_vec();
    let mut noise = good.clone();
    noise[3] ^= 0xff;
    let mut beyond = Tar::default().file("f", "").0;
    beyond.extend([0; 512]);
    beyond.extend(Tar::default().file("hidden", "").end());
    for (name, archive) in [
        ("cut in a header", cut(100)),
        ("cut in content", cut(515)),
        ("cut in padding", cut(600)),
        ("checksum", noise),
        ("after the end", beyond),
        ("kind", Tar::default().plain(b'Z', "z", "").end()),
        ("sparse", Tar::default().plain(b'S', "z", "").end()),
        (
            "pax sparse",
            Tar::default()
                .pax(&[("GNU.sparse.major", b"1")])
                .file("z", "")
                .end(),
        ),
        (
            "bad pax",
            Tar::default()
                .entry(b'x', "p", "", b"99 a=b\n", &|_| {})
                .end(),
        ),
        (
            "owner",
            Tar::default()
                .pax(&[("uid", b"4294967295")])
                .file("f", "")
                .end(),
        ),
    ] {
        let error = Place::new().unpack(&archive).unwrap_err();
        assert!(
            matches!(error, ImageError::InvalidLayer { .. }),
            "{name}: {error}"
        );
    }
    // Both ends that writers use are fine, and so is an empty layer.
    Place::new().unpack(&good[..good.len() - 1024]).unwrap();
    Place::new().unpack(&[0; 1024]).unwrap();
    Place::new().unpack(&[]).unwrap();
}

#[test]
fn limits() {
    let archive = Tar::default().file("zeros", &"\0".repeat(4 << 20)).end();
    let diff_id = Digest::sha256(&archive);
    let small = Limits {
        ratio_floor: 1 << 20,
        ratio: 10,
        ..Limits::default()
    };
    let few = Limits {
        entries: 2,
        ..Limits::default()
    };
    let error = Place::new()
        .unpack_blob(&gzip(&archive), &diff_id, &small)
        .unwrap_err();
    assert!(matches!(error, ImageError::LimitExceeded { .. }), "{error}");
    let many = Tar::default()
        .file("a", "")
        .file("b", "")
        .file("c", "")
        .end();
    let error = Place::new()
        .unpack_blob(&many, &Digest::sha256(&many), &few)
        .unwrap_err();
    assert!(matches!(error, ImageError::LimitExceeded { .. }), "{error}");
    let long = vec![b'x'; 5000];
    for tar in [
        Tar::default().pax(&[("path", &long)]).file("f", ""),
        Tar::default()
            .pax(&[("linkpath", &long)])
            .plain(b'2', "f", ""),
        Tar::default()
            .entry(b'L', "l", "", &long, &|_| {})
            .file("f", ""),
        Tar::default()
            .pax(&[("SCHILY.xattr.user.x", &vec![b'y'; 2 << 20])])
            .file("f", ""),
    ] {
        let error = Place::new().unpack(&tar.end()).unwrap_err();
        assert!(matches!(error, ImageError::LimitExceeded { .. }), "{error}");
    }
}

/// No input makes it panic, hang or leave its root. Seeds are in the message of a failure.
#[test]
fn random_damage_is_survived() {
    let base = Tar::default()
        .plain(b'5', "d/", "")
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("d/f", "content")
        .plain(b'2', "d/l", "f")
        .plain(b'1', "d/h", "d/f")
        .file("d/.wh.x", "")
        .end();
    for seed in 1_u64..200 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut archive = base.clone();
        for _ in 0..1 + next() % 4 {
            let at = usize::try_from(next()).unwrap() % archive.len();
            archive[at] = next().to_le_bytes()[0];
        }
        // Repair the checksums, so that the damage is looked at.
        for block in archive
            .chunks_mut(512)
            .filter(|b| b.len() == 512 && b[257..262] == *b"ustar")
        {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let place = Place::new();
        if let Err(error) = place.unpack(&archive) {
            assert!(!error.to_string().contains("panic"), "seed {seed}: {error}");
        }
    }
}
