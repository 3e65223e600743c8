//! gantry-output-processor
