//! What every service needs and none owns: configuration, keys, telemetry, lifecycle.

pub mod aliases;
pub mod keys;
pub mod telemetry;
