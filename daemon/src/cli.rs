//! The command line of `zcrid`.

mod status;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use zcri_config::{Config, ConfigError, LogFormat};

use crate::compose;
use crate::error::Chain;

/// A container runtime daemon for Kubernetes nodes: serves CRI v1 on a unix socket.
#[derive(Debug, Parser)]
#[command(name = "zcrid", version)]
struct Arguments {
    /// Configuration file; its drop-ins are in the directory of the same name with `.d` appended
    #[arg(long, global = true, default_value = "/etc/zcri/zcri.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (what zcrid does when no command is given)
    Serve,
    /// Print the configuration in force
    Config {
        /// Print the default one, with comments, instead
        #[arg(long)]
        default: bool,
        /// Only check it, with all that it names
        #[arg(long, conflicts_with = "default")]
        check: bool,
    },
    /// Try whether this node is fit to run pods: the installation verification
    Check {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print how the running daemon is
    Status {
        /// Tell more of this
        #[arg(value_enum)]
        subject: Option<status::Subject>,
    },
    /// Print the version
    Version,
}

/// Runs the program to its end.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        None | Some(Command::Serve) => serve(&arguments.config),
        Some(Command::Config { default: true, .. }) => {
            print!("{}", zcri_config::default_toml());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Config { check: true, .. }) => check_config(&arguments.config),
        Some(Command::Config { .. }) => load(&arguments.config).map(|config| {
            print!("{}", config.to_toml());
            ExitCode::SUCCESS
        }),
        Some(Command::Check { json }) => crate::check::run(read(&arguments.config), json),
        Some(Command::Status { subject }) => load(&arguments.config)
            .and_then(|config| status::ask(&config.api.listen, subject))
            .map(|text| {
                print!("{text}");
                ExitCode::SUCCESS
            }),
        Some(Command::Version) => {
            println!("zcrid {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("zcrid: {error:#}");
        ExitCode::FAILURE
    })
}

fn load(path: &Path) -> anyhow::Result<Config> {
    Ok(read(path)?)
}

/// The file named on the command line must be there, the default one need not.
fn read(path: &Path) -> Result<Config, ConfigError> {
    let given =
        std::env::args_os().any(|argument| argument.to_string_lossy().starts_with("--config"));
    if given {
        Config::load(path)
    } else {
        Config::load_or_default(path)
    }
}

fn check_config(path: &Path) -> anyhow::Result<ExitCode> {
    let problems = load(path)?.check();
    for problem in &problems {
        println!(
            "{}: {problem}",
            if problem.fatal { "error" } else { "warning" }
        );
    }
    let fatal = problems.iter().any(|problem| problem.fatal);
    println!(
        "{}",
        if fatal {
            "the configuration cannot be used"
        } else {
            "the configuration can be used"
        }
    );
    Ok(if fatal {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn serve(path: &Path) -> anyhow::Result<ExitCode> {
    let config = load(path)?;
    start_log(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(compose::BLOCKING_THREADS)
        .build()
        .context("start the async runtime")?;
    match runtime.block_on(compose::serve(config)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(error = %Chain(error.as_ref()), "zcrid cannot go on");
            Err(error)
        }
    }
}

/// Logs go to standard error: the service manager keeps and stamps them.
fn start_log(config: &Config) {
    let filter = EnvFilter::try_from_env("ZCRI_LOG")
        .unwrap_or_else(|_| EnvFilter::new(config.log.level.as_str()));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}
