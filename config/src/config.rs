//! [`Config`], its sections and their defaults.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::ConfigError,
    platform::ImagePlatform,
    rlimit::Rlimit,
    schema,
    source::{self, MainFile},
    wlm::Wlm,
};

/// Where zcrid looks when it is told nothing else.
pub const DEFAULT_PATH: &str = "/etc/zcri/zcri.toml";

/// The whole of `zcri.toml` at its defaults, with a comment on every key.
#[must_use]
pub fn default_toml() -> &'static str {
    include_str!("default.toml")
}

/// The configuration of a daemon. Each field is a section of `zcri.toml`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[api]`
    pub api: Api,
    /// `[storage]`
    pub storage: Storage,
    /// `[platform]`
    pub platform: Platform,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[network]`
    pub network: Network,
    /// `[image]`
    pub image: Image,
    /// `[stream]`
    pub stream: Stream,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
    /// `[wlm]`
    pub wlm: Wlm,
    /// `[console]`
    pub console: Console,
    /// The files that were read, in the order in which they were merged.
    pub sources: Vec<PathBuf>,
}

impl Config {
    /// Reads `path` and the drop-ins in `<path>.d`.
    ///
    /// # Errors
    /// When a file cannot be read (`path` itself must exist), is not TOML, or says something that cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        schema::parse(&source::read(path, MainFile::Required)?)
    }

    /// As [`Config::load`], but `path` may be missing. For [`DEFAULT_PATH`] when the user named no file.
    ///
    /// # Errors
    /// As [`Config::load`], apart from the missing file.
    pub fn load_or_default(path: &Path) -> Result<Self, ConfigError> {
        schema::parse(&source::read(path, MainFile::Optional)?)
    }

    /// Parses one text; `name` stands for it in errors.
    ///
    /// # Errors
    /// When the text is not TOML or says something that cannot be.
    pub fn from_toml(text: &str, name: &Path) -> Result<Self, ConfigError> {
        schema::parse(&source::from_text(text, name)?)
    }
}

/// `[api]`: the CRI socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// Absolute path of the unix socket; fits `sun_path`.
    pub listen: PathBuf,
    /// Permissions of the socket, at most 0o777.
    pub socket_mode: u32,
    /// Group of the socket, a name or a number.
    pub socket_group: Option<String>,
    /// Largest gRPC message in either direction, in bytes; at least [`Api::MIN_MESSAGE_BYTES`].
    pub max_message_bytes: usize,
}

impl Api {
    /// What the kubelet itself sends and takes: `maxMsgSize` of its `cri-client`.
    pub const MIN_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: PathBuf::from("/run/zcri/zcri.sock"),
            socket_mode: 0o660,
            socket_group: None,
            max_message_bytes: 32 * 1024 * 1024,
        }
    }
}

/// `[storage]`: the two directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// What survives a reboot. Absolute.
    pub root: PathBuf,
    /// What does not. Absolute.
    pub state: PathBuf,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/zcri"),
            state: PathBuf::from("/run/zcri"),
        }
    }
}

/// `[platform]`: what this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The kind of node.
    pub kind: PlatformKind,
    /// Platform of the images to pull.
    pub image: ImagePlatform,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            kind: PlatformKind::Linux,
            image: ImagePlatform::Host,
        }
    }
}

/// The kinds of node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformKind {
    /// Linux, with everything that it has.
    Linux,
    /// z/OS: four kinds of namespaces, no control groups, a DVIPA per pod.
    Zos,
}

impl fmt::Display for PlatformKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "linux",
            Self::Zos => "zos",
        })
    }
}

/// `[runtime]`: what runs containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Handler of the pods that name none; a key of `handlers`.
    pub default_handler: String,
    /// By name, as RuntimeClass gives it; not empty.
    pub handlers: BTreeMap<String, Handler>,
    /// The monitor of a pod; none is `zcri-shim` in the directory of zcrid.
    pub shim: Option<PathBuf>,
    /// Who makes control groups.
    pub cgroup_manager: CgroupManager,
    /// Parent of the pods whose request names none: an absolute path for cgroupfs, a slice's name for systemd.
    pub cgroup_parent: String,
    /// Limit of processes in a container that has no limit of its own.
    pub pids_limit: Option<NonZeroU32>,
    /// Limits of the processes of every container, one of each name; the others are those of the daemon.
    pub rlimits: Vec<Rlimit>,
    /// Directories with descriptions of CDI devices, of which later ones win; empty for none.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

impl Runtime {
    /// The handler `name`, or the default one for `""`, which is how CRI says "none given".
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<(&str, &Handler)> {
        let name = if name.is_empty() {
            &self.default_handler
        } else {
            name
        };
        self.handlers
            .get_key_value(name)
            .map(|(name, handler)| (name.as_str(), handler))
    }
}

impl Default for Runtime {
    fn default() -> Self {
        let runc = Handler {
            path: PathBuf::from("/usr/sbin/runc"),
            kind: HandlerType::Oci,
            root: None,
            output: None,
        };
        Self {
            default_handler: "runc".to_owned(),
            handlers: BTreeMap::from([("runc".to_owned(), runc)]),
            shim: None,
            cgroup_manager: CgroupManager::Cgroupfs,
            cgroup_parent: CgroupManager::Cgroupfs.default_parent().to_owned(),
            pids_limit: None,
            rlimits: Vec::new(),
            cdi_spec_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).into(),
        }
    }
}

/// `[runtime.handlers.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// The program. Absolute.
    pub path: PathBuf,
    /// How it is driven: the key `type`.
    pub kind: HandlerType,
    /// State directory of the OCI runtime, absolute; none is one below [`Storage::state`].
    pub root: Option<PathBuf>,
    /// What the output of its containers is converted from, if it is: the key `output_code_page`.
    pub output: Option<zcri_codepage::Rule>,
}

