//! Keys and values of zcri.toml.

use std::{collections::BTreeMap, num::NonZeroU32, path::Path};

use proptest::prelude::*;
use zcri_config::{
    CgroupManager, Config, ConfigError, ConsoleOutput, Fault, Handler, HandlerType, ImagePlatform,
    LogFormat, LogLevel, NetworkIsolation, OciPlatform, PlatformKind, StreamTls, TlsVersion,
    default_toml,
};

pub(crate) fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text, Path::new("zcri.toml"))
}

pub(crate) fn faults(text: &str) -> Vec<Fault> {
    match parse(text) {
        Err(ConfigError::Invalid { faults }) => faults,
        other => panic!("{text}\n{other:?}"),
    }
}

#[test]
fn nothing_is_the_defaults_and_so_is_the_printed_whole() {
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse(default_toml()).unwrap(), Config::default());
}

/// The text of the defaults has every key that there is: an unknown one makes each section list those it knows.
#[test]
fn the_printed_whole_has_every_key() {
    let whole: toml::Table = default_toml().parse().unwrap();
    let mut sections = whole
        .keys()
        .map(|name| (name.clone(), whole[name].as_table().unwrap()))
        .collect::<Vec<_>>();
    let runc = whole["runtime"]["handlers"]["runc"].as_table().unwrap();
    sections.push(("runtime.handlers.runc".to_owned(), runc));
    for (name, keys) in sections {
        let [fault] = &faults(&format!("[{name}]\nxyzzy = 1\n"))[..] else {
            panic!("{name}")
        };
        assert_eq!(fault.key, format!("{name}.xyzzy"));
        let known = keys
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        assert_eq!(fault.reason, format!("unknown key (there are {known})"));
    }
    let [fault] = &faults("[xyzzy]\n")[..] else {
        panic!()
    };
    let known = whole
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    assert_eq!(fault.reason, format!("unknown section (there are {known})"));
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [api]
        listen = "/tmp//z.sock"
        socket_mode = "600"
        socket_group = "kube"
        max_message_bytes = 16_777_216
        [storage]
        root = "/a"
        state = "/b/"
        [platform]
        kind = "zos"
        image = "zos/s390x"
        [runtime]
        default_handler = "wasm"
        shim = "/x/shim"
        cgroup_manager = "systemd"
        cgroup_parent = "pods.slice"
        pids_limit = 4096
        rlimits = ["nofile=1024:2048", "core=unlimited"]
        cdi_spec_dirs = ["/c"]
        [runtime.handlers.wasm]
        path = "/x/wasm"
        type = "shim"
        root = "/x/root"
        [runtime.handlers.zos]
        path = "/x/runc"
        output_code_page = "IBM-1047 untagged"
        [runtime.handlers.off]
        path = "/x/runc"
        output_code_page = "none"
        [network]
        conf_dir = "/c"
        plugin_dirs = ["/p", "/q"]
        plugin_timeout_seconds = 5
        conf_template = "/t/10-pods.conflist"
        gc = "off"
        isolation = "stack"
        netns_token = "token"
        [image]
        registries_conf = "/r"
        policy = "/p"
        hosts_dir = "/h"
        auth_file = "/auth"
        pinned = ["a/*"]
        max_parallel_layers = 2
        max_layer_bytes = 0x400
        max_layer_entries = 7
        [stream]
        address = "::1"
        port = 10010
        base_url = "https://node7.example:10010/"
        tls_cert_file = "/t/cert"
        tls_key_file = "/t/key"
        tls_client_ca_file = "/t/ca"
        tls_min_version = "1.3"
        idle_timeout_seconds = 9
        [metrics]
        listen = "[::1]:9537"
        [log]
        level = "trace"
        format = "json"
        [console]
        output = "/var/log/console"
        "#,
    )
    .unwrap();
    assert_eq!(config.api.listen, Path::new("/tmp/z.sock"));
    assert_eq!(
        (config.api.socket_mode, config.api.socket_group.as_deref()),
        (0o600, Some("kube"))
    );
    assert_eq!(config.api.max_message_bytes, 16 * 1024 * 1024);
    assert_eq!(
        (config.storage.root.to_str(), config.storage.state.to_str()),
        (Some("/a"), Some("/b"))
    );
    assert_eq!(config.platform.kind, PlatformKind::Zos);
    let platform = OciPlatform {
        os: "zos".into(),
        architecture: "s390x".into(),
        variant: None,
    };
    assert_eq!(
        config.platform.image,
        ImagePlatform::Fixed(platform.clone())
    );
    assert_eq!(config.platform.image.resolve(), platform);
    let handler = Handler {
        path: "/x/wasm".into(),
        kind: HandlerType::Shim,
        root: Some("/x/root".into()),
        output: None,
    };
    let oci = |output: Option<&str>| Handler {
        path: "/x/runc".into(),
        kind: HandlerType::Oci,
        root: None,
        output: output.map(|rule| rule.parse().unwrap()),
    };
    assert_eq!(
        config.runtime.handlers,
        BTreeMap::from([
            ("off".to_owned(), oci(None)),
            ("wasm".to_owned(), handler.clone()),
            ("zos".to_owned(), oci(Some("IBM-1047 untagged"))),
        ])
    );
    assert_eq!(config.runtime.handler(""), Some(("wasm", &handler)));
    assert_eq!(config.runtime.handler("runc"), None);
    assert_eq!(config.runtime.shim.as_deref(), Some(Path::new("/x/shim")));
    assert_eq!(config.runtime.cgroup_manager, CgroupManager::Systemd);
    assert_eq!(config.runtime.cgroup_parent, "pods.slice");
    assert_eq!(config.runtime.pids_limit, NonZeroU32::new(4096));
    let rlimits: Vec<_> = config
        .runtime
        .rlimits
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(rlimits, ["nofile=1024:2048", "core=unlimited:unlimited"]);
    assert_eq!(config.runtime.cdi_spec_dirs, [Path::new("/c")]);
    assert_eq!(
        config.network.plugin_dirs,
        [Path::new("/p"), Path::new("/q")]
    );
    assert_eq!(config.network.plugin_timeout.as_secs(), 5);
    assert_eq!(
        config.network.conf_template.as_deref(),
        Some(Path::new("/t/10-pods.conflist"))
    );
    assert!(!config.network.gc.or(true));
    assert_eq!(config.network.isolation, NetworkIsolation::Stack);
    assert_eq!(config.network.netns_token, "token");
    assert_eq!(config.image.auth_file.as_deref(), Some(Path::new("/auth")));
    assert_eq!(
        (
            config.image.max_parallel_layers,
            config.image.max_layer_bytes
        ),
        (2, 1024)
    );
    assert_eq!(config.image.max_layer_entries, 7);
    assert_eq!(
        (config.stream.address.to_string(), config.stream.port),
        ("::1".to_owned(), 10010)
    );
    assert_eq!(
        config.stream.base_url.as_deref(),
        Some("https://node7.example:10010")
    );
    let tls = StreamTls {
        certificate: "/t/cert".into(),
        key: "/t/key".into(),
        client_ca: Some("/t/ca".into()),
        min_version: TlsVersion::Tls13,
    };
    assert_eq!(config.stream.tls, Some(tls));
    assert_eq!(config.stream.idle_timeout.unwrap().as_secs(), 9);
    assert_eq!(config.metrics.listen, Some("[::1]:9537".parse().unwrap()));
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Trace, LogFormat::Json)
    );
    assert_eq!(
        config.console.output,
        ConsoleOutput::File("/var/log/console".into())
    );
    assert_eq!(
        parse(&config.to_toml()).unwrap(),
        config,
        "{}",
        config.to_toml()
    );
}

