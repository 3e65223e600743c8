//! gantry-compiler
