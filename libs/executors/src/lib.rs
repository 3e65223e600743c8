//! gantry-executors
