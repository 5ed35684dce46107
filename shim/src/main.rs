//! The per-pod monitor of zcri, with the command line of a containerd shim.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    zcri_shim::run(std::env::args().skip(1))
}
