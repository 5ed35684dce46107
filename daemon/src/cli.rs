//! The command line of `zcrid`.

mod log;
mod modify;
mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use zcri_config::{Config, ConfigError};

use crate::compose;
use crate::error::Chain;
use crate::messages;
use crate::reload::Source;

/// What work on threads has to end when the daemon does.
const LAST_WORK: Duration = Duration::from_secs(2);

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
    /// Have the running daemon obey a console command: DISPLAY PODS, DISPLAY NETWORK, DISPLAY STATUS, REFRESH, STOP
    Modify {
        /// The command; its words may be given one by one
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
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
        Some(Command::Modify { command }) => load(&arguments.config)
            .and_then(|config| modify::send(&config.storage.state, &command.join(" "))),
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
    let set_level = log::start(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(compose::BLOCKING_THREADS)
        .build()
        .context("start the async runtime")?;
    let again = path.to_owned();
    let source = Source {
        read: Box::new(move || read(&again)),
        set_level,
    };
    let served = runtime.block_on(compose::serve(config, source));
    // What is cut short on threads, an unpacking for example, is undone by the next start.
    runtime.shutdown_timeout(LAST_WORK);
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(zcr = messages::CANNOT_GO_ON, error = %Chain(error.as_ref()), "zcrid cannot go on");
            Err(error)
        }
    }
}
