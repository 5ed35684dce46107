//! `zcrid`: the daemon's program. Everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    zcri_daemon::cli::run()
}