/// Section, line and a part of the reason.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "runtime.handlers.runc",
        "output_code_page = \"UTF-8\"",
        "code page",
    ),
    (
        "runtime.handlers.runc",
        "type = \"shim\"\noutput_code_page = \"IBM-1047\"",
        "writes the log itself",
    ),
    ("console", "output = \"console.log\"", "absolute"),
    ("console", "output = true", "string"),
    ("api", "listen = \"run/x\"", "absolute"),
    ("api", "listen = \"\"", "absolute"),
    ("api", "listen = \"/a/../b\"", "\"..\""),
    ("api", "listen = \"/a\\u0000\"", "NUL"),
    ("api", "listen = 1", "string"),
    ("api", "socket_mode = 660", "octal"),
    ("api", "socket_mode = \"1777\"", "octal"),
    ("api", "socket_mode = \"+660\"", "octal"),
    ("api", "socket_mode = \"\"", "octal"),
    ("api", "socket_group = \"a b\"", "group"),
    ("api", "max_message_bytes = 16777215", "from 16777216"),
    (
        "api",
        "max_message_bytes = 9223372036854775807",
        "from 16777216",
    ),
    ("api", "max_message_bytes = 2e7", "whole number"),
    (
        "storage",
        "root = \"/run/zcri\"\nstate = \"/run/zcri\"",
        "another directory",
    ),
    ("storage", "state = \"/var/lib/zcri\"", "another directory"),
    ("platform", "kind = \"windows\"", "\"linux\" or \"zos\""),
    ("platform", "image = \"linux\"", "zos/s390x"),
    ("platform", "image = \"linux/arm/v7/x\"", "zos/s390x"),
    ("platform", "image = \"Linux/amd64\"", "zos/s390x"),
    (
        "runtime",
        "default_handler = \"youki\"",
        "no such handler (there are runc)",
    ),
    (
        "runtime",
        "cgroup_manager = \"cgroupfs \"",
        "\"cgroupfs\" or \"systemd\"",
    ),
    ("runtime", "cgroup_parent = \"pods.slice\"", "absolute"),
    (
        "runtime",
        "cgroup_parent = \"/pods\"\ncgroup_manager = \"systemd\"",
        "slice",
    ),
    ("runtime", "pids_limit = -1", "from 0"),
    ("runtime", "rlimits = [\"nofile\"]", "nofile=1024"),
    ("runtime", "rlimits = [\"nofiles=1\"]", "nofile=1024"),
    ("runtime", "rlimits = [\"nofile=-1\"]", "nofile=1024"),
    ("runtime", "rlimits = [\"nofile=2:1\"]", "nofile=1024"),
    (
        "runtime",
        "rlimits = [\"nofile=unlimited:1\"]",
        "nofile=1024",
    ),
    ("runtime", "rlimits = [\"core=1\", \"core=2\"]", "twice"),
    ("runtime", "cdi_spec_dirs = [\"c\"]", "absolute"),
    ("runtime", "handlers = 3", "table"),
    ("runtime", "handlers.runc = 3", "table"),
    ("runtime", "handlers.Runc.path = \"/x\"", "a-z"),
    ("runtime", "handlers.\"\".path = \"/x\"", "a-z"),
    (
        "runtime",
        "handlers.crun.type = \"oci\"",
        "absolute path of its program",
    ),
    (
        "runtime",
        "handlers.runc.type = \"vm\"",
        "\"oci\" or \"shim\"",
    ),
    ("network", "plugin_dirs = []", "at least one"),
    (
        "network",
        "plugin_dirs = [\"/a\", \"b\"]",
        "\"b\" must be an absolute path",
    ),
    ("network", "plugin_dirs = [\"/a:/b\"]", "\":\""),
    ("network", "plugin_dirs = \"/a\"", "array"),
    ("network", "plugin_timeout_seconds = 0", "from 1 to 3600"),
    ("network", "gc = true", "auto"),
    ("network", "isolation = \"none\"", "stack"),
    ("network", "netns_token = \"\"", "empty"),
    ("network", "conf_template = \"10.conflist\"", "absolute"),
    ("image", "pinned = [\"\"]", "name"),
    ("image", "max_parallel_layers = 65", "from 1 to 64"),
    ("image", "max_layer_bytes = 0", "from 1"),
    ("stream", "address = \"localhost\"", "IPv4 or IPv6"),
    ("stream", "port = 65536", "from 0 to 65535"),
    ("stream", "base_url = \"node7\"", "with a host"),
    ("stream", "base_url = \"http://\"", "with a host"),
    ("stream", "base_url = \"http://a/b?c\"", "with a host"),
    ("stream", "tls_cert_file = \"/a\"", "without tls_key_file"),
    ("stream", "tls_key_file = \"/a\"", "without tls_cert_file"),
    (
        "stream",
        "tls_client_ca_file = \"/a\"",
        "without tls_cert_file",
    ),
    ("stream", "tls_min_version = \"1.1\"", "1.2"),
    ("stream", "idle_timeout_seconds = -1", "from 0 to"),
    ("metrics", "listen = \":9537\"", "address and port"),
    ("log", "level = \"INFO\"", "\"info\""),
    ("log", "format = true", "\"text\" or \"json\""),
];

