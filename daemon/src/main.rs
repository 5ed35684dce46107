//! zcrid.
fn main() {}