/// How a handler's program is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandlerType {
    /// An OCI runtime, run by zcri-shim.
    Oci,
    /// A containerd shim v2, which brings its own runtime.
    Shim,
}

/// Who makes control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupManager {
    /// Directories in the control group file systems.
    Cgroupfs,
    /// Slices and scopes of systemd.
    Systemd,
}

impl CgroupManager {
    /// What `cgroup_parent = ""` stands for.
    #[must_use]
    pub fn default_parent(self) -> &'static str {
        match self {
            Self::Cgroupfs => "/zcri",
            Self::Systemd => "zcri.slice",
        }
    }
}

/// `[network]`: the CNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Directory of the configurations. Absolute.
    pub conf_dir: PathBuf,
    /// Directories of the plugins, in the order of search; not empty, absolute, free of `:`.
    pub plugin_dirs: Vec<PathBuf>,
    /// Time that the plugins of an attachment have together, and each plugin that detaches.
    pub plugin_timeout: Duration,
    /// A conflist with variables, filled when the kubelet tells the node's range. Absolute.
    pub conf_template: Option<PathBuf>,
    /// Whether plugins are told to collect what no pod needs.
    pub gc: Switch,
    /// What keeps the networks of pods apart.
    pub isolation: NetworkIsolation,
    /// What plugins are told in place of the path of a network namespace; `{id}` is the sandbox's id. Not empty.
    pub netns_token: String,
    /// The TCP/IP stack that plugins and OCI runtimes have affinity to, where a z/OS system has several (CINET).
    pub stack_name: Option<String>,
}

/// What keeps the networks of pods apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkIsolation {
    /// As the platform has it.
    Auto,
    /// Each pod has a network namespace.
    Namespace,
    /// Pods share the node's TCP/IP stack, each with addresses of its own.
    Stack,
}

/// What depends on the platform unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// As the platform has it.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

impl Switch {
    /// The answer, given the platform's.
    #[must_use]
    pub fn or(self, platform: bool) -> bool {
        match self {
            Self::Auto => platform,
            Self::On => true,
            Self::Off => false,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            plugin_dirs: ["/usr/lib/zcri/cni", "/opt/cni/bin", "/usr/lib/cni"]
                .map(PathBuf::from)
                .to_vec(),
            plugin_timeout: Duration::from_secs(60),
            conf_template: None,
            gc: Switch::Auto,
            isolation: NetworkIsolation::Auto,
            netns_token: "zcri-{id}".to_owned(),
            stack_name: None,
        }
    }
}

