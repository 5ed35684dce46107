//! The program: the environment and standard input in, standard output and the exit code out.

#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    process::ExitCode,
};

/// More than any runtime sends.
const MAX_STDIN: u64 = 16 * 1024 * 1024;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    // What could not be read is not JSON, and is reported as that.
    drop(
        std::io::stdin()
            .lock()
            .take(MAX_STDIN)
            .read_to_end(&mut stdin),
    );
    let outcome = zcri_dvipa::run(&|name| std::env::var(name).ok(), &stdin);
    let written = std::io::stdout().write_all(outcome.output.as_bytes());
    if outcome.success && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
