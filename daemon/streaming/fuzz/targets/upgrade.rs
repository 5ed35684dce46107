//! Upgrade requests: whatever is asked, the answer is one that HTTP can carry, and an upgrade is one that was asked
//! for.
#![no_main]

use codecs::upgrade::{Endpoint, negotiate};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;

/// The head of a request, as far as it is one: hyper has parsed it where this is used.
fn parse(data: &[u8]) -> Option<(Method, Uri, HeaderMap)> {
    let mut lines = data
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut first = lines.next()?.split(|byte| *byte == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let uri = Uri::try_from(first.next()?).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            break;
        };
        let (name, value) = (
            HeaderName::from_bytes(&line[..colon]).ok()?,
            line[colon + 1..].trim_ascii(),
        );
        headers.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some((method, uri, headers))
}

fuzz_target!(|data: &[u8]| {
    let Some((method, uri, headers)) = parse(data) else {
        return;
    };
    for endpoint in [Endpoint::Command, Endpoint::Forward] {
        match negotiate(endpoint, &method, &uri, &headers) {
            Ok(upgrade) => {
                assert!(headers.contains_key(CONNECTION));
                let (asked, given) = (
                    headers[UPGRADE].to_str().unwrap(),
                    upgrade.headers[UPGRADE].to_str().unwrap(),
                );
                assert!(asked.eq_ignore_ascii_case(given));
            }
            Err(refusal) => {
                assert!(refusal.status.is_client_error() && !refusal.message.is_empty())
            }
        }
    }
});
