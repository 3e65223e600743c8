//! gantry-masking