/// `[image]`: where images come from, and how large they may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// containers-registries.conf(5); may be missing. See [`crate::registries::Registries::load`].
    pub registries_conf: PathBuf,
    /// containers-policy.json(5).
    pub policy: PathBuf,
    /// Certificates per registry: `<hosts_dir>/<host>[:<port>]/`.
    pub hosts_dir: PathBuf,
    /// containers-auth.json(5). See [`crate::auth::AuthFile::load`].
    pub auth_file: Option<PathBuf>,
    /// Stores of other programs, whose images are used where they are; the earlier ones first.
    pub additional_stores: Vec<PathBuf>,
    /// Patterns of names; see [`Image::is_pinned`].
    pub pinned: Vec<String>,
    /// Layers of one image that are fetched and unpacked at the same time; 1 to 64.
    pub max_parallel_layers: usize,
    /// Largest layer after decompression, in bytes; not 0.
    pub max_layer_bytes: u64,
    /// Largest number of entries in one layer; not 0.
    pub max_layer_entries: u64,
}

impl Image {
    /// Whether an image of this name (in full: with host, and tag or digest) is never to be collected.
    #[must_use]
    pub fn is_pinned(&self, name: &str) -> bool {
        self.pinned.iter().any(|pattern| glob(pattern, name))
    }
}

/// `*` stands for any characters, `/` too; every other character for itself.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        // The leftmost match leaves most for the pieces that follow, so that no other needs trying.
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

impl Default for Image {
    fn default() -> Self {
        Self {
            registries_conf: PathBuf::from("/etc/containers/registries.conf"),
            policy: PathBuf::from("/etc/containers/policy.json"),
            hosts_dir: PathBuf::from("/etc/zcri/certs.d"),
            auth_file: None,
            additional_stores: Vec::new(),
            pinned: Vec::new(),
            max_parallel_layers: 4,
            max_layer_bytes: 32 * 1024 * 1024 * 1024,
            max_layer_entries: 4_000_000,
        }
    }
}

/// `[stream]`: the server of exec, attach and port-forward sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 is any free one.
    pub port: u16,
    /// What its URLs begin with, for clients that reach it under another address: scheme, host and perhaps a port.
    pub base_url: Option<String>,
    /// Its certificate; none is plain HTTP.
    pub tls: Option<StreamTls>,
    /// How long nothing may move in a session before it is ended; none is for ever.
    pub idle_timeout: Option<Duration>,
}

/// The keys of `[stream]` that begin with `tls_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTls {
    /// Certificate with its chain, PEM. Absolute.
    pub certificate: PathBuf,
    /// Its private key, PEM. Absolute.
    pub key: PathBuf,
    /// Authorities, PEM, one of which must have signed the client's certificate. Absolute.
    pub client_ca: Option<PathBuf>,
    /// Older versions are refused.
    pub min_version: TlsVersion,
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            base_url: None,
            tls: None,
            idle_timeout: Some(Duration::from_secs(4 * 3600)),
        }
    }
}

/// `[metrics]`: the Prometheus endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Its address; none turns it off.
    pub listen: Option<SocketAddr>,
}

/// `[log]`: the daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least that is logged.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: LogLevel::Info,
            format: LogFormat::Text,
        }
    }
}

/// Levels of log lines, the most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What went wrong and is not mended.
    Error,
    /// What went wrong and is.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As in the configuration, which is also how `tracing` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Forms of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[console]`: operator messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Console {
    /// Where they go.
    pub output: ConsoleOutput,
}

/// Where operator messages go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConsoleOutput {
    /// To the system's console, where there is one.
    #[default]
    Auto,
    /// Nowhere but to the log.
    None,
    /// To standard error.
    StandardError,
    /// To a file. Absolute.
    File(PathBuf),
}

impl fmt::Display for ConsoleOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::StandardError => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
