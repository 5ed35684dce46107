//! Which keys there are, and what each may be. One function per section.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use crate::{
    config::{
        Api, CgroupManager, Config, Console, ConsoleOutput, Handler, HandlerType, Image, Log,
        LogFormat, LogLevel, Metrics, Network, NetworkIsolation, Platform, PlatformKind, Runtime,
        Storage, Stream, StreamTls, Switch, TlsVersion,
    },
    error::{ConfigError, Fault, Origin},
    platform::ImagePlatform,
    read::{Section, absolute_path, array, integer, optional, parsed, printable, string, word},
    rlimit::Rlimit,
    source::{Item, Sources, Value},
    wlm,
};

/// `sun_path` of a unix socket, less the NUL that ends it. Source: unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// TOML numbers are signed.
const MAX_NUMBER: u64 = i64::MAX as u64;

pub(crate) const PLATFORM_KINDS: &[(&str, PlatformKind)] =
    &[("linux", PlatformKind::Linux), ("zos", PlatformKind::Zos)];
pub(crate) const HANDLER_TYPES: &[(&str, HandlerType)] =
    &[("oci", HandlerType::Oci), ("shim", HandlerType::Shim)];
pub(crate) const NETWORK_ISOLATIONS: &[(&str, NetworkIsolation)] = &[
    ("auto", NetworkIsolation::Auto),
    ("namespace", NetworkIsolation::Namespace),
    ("stack", NetworkIsolation::Stack),
];
pub(crate) const SWITCHES: &[(&str, Switch)] = &[
    ("auto", Switch::Auto),
    ("on", Switch::On),
    ("off", Switch::Off),
];
pub(crate) const CGROUP_MANAGERS: &[(&str, CgroupManager)] = &[
    ("cgroupfs", CgroupManager::Cgroupfs),
    ("systemd", CgroupManager::Systemd),
];
pub(crate) const TLS_VERSIONS: &[(&str, TlsVersion)] =
    &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
pub(crate) const LOG_LEVELS: &[(&str, LogLevel)] = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
pub(crate) const LOG_FORMATS: &[(&str, LogFormat)] =
    &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// The configuration that the merged files describe, over the defaults.
pub(crate) fn parse(sources: &Sources) -> Result<Config, ConfigError> {
    let mut faults = Vec::new();
    let mut root = Section::root(sources.table.clone());
    let config = Config {
        api: api(root.section("api", &mut faults), &mut faults),
        storage: storage(root.section("storage", &mut faults), &mut faults),
        platform: platform(root.section("platform", &mut faults), &mut faults),
        runtime: runtime(root.section("runtime", &mut faults), &mut faults),
        network: network(root.section("network", &mut faults), &mut faults),
        image: image(root.section("image", &mut faults), &mut faults),
        stream: stream(root.section("stream", &mut faults), &mut faults),
        metrics: metrics(root.section("metrics", &mut faults), &mut faults),
        log: log(root.section("log", &mut faults), &mut faults),
        wlm: wlm::section(root.section("wlm", &mut faults), &mut faults),
        console: console(root.section("console", &mut faults), &mut faults),
        sources: sources.files.clone(),
    };
    root.finish(&mut faults);
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid { faults })
    }
}

fn api(mut section: Section, faults: &mut Vec<Fault>) -> Api {
    let mut api = Api::default();
    section.set("listen", &mut api.listen, socket_path, faults);
    section.set("socket_mode", &mut api.socket_mode, mode, faults);
    section.set(
        "socket_group",
        &mut api.socket_group,
        optional(group),
        faults,
    );
    let bytes = integer(
        Api::MIN_MESSAGE_BYTES,
        usize::try_from(i32::MAX).unwrap_or(usize::MAX),
    );
    section.set(
        "max_message_bytes",
        &mut api.max_message_bytes,
        bytes,
        faults,
    );
    section.finish(faults);
    api
}

fn socket_path(value: &Value) -> Result<PathBuf, String> {
    let path = absolute_path(value)?;
    match path.as_os_str().len() {
        0..=MAX_SOCKET_PATH => Ok(path),
        length => Err(format!(
            "has {length} bytes, a socket's path has at most {MAX_SOCKET_PATH}"
        )),
    }
}

fn mode(value: &Value) -> Result<u32, String> {
    let wrong = || "must be permissions in octal as a string, such as \"0660\"".to_owned();
    let text = string(value).map_err(|_| wrong())?;
    // from_str_radix takes a sign, a mode has none.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let mode = u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| digits && *mode <= 0o777);
    mode.ok_or_else(wrong)
}

fn group(value: &Value) -> Result<String, String> {
    let name = string(value)?;
    let odd = name
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || c == ':');
    if odd {
        Err("must be the name or number of a group".to_owned())
    } else {
        Ok(name)
    }
}

