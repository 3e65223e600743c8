//! gantry-permissions
