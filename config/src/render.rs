//! A [`Config`] as TOML again: what `zcrid config` prints.

use toml::Value;

use crate::{
    config::{Api, Config, Image, Network, Runtime, Stream, TlsVersion},
    schema::{
        CGROUP_MANAGERS, HANDLER_TYPES, LOG_FORMATS, LOG_LEVELS, NETWORK_ISOLATIONS,
        PLATFORM_KINDS, SWITCHES, TLS_VERSIONS,
    },
    wlm,
};

type Row = (&'static str, Value);

impl Config {
    /// The configuration in force, every key of it, without comments. Parses to an equal one, apart
    /// from the sources.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Self {
            api: a,
            storage,
            platform,
            runtime: r,
            network: n,
            image: i,
            ..
        } = self;
        let platform = vec![
            ("kind", word(PLATFORM_KINDS, platform.kind)),
            ("image", text(&platform.image)),
        ];
        let mut tables = vec![
            ("api".to_owned(), api(a)),
            (
                "storage".to_owned(),
                vec![
                    ("root", text(storage.root.display())),
                    ("state", text(storage.state.display())),
                ],
            ),
            ("platform".to_owned(), platform),
            ("runtime".to_owned(), runtime(r)),
        ];
        tables.extend(handlers(r));
        let log = vec![
            ("level", word(LOG_LEVELS, self.log.level)),
            ("format", word(LOG_FORMATS, self.log.format)),
        ];
        tables.extend([
            ("network".to_owned(), network(n)),
            ("image".to_owned(), image(i)),
            ("stream".to_owned(), stream(&self.stream)),
            (
                "metrics".to_owned(),
                vec![("listen", optional(self.metrics.listen))],
            ),
            ("log".to_owned(), log),
            ("wlm".to_owned(), wlm::render(&self.wlm)),
            (
                "console".to_owned(),
                vec![("output", text(&self.console.output))],
            ),
        ]);
        let table = |(name, rows): (String, Vec<Row>)| {
            let lines = rows.iter().map(|(key, value)| format!("{key} = {value}\n"));
            format!("[{name}]\n{}", lines.collect::<String>())
        };
        tables.into_iter().map(table).collect::<Vec<_>>().join("\n")
    }
}

fn api(api: &Api) -> Vec<Row> {
    vec![
        ("listen", text(api.listen.display())),
        ("socket_mode", text(format!("{:04o}", api.socket_mode))),
        ("socket_group", optional(api.socket_group.as_ref())),
        ("max_message_bytes", number(api.max_message_bytes)),
    ]
}

fn runtime(runtime: &Runtime) -> Vec<Row> {
    vec![
        ("default_handler", text(&runtime.default_handler)),
        ("shim", optional(runtime.shim.as_ref().map(|p| p.display()))),
        (
            "cgroup_manager",
            word(CGROUP_MANAGERS, runtime.cgroup_manager),
        ),
        ("cgroup_parent", text(&runtime.cgroup_parent)),
        (
            "pids_limit",
            number(runtime.pids_limit.map_or(0, u32::from)),
        ),
        ("rlimits", array(runtime.rlimits.iter())),
        (
            "cdi_spec_dirs",
            array(runtime.cdi_spec_dirs.iter().map(|p| p.display())),
        ),
    ]
}

fn handlers(runtime: &Runtime) -> impl Iterator<Item = (String, Vec<Row>)> {
    runtime.handlers.iter().map(|(name, handler)| {
        let rows = vec![
            ("path", text(handler.path.display())),
            ("type", word(HANDLER_TYPES, handler.kind)),
            ("root", optional(handler.root.as_ref().map(|p| p.display()))),
            ("output_code_page", optional(handler.output)),
        ];
        (format!("runtime.handlers.{name}"), rows)
    })
}

fn network(network: &Network) -> Vec<Row> {
    vec![
        ("conf_dir", text(network.conf_dir.display())),
        (
            "plugin_dirs",
            array(network.plugin_dirs.iter().map(|p| p.display())),
        ),
        (
            "plugin_timeout_seconds",
            number(network.plugin_timeout.as_secs()),
        ),
        (
            "conf_template",
            optional(network.conf_template.as_ref().map(|p| p.display())),
        ),
        ("gc", word(SWITCHES, network.gc)),
        ("isolation", word(NETWORK_ISOLATIONS, network.isolation)),
        ("netns_token", text(&network.netns_token)),
        ("stack_name", optional(network.stack_name.as_ref())),
    ]
}

fn image(image: &Image) -> Vec<Row> {
    vec![
        ("registries_conf", text(image.registries_conf.display())),
        ("policy", text(image.policy.display())),
        ("hosts_dir", text(image.hosts_dir.display())),
        (
            "auth_file",
            optional(image.auth_file.as_ref().map(|p| p.display())),
        ),
        (
            "additional_stores",
            array(image.additional_stores.iter().map(|p| p.display())),
        ),
        ("pinned", array(&image.pinned)),
        ("max_parallel_layers", number(image.max_parallel_layers)),
        ("max_layer_bytes", number(image.max_layer_bytes)),
        ("max_layer_entries", number(image.max_layer_entries)),
    ]
}

fn stream(stream: &Stream) -> Vec<Row> {
    let tls = stream.tls.as_ref();
    let path = |path: Option<&std::path::PathBuf>| optional(path.map(|p| p.display()));
    let version = tls.map_or(TlsVersion::Tls12, |tls| tls.min_version);
    vec![
        ("address", text(stream.address)),
        ("port", number(stream.port)),
        ("base_url", optional(stream.base_url.as_ref())),
        ("tls_cert_file", path(tls.map(|tls| &tls.certificate))),
        ("tls_key_file", path(tls.map(|tls| &tls.key))),
        (
            "tls_client_ca_file",
            path(tls.and_then(|tls| tls.client_ca.as_ref())),
        ),
        ("tls_min_version", word(TLS_VERSIONS, version)),
        (
            "idle_timeout_seconds",
            number(stream.idle_timeout.map_or(0, |limit| limit.as_secs())),
        ),
    ]
}

fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn optional(value: Option<impl ToString>) -> Value {
    Value::String(value.map_or_else(String::new, |value| value.to_string()))
}

/// Numbers were read from TOML, whose numbers are `i64`, or are defaults within that.
fn number(value: impl TryInto<i64>) -> Value {
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

fn array(items: impl IntoIterator<Item = impl ToString>) -> Value {
    Value::Array(items.into_iter().map(text).collect())
}

fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> Value {
    text(
        words
            .iter()
            .find(|(_, meaning)| *meaning == value)
            .map_or("", |(word, _)| word),
    )
}
