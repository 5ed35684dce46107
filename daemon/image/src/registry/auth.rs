//! Who we are to a registry: basic credentials and bearer tokens (distribution specification, "token
//! authentication"; identity tokens as OAuth2 refresh tokens).

use http_auth::ChallengeRef;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of an answer: tokens before passwords.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            let Ok(challenges) = http_auth::parse_challenges(text) else {
                continue;
            };
            for challenge in challenges {
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let parameter = |name: &str| parameter(&challenge, name);
                    if let Some(realm) = parameter("realm") {
                        let service = parameter("service");
                        return Some(Self::Bearer { realm, service });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let (_, value) = challenge
        .params
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value.to_unescaped())
}

/// The answer of a token service; old ones say `token`, OAuth2 says `access_token`.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    pub(super) fn into_token(self) -> Option<String> {
        self.token
            .filter(|text| !text.is_empty())
            .or(self.access_token)
            .filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn challenge(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::from_headers(&headers)
    }

    #[test]
    fn bearer_wins() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry \"x\"".to_owned()),
        };
        assert_eq!(
            challenge(&[
                "Basic realm=\"a\"",
                "bearer Realm=\"https://auth.example/token\",service=\"registry \\\"x\\\"\",scope=\"r\"",
            ]),
            Some(bearer)
        );
        assert_eq!(challenge(&["Basic realm=\"a\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate", ",=,"]), None);
        assert_eq!(challenge(&[]), None);
    }

    #[test]
    fn either_name_of_the_token() {
        let token = |json: &str| {
            serde_json::from_str::<TokenAnswer>(json)
                .unwrap()
                .into_token()
        };
        assert_eq!(
            token(r#"{"token":"a","access_token":"b"}"#).as_deref(),
            Some("a")
        );
        assert_eq!(
            token(r#"{"token":"","access_token":"b"}"#).as_deref(),
            Some("b")
        );
        assert_eq!(token(r#"{"expires_in":3}"#), None);
    }
}
