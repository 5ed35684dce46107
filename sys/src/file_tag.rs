//! File tags of z/OS: which code page the content of a file or stream is in.
//!
//! The tag is the extended attribute `system.filetag` of four bytes (golang.org/x/sys/unix, `xattr_zos_test.go`).
//! UNVERIFIED: that the first two are the CCSID, in the byte order of z/OS, as in its C library's `struct file_tag`.

use std::os::fd::AsFd;

/// Name of the attribute.
const NAME: &str = "system.filetag";

/// The CCSID that a stream is tagged with; none if it has no tag, as everything on Linux.
pub fn ccsid(stream: impl AsFd) -> Option<u16> {
    let mut tag = [0; 4];
    let length = rustix::fs::fgetxattr(stream, NAME, &mut tag[..]).ok()?;
    parse(tag.get(..length)?)
}

fn parse(tag: &[u8]) -> Option<u16> {
    let ccsid = tag.first_chunk().copied().map(u16::from_be_bytes)?;
    (ccsid != 0).then_some(ccsid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_and_linux_has_none() {
        assert_eq!(parse(&[0x04, 0x17, 0x80, 0]), Some(1047));
        assert_eq!(parse(&[0x03, 0x33, 0x80, 0]), Some(819));
        assert_eq!(parse(&[0, 0, 0, 0]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(ccsid(std::io::stderr()), None);
    }
}
