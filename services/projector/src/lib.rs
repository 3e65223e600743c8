//! gantry-projector
