//! gantry-conductor
