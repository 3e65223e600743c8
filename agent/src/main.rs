//! The `gantry-runner` binary.
fn main() {}
