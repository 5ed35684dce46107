use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

const PAGE: CodePage = CodePage::Ibm1047;

fn iconv(from: &str, to: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("iconv")
        .args(["-f", from, "-t", to])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn all_256_bytes_are_those_of_iconv_but_for_the_newlines() {
    let all: Vec<u8> = (0..=255).collect();
    let known = String::from_utf8(iconv("IBM1047", "UTF-8", &all)).unwrap();
    let mut seen = 0;
    for (byte, expected) in all.iter().zip(known.chars()) {
        let expected = if NEWLINES.contains(byte) {
            '\n'
        } else {
            expected
        };
        assert_eq!(PAGE.character(*byte), expected, "{byte:#x}");
        let utf8 = PAGE.convert(&[*byte]);
        assert_eq!(
            String::from_utf8(utf8).unwrap(),
            expected.to_string(),
            "{byte:#x}"
        );
        seen += 1;
    }
    assert_eq!(seen, 256);
    let whole = String::from_utf8(PAGE.convert(&all)).unwrap();
    assert_eq!(whole, known.replace('\u{85}', "\n"));
}

#[test]
fn a_text_comes_as_it_was_meant_wherever_it_is_cut() {
    let text = "Hello [world] {~^|} \u{e4}\u{f6}\u{fc}\u{df}\u{a2}\u{ac}\n";
    let ebcdic = iconv("UTF-8", "IBM1047", text.as_bytes());
    for at in 0..=ebcdic.len() {
        let (a, b) = ebcdic.split_at(at);
        assert_eq!([PAGE.convert(a), PAGE.convert(b)].concat(), text.as_bytes());
    }
    // The newline of z/OS: iconv of glibc writes the other.
    assert_eq!(PAGE.convert(b"\xc1\x15\xc2\x25"), b"A\nB\n");
}

#[test]
fn names_are_those_that_people_use() {
    for name in ["IBM-1047", "ibm1047", "cp1047", "1047"] {
        assert_eq!(name.parse(), Ok(PAGE), "{name}");
    }
    assert_eq!(PAGE.to_string().parse(), Ok(PAGE));
    let error = "EBCDIC-9".parse::<CodePage>().unwrap_err();
    assert!(error.to_string().contains("EBCDIC-9"));
}

#[test]
fn a_rule_looks_at_the_tag_when_it_is_told_to() {
    let always: Rule = "ibm1047".parse().unwrap();
    assert_eq!(
        always.page_of(|| panic!("the tag does not matter")),
        Some(PAGE)
    );
    let untagged: Rule = "IBM-1047 untagged".parse().unwrap();
    assert_eq!(untagged.to_string().parse(), Ok(untagged));
    for (tag, expected) in [
        (None, Some(PAGE)),
        (Some(0), Some(PAGE)),
        (Some(1047), Some(PAGE)),
        (Some(819), None),
        (Some(0xffff), None),
    ] {
        assert_eq!(untagged.page_of(|| tag), expected, "{tag:?}");
    }
    for wrong in ["", "untagged", "IBM-1047 tagged", "x untagged"] {
        wrong.parse::<Rule>().unwrap_err();
    }
}

#[test]
fn what_is_typed_comes_back_and_may_come_in_pieces() {
    let typed = |pieces: &[&[u8]]| {
        let (mut typed, mut out) = (Typed::new(PAGE), Vec::new());
        pieces
            .iter()
            .for_each(|piece| typed.convert(piece, &mut out));
        out
    };
    for code in 0..=255 {
        let text = char::from(code).to_string();
        let bytes = typed(&[text.as_bytes()]);
        let back = String::from_utf8(PAGE.convert(&bytes)).unwrap();
        assert_eq!(back, text.replace('\u{85}', "\n"), "{code:#x}");
    }
    let line = "ls -l \u{e4}[x]\n".as_bytes();
    for at in 0..=line.len() {
        assert_eq!(
            typed(&[&line[..at], &line[at..]]),
            b"\x93\xa2\x40\x60\x93\x40\x43\xad\xa7\xbd\x15",
            "{at}"
        );
    }
    // Not of the page, and no UTF-8: one SUB for each character.
    assert_eq!(typed(&["\u{20ac}a".as_bytes()]), b"\x3f\x81");
    assert_eq!(typed(&["\u{1f600}".as_bytes(), b"a"]), b"\x3f\x81");
    assert_eq!(typed(&[b"\xe2", b"\x82", b"\xaca"]), b"\x3f\x81");
    assert_eq!(typed(&[b"\xffa\xc3b\x80c"]), b"\x3f\x81\x3f\x82\x3f\x83");
}

#[test]
fn any_bytes_are_typed_alike_wherever_they_are_cut() {
    // splitmix64, with all kinds of bytes that UTF-8 tells apart.
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..40).map(|_| (random() & 0xff) as u8).collect();
        let mut whole = Vec::new();
        Typed::new(PAGE).convert(&bytes, &mut whole);
        assert!(whole.len() <= bytes.len());
        for at in 0..bytes.len() {
            let (mut typed, mut cut) = (Typed::new(PAGE), Vec::new());
            typed.convert(&bytes[..at], &mut cut);
            typed.convert(&bytes[at..], &mut cut);
            assert_eq!(cut, whole, "{bytes:x?} at {at}");
        }
    }
}

#[test]
fn a_setting_may_switch_it_off() {
    for off in ["", " ", "none"] {
        assert_eq!(setting(off), Ok(None), "{off:?}");
    }
    let on = setting("IBM-1047 untagged").unwrap().unwrap();
    assert!(on.untagged_only);
    for wrong in ["NONE", "no", "EBCDIC"] {
        assert!(setting(wrong).unwrap_err().to_string().contains(wrong));
    }
}

/// Prints what it measures; the target is 100 MB/s in an optimised build (issue 6).
#[test]
fn throughput() {
    let text: Vec<u8> = iconv(
        "ISO8859-1",
        "IBM1047",
        "a line of a log, with an \u{fc}mlaut\n"
            .repeat(2000)
            .chars()
            .map(|c| u8::try_from(c).unwrap())
            .collect::<Vec<_>>()
            .as_slice(),
    );
    let mut buffer = vec![0; text.len() * 2];
    let rounds = if cfg!(debug_assertions) { 50 } else { 2000 };
    let begin = Instant::now();
    let mut out = 0;
    for _ in 0..rounds {
        buffer[..text.len()].copy_from_slice(&text);
        out += PAGE.convert_in_place(&mut buffer, text.len());
    }
    let seconds = begin.elapsed().as_secs_f64();
    let megabytes = (text.len() * rounds) as f64 / 1e6;
    println!("IBM-1047: {:.0} MB/s", megabytes / seconds);
    assert!(out > text.len() * rounds);
    assert!(cfg!(debug_assertions) || megabytes / seconds >= 100.0);
}
