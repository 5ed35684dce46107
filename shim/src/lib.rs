//! zcri-shim: the parent of a pod's processes.
//!
//! One process with one thread per pod. It starts containers by an OCI runtime, holds their streams, writes their
//! logs in the CRI format, keeps their exit codes, and tells about it by containerd's Task API over ttrpc. It goes on
//! when the daemon dies. What absent things keep it small: no async runtime, no thread, no timer, no regular
//! expression, no buffer of its own per container.

#![forbid(unsafe_code)]

mod args;
mod audience;
mod bootstrap;
mod cgroup;
mod cleanup;
mod container;
mod cri_log;
mod exit_record;
mod monitor;
mod poll;
mod process_tree;
mod rpc;
mod runtime;
mod spec;
mod stdio;
pub mod ttrpc;

use std::process::ExitCode;

use args::Action;

/// Runs the program with the words behind its name.
pub fn run(words: impl IntoIterator<Item = String>) -> ExitCode {
    // Whatever a careless parent left open must not live as long as a pod, nor reach a container.
    zcri_sys::process::close_descriptors_from(3);
    let arguments = match args::parse(words) {
        Ok(arguments) => arguments,
        Err(e) => {
            eprintln!("zcri-shim: {e}");
            return ExitCode::from(2);
        }
    };
    let result = match arguments.action {
        Action::Version => {
            println!("zcri-shim {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Start => bootstrap::start(&arguments),
        Action::Delete => cleanup::delete(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("zcri-shim: {e}");
            ExitCode::FAILURE
        }
    }
}
