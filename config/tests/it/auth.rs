//! containers-auth.json(5).

use std::path::Path;

use proptest::prelude::*;
use zcri_config::auth::{AuthFile, AuthFileError, Credentials};

fn parse(text: &str) -> AuthFile {
    AuthFile::from_json(text, Path::new("auth.json")).unwrap_or_else(|e| panic!("{e}"))
}

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic {
        username: username.to_owned(),
        password: password.to_owned(),
    }
}

/// user1:pw1 to user5:pw5, with and without padding.
const FILE: &str = r#"{
    "auths": {
        "r.example/ns/user/image": {"auth": "dXNlcjE6cHcx"},
        "r.example/ns": {"auth": "dXNlcjI6cHcy"},
        "r.example": {"auth": "dXNlcjM6cHcz", "email": "x@example"},
        "https://index.docker.io/v1/": {"auth": "dXNlcjQ6cHc0"},
        "token.example": {"auth": "", "identitytoken": "tok"},
        "empty.example": {}
    }
}"#;

#[test]
fn the_longest_key_decides() {
    let file = parse(FILE);
    for (registry, repository, user) in [
        ("r.example", "ns/user/image", Some("user1")),
        ("r.example", "ns/user/image/sub", Some("user1")),
        ("r.example", "ns/user/images", Some("user2")),
        ("r.example", "ns/user", Some("user2")),
        ("r.example", "nsx", Some("user3")),
        ("docker.io", "library/busybox", Some("user4")),
        ("registry-1.docker.io", "x", Some("user4")),
        ("r.example:5000", "ns", None),
        ("empty.example", "x", None),
        ("other.example", "x", None),
    ] {
        let found = file.credentials(registry, repository).unwrap();
        let name = found.map(|credentials| match credentials {
            Credentials::Basic { username, .. } => username.as_str(),
            Credentials::IdentityToken(_) => "token",
        });
        assert_eq!(name, user, "{registry}/{repository}");
    }
    let token = file.credentials("token.example", "x").unwrap();
    assert_eq!(token, Some(&Credentials::IdentityToken("tok".to_owned())));
}

#[test]
fn helpers_are_named_and_said_to_be_missing() {
    let file = parse(
        r#"{"auths": {"h.example": {}, "a.example": {"auth": "dTpw"}},
            "credHelpers": {"h.example": "secretservice"}}"#,
    );
    let error = file.credentials("h.example", "x").unwrap_err();
    assert_eq!(
        (error.helper.as_str(), error.registry.as_str()),
        ("secretservice", "h.example")
    );
    assert!(
        error
            .to_string()
            .contains("docker-credential-secretservice (auth.json)"),
        "{error}"
    );
    assert_eq!(
        file.credentials("a.example", "x").unwrap(),
        Some(&basic("u", "p"))
    );
    assert_eq!(file.credentials("other.example", "x").unwrap(), None);

    let store = parse(r#"{"auths": {"a.example": {"auth": "dTpw"}}, "credsStore": "pass"}"#);
    assert_eq!(
        store.credentials("a.example", "x").unwrap(),
        Some(&basic("u", "p"))
    );
    assert_eq!(
        store.credentials("other.example", "x").unwrap_err().helper,
        "pass"
    );
}

#[test]
fn base64_is_decoded_as_the_peers_do() {
    for (text, expected) in [
        ("dTpw", basic("u", "p")),
        ("dTpwOnE=", basic("u", "p:q")),
        ("dTpwOnE", basic("u", "p:q")),
        (" dTo=\n", basic("u", "")),
        ("dTpwAAA=", basic("u", "p")),
    ] {
        assert_eq!(Credentials::from_base64(text), Ok(expected), "{text}");
    }
    for text in ["", "dQ==", "%%%", "/////w=="] {
        assert!(Credentials::from_base64(text).is_err(), "{text}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let file = parse(FILE);
    let shown = format!("{file:?}");
    assert!(
        shown.contains("user1") && !shown.contains("pw1") && !shown.contains("\"tok\""),
        "{shown}"
    );

    let secret = "c2VjcmV0LXdpdGhvdXQtY29sb24=";
    let text = format!("{{\"auths\": {{\"r.example\": {{\"auth\": \"{secret}\"}}}}}}");
    let error = AuthFile::from_json(&text, Path::new("auth.json")).unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(
        matches!(&error, AuthFileError::Entry { key, .. } if key == "r.example"),
        "{error}"
    );
    assert!(
        !shown.contains("secret-without") && !shown.contains(secret),
        "{shown}"
    );

    let text = "{\n\"auths\": {\"r.example\": \"hunter2\"}}";
    let error = AuthFile::from_json(text, Path::new("auth.json")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "auth.json:2: not a containers-auth.json(5) file"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn a_missing_file_is_an_error() {
    let error = AuthFile::load(Path::new("/nonexistent/auth.json")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/auth.json");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let parsed = AuthFile::from_json(&text, Path::new("auth.json"));
        if let Ok(file) = parsed {
            prop_assert!(file.credentials(&text, &text).is_ok() || text.contains("cred"));
        }
    }

    #[test]
    fn no_auth_panics(text in "\\PC{0,60}|[A-Za-z0-9+/=]{0,60}") {
        if let Ok(Credentials::Basic { username, .. }) = Credentials::from_base64(&text) {
            prop_assert!(!username.contains(':'));
        }
    }
}
