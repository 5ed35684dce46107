//! Runtime handlers, and the client of the shim that runs containers with them.

mod handler;
mod shim;

pub use handler::{Handler, Handlers};
pub use shim::{
    CreateRequest, ExecRequest, Exit, Shim, ShimError, ShimLauncher, ShimNamespaces, exit_file,
};
