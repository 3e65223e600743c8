//! gantry-runner
