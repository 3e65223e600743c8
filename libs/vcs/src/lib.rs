//! gantry-vcs
