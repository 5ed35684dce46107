//! Runtime handlers, and the client of the shim that runs containers with them.

mod features;
mod handler;
mod probe;
mod shim;

pub use features::HandlerFeatures;
pub use handler::{Handler, Handlers};
pub use shim::{
    CreateRequest, ExecRequest, Exit, STACK_AFFINITY, Shim, ShimError, ShimLauncher,
    ShimNamespaces, exit_file,
};
