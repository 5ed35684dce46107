//! containers-registries.conf(5).

use std::{fs, path::Path};

use proptest::prelude::*;
use zcri_config::{
    ConfigError,
    registries::{Endpoint, ImageName, LookupError, Registries, is_loopback, is_short_name},
};

fn parse(text: &str) -> Registries {
    Registries::from_toml(text, Path::new("registries.conf")).unwrap_or_else(|e| panic!("{e}"))
}

fn name(full: &str) -> ImageName<'_> {
    let (bare, digest) = full
        .split_once('@')
        .map_or((full, None), |(bare, digest)| (bare, Some(digest)));
    let (registry, rest) = bare.split_once('/').unwrap();
    let (repository, tag) = rest
        .split_once(':')
        .map_or((rest, None), |(rest, tag)| (rest, Some(tag)));
    ImageName {
        registry,
        repository,
        tag,
        digest,
    }
}

/// The endpoints as `host/repository`, with `m` for a mirror and `i` for an insecure one.
fn endpoints(registries: &Registries, image: &str) -> Vec<String> {
    let each = |endpoint: Endpoint| {
        let Endpoint {
            host,
            repository,
            insecure,
            mirror,
        } = endpoint;
        let marks = format!(
            "{}{}",
            if mirror { "m" } else { "" },
            if insecure { "i" } else { "" }
        );
        format!("{host}/{repository} {marks}").trim_end().to_owned()
    };
    registries
        .endpoints(name(image))
        .unwrap()
        .into_iter()
        .map(each)
        .collect()
}

/// The example of the manual page.
const EXAMPLE: &str = r#"
    unqualified-search-registries = ["example.com"]

    [[registry]]
    prefix = "example.com/foo"
    insecure = false
    blocked = false
    location = "internal-registry-for-example.com/bar"

    [[registry.mirror]]
    location = "example-mirror-0.local/mirror-for-foo"

    [[registry.mirror]]
    location = "example-mirror-1.local/mirrors/foo"
    insecure = true
"#;

#[test]
fn the_manual_pages_example() {
    let registries = parse(EXAMPLE);
    let expected = [
        "example-mirror-0.local/mirror-for-foo/image m",
        "example-mirror-1.local/mirrors/foo/image mi",
        "internal-registry-for-example.com/bar/image",
    ];
    assert_eq!(
        endpoints(&registries, "example.com/foo/image:latest"),
        expected
    );
    assert_eq!(
        endpoints(&registries, "example.com/food/image:latest"),
        ["example.com/food/image"]
    );
    assert_eq!(
        registries.expand("image:1").unwrap(),
        ["example.com/image:1"]
    );
}

#[test]
fn without_rules_a_name_means_itself() {
    assert_eq!(
        endpoints(&Registries::default(), "localhost:5000/a/b@sha256:00"),
        ["localhost:5000/a/b"]
    );
}

#[test]
fn the_longest_prefix_decides() {
    let registries = parse(
        r#"
        [[registry]]
        location = "a.example"
        insecure = true
        [[registry]]
        prefix = "*.example"
        [[registry.mirror]]
        location = "wild.local"
        [[registry]]
        prefix = "a.example/team/app"
        location = "b.example/app"
        [[registry]]
        prefix = "a.example/team/app:old"
        location = "archive.example/app"
        [[registry]]
        prefix = "a.example:5000"
        location = "c.example"
        [[registry]]
        prefix = "*.b.example/secret"
        location = "d.example/open"
        "#,
    );
    for (image, first) in [
        ("a.example/x:1", "a.example/x i"),
        ("a.example/team/app:1", "b.example/app"),
        ("a.example/team/app/sub:1", "b.example/app/sub"),
        ("a.example/team/apple:1", "a.example/team/apple i"),
        ("a.example/team/app:old", "archive.example/app"),
        ("a.example/team/app:older", "b.example/app"),
        ("a.example:5000/x:1", "c.example/x"),
        // A port makes it another registry.
        ("a.example:5001/x:1", "a.example:5001/x"),
        ("q.example/x:1", "wild.local/x m"),
        ("p.q.example/x:1", "wild.local/x m"),
        ("example/x:1", "example/x"),
        ("q.example.org/x:1", "q.example.org/x"),
        ("evil.org/q.example/x:1", "evil.org/q.example/x"),
        ("x.b.example/secret/y:1", "d.example/open/y"),
        ("x.b.example/secrets:1", "wild.local/secrets m"),
    ] {
        assert_eq!(endpoints(&registries, image)[0], first, "{image}");
    }
    // A wildcard without location leaves the registry as it was.
    assert_eq!(endpoints(&registries, "q.example/x:1")[1], "q.example/x");
}

