//! gantry-cli
