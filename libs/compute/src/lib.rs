//! gantry-compute