#[test]
fn mirrors_can_be_for_tags_or_digests_only() {
    let registries = parse(
        r#"
        [[registry]]
        location = "a.example"
        [[registry.mirror]]
        location = "tags.local"
        pull-from-mirror = "tag-only"
        [[registry.mirror]]
        location = "digests.local"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "all.local/cache"
        pull-from-mirror = "all"
        [[registry]]
        location = "b.example"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "digests.local"
        "#,
    );
    assert_eq!(
        endpoints(&registries, "a.example/x:1"),
        ["tags.local/x m", "all.local/cache/x m", "a.example/x"]
    );
    let by_digest = ["digests.local/x m", "all.local/cache/x m", "a.example/x"];
    assert_eq!(endpoints(&registries, "a.example/x@sha256:00"), by_digest);
    assert_eq!(endpoints(&registries, "a.example/x:1@sha256:00"), by_digest);
    assert_eq!(endpoints(&registries, "b.example/x:1"), ["b.example/x"]);
    assert_eq!(
        endpoints(&registries, "b.example/x@sha256:00"),
        ["digests.local/x m", "b.example/x"]
    );
}

#[test]
fn blocked_is_an_error_that_says_by_what() {
    let registries = parse("[[registry]]\nlocation = \"a.example/bad\"\nblocked = true\n");
    let error = registries.endpoints(name("a.example/bad/x:1")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a.example/bad/x: blocked by registries.conf (prefix \"a.example/bad\")"
    );
    assert_eq!(
        endpoints(&registries, "a.example/good:1"),
        ["a.example/good"]
    );
}

#[test]
fn a_rule_that_leaves_no_repository_is_an_error() {
    let registries = parse("[[registry]]\nprefix = \"a.example/x\"\nlocation = \"b.example\"\n");
    let error = registries.endpoints(name("a.example/x:1")).unwrap_err();
    assert!(
        matches!(&error, LookupError::Unusable { rewritten, .. } if rewritten == "b.example"),
        "{error}"
    );
    assert_eq!(endpoints(&registries, "a.example/x/y:1"), ["b.example/y"]);
}

#[test]
fn plain_http_is_for_insecure_and_loopback_ones() {
    for host in [
        "localhost",
        "localhost:5000",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.3.2.1:5000",
        "[::1]:5000",
        "[::1]",
        "::1",
    ] {
        assert!(is_loopback(host), "{host}");
    }
    for host in [
        "localhost.example",
        "127.0.0.1.example:80",
        "128.0.0.1",
        "[::2]:5000",
        "example:5000",
        "",
        ":5000",
        "10.0.0.1",
    ] {
        assert!(!is_loopback(host), "{host}");
    }
    let endpoint = |host: &str, insecure| Endpoint {
        host: host.into(),
        repository: "x".into(),
        insecure,
        mirror: false,
    };
    assert!(endpoint("localhost:5000", false).allows_plain_http());
    assert!(endpoint("a.example", true).allows_plain_http());
    assert!(!endpoint("a.example", false).allows_plain_http());
}

#[test]
fn short_names_are_told_from_full_ones() {
    for short in [
        "busybox",
        "busybox:1",
        "library/busybox",
        "a/b/c@sha256:00",
        "busybox:5000",
    ] {
        assert!(is_short_name(short), "{short}");
    }
    for full in [
        "docker.io/busybox",
        "localhost/x",
        "localhost:5000/x",
        "host:5000/x",
        "Host/x",
        "a.b/c",
    ] {
        assert!(!is_short_name(full), "{full}");
    }
}

#[test]
fn short_names_become_full_ones() {
    let unset = Registries::default();
    assert_eq!(
        unset.expand("busybox:1").unwrap(),
        ["docker.io/library/busybox:1"]
    );
    assert_eq!(
        unset.expand("me/app@sha256:00").unwrap(),
        ["docker.io/me/app@sha256:00"]
    );
    assert_eq!(
        unset.expand("docker.io/busybox").unwrap(),
        ["docker.io/library/busybox"]
    );
    assert_eq!(
        unset.expand("index.docker.io/me/app").unwrap(),
        ["docker.io/me/app"]
    );
    assert_eq!(unset.expand("quay.io/app:1").unwrap(), ["quay.io/app:1"]);

    let none = parse("unqualified-search-registries = []");
    assert!(matches!(
        none.expand("busybox"),
        Err(LookupError::NowhereToSearch { .. })
    ));
    assert_eq!(none.expand("quay.io/app").unwrap(), ["quay.io/app"]);

    let two = "unqualified-search-registries = [\"quay.io\", \"docker.io\"]\n[aliases]\n\"fedora\" = \"r.example/fedora\"\n";
    assert_eq!(
        parse(two).expand("busybox").unwrap(),
        ["quay.io/busybox", "docker.io/library/busybox"]
    );
    assert_eq!(
        parse(two).expand("fedora:39").unwrap(),
        ["r.example/fedora:39"]
    );
    assert_eq!(
        parse(two).expand("fedora@sha256:00").unwrap(),
        ["r.example/fedora@sha256:00"]
    );
    let enforcing = parse(&format!("short-name-mode = \"enforcing\"\n{two}"));
    let error = enforcing.expand("busybox").unwrap_err();
    assert!(error.to_string().contains("quay.io, docker.io"), "{error}");
    assert_eq!(enforcing.expand("fedora").unwrap(), ["r.example/fedora"]);
}

#[test]
fn drop_ins_replace_by_prefix_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("registries.conf");
    assert_eq!(
        Registries::load(&main).unwrap(),
        Registries::default(),
        "missing is empty"
    );
    fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
    let drop_in = |name: &str, text: &str| {
        fs::write(dir.path().join("registries.conf.d").join(name), text).unwrap()
    };
    fs::write(
        &main,
        format!("{EXAMPLE}\n[aliases]\na = \"r.example/a\"\nb = \"r.example/b\"\n"),
    )
    .unwrap();
    drop_in(
        "20.conf",
        "[[registry]]\nprefix = \"example.com/foo\"\nlocation = \"second.example\"\n[aliases]\nb = \"\"\n",
    );
    drop_in(
        "10.conf",
        "unqualified-search-registries = [\"q.example\"]\n[[registry]]\nprefix = \"example.com/foo\"\nlocation = \"first.example\"\n",
    );
    drop_in("30.toml", "not toml");
    let registries = Registries::load(&main).unwrap();
    assert_eq!(
        endpoints(&registries, "example.com/foo/x:1"),
        ["second.example/x"]
    );
    assert_eq!(registries.expand("a").unwrap(), ["r.example/a"]);
    assert_eq!(registries.expand("b").unwrap(), ["q.example/b"]);

    drop_in("40.conf", "[[registry]]\nlocation = \"\"\n");
    let error = Registries::load(&main).unwrap_err().to_string();
    assert!(error.contains("40.conf:1: registry.location"), "{error}");
}

