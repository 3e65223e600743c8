//! gantry-bus
