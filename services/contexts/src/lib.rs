//! gantry-contexts