#[test]
fn keys_of_other_readers_are_passed_over() {
    let text = "credential-helpers = [\"x\"]\nadditional-layer-store-auth-helper = \"y\"\n[[registry]]\nlocation = \"a.example\"\nnew-key = 1\n";
    assert_eq!(endpoints(&parse(text), "a.example/x:1"), ["a.example/x"]);
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for (text, reason) in [
        ("\n[registries.search]\nregistries = ['a']\n", "format 1"),
        ("\n[[registry]]\n", "missing"),
        ("\n[[registry]]\nprefix = \"a.example\"\n", "missing"),
        (
            "\n[[registry]]\nlocation = \"https://a.example\"\n",
            "scheme",
        ),
        ("\n[[registry]]\nlocation = \"*.example\"\n", "wildcard"),
        (
            "\n[[registry]]\nprefix = \"a.*.example\"\nlocation = \"b\"\n",
            "wildcard",
        ),
        ("\n[[registry]]\nprefix = \"*.*.example\"\n", "wildcard"),
        (
            "\n[[registry]]\nlocation = \"a.example/../b\"\n",
            "host[:port]",
        ),
        (
            "\n[[registry]]\nlocation = \"a.example//b\"\n",
            "host[:port]",
        ),
        (
            "\n[[registry]]\nlocation = \"a.example\\u0007\"\n",
            "control",
        ),
        (
            "\n[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\n",
            "empty",
        ),
        (
            "\n[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"never\"\n",
            "digest-only",
        ),
        (
            "\n[[registry]]\nlocation = \"a\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"all\"\n",
            "contradicts",
        ),
        (
            "\n[[registry]]\nlocation = \"a\"\n[[registry]]\nlocation = \"a/\"\n",
            "two [[registry]]",
        ),
        (
            "\nunqualified-search-registries = [\"a/b\"]\n",
            "host[:port]",
        ),
        ("\nunqualified-search-registries = [\"\"]\n", "empty"),
        ("\nshort-name-mode = \"ask\"\n", "enforcing"),
        (
            "\n[aliases]\n\"a.example/b\" = \"c.example/d\"\n",
            "short name",
        ),
        ("\n[aliases]\nb = \"c/d\"\n", "full name"),
        ("\n[aliases]\nb = \"c.example/d:1\"\n", "neither tag"),
    ] {
        match Registries::from_toml(text, Path::new("r.conf")) {
            Err(ConfigError::Invalid { faults }) => {
                assert!(
                    faults.iter().any(|fault| fault.reason.contains(reason)),
                    "{text}: {faults:?}"
                );
                assert!(
                    faults
                        .iter()
                        .all(|f| f.origin.as_ref().is_some_and(|o| o.line >= 2)),
                    "{text}: {faults:?}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let error = Registries::from_toml("\n[[registry]]\ninsecure = \"yes\"\n", Path::new("r.conf"))
        .unwrap_err();
    assert!(error.to_string().starts_with("r.conf:3: "), "{error}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        if let Err(error) = Registries::from_toml(&text, Path::new("r.conf")) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// Whatever the rules: every endpoint keeps the part of the name after the prefix, and the last is no mirror.
    #[test]
    fn rewriting_keeps_the_rest(
        prefix in "[ab]\\.[ab](/[ab]){0,2}",
        location in "[cd]\\.[cd](/[cd]){0,2}",
        mirrors in proptest::collection::vec("[mn]\\.[mn](/[mn]){0,2}", 0..3),
        registry in "[ab]\\.[ab]",
        repository in "[ab](/[ab]){0,4}",
    ) {
        let mut text = format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\n");
        for mirror in &mirrors {
            text += &format!("[[registry.mirror]]\nlocation = \"{mirror}\"\n");
        }
        let registries = parse(&text);
        let full = format!("{registry}/{repository}");
        let image = ImageName { registry: &registry, repository: &repository, tag: Some("1"), digest: None };
        let rest = full.strip_prefix(&prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let expected = match rest {
            Some(rest) => mirrors.iter().chain([&location]).map(|place| format!("{place}{rest}")).collect(),
            None => vec![full.clone()],
        };
        match registries.endpoints(image) {
            Ok(found) => {
                let found_names = found.iter().map(|e| format!("{}/{}", e.host, e.repository)).collect::<Vec<_>>();
                prop_assert_eq!(found_names, expected);
                prop_assert!(!found.last().unwrap().mirror);
                prop_assert!(found.iter().rev().skip(1).all(|endpoint| endpoint.mirror));
            }
            Err(LookupError::Unusable { rewritten, .. }) => {
                prop_assert!(!rewritten.contains('/') && expected.contains(&rewritten));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn every_expansion_is_a_full_name(name in "[a-z]{1,5}(/[a-z]{1,5}){0,2}(:[a-z0-9]{1,4})?(@sha256:[0-9a-f]{4})?") {
        let registries = parse("unqualified-search-registries = [\"quay.io\", \"docker.io\"]");
        for full in registries.expand(&name).unwrap() {
            prop_assert!(!is_short_name(&full), "{}", full);
            prop_assert!(full.ends_with(&name));
            prop_assert_eq!(registries.expand(&full).unwrap(), [full.clone()], "expanding is done once");
        }
    }
}