#[test]
fn a_wrong_value_is_named_with_key_value_and_line() {
    let fault = &faults("[api]\n\n# a comment\nsocket_mode = \"9\"\n")[0];
    let expected = "zcri.toml:4: api.socket_mode = \"9\": must be permissions in octal as a string, such as \"0660\"";
    assert_eq!(fault.to_string(), expected);

    for (section, line, reason) in WRONG {
        let found = faults(&format!("[{section}]\n{line}\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        let fault = &found[0];
        assert!(
            fault.key.starts_with(*section) && fault.reason.contains(reason),
            "{line}: {fault}"
        );
        assert!(
            fault
                .origin
                .as_ref()
                .is_some_and(|o| o.line == 2 || o.line == 3),
            "{line}: {fault}"
        );
    }
}

#[test]
fn the_socket_must_fit_its_address() {
    let of_length = |length: usize| format!("[api]\nlisten = \"/{}\"\n", "x".repeat(length - 1));
    assert!(parse(&of_length(107)).is_ok());
    assert!(faults(&of_length(108))[0].reason.contains("108 bytes"));
}

#[test]
fn everything_wrong_is_said_at_once() {
    let found = faults(
        "[api]\nlisten = \"x\"\nsocket_mod = \"0660\"\n[log]\nlevel = \"loud\"\n[storge]\nroot = \"/a\"\n",
    );
    let keys = found
        .iter()
        .map(|fault| (fault.key.as_str(), fault.origin.as_ref().unwrap().line));
    let expected = [
        ("api.listen", 2),
        ("api.socket_mod", 3),
        ("log.level", 5),
        ("storge", 6),
    ];
    assert_eq!(keys.collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_no_toml_is_said_with_its_line() {
    for (text, line) in [
        ("[api]\nlisten = \n", 2),
        ("a = 1\na = 2\n", 2),
        ("[api\n", 1),
        ("\u{0}", 1),
    ] {
        match parse(text) {
            Err(ConfigError::Syntax { origin, message }) => {
                assert_eq!(origin.line, line, "{text:?}: {message}");
                assert!(!message.contains('\n'));
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn hostile_texts_do_no_harm() {
    let deep_arrays = format!("a = {}", "[".repeat(200_000));
    let deep_tables = format!("[{}]", vec!["a"; 50_000].join("."));
    let long_key = format!("{} = 1", "k".repeat(1_000_000));
    let long_value = format!("[api]\nlisten = \"{}\"", "v".repeat(1_000_000));
    let escape = "[api]\n\"a\\u001b[2Jb\\nc\" = 1";
    for text in [&deep_arrays, &deep_tables, &long_key, &long_value, escape] {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.len() < 2_000, "{} bytes", message.len());
        assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
    }
}

#[test]
fn the_built_in_handler_gives_way_to_those_that_are_given() {
    let config = parse(
        "[runtime]\ndefault_handler = \"crun\"\n[runtime.handlers.crun]\npath = \"/usr/bin/crun\"",
    )
    .unwrap();
    assert_eq!(config.runtime.handlers.keys().collect::<Vec<_>>(), ["crun"]);
    let found = faults("[runtime.handlers.crun]\npath = \"/usr/bin/crun\"");
    assert_eq!(
        found[0].to_string(),
        "runtime.default_handler = \"runc\": no such handler (there are crun)"
    );
    let config = parse("[runtime.handlers.runc]\nroot = \"/run/runc\"").unwrap();
    assert_eq!(
        config.runtime.handlers["runc"].path,
        Path::new("/usr/sbin/runc"),
        "its path has a default"
    );
}

#[test]
fn the_parent_of_pods_follows_the_manager() {
    assert_eq!(parse("").unwrap().runtime.cgroup_parent, "/zcri");
    assert_eq!(
        parse("[runtime]\ncgroup_manager = \"systemd\"")
            .unwrap()
            .runtime
            .cgroup_parent,
        "zcri.slice"
    );
    let given = parse("[runtime]\ncgroup_parent = \"/kube/pods\"").unwrap();
    assert_eq!(given.runtime.cgroup_parent, "/kube/pods");
}

#[test]
fn the_hosts_platform_has_gos_names() {
    let host = ImagePlatform::Host.resolve();
    assert_eq!(host.os, std::env::consts::OS);
    assert!(
        !["x86_64", "aarch64", "x86"].contains(&host.architecture.as_str()),
        "{host}"
    );
    let arm: OciPlatform = "linux/arm/v7".parse().unwrap();
    assert_eq!(
        (arm.variant.as_deref(), arm.to_string().as_str()),
        (Some("v7"), "linux/arm/v7")
    );
}

#[test]
fn pinned_names_match_with_stars() {
    let mut image = Config::default().image;
    image.pinned = ["docker.io/library/a:1", "quay.io/x/*", "*pause*", "r/*b*c"]
        .map(str::to_owned)
        .to_vec();
    for name in [
        "docker.io/library/a:1",
        "quay.io/x/y:2",
        "quay.io/x/",
        "registry.k8s.io/pause:3",
        "r/bc",
        "r/abbcbc",
    ] {
        assert!(image.is_pinned(name), "{name}");
    }
    for name in [
        "docker.io/library/a:11",
        "docker.io/library/a",
        "quay.io/x",
        "r/b",
        "r/cb",
        "",
    ] {
        assert!(!image.is_pinned(name), "{name}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}|(\\[[a-z.]{1,8}\\]\\n|[a-z_]{1,8} = [\"a-z0-9/.\\[\\]]{0,8}\\n){0,8}") {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn what_is_printed_is_what_is_in_force(
        mode in 0_u32..=0o777,
        root in "/[a-z\"\\\\ \u{e9}]{1,12}",
        pids in 0_u32..,
        pinned in proptest::collection::vec("[a-z*/\"']{1,10}", 0..4),
        port in any::<u16>(),
        handler in "[a-z0-9]{1,12}",
        (soft, hard) in (any::<u64>(), any::<u64>()).prop_map(|(a, b)| (a.min(b), a.max(b))),
    ) {
        let mut config = Config::default();
        config.api.socket_mode = mode;
        // Two roots that are equal, or that end in a slash, are other tests' business.
        config.storage.root = Path::new(&format!("{root}x")).to_owned();
        config.runtime.pids_limit = NonZeroU32::new(pids);
        config.runtime.rlimits = vec![zcri_config::Rlimit { name: "stack", soft, hard }];
        config.image.pinned = pinned;
        config.stream.port = port;
        let path = Path::new("/bin/x").to_owned();
        config.runtime.handlers.insert(handler.clone(), Handler { path, kind: HandlerType::Oci, root: None, output: None });
        config.runtime.default_handler = handler;
        prop_assert_eq!(parse(&config.to_toml()).map_err(|e| e.to_string()), Ok(config));
    }

    /// `*` against a matcher that tries everything.
    #[test]
    fn stars_match_like_the_slow_way(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
        fn slow(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => (0..=name.len()).any(|i| slow(rest, &name[i..])),
                ([p, pattern @ ..], [n, name @ ..]) => p == n && slow(pattern, name),
                _ => false,
            }
        }
        let mut image = Config::default().image;
        image.pinned = vec![pattern.clone()];
        prop_assert_eq!(image.is_pinned(&name), slow(pattern.as_bytes(), name.as_bytes()));
    }
}
