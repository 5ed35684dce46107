//! Who may: basic credentials, and tokens by the scheme of the distribution specification.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};

use crate::fault::Fault;

/// Name of the service in challenges and token requests.
pub(crate) const SERVICE: &str = "zcri-test-registry";

/// What a request lacks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A bearer token for the repository.
    NeedsToken,
    /// Basic credentials.
    NeedsBasic,
}

/// Checks `headers` against one fault; `token_known` tells whether a bearer token was issued for the repository.
pub(crate) fn check(
    fault: &Fault,
    headers: &HeaderMap,
    token_known: impl Fn(&str) -> bool,
) -> Result<(), Refusal> {
    match fault {
        Fault::Token { .. } => match bearer(headers) {
            Some(token) if token_known(token) => Ok(()),
            _ => Err(Refusal::NeedsToken),
        },
        Fault::Basic { user, password } => match basic(headers) {
            Some((name, word)) if name == *user && word == *password => Ok(()),
            _ => Err(Refusal::NeedsBasic),
        },
        Fault::Unauthorized => Err(Refusal::NeedsBasic),
        _ => Ok(()),
    }
}

/// Whether a token request satisfies `fault`: anonymous where no user is asked for, else basic credentials or the
/// refresh token of an OAuth2 form.
pub(crate) fn may_have_token(
    fault: &Fault,
    headers: &HeaderMap,
    form: &[(String, String)],
) -> bool {
    let Fault::Token {
        user,
        identity_token,
    } = fault
    else {
        return false;
    };
    let field = |key: &str| {
        form.iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    match field("grant_type") {
        Some("refresh_token") => {
            identity_token.is_some() && field("refresh_token") == identity_token.as_deref()
        }
        Some("password") => {
            let given = field("username").zip(field("password"));
            user.as_ref()
                .is_some_and(|(name, word)| given == Some((name, word)))
        }
        Some(_) => false,
        None => match (user, basic(headers)) {
            (None, given) => identity_token.is_none() || given.is_some(),
            (Some(wanted), given) => given.as_ref() == Some(wanted),
        },
    }
}

/// Pairs of a query string or a form, percent decoded.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key), percent_decode(value))
        })
        .collect()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn percent_decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let digit = |b: Option<u8>| {
            b.and_then(|b| char::from(b).to_digit(16))
                .unwrap_or_default()
        };
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let form = pairs("scope=repository%3Aa%2Fb%3Apull&x=1+2");
        assert_eq!(
            form[0],
            ("scope".to_owned(), "repository:a/b:pull".to_owned())
        );
        assert_eq!(form[1].1, "1 2");
    }

    #[test]
    fn refresh_token_must_match() {
        let fault = Fault::Token {
            user: None,
            identity_token: Some("id".to_owned()),
        };
        let grant = |token: &str| pairs(&format!("grant_type=refresh_token&refresh_token={token}"));
        assert!(may_have_token(&fault, &HeaderMap::new(), &grant("id")));
        assert!(!may_have_token(&fault, &HeaderMap::new(), &grant("other")));
        assert!(!may_have_token(&fault, &HeaderMap::new(), &[]));
    }
}
