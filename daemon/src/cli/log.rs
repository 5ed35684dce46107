//! The daemon's log and the console.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, reload};
use zcri_config::{Config, ConsoleOutput, LogFormat, LogLevel};
use zcri_sys::console::{self, Console};

use crate::messages::{ConsoleLayer, OnlyMessages};

/// The environment variable that has precedence over `[log] level`: directives, as the libraries' debug lines need.
const VARIABLE: &str = "ZCRI_LOG";

/// Sets the level; says whether it did.
pub(super) type SetLevel = Box<dyn Fn(LogLevel) -> bool + Send + Sync>;

/// Starts both. The log goes to standard error: the service manager keeps and stamps it. Gives what sets its level.
///
/// # Errors
/// The file of the console cannot be opened.
pub(super) fn start(config: &Config) -> anyhow::Result<SetLevel> {
    let given = EnvFilter::try_from_env(VARIABLE).ok();
    let is_given = given.is_some();
    let filter = given.unwrap_or_else(|| EnvFilter::new(config.log.level.as_str()));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let log = match config.log.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let console = open(config)?.map(|c| ConsoleLayer::new(c).with_filter(OnlyMessages));
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .with(console)
        .init();
    Ok(Box::new(move |level| {
        !is_given && handle.reload(EnvFilter::new(level.as_str())).is_ok()
    }))
}

fn open(config: &Config) -> anyhow::Result<Option<Box<dyn Console>>> {
    Ok(match &config.console.output {
        ConsoleOutput::Auto => console::system().map(|(console, _)| console),
        ConsoleOutput::None => None,
        ConsoleOutput::StandardError => Some(Box::new(console::StandardError)),
        ConsoleOutput::File(path) => {
            let file = console::LogFile::open(path)
                .with_context(|| format!("console.output: open {}", path.display()))?;
            Some(Box::new(file))
        }
    })
}