fn storage(mut section: Section, faults: &mut Vec<Fault>) -> Storage {
    let mut storage = Storage::default();
    section.set("root", &mut storage.root, absolute_path, faults);
    let origin = section.set("state", &mut storage.state, absolute_path, faults);
    if storage.root == storage.state {
        faults.push(Fault {
            key: section.key("state"),
            value: Some(format!("{:?}", storage.state)),
            origin,
            reason: "must be another directory than storage.root".to_owned(),
        });
    }
    section.finish(faults);
    storage
}

fn platform(mut section: Section, faults: &mut Vec<Fault>) -> Platform {
    let mut platform = Platform::default();
    section.set("kind", &mut platform.kind, word(PLATFORM_KINDS), faults);
    if platform.kind == PlatformKind::Zos {
        platform.image = ImagePlatform::zos();
    }
    section.set(
        "image",
        &mut platform.image,
        |value| string(value)?.parse(),
        faults,
    );
    section.finish(faults);
    platform
}

fn runtime(mut section: Section, faults: &mut Vec<Fault>) -> Runtime {
    let mut runtime = Runtime::default();
    let before = faults.len();
    let given = section.set(
        "default_handler",
        &mut runtime.default_handler,
        string,
        faults,
    );
    section.set("shim", &mut runtime.shim, optional(absolute_path), faults);
    section.set(
        "cgroup_manager",
        &mut runtime.cgroup_manager,
        word(CGROUP_MANAGERS),
        faults,
    );
    let manager = runtime.cgroup_manager;
    runtime.cgroup_parent = manager.default_parent().to_owned();
    section.set(
        "cgroup_parent",
        &mut runtime.cgroup_parent,
        |value| cgroup_parent(value, manager),
        faults,
    );
    let limit = |value: &Value| integer(0, u32::MAX)(value).map(NonZeroU32::new);
    section.set("pids_limit", &mut runtime.pids_limit, limit, faults);
    section.set("rlimits", &mut runtime.rlimits, rlimits, faults);
    let dirs = array(absolute_path);
    section.set("cdi_spec_dirs", &mut runtime.cdi_spec_dirs, dirs, faults);
    handlers(section.section("handlers", faults), &mut runtime, faults);
    // A second complaint about a handler that is there, but wrong, would only mislead.
    if faults.len() == before {
        check_default(&runtime, given, faults);
    }
    section.finish(faults);
    runtime
}

fn rlimits(value: &Value) -> Result<Vec<Rlimit>, String> {
    let form = "a limit of setrlimit(2) such as \"nofile=1024:524288\" or \"core=unlimited\"";
    let limits: Vec<Rlimit> = array(|item| parsed(form)(item))(value)?;
    let twice = limits.iter().enumerate().find(|(at, limit)| {
        let mut before = limits.iter().take(*at);
        before.any(|other| other.name == limit.name)
    });
    match twice {
        Some((_, limit)) => Err(format!("names {} twice", limit.name)),
        None => Ok(limits),
    }
}

fn cgroup_parent(value: &Value, manager: CgroupManager) -> Result<String, String> {
    let text = string(value)?;
    match manager {
        _ if text.is_empty() => Ok(manager.default_parent().to_owned()),
        CgroupManager::Cgroupfs => {
            absolute_path(value).map_err(|e| {
                format!("{e} below the control groups' root (the manager is cgroupfs)")
            })?;
            Ok(text)
        }
        CgroupManager::Systemd if text.ends_with(".slice") && !text.contains('/') => Ok(text),
        CgroupManager::Systemd => {
            Err("must be a slice, such as \"zcri.slice\" (the manager is systemd)".to_owned())
        }
    }
}

fn handlers(mut section: Section, runtime: &mut Runtime, faults: &mut Vec<Fault>) {
    let given = section.take_all();
    if given.is_empty() {
        return;
    }
    let mut defaults = std::mem::take(&mut runtime.handlers);
    for (name, item) in given {
        let path = section.key(&printable(&name));
        if !is_label(&name) {
            faults.push(Fault {
                key: path,
                value: None,
                origin: Some(item.origin),
                reason: "a handler's name has 1 to 63 of a-z, 0-9 and -, and neither starts nor ends with -".to_owned(),
            });
            continue;
        }
        if let Some(handler) = handler(path, item, defaults.remove(&name), faults) {
            runtime.handlers.insert(name, handler);
        }
    }
}

/// A DNS label, as RuntimeClass wants its `handler`. Source: Kubernetes, `pkg/apis/node/validation`.
fn is_label(name: &str) -> bool {
    let inner = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (1..=63).contains(&name.len()) && inner && !name.starts_with('-') && !name.ends_with('-')
}

