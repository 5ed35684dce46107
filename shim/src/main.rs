//! zcri-shim.
fn main() {}
