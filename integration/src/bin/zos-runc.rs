//! The OCI runtime of an emulated LPAR; see `zcri_integration::zos_runc`.

use std::process::ExitCode;

use zcri_integration::zos_runc::{self, Arguments};

fn main() -> ExitCode {
    let arguments = Arguments::parse(std::env::args_os().skip(1));
    match zos_runc::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            zos_runc::report(&arguments, &error);
            ExitCode::FAILURE
        }
    }
}