fn handler(
    path: String,
    item: Item,
    default: Option<Handler>,
    faults: &mut Vec<Fault>,
) -> Option<Handler> {
    let origin = item.origin.clone();
    let before = faults.len();
    let mut section = Section::of(path, item, faults);
    if faults.len() > before {
        return None;
    }
    let has_default = default.is_some();
    let mut handler = default.unwrap_or(Handler {
        path: PathBuf::new(),
        kind: HandlerType::Oci,
        root: None,
        output: None,
    });
    let given = section.set("path", &mut handler.path, absolute_path, faults);
    if given.is_none() && !has_default {
        let reason = "missing: a handler needs the absolute path of its program".to_owned();
        faults.push(Fault {
            key: section.key("path"),
            value: None,
            origin: Some(origin),
            reason,
        });
    }
    section.set("type", &mut handler.kind, word(HANDLER_TYPES), faults);
    section.set("root", &mut handler.root, optional(absolute_path), faults);
    let page = section.set(
        "output_code_page",
        &mut handler.output,
        |value| zcri_codepage::setting(&string(value)?).map_err(|e| e.to_string()),
        faults,
    );
    if let (Some(origin), HandlerType::Shim, Some(rule)) = (page, handler.kind, handler.output) {
        faults.push(Fault {
            key: section.key("output_code_page"),
            value: Some(rule.to_string()),
            origin: Some(origin),
            reason: "a containerd shim writes the log itself: only type \"oci\" is converted"
                .to_owned(),
        });
    }
    section.finish(faults);
    Some(handler)
}

fn check_default(runtime: &Runtime, origin: Option<Origin>, faults: &mut Vec<Fault>) {
    if runtime.handlers.contains_key(&runtime.default_handler) {
        return;
    }
    let names = runtime
        .handlers
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    faults.push(Fault {
        key: "runtime.default_handler".to_owned(),
        value: Some(Value::String(runtime.default_handler.clone()).to_string()),
        origin,
        reason: format!("no such handler (there are {names})"),
    });
}

fn network(mut section: Section, faults: &mut Vec<Fault>) -> Network {
    let mut network = Network::default();
    section.set("conf_dir", &mut network.conf_dir, absolute_path, faults);
    section.set("plugin_dirs", &mut network.plugin_dirs, plugin_dirs, faults);
    let mut seconds = network.plugin_timeout.as_secs();
    section.set(
        "plugin_timeout_seconds",
        &mut seconds,
        integer(1, 3600),
        faults,
    );
    network.plugin_timeout = Duration::from_secs(seconds);
    section.set(
        "conf_template",
        &mut network.conf_template,
        optional(absolute_path),
        faults,
    );
    section.set("gc", &mut network.gc, word(SWITCHES), faults);
    section.set(
        "isolation",
        &mut network.isolation,
        word(NETWORK_ISOLATIONS),
        faults,
    );
    section.set("netns_token", &mut network.netns_token, token, faults);
    section.set(
        "stack_name",
        &mut network.stack_name,
        optional(job_name),
        faults,
    );
    section.finish(faults);
    network
}

/// It travels in an environment variable that must not be empty (CNI SPEC.md, CNI_NETNS).
fn token(value: &Value) -> Result<String, String> {
    let text = string(value)?;
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        Ok(text)
    }
}

/// The name of a started task, which a TCP/IP stack is (z/OS MVS JCL Reference, "NAME field").
fn job_name(value: &Value) -> Result<String, String> {
    let name = string(value)?;
    let national = |b: u8| b.is_ascii_uppercase() || b"@#$".contains(&b);
    let fits = name.len() <= 8
        && name.bytes().next().is_some_and(national)
        && name.bytes().all(|b| national(b) || b.is_ascii_digit());
    if fits {
        Ok(name)
    } else {
        Err("must be a job name: 1 to 8 of A-Z, 0-9, @, # and $, no digit first".to_owned())
    }
}

fn plugin_dirs(value: &Value) -> Result<Vec<PathBuf>, String> {
    let dirs = array(absolute_path)(value)?;
    // They travel in CNI_PATH, whose separator cannot be escaped.
    if let Some(dir) = dirs
        .iter()
        .find(|dir| dir.as_os_str().as_encoded_bytes().contains(&b':'))
    {
        return Err(format!("{dir:?} must not contain \":\""));
    }
    if dirs.is_empty() {
        Err("must name at least one directory".to_owned())
    } else {
        Ok(dirs)
    }
}

fn image(mut section: Section, faults: &mut Vec<Fault>) -> Image {
    let mut image = Image::default();
    section.set(
        "registries_conf",
        &mut image.registries_conf,
        absolute_path,
        faults,
    );
    section.set("policy", &mut image.policy, absolute_path, faults);
    section.set("hosts_dir", &mut image.hosts_dir, absolute_path, faults);
    section.set(
        "auth_file",
        &mut image.auth_file,
        optional(absolute_path),
        faults,
    );
    section.set(
        "additional_stores",
        &mut image.additional_stores,
        array(absolute_path),
        faults,
    );
    section.set("pinned", &mut image.pinned, array(pinned), faults);
    section.set(
        "max_parallel_layers",
        &mut image.max_parallel_layers,
        integer(1, 64),
        faults,
    );
    section.set(
        "max_layer_bytes",
        &mut image.max_layer_bytes,
        integer(1, MAX_NUMBER),
        faults,
    );
    section.set(
        "max_layer_entries",
        &mut image.max_layer_entries,
        integer(1, MAX_NUMBER),
        faults,
    );
    section.finish(faults);
    image
}

fn pinned(value: &Value) -> Result<String, String> {
    let pattern = string(value)?;
    if pattern.is_empty() {
        Err("must be an image's name".to_owned())
    } else {
        Ok(pattern)
    }
}

fn stream(mut section: Section, faults: &mut Vec<Fault>) -> Stream {
    let mut stream = Stream::default();
    section.set(
        "address",
        &mut stream.address,
        parsed("an IPv4 or IPv6 address"),
        faults,
    );
    section.set("port", &mut stream.port, integer(0, u16::MAX), faults);
    section.set("base_url", &mut stream.base_url, optional(base_url), faults);
    stream.tls = stream_tls(&mut section, faults);
    let mut seconds = stream.idle_timeout.map_or(0, |limit| limit.as_secs());
    section.set(
        "idle_timeout_seconds",
        &mut seconds,
        integer(0, u64::from(u32::MAX)),
        faults,
    );
    stream.idle_timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
    section.finish(faults);
    stream
}

fn base_url(value: &Value) -> Result<String, String> {
    let text = string(value)?;
    let url = text.trim_end_matches('/');
    let host = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    match host {
        Some(host) if !host.is_empty() && host.chars().all(plain) => Ok(url.to_owned()),
        _ => Err(
            "must be http:// or https:// with a host and perhaps a port, such as \"https://node7.example:10010\""
                .to_owned(),
        ),
    }
}

/// Certificate and key go together; the rest means nothing without them.
fn stream_tls(section: &mut Section, faults: &mut Vec<Fault>) -> Option<StreamTls> {
    let (mut certificate, mut key, mut client_ca) = (None, None, None);
    let mut min_version = TlsVersion::Tls12;
    let path = || optional(absolute_path);
    let certificate_at = section.set("tls_cert_file", &mut certificate, path(), faults);
    let key_at = section.set("tls_key_file", &mut key, path(), faults);
    let ca_at = section.set("tls_client_ca_file", &mut client_ca, path(), faults);
    section.set(
        "tls_min_version",
        &mut min_version,
        word(TLS_VERSIONS),
        faults,
    );
    let mut alone = |name: &str, origin: Option<Origin>, missing: &str| {
        faults.push(Fault {
            key: section.key(name),
            value: None,
            origin,
            reason: format!("is of no use without {missing}"),
        });
        None
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(StreamTls {
            certificate,
            key,
            client_ca,
            min_version,
        }),
        (Some(_), None) => alone("tls_cert_file", certificate_at, "tls_key_file"),
        (None, Some(_)) => alone("tls_key_file", key_at, "tls_cert_file"),
        (None, None) if client_ca.is_some() => alone("tls_client_ca_file", ca_at, "tls_cert_file"),
        (None, None) => None,
    }
}

fn metrics(mut section: Section, faults: &mut Vec<Fault>) -> Metrics {
    let mut metrics = Metrics::default();
    let address = optional(parsed(
        "an address and port, such as \"127.0.0.1:9537\" or \"[::1]:9537\"",
    ));
    section.set("listen", &mut metrics.listen, address, faults);
    section.finish(faults);
    metrics
}

fn log(mut section: Section, faults: &mut Vec<Fault>) -> Log {
    let mut log = Log::default();
    section.set("level", &mut log.level, word(LOG_LEVELS), faults);
    section.set("format", &mut log.format, word(LOG_FORMATS), faults);
    section.finish(faults);
    log
}

fn console(mut section: Section, faults: &mut Vec<Fault>) -> Console {
    let mut console = Console::default();
    section.set("output", &mut console.output, console_output, faults);
    section.finish(faults);
    console
}

fn console_output(value: &Value) -> Result<ConsoleOutput, String> {
    match string(value)?.as_str() {
        "auto" => Ok(ConsoleOutput::Auto),
        "none" => Ok(ConsoleOutput::None),
        "stderr" => Ok(ConsoleOutput::StandardError),
        _ => absolute_path(value)
            .map(ConsoleOutput::File)
            .map_err(|e| format!("must be \"auto\", \"none\", \"stderr\" or a path: {e}")),
    }
}
